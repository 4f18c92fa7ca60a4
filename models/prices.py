"""The price book: what the vendors charge per 1M tokens, since when, and who says so (`prices.yaml`).

Money is `decimal.Decimal`, exact to the last digit; nothing here rounds.
"""

from __future__ import annotations

import datetime as dt
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from models.image_tokens.names import match_name
from models.support.errors import UsageError

BOOK = Path(__file__).with_name("prices.yaml")
MILLION = Decimal(1_000_000)
T = TypeVar("T", bound=BaseModel)
STALE_AFTER_DAYS = 90
# Far above any price ever asked ($600 per 1M tokens); a figure beyond it is a slip of the unit or of the decimal point.
ABSURD_PER_MILLION = Decimal(10_000)


def parse_money(value: object) -> Decimal:
    """Return a finite Decimal from decimal text or an int.

    Raises:
        ValueError: a float (it has already lost digits), not a number, negative or not finite.
    """
    if isinstance(value, bool | float):
        raise ValueError(f"write it as quoted decimal text, for example {str(value)!r}")
    if not isinstance(value, str | int | Decimal):
        raise ValueError("must be decimal text")
    try:
        amount = Decimal(value)
    except InvalidOperation:
        raise ValueError("is not a decimal number") from None
    if not amount.is_finite():
        raise ValueError("must be finite")
    if amount < 0:
        raise ValueError("must not be negative")
    return amount


def _parse_price(value: object) -> Decimal:
    amount = parse_money(value)
    if amount > ABSURD_PER_MILLION:
        raise ValueError(f"is above ${ABSURD_PER_MILLION:,} per 1M tokens, which no vendor asks")
    return amount


Money = Annotated[Decimal, BeforeValidator(parse_money)]
Price = Annotated[Decimal, BeforeValidator(_parse_price)]


