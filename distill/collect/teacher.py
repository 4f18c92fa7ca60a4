"""A teacher of the recipe, opened: a vendor through its SDK, or any server with OpenAI's API."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from distill.collect.pace import Pace
from distill.recipe.ask import Teacher
from models.image_tokens import image_tokens
from models.prices import PriceBook, PriceRow, Usage
from models.providers import VENDORS, Ask, Provider, SpendLimit, open_provider, vendor_of
from models.providers.base import CHARACTERS_PER_TOKEN
from models.support.errors import UsageError

SELF_HOSTED = "self-hosted"


@dataclass
class OpenTeacher:
    """A teacher that can be asked.

    Attributes:
        price: what its rows remember of the price; None for a self-hosted model without one.
        poor: unusable answers in a row, so far.
    """

    settings: Teacher
    provider: Provider
    vendor: str
    requests: Pace
    tokens: Pace
    price: dict[str, str] | None
    pause: Callable[[float], Awaitable[None]]
    slots: asyncio.Semaphore = field(init=False)
    poor: int = 0

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.settings.concurrency)

    async def keep_pace(self, ask: Ask) -> None:
        """Wait until the account's rate limits allow one more request."""
        await self.requests.wait()
        if self.settings.tokens_per_minute is not None:
            await self.tokens.wait(self._tokens_at_most(ask))

    def _tokens_at_most(self, ask: Ask) -> int:
        words = len((ask.text + (ask.system or "")).encode()) // CHARACTERS_PER_TOKEN + 200
        return words + ask.max_tokens + sum(self._image_tokens(i.width, i.height) for i in ask.images)

    def _image_tokens(self, width: int, height: int) -> int:
        if self.settings.self_hosted:
            return self.settings.price.image_tokens_at_most if self.settings.price is not None else 1024
        return image_tokens(self.provider.model, width, height).tokens


def open_teacher(
    teacher: Teacher,
    book: PriceBook,
    spend: SpendLimit,
    *,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> OpenTeacher:
    """Return the teacher, priced and under the spend limit.

    Raises:
        UsageError: no key, unknown vendor or model, or no price for a vendor's model.
    """
    opened = _self_hosted(teacher, spend, pause) if teacher.self_hosted else _vendor(teacher, book, spend, pause)
    provider, vendor = opened
    price = None
    if provider.price is not None:
        row = provider.price
        price = {"input": f"{row.input:f}", "output": f"{row.output:f}", "since": str(row.effective_from),
                 "source": row.source}  # fmt: skip
        if teacher.batch is not None:
            price["batch_factor"] = str(row.batch_factor)
    pace = (Pace(teacher.requests_per_minute, pause=pause), Pace(teacher.tokens_per_minute, pause=pause))
    return OpenTeacher(teacher, provider, vendor, *pace, price, pause)


def _key(teacher: Teacher) -> str | None:
    if teacher.api_key_env is None:
        return None
    key = os.environ.get(teacher.api_key_env)
    if not key:
        raise UsageError(
            "the environment variable is not set",
            field=f"teacher {teacher.name}: api_key_env",
            value=teacher.api_key_env,
        )
    return key


def _vendor(
    teacher: Teacher, book: PriceBook, spend: SpendLimit, pause: Callable[[float], Awaitable[None]]
) -> tuple[Provider, str]:
    vendor, _ = vendor_of(teacher.model, book)
    provider = open_provider(
        teacher.model,
        api_key=_key(teacher),
        base_url=teacher.vendor_url,
        book=book,
        spend=spend,
        timeout_s=teacher.timeout_s,
        attempts=teacher.attempts,
        pause=pause,
    )
    if teacher.batch is None:
        return provider, vendor
    from distill.collect.batches import BATCHES

    if provider.price is None or provider.price.batch_factor is None:
        raise UsageError(
            "the price book has no batch price", field=f"teacher {teacher.name}: batch", value=teacher.model,
            fix="leave batch out, or add batch_factor in a file named by budget.prices",
        )  # fmt: skip
    names = (teacher.api_key_env,) if teacher.api_key_env is not None else VENDORS[vendor].key_variables
    batched = BATCHES[vendor](
        provider.model,
        api_key=next(os.environ[name] for name in names if os.environ.get(name)),
        base_url=teacher.vendor_url,
        timeout_s=teacher.timeout_s,
        price=provider.price,
    )
    return batched, vendor


def _self_hosted(
    teacher: Teacher, spend: SpendLimit, pause: Callable[[float], Awaitable[None]]
) -> tuple[Provider, str]:
    from models.providers.openai import OpenAIProvider

    class SelfHosted(OpenAIProvider):
        """A server whose rule for image tokens is unknown: the recipe says how many an image can be."""

        vendor = SELF_HOSTED

        def estimate(self, ask: Ask) -> Decimal:
            if self.price is None or teacher.price is None:
                return Decimal(0)
            tokens = len((ask.text + (ask.system or "")).encode()) // CHARACTERS_PER_TOKEN + 200
            tokens += len(ask.images) * teacher.price.image_tokens_at_most
            return self.price.cost(Usage(tokens, ask.max_tokens)).total

    row = None
    if teacher.price is not None:
        today = dt.date.today()
        row = PriceRow(vendor=SELF_HOSTED, model=teacher.model, input=teacher.price.input, output=teacher.price.output,
                       effective_from=today, read=today, source="recipe", confidence="high")  # fmt: skip
    arguments: dict[str, Any] = {"price": row, "spend": spend if row is not None else None}
    provider = SelfHosted(
        teacher.model,
        api_key=_key(teacher) or "none",
        base_url=teacher.base_url,
        timeout_s=teacher.timeout_s,
        attempts=teacher.attempts,
        pause=pause,
        **arguments,
    )
    return provider, SELF_HOSTED
