"""The protocol: what is asked, what comes back, and what every vendor's class shares."""

from __future__ import annotations

import abc
import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from models.image_tokens import image_tokens
from models.prices import PriceRow, TokenCost, Usage
from models.providers.errors import ProviderError
from models.providers.spend import SpendLimit
from models.support.errors import UsageError

# Fewer characters per token than any of the vendors' tokenizers has on prose: the estimate errs on the dear side.
CHARACTERS_PER_TOKEN = 2


@dataclass(frozen=True)
class ImagePart:
    """One encoded image.  `width` and `height` in pixels are only needed to estimate the price before asking."""

    data: bytes = field(repr=False)
    media_type: str
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Tool:
    """A function the model may call; `parameters` is a JSON Schema of an object."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asks for.  `arguments` is parsed; a vendor's broken JSON becomes {"_raw": text}."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Ask:
    """One question.

    Attributes:
        text: the user's words, placed after the images.
        temperature: not sent when None: the newest models of two vendors refuse any.
        max_tokens: longest answer, thinking included where the vendor counts it.
    """

    text: str
    images: tuple[ImagePart, ...] = ()
    system: str | None = None
    max_tokens: int = 256
    temperature: float | None = None
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        usage: as the vendor reports it (cached tokens included in input); None when it reported none.
        cost: price of `usage` by the book; None without usage or without a price.
        latency_ms: from sending to the last byte, of the attempt that succeeded; `ttft_ms` to the first text (streams).
        image_tokens: what the vendor reports of the images alone, where it does.
        image_tokens_by_rule: what the documented formula says of the images; None where sizes or rule are unknown.
        finish_reason: `stop`, `length`, `tool_calls`, `refused` or the vendor's own word.
        attempts: requests sent.
    """

    vendor: str
    model: str
    text: str
    usage: Usage | None
    cost: TokenCost | None
    latency_ms: float
    finish_reason: str
    tool_calls: tuple[ToolCall, ...] = ()
    ttft_ms: float | None = None
    image_tokens: int | None = None
    image_tokens_by_rule: int | None = None
    attempts: int = 1

    @property
    def image_tokens_difference(self) -> int | None:
        """Reported image tokens minus those by rule: what the formula gets wrong.

        Where a vendor reports no image tokens, only an input smaller than the formula can show it (a negative number).
        """
        if self.usage is None or self.image_tokens_by_rule is None:
            return None
        if self.image_tokens is not None:
            return self.image_tokens - self.image_tokens_by_rule
        short = self.usage.input_tokens - self.image_tokens_by_rule
        return short if short < 0 else None


@dataclass(frozen=True)
class Delta:
    """A piece of a stream: text, and at the very end the whole reply."""

    text: str = ""
    reply: Reply | None = None


@dataclass(frozen=True)
class Parsed:
    """What a vendor's class takes out of its own reply format."""

    text: str
    usage: Usage | None
    finish_reason: str
    tool_calls: tuple[ToolCall, ...] = ()
    model: str | None = None
    image_tokens: int | None = None


