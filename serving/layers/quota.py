"""How much a tenant may ask: requests, tokens and image tokens per minute, requests at once, dollars per month.

A request reserves what it may take (its text by length, its images by the model's own rule from the sizes in their
headers, its answer by `max_tokens`) before any pixel is decoded, and settles with the engine's own count afterwards.
Over a limit it waits in a short queue with a deadline, then gets 429 with Retry-After; the error's `code` and
`x-fovea-limit` name the limit.  Answers carry `x-ratelimit-{limit,remaining,reset}-{requests,tokens,image-tokens}`.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import math
import time
import uuid
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import count
from typing import TYPE_CHECKING, Any

from models.support.errors import UsageError
from serving.errors import ApiError, StoreDown
from serving.exchange import FORMS, Exchange, api_path, content_type, exchange_of
from serving.facts import FACTS
from serving.layers.money import ANSWERS, Watch, ask_for_usage
from serving.metrics import METRICS
from serving.quota import Ask, MemoryQuota, Verdict, duration, month_of, open_quota

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from serving.stack import Model, Stack
    from serving.tenants import Quota as Limits

logger = logging.getLogger("fovea.serving")
NANO = Decimal(10) ** 9
HEADERS = ("requests", "tokens", "image-tokens")
FREE = ("/tokenize", "/detokenize", "/v1/messages/count_tokens")
"""Routes that count as requests, but neither take tokens nor cost money."""
POLL_S = 0.05
BREAK_S = 1.0
"""After a failure the store is left alone for so long: no request waits for its time-out but the first."""


@dataclass
class Line:
    """Requests of one tenant that wait in this replica; the lock is granted in the order of arrival."""

    waiting: int = 0
    first: asyncio.Lock = field(default_factory=asyncio.Lock)
    verdict: Verdict | None = None


class Quota:
    """See the module's docstring."""

    def __init__(self, app: ASGIApp, stack: Stack, model: Model):
        assert stack.admit is not None
        self.app, self.section, self.model = app, stack.admit, model
        self.store = open_quota(stack.admit.store)
        self.nano = int(stack.money.usd_per_request * NANO) if stack.money else 0
        self.lines: dict[str, Line] = {}
        self.running: dict[str, Ask] = {}
        self.name, self.numbers = uuid.uuid4().hex[:12], count()
        self.closed_until = 0.0
        self.month, self.month_began, self.month_ends = "", 0.0, 0.0
        self.tasks: set[asyncio.Task[None]] = set()
        self.renewal: asyncio.Task[None] | None = None
        self.limited = METRICS.limited if stack.metrics else None

    async def start(self) -> None:
        """Reach the store once, and keep the leases of running requests alive from now on.

        Raises:
            UsageError: it cannot be reached, and `on_failure` is `refuse`.
        """
        probe = Ask("", ((None, 0),) * 3, None, None, "probe", 1.0, "")
        try:
            await self.store.take(probe)
        except StoreDown as error:
            if self.section.on_failure == "refuse":
                fix = "start the store, or set `on_failure: open`"
                raise UsageError(f"cannot reach the counters: {error}", field="admit.store", fix=fix) from error
            self._down(error)
        self.renewal = asyncio.create_task(self._renew())

    async def stop(self) -> None:
        """Write what is not written yet and close the store."""
        if self.renewal is not None:
            self.renewal.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.store.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or "fovea.canary" in scope:
            await self.app(scope, receive, send)
            return
        path = api_path(scope)
        exchange = exchange_of(scope)
        limits = (exchange.identity and exchange.identity.tenant.limits) or self.section.default
        if not limits.binds or path.startswith("/fovea/"):
            await self.app(scope, receive, send)
            return
        answers = path not in FREE
        prompts, costs = self._costs(exchange, scope) if answers else (0, (1, 0, 0))
        ask = self._ask(exchange.tenant, limits, costs, prompts)
        began = time.perf_counter()
        verdict, queued = await self._enter(ask, began, deadline_of(scope, self.section.queue_s))
        if verdict is None:  # the store is gone, and the stack says to go on
            await self.app(scope, receive, send)
            return
        headers = rate_headers(ask, verdict)
        if queued:
            headers.append((b"x-fovea-queued-ms", str(round((time.perf_counter() - began) * 1000)).encode()))
        watch = Watch(_with_headers(send, headers), hide=path in ANSWERS and ask_for_usage(exchange, scope))
        self.running[ask.lease] = ask
        try:
            await self.app(scope, receive, watch.send)
        finally:
            del self.running[ask.lease]
            left = exchange.error_kind == "client_left"  # then the engine has worked, and nobody knows how much
            self._settle(ask, exchange, watch, failed=watch.status >= 400 or (not watch.status and not left))

    def _costs(self, exchange: Exchange, scope: Scope) -> tuple[int, tuple[int, int, int]]:
        """Return the prompts of a request, and what it may take: (1, tokens, image tokens)."""
        count_tokens = FACTS.image_tokens
        sizes = [opened.image.size for opened in exchange.found]
        images = sum(count_tokens(*size) for size in sizes) if count_tokens else 0
        exchange.image_tokens = images
        body = exchange.body or b""
        text = max(0, len(body) - sum(len(opened.item.url) for opened in exchange.found))
        answer, prompts = 0, 1
        if body and api_path(scope) != "/v1/embeddings" and content_type(scope) not in FORMS:
            parsed = exchange.json()
            named = ("max_completion_tokens", "max_tokens", "max_output_tokens")
            answer = next((value for name in named if (value := _whole(parsed.get(name)))), self.section.reserve_tokens)
            if self.model.max_model_len:
                answer = min(answer, self.model.max_model_len)
            prompts = prompts_in(parsed)
            answer *= min(_whole(parsed.get("n")) or 1, 128) * prompts
        return prompts, (1, text // 4 + images + answer, images)

    def _ask(self, tenant: str, limits: Limits, costs: tuple[int, int, int], prompts: int) -> Ask:
        most = (limits.requests_per_minute, limits.tokens_per_minute, limits.image_tokens_per_minute)
        budget = None
        if limits.usd_per_month is not None and prompts:
            budget = (int(limits.usd_per_month * NANO), self.nano * prompts)
        now = time.time()
        if not self.month_began <= now < self.month_ends:
            self.month, left = month_of(dt.datetime.now(dt.UTC))
            self.month_began, self.month_ends = now, now + left
        lease = f"{self.name}-{next(self.numbers)}"
        rates = tuple(zip(most, costs, strict=True))
        return Ask(tenant, rates, limits.concurrent, budget, lease, self.section.lease_s, self.month)

    async def _enter(self, ask: Ask, began: float, patience: float) -> tuple[Verdict | None, bool]:
        """Return the verdict that lets a request in, and whether it had to wait.

        There is no verdict when the store is gone and that is to be overlooked.

        Raises:
            ApiError: 429, over a limit; 503, the store is gone.
        """
        line = self.lines.setdefault(ask.tenant, Line())
        if not line.waiting:
            line.verdict = verdict = await self._take(ask)
            if verdict is None or not verdict.refused:
                return verdict, False
            if not worth_waiting(verdict, patience):
                raise self._refusal(ask, verdict)
        if line.waiting >= self.section.queue and line.verdict is not None:
            raise self._refusal(ask, line.verdict)
        line.waiting += 1
        try:
            async with asyncio.timeout(patience - (time.perf_counter() - began)), line.first:
                while True:
                    line.verdict = verdict = await self._take(ask)
                    if verdict is None or not verdict.refused:
                        return verdict, True
                    left = patience - (time.perf_counter() - began)
                    if not worth_waiting(verdict, left):
                        raise self._refusal(ask, verdict)
                    await asyncio.sleep(verdict.wait or POLL_S)
        except TimeoutError as error:
            assert line.verdict is not None
            raise self._refusal(ask, line.verdict) from error
        finally:
            line.waiting -= 1

    async def _take(self, ask: Ask) -> Verdict | None:
        if time.monotonic() >= self.closed_until:
            try:
                verdict = await self.store.take(ask)
                FACTS.degraded.pop("admit", None)
                return verdict
            except StoreDown as error:
                self._down(error)
        if self.section.on_failure == "open":
            return None
        raise ApiError(503, "The limits cannot be checked at the moment.", kind="limits_unavailable", retry_after=1)

    def _down(self, error: StoreDown) -> None:
        logger.warning("the store of the limits does not answer: %s", error)
        FACTS.degraded["admit"] = f"limits are not counted: {error}"
        self.closed_until = time.monotonic() + BREAK_S

    def _refusal(self, ask: Ask, verdict: Verdict) -> ApiError:
        limit = verdict.refused[0] if verdict.refused else "queue"
        wait = verdict.wait
        if "usd_per_month" in verdict.refused:
            limit = "usd_per_month"
            _, wait = month_of(dt.datetime.now(dt.UTC))
        seconds = max(1, math.ceil(wait or 1))
        if self.limited is not None:
            self.limited.labels(self.model.name, ask.tenant, limit).inc()
        headers = (*rate_headers(ask, verdict), (b"x-fovea-limit", limit.encode()))
        text = f"Tenant {ask.tenant!r} is at its limit {limit}. Try again in {seconds} s."
        return ApiError(429, text, kind=limit, retry_after=seconds, headers=headers)

    def _settle(self, ask: Ask, exchange: Exchange, watch: Watch, failed: bool) -> None:
        """Give back what was reserved and not used, in the background; a client that left mid-answer pays it all."""
        reserved = tuple(cost for _, cost in ask.rates)
        back, nano = (0, 0, 0), 0
        if failed or exchange.notes.get("recalled"):
            back, nano = (0, reserved[1], reserved[2]), ask.budget[1] if ask.budget else 0
        elif watch.ended and watch.usage is not None:
            back = (0, reserved[1] - sum(watch.usage), reserved[2] - exchange.image_tokens)
        if ask.concurrent is None and not nano and not any(back):
            return
        if isinstance(self.store, MemoryQuota):
            self.store.give_back(ask, back, nano)
            return
        task = asyncio.create_task(self._write(ask, back, nano))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _write(self, ask: Ask, back: tuple[int, int, int], nano: int) -> None:
        try:
            await self.store.settle(ask, back, nano)
        except StoreDown as error:
            self._down(error)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self.section.lease_s / 3)
            leased = [ask for ask in self.running.values() if ask.concurrent is not None]
            if leased and time.monotonic() >= self.closed_until:
                try:
                    await self.store.renew(leased)
                except StoreDown as error:
                    self._down(error)


