"""Dollars of finished requests, by tenant and model: what the server's metrics, a bill and a load test all add up.

    own      = usd_per_hour / (3600 * capacity_rps * utilization)   for every answered request
    avoided  = what a vendor would have charged for the same request, by its image-token rule and the price book

`capacity_rps` counts successful replies, as a load test's throughput does, so failed attempts are paid for in the price
of the answered ones.  An answer from a cache costs nothing and saves `own`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.cost.path import SECONDS_PER_HOUR, Amount, Share
from models.cost.usage import Size, vendor_usd
from models.prices import Money, PriceBook, PriceRow, load_prices
from models.support.errors import UsageError

CENT = Decimal("0.01")


def usd_per_request(usd_per_hour: Decimal, replies_per_s: Decimal, utilization: Decimal = Decimal(1)) -> Decimal:
    """Return dollars of machine time per answered request."""
    return usd_per_hour / (SECONDS_PER_HOUR * replies_per_s * utilization)


class Tariff(BaseModel):
    """What a request costs here, and whose bill it is compared with: the `money` section of a stack."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    usd_per_hour: Money = Field(description="Dollars per hour of what one replica runs on, quoted decimal text.")
    capacity_rps: Annotated[Amount, Field(gt=0)] = Field(
        description="Successful replies per second that it sustains at the SLO, from a load test."
    )
    utilization: Annotated[Share, Field(gt=0)] = Field(
        Decimal(1), description="Share of the paid hours in which such load is there."
    )
    against: tuple[str, ...] = Field((), description="Vendor models of the price book whose bill is avoided.")
    prices: str | None = Field(None, description="File with price rows of your own.")

    @model_validator(mode="after")
    def _known(self) -> Tariff:
        if len(set(self.against)) != len(self.against):
            raise ValueError("against names a model twice")
        try:
            book = self.book()
            for model in self.against:
                vendor_usd(book.find(model), ((64, 64),), 1, 1)  # a model without an image rule is refused here
        except UsageError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def usd_per_request(self) -> Decimal:
        """Dollars per answered request."""
        return usd_per_request(self.usd_per_hour, self.capacity_rps, self.utilization)

    def book(self) -> PriceBook:
        """Return the price book, with the section's own rows."""
        return _book(self.prices)


@lru_cache(maxsize=8)
def _book(path: str | None) -> PriceBook:
    return load_prices(Path(path)) if path else load_prices()


@dataclass(frozen=True, slots=True)
class Finished:
    """One answered request.

    Attributes:
        prompt_tokens: the server's own count, image tokens included.
        image_tokens: those of them that its images took; None when nobody knows (no vendor's price then).
        images: (width, height) of each image, px.
        recalled: answered from a cache.
    """

    tenant: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    image_tokens: int | None = 0
    images: tuple[Size, ...] = ()
    recalled: bool = False

    @property
    def text_tokens(self) -> int:
        """Prompt tokens that are not an image's."""
        return max(0, self.prompt_tokens - (self.image_tokens or 0))


@dataclass
class Account:
    """Totals of one tenant and model; money is exact."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    own_usd: Decimal = Decimal(0)
    cache_saved_usd: Decimal = Decimal(0)
    avoided_usd: dict[str, Decimal] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the totals, dollars as decimal text in whole cents and exact."""
        return {
            "requests": self.requests,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "own_usd": cents(self.own_usd),
            "cache_saved_usd": cents(self.cache_saved_usd),
            "avoided_usd": {model: cents(usd) for model, usd in self.avoided_usd.items()},
        }


def cents(usd: Decimal) -> str:
    """Return dollars in whole cents, half a cent to the even one."""
    return f"{usd.quantize(CENT)}"


class Ledger:
    """Adds up finished requests as they come.

    Args:
        tariff: what they cost.
        on: day whose prices count; today's (looked up again when the day changes) when None.
    """

    def __init__(self, tariff: Tariff, on: dt.date | None = None):
        self.tariff, self.on = tariff, on
        self.accounts: dict[tuple[str, str], Account] = {}
        self._each = tariff.usd_per_request
        self._rows: dict[str, PriceRow] = {}
        self._day: dt.date | None = None

    def add(self, one: Finished) -> None:
        """Count one answered request."""
        account = self.accounts.get((one.tenant, one.model))
        if account is None:
            account = self.accounts[one.tenant, one.model] = Account()
        account.requests += 1
        account.prompt_tokens += one.prompt_tokens
        account.completion_tokens += one.completion_tokens
        if one.recalled:
            account.cache_saved_usd += self._each
        else:
            account.own_usd += self._each
        if one.image_tokens is None:
            return
        for model, row in self._prices().items():
            usd = vendor_usd(row, one.images, one.text_tokens, one.completion_tokens)
            account.avoided_usd[model] = account.avoided_usd.get(model, Decimal(0)) + usd

    def _prices(self) -> dict[str, PriceRow]:
        day = self.on or dt.date.today()
        if day != self._day:
            book = self.tariff.book()
            self._rows = {model: book.find(model, on=self.on) for model in self.tariff.against}
            self._day = day
        return self._rows


def bill(requests: Iterable[Finished], tariff: Tariff, on: dt.date | None = None) -> dict[str, Any]:
    """Return the bill of some finished requests: a line per tenant and model, and the total; dollars in whole cents.

    The total is rounded once, from the exact sum: it may differ by a cent from the sum of the rounded lines.
    """
    ledger = Ledger(tariff, on)
    for one in requests:
        ledger.add(one)
    accounts = ledger.accounts
    return {
        "currency": "USD",
        "lines": [
            {"tenant": tenant, "model": model, **account.as_dict()}
            for (tenant, model), account in sorted(accounts.items())
        ],
        "total": total(accounts).as_dict(),
    }


def total(accounts: Mapping[Any, Account]) -> Account:
    """Return the exact sum of some accounts."""
    whole = Account()
    for one in accounts.values():
        whole.requests += one.requests
        whole.prompt_tokens += one.prompt_tokens
        whole.completion_tokens += one.completion_tokens
        whole.own_usd += one.own_usd
        whole.cache_saved_usd += one.cache_saved_usd
        for model, usd in one.avoided_usd.items():
            whole.avoided_usd[model] = whole.avoided_usd.get(model, Decimal(0)) + usd
    return whole
