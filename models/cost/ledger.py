"""Dollars of finished requests, by tenant and model: what the server's metrics, a bill and a load test all add up.

    own      = usd_per_hour / (3600 * capacity_rps * utilization)   for every answered request
    avoided  = what a vendor would have charged for the same request, by its image-token rule and the price book

`capacity_rps` counts successful replies, as a load test's throughput does, so failed attempts are paid for in the price
of the answered ones.  An answer from a cache costs nothing and saves `own`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from models.cost.forecast import SECONDS_PER_HOUR, Amount, Share
from models.cost.usage import Size, vendor_usd
from models.machines import Rate
from models.prices import PriceBook, PriceRow, load_prices
from models.support.errors import UsageError

CENT = Decimal("0.01")
# One request's price is rounded to this once, so that every sum of prices (28 digits) is exact, in whatever order it is
# made; 10 billion requests are then wrong by less than a hundredth of a cent.
FINEST = Decimal("1e-15")


def usd_per_request(usd_per_hour: Decimal, replies_per_s: Decimal, utilization: Decimal = Decimal(1)) -> Decimal:
    """Return dollars of machine time per answered request, rounded to 15 decimals."""
    return (usd_per_hour / (SECONDS_PER_HOUR * replies_per_s * utilization)).quantize(FINEST)


class Tariff(BaseModel):
    """What a request costs here, and whose bill it is compared with: the `money` section of a stack."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    usd_per_hour: Rate = Field(description="Dollars per hour of what one replica runs on, quoted decimal text.")
    capacity_rps: Annotated[Amount, Field(gt=0)] = Field(
        description="Successful replies per second that it sustains at the SLO, from a load test."
    )
    utilization: Annotated[Share, Field(gt=0)] = Field(
        Decimal(1), description="Share of the paid hours in which such load is there."
    )
    against: tuple[str, ...] = Field((), description="Vendor models of the price book whose bill is avoided.")
    prices: str | None = Field(None, description="File with price rows of your own.")
    journal: str | None = Field(
        None, description="Folder that keeps one line per answered request; `fovea bill` makes the bill from it."
    )

    @field_validator("prices", "journal")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        # the replicas are processes of their own, and may run in another folder
        return None if path is None else str(Path(path).expanduser().resolve())

    @model_validator(mode="after")
    def _known(self) -> Tariff:
        if len(set(self.against)) != len(self.against):
            raise ValueError("against names a model twice")
        try:
            book = self.book()
            for model in self.against:
                # a model without a price today or without an image rule is refused here, and not while it serves
                vendor_usd(book.find(model, on=today()), ((64, 64),), 1, 1)
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
        """Return the totals: dollars as decimal text in whole cents, and under `exact` to the last digit."""
        dollars = {
            "own_usd": self.own_usd,
            "cache_saved_usd": self.cache_saved_usd,
            "avoided_usd": self.avoided_usd,
        }
        return {
            "requests": self.requests,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            **_as_text(dollars, cents),
            "exact": _as_text(dollars, lambda usd: f"{usd:f}"),
        }


def _as_text(dollars: Mapping[str, Any], show: Callable[[Decimal], str]) -> dict[str, Any]:
    return {
        name: {model: show(usd) for model, usd in value.items()} if isinstance(value, dict) else show(value)
        for name, value in dollars.items()
    }


def cents(usd: Decimal) -> str:
    """Return dollars in whole cents, half a cent to the even one."""
    return f"{usd.quantize(CENT)}"


def significant(usd: Decimal, digits: int = 12) -> str:
    """Return an amount as plain decimal text with that many significant digits, however small it is."""
    return f"{Decimal(f'{usd:.{digits}g}'):f}"


def usd(amount: Decimal | str) -> str:
    """Return dollars for reading: whole cents from $1 on, else three significant digits."""
    value = Decimal(amount)
    if abs(value) >= 1:
        return f"${value:,.2f}"
    text = significant(value, 3)
    return f"${text.rstrip('0').rstrip('.') if '.' in text else text}"


def today() -> dt.date:
    """Return the day in UTC: the same in every replica, in the journal and on the bill."""
    return dt.datetime.now(dt.UTC).date()


class Ledger:
    """Adds up answered requests as they come.

    Args:
        against: vendor models whose bill is avoided.
        book: the prices; those in force on the day of a request count.
    """

    def __init__(self, against: Sequence[str], book: PriceBook):
        self.against, self.book = tuple(against), book
        self.accounts: dict[tuple[str, str], Account] = {}
        self._rows: dict[dt.date, list[tuple[str, PriceRow]]] = {}

    def add(self, one: Finished, usd: Decimal, day: dt.date) -> None:
        """Count one answered request of a day, `usd` being its own price.

        Raises:
            UsageError: a vendor model has no price on that day, or its rule refuses an image; nothing was added.
        """
        there = self._there(one, day) if one.image_tokens is not None else []
        account = self.accounts.get((one.tenant, one.model))
        if account is None:
            account = self.accounts[one.tenant, one.model] = Account()
        account.requests += 1
        account.prompt_tokens += one.prompt_tokens
        account.completion_tokens += one.completion_tokens
        if one.recalled:
            account.cache_saved_usd += usd
        else:
            account.own_usd += usd
        for model, dollars in there:
            account.avoided_usd[model] = account.avoided_usd.get(model, Decimal(0)) + dollars

    def _there(self, one: Finished, day: dt.date) -> list[tuple[str, Decimal]]:
        """What each vendor would have charged; all of them are known before anything is added."""
        return [
            (model, vendor_usd(row, one.images, one.text_tokens, one.completion_tokens))
            for model, row in self._prices(day)
        ]

    def _prices(self, day: dt.date) -> list[tuple[str, PriceRow]]:
        rows = self._rows.get(day)
        if rows is None:
            rows = self._rows[day] = [(model, self.book.find(model, on=day)) for model in self.against]
        return rows


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