@dataclass(frozen=True)
class Usage:
    """Tokens of one request.  `input_tokens` includes the `cached_tokens` part and the image tokens."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0

    def __post_init__(self) -> None:
        for name in ("input_tokens", "output_tokens", "cached_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise UsageError("must be a whole number of tokens, 0 or more", field=name, value=value)
        if self.cached_tokens > self.input_tokens:
            raise UsageError("is more than input_tokens", field="cached_tokens", value=self.cached_tokens)


@dataclass(frozen=True)
class TokenCost:
    """US dollars of one request, by part; `total` is their exact sum."""

    input: Decimal
    cached: Decimal
    output: Decimal

    @property
    def total(self) -> Decimal:
        return self.input + self.cached + self.output


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tier(_Strict):
    """Prices per 1M tokens; `cached` is None where no cached price is known."""

    input: Price
    cached: Price | None = None
    output: Price

    @model_validator(mode="after")
    def _cached_is_a_discount(self) -> Tier:
        if self.cached is not None and self.cached > self.input:
            raise ValueError(f"cached ({self.cached}) is above input ({self.input})")
        return self


class LongContext(Tier):
    """Prices of the whole request when its input is longer than `above` tokens."""

    above: int = Field(gt=0)


class PriceRow(Tier):
    """One row of the book: a price, since when, and who says so."""

    vendor: str = Field(min_length=1)
    model: str = Field(min_length=1)
    set: str = "list"
    batch_factor: Annotated[Money, Field(gt=0, le=1)] | None = None
    long_context: LongContext | None = None
    effective_from: dt.date
    read: dt.date
    source: str = Field(min_length=1)
    confidence: str = "unknown"
    note: str | None = None
    currency: str = "USD"
    usd_per_unit: Annotated[Money, Field(gt=0)] | None = Field(
        default=None, description="dollars for one unit of `currency`; required when it is not USD"
    )

    @model_validator(mode="after")
    def _coherent(self) -> PriceRow:
        if self.currency != "USD" and self.usd_per_unit is None:
            raise ValueError(f"currency is {self.currency}: give usd_per_unit, the dollars for one {self.currency}")
        long = self.long_context
        if long is not None:
            cheaper = [n for n in ("input", "output") if getattr(long, n) < getattr(self, n)]
            if long.cached is not None and self.cached is not None and long.cached < self.cached:
                cheaper.append("cached")
            if cheaper:
                raise ValueError(f"long_context.{cheaper[0]} is below the normal price: more tokens would cost less")
        return self

    def age_days(self, today: dt.date | None = None) -> int:
        """Days since the source was last read."""
        return ((today or dt.date.today()) - self.read).days

    def is_stale(self, today: dt.date | None = None) -> bool:
        """Whether the source was last read more than 90 days ago."""
        return self.age_days(today) > STALE_AFTER_DAYS

    def cost(self, usage: Usage, *, batch: bool = False, requests: int = 1) -> TokenCost:
        """Return what `usage` costs in dollars; it may be the sum of several `requests` of like size (tier by mean).

        In a batch, input and output cost `batch_factor` of the price; cached input costs the lower of its own price and
        the batch price of input, so that a batch never costs more.

        Raises:
            UsageError: the row lacks a tier that `usage` needs (cached tokens, batch).
        """
        long = self.long_context
        tier: Tier = long if long is not None and usage.input_tokens > long.above * requests else self
        factor = Decimal(1)
        if batch:
            if self.batch_factor is None:
                raise self._missing("batch price", "batch_factor")
            factor = self.batch_factor
        cached_price = Decimal(0)
        if usage.cached_tokens:
            if tier.cached is None:
                raise self._missing("price for cached tokens", "cached")
            cached_price = min(tier.cached, tier.input * factor)
        unit = (self.usd_per_unit or Decimal(1)) / MILLION
        return TokenCost(
            input=(usage.input_tokens - usage.cached_tokens) * tier.input * factor * unit,
            cached=usage.cached_tokens * cached_price * unit,
            output=usage.output_tokens * tier.output * factor * unit,
        )

    def _missing(self, what: str, key: str) -> UsageError:
        name = f"{self.vendor}/{self.model} since {self.effective_from}"
        return UsageError(f"the book has no {what}", field=name, fix=f"add {key} in a file given with --prices")


@dataclass(frozen=True)
class PriceBook:
    """All rows, the user's in the place of the shipped ones of the same vendor, model and set."""

    rows: tuple[PriceRow, ...]

    @cached_property
    def models(self) -> tuple[str, ...]:
        """Model names of the vendors' list, in the order of the book."""
        return tuple(dict.fromkeys(row.model for row in self.rows if row.set == "list"))

    @property
    def sets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.set for row in self.rows))

    def only(self, set: str) -> PriceBook:
        """Return a book in which the rows of one set (the articles' prices, say) are the list.

        Raises:
            UsageError: there is no such set.
        """
        rows = tuple(row.model_copy(update={"set": "list"}) for row in self.rows if row.set == set)
        if not rows:
            raise UsageError("unknown row set", field="set", value=set, fix=f"one of {', '.join(self.sets)}")
        return PriceBook(rows)

    def find(self, model: str, *, vendor: str | None = None, on: dt.date | None = None, set: str = "list") -> PriceRow:
        """Return the row in force on `on` (today when None).

        Raises:
            UsageError: unknown model (closest names offered), or no price known for that day.
        """
        rows = [r for r in self.rows if r.set == set and (vendor is None or r.vendor == vendor)]
        if not rows:
            raise UsageError(
                "no rows", field="set, vendor", value=f"{set}, {vendor}", fix=f"sets: {', '.join(self.sets)}"
            )
        names = list(dict.fromkeys(r.model for r in rows))
        name = match_name(model, names)
        if name is None:
            close = difflib.get_close_matches(model.casefold(), names, n=3, cutoff=0.5)
            fix = f"did you mean {', '.join(close)}?" if close else "`fovea models prices` lists the known models"
            raise UsageError("no price for this model", field="model", value=model, fix=fix)
        return in_force([r for r in rows if r.model == name], on)

    def current(self, *, on: dt.date | None = None, set: str = "list") -> list[PriceRow]:
        """Return the row in force of every model of `set`, in the order of the book; later models are left out."""
        found = []
        for model in dict.fromkeys(r.model for r in self.rows if r.set == set):
            rows = [r for r in self.rows if r.set == set and r.model == model]
            if on is None or any(r.effective_from <= on for r in rows):
                found.append(in_force(rows, on))
        return found