class Provider(abc.ABC):
    """One model of one vendor.  `ask` and `stream` retry, price and keep the spend limit; subclasses only translate.

    Life cycle: construct, `ask`/`stream` any number of times (concurrently), `close`.
    """

    vendor: str

    def __init__(
        self,
        model: str,
        *,
        price: PriceRow | None = None,
        spend: SpendLimit | None = None,
        attempts: int = 4,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        """Args:
        price: row of the price book; None: replies have no cost, and a spend limit is refused.
        spend: shared by all providers of a run.
        attempts: requests per question at most; only errors that may pass are repeated.
        pause: waits between attempts; replaced in tests.
        """
        if spend is not None and price is None:
            raise UsageError(
                "a spend limit needs a price",
                field="model",
                value=model,
                fix="add the model to a file given with --prices",
            )
        self.model, self.price, self.spend, self.attempts, self._pause = model, price, spend, attempts, pause
        # A 429 of one request holds back all of them until the vendor's own time has passed.
        self._resume_at = 0.0

    @abc.abstractmethod
    async def _send(self, ask: Ask) -> Parsed:
        """Send one request; raise ProviderError."""

    @abc.abstractmethod
    def _send_stream(self, ask: Ask) -> AsyncIterator[str | Parsed]:
        """Send one request; yield text as it comes and the parsed whole at the end; raise ProviderError."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Close the connections."""

    async def ask(self, ask: Ask) -> Reply:
        """Return the answer.

        Raises:
            ProviderError: after the last attempt, or at once when it cannot pass.
            SpendLimitReached: the request could pass the limit; nothing was sent.
        """
        with self._reservation(ask) as ticket:
            for attempt in range(1, self.attempts + 1):
                await self._hold_back()
                started = time.perf_counter()
                try:
                    parsed = await self._send(ask)
                except ProviderError as error:
                    if not error.retryable or attempt == self.attempts:
                        raise
                    ticket.lost(error)
                    await self._pause(self._backoff(attempt, error))
                    continue
                reply = self._reply(ask, parsed, started, attempt)
                ticket.settle(reply.cost)
                return reply
        raise AssertionError("the last attempt returns or raises")

    async def stream(self, ask: Ask) -> AsyncIterator[Delta]:
        """Yield the text as it comes, then one `Delta` with the reply.

        Nothing is repeated once text has come: the caller may have shown it.

        Raises:
            CutStream: the stream broke off; `partial` holds the text so far.
            ProviderError, SpendLimitReached: as `ask`.
        """
        with self._reservation(ask) as ticket:
            for attempt in range(1, self.attempts + 1):
                await self._hold_back()
                started, first = time.perf_counter(), None
                try:
                    async for piece in self._send_stream(ask):
                        if isinstance(piece, Parsed):
                            reply = self._reply(ask, piece, started, attempt)
                            ticket.settle(reply.cost)
                            yield Delta(reply=replace(reply, ttft_ms=first))
                            return
                        first = first if first is not None else (time.perf_counter() - started) * 1e3
                        yield Delta(piece)
                except ProviderError as error:
                    if not error.retryable or attempt == self.attempts or first is not None:
                        raise
                    ticket.lost(error)
                    await self._pause(self._backoff(attempt, error))

    def estimate(self, ask: Ask) -> Decimal:
        """Return the most this question can cost: images by rule, text generously, the longest answer.

        Raises:
            UsageError: no price, no size of an image, or no image rule.
        """
        if self.price is None:
            raise UsageError("no price to estimate with", field="model", value=self.model)
        text = (
            ask.text + (ask.system or "") + "".join(f"{t.name}{t.description}{dict(t.parameters)}" for t in ask.tools)
        )
        tokens = len(text.encode()) // CHARACTERS_PER_TOKEN + 200
        tokens += sum(image_tokens(self.model, part.width, part.height).tokens for part in ask.images)
        return self.price.cost(Usage(tokens, ask.max_tokens)).total

    def _reservation(self, ask: Ask) -> SpendLimit.Ticket:
        return self.spend.reserve(self.estimate(ask)) if self.spend is not None else SpendLimit.Ticket(None, Decimal(0))

    async def _hold_back(self) -> None:
        wait = self._resume_at - time.monotonic()
        if wait > 0:
            await self._pause(wait)

    def _backoff(self, attempt: int, error: ProviderError) -> float:
        """Seconds to wait: what the vendor asks for, otherwise 0.5, 1, 2... with jitter, at most 60."""
        if error.retry_after_s is not None:
            wait = min(error.retry_after_s, 60.0)
            self._resume_at = max(self._resume_at, time.monotonic() + wait)
            return wait
        return min(60.0, 0.5 * 2 ** (attempt - 1)) * random.uniform(0.75, 1.25)

    def _reply(self, ask: Ask, parsed: Parsed, started: float, attempt: int) -> Reply:
        cost = self.price.cost(parsed.usage) if self.price is not None and parsed.usage is not None else None
        return Reply(
            vendor=self.vendor,
            model=parsed.model or self.model,
            text=parsed.text,
            usage=parsed.usage,
            cost=cost,
            latency_ms=(time.perf_counter() - started) * 1e3,
            finish_reason=parsed.finish_reason,
            tool_calls=parsed.tool_calls,
            image_tokens=parsed.image_tokens,
            image_tokens_by_rule=self._by_rule(ask),
            attempts=attempt,
        )

    def _by_rule(self, ask: Ask) -> int | None:
        if not all(part.width and part.height for part in ask.images):
            return None
        try:
            return sum(image_tokens(self.model, part.width, part.height).tokens for part in ask.images)
        except UsageError:
            return None


def count(value: object) -> int:
    """Return a token count out of a reply: missing or null is 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