def prompts_in(body: dict[str, Any]) -> int:
    """Return how many prompts (completions) or conversations (a batch) a body has."""
    for key in ("prompt", "messages"):
        value = body.get(key)
        if isinstance(value, list) and value and isinstance(value[0], str if key == "prompt" else list):
            return len(value)
        if key == "prompt" and isinstance(value, list) and value and isinstance(value[0], list):
            return len(value)
    return 1


def worth_waiting(verdict: Verdict, seconds: float) -> bool:
    """Whether all limits may have room again within some time."""
    return "usd_per_month" not in verdict.refused and (verdict.wait or 0.0) < seconds


def deadline_of(scope: Scope, most: float) -> float:
    """Return the seconds that a request may wait: the stack's, or fewer where `x-fovea-deadline-ms` says so."""
    for name, value in scope["headers"]:
        if name == b"x-fovea-deadline-ms" and value.isdigit():
            return min(most, int(value[:9]) / 1000)
    return most


def rate_headers(ask: Ask, verdict: Verdict) -> list[tuple[bytes, bytes]]:
    """Return the vendors' headers for every rate that is limited."""
    found = []
    for name, (limit, _), left in zip(HEADERS, ask.rates, verdict.left, strict=True):
        if limit is not None and left is not None:
            reset = duration(max(0.0, limit - left) * 60 / limit)
            for what, value in (("limit", limit), ("remaining", max(0, math.floor(left))), ("reset", reset)):
                found.append((f"x-ratelimit-{what}-{name}".encode(), str(value).encode()))
    return found


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _with_headers(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        await send(message)

    return sending