def in_force(rows: list[PriceRow], on: dt.date | None) -> PriceRow:
    """Return the latest row of one model that is in force on `on`; without a date: today, or else the earliest known.

    Raises:
        UsageError: a date was given, and every row is later.
    """
    started = [r for r in rows if r.effective_from <= (on or dt.date.today())]
    if started:
        return max(started, key=lambda r: r.effective_from)
    first = min(rows, key=lambda r: r.effective_from)
    if on is None:
        return first
    fix = f"the earliest price known is of {first.effective_from}"
    raise UsageError(f"no price of {first.model} on that day", field="on", value=str(on), fix=fix)


def load_prices(override: Path | str | None = None, *, book: Path = BOOK) -> PriceBook:
    """Return the shipped book, with the rows of `override` in the place of those of the same vendor, model and set.

    Raises:
        UsageError: a file cannot be read or a row is wrong; the error names file, row and key.
    """
    shipped = read_rows(book, PriceRow)
    own = read_rows(Path(override), PriceRow) if override is not None else []
    replaced = {(r.vendor, r.model, r.set) for r in own}
    rows = [r for r in shipped if (r.vendor, r.model, r.set) not in replaced] + own
    keys: dict[tuple[object, ...], PriceRow] = {}
    for row in rows:
        key = (row.vendor, row.model, row.set, row.effective_from)
        if key in keys:
            name = f"{row.vendor}/{row.model}"
            raise UsageError("two prices since the same day", field=name, value=str(row.effective_from), fix="keep one")
        keys[key] = row
    return PriceBook(tuple(rows))


def read_rows(path: Path, kind: type[T]) -> list[T]:
    """Return the `rows` of a YAML file as `kind`.  Raises UsageError naming the file, the row and the key at fault."""
    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read: {error.strerror}", field=str(path), fix="name an existing file") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        reason = str(getattr(error, "problem", None) or type(error).__name__)
        raise UsageError(f"not YAML: {reason}", field=str(path)) from error
    if not isinstance(data, dict) or data.keys() != {"rows"} or not isinstance(data["rows"], list) or not data["rows"]:
        raise UsageError("must have one key, rows, with a list of rows", field=str(path))
    return [_parse_row(raw, kind, f"{path}: rows[{number}]") for number, raw in enumerate(data["rows"])]


def _parse_row(raw: object, kind: type[T], where: str) -> T:
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = " ".join(str(raw.get(k)) for k in ("model", "machine") if raw.get(k)) if isinstance(raw, dict) else ""
        key = ".".join(str(part) for part in first["loc"]) or "row"
        field = f"{where}{f' ({name})' if name else ''}: {key}"
        value = None if isinstance(first["input"], dict) else str(first["input"])
        raise UsageError(reason(first["msg"]), field=field, value=value, fix="correct the row") from error


def reason(message: str) -> str:
    """Return what pydantic says as the middle of a sentence; names and values in it keep their letters."""
    text = message.removeprefix("Value error, ").removesuffix(".")
    return text[:1].lower() + text[1:] if text else "wrong"


def stale_rows(rows: Iterable[PriceRow], today: dt.date | None = None) -> list[PriceRow]:
    """Return the rows whose source was last read more than 90 days ago."""
    return [row for row in rows if row.is_stale(today)]
