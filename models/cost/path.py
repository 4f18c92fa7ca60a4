"""The whole path of a query in dollars a month: serving, idle capacity, retries, stages, escalation, review, failures.

Every part is `Decimal`; the total is their exact sum.  Nothing has a hidden default: what is not in the forecast costs
0 and is not listed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from models.cost.usage import MeasuredUsage, vendor_usd, vendor_usd_of
from models.prices import Money, PriceBook, load_prices, parse_money
from models.support.errors import UsageError

HOURS_PER_MONTH = Decimal(730)  # 8,760 hours a year / 12
SECONDS_PER_HOUR = Decimal(3600)


def _parse_share(value: object) -> Decimal:
    # a share is not money: a bare 0.25 in YAML is taken as it is written
    amount = parse_money(repr(value) if isinstance(value, float) else value)
    if amount > 1:
        raise ValueError("must lie between 0 and 1")
    return amount


def _parse_amount(value: object) -> Decimal:
    return parse_money(repr(value) if isinstance(value, float) else value)


Share = Annotated[Decimal, BeforeValidator(_parse_share)]
Amount = Annotated[Decimal, BeforeValidator(_parse_amount)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SelfHosted(_Strict):
    """Machines by the hour: as many as the mean load needs at `utilization`, and never fewer than `min_machines`."""

    kind: Literal["self_hosted"]
    usd_per_hour: Money = Field(description="of one machine")
    capacity_rps: Annotated[Amount, Field(gt=0)] = Field(description="sustained requests/s of one machine at the SLO")
    utilization: Annotated[Share, Field(gt=0)] = Field(description="share of the capacity that the mean load may use")
    min_machines: int = Field(default=1, ge=1)
    overhead: Amount = Field(default=Decimal(0), description="network, disks, support... as a share of the machines")


class VendorServing(_Strict):
    """A vendor's API by the price book."""

    kind: Literal["vendor"]
    model: str
    cached_share: Share = Decimal(0)
    batch_share: Share = Decimal(0)


class FlatServing(_Strict):
    """A known price per query."""

    kind: Literal["flat"]
    usd_per_query: Money


class Stage(_Strict):
    """A step beside the model (preprocessing, OCR, redaction, storage, egress) that a `share` of the queries takes."""

    name: str = Field(min_length=1)
    usd_per_query: Money
    share: Share = Decimal(1)


class Escalation(_Strict):
    """Queries that are asked again at a vendor (a model of the price book) or at a flat price."""

    rate: Share
    model: str | None = None
    usd_per_query: Money | None = None


class Review(_Strict):
    """Queries that a person looks at."""

    rate: Share
    minutes: Amount
    usd_per_hour: Money


class Failure(_Strict):
    """Queries that end wrong unseen, and what one of them costs the business."""

    rate: Share
    usd_each: Money


class Shape(_Strict):
    """A typical query; every image of it has the same size."""

    width: int = Field(ge=1)
    height: int = Field(ge=1)
    images: int = Field(ge=0)
    text_tokens: int = Field(ge=0)
    output_tokens: int = Field(ge=0)


class Forecast(_Strict):
    """What is expected of a month."""

    queries_per_month: int = Field(gt=0)
    query: Shape
    measured: MeasuredUsage | None = Field(default=None, description="what queries really used; wins over `query`")
    success_rate: Annotated[Share, Field(gt=0)] = Field(description="share of queries that end in an accepted answer")
    serving: SelfHosted | VendorServing | FlatServing = Field(discriminator="kind")
    retry_rate: Amount = Field(default=Decimal(0), description="extra attempts per query")
    stages: tuple[Stage, ...] = ()
    escalation: Escalation | None = None
    review: Review | None = None
    failure: Failure | None = None
    monthly_usd: dict[str, Money] = Field(default_factory=dict, description="maintenance, licences... by name")
    one_time_usd: dict[str, Money] = Field(default_factory=dict, description="development, labelling... by name")

    @property
    def attempts(self) -> Decimal:
        """Requests to the model in a month, retries included."""
        return self.queries_per_month * (1 + self.retry_rate)


@dataclass(frozen=True)
class Part:
    """One line of the bill; `how` is its arithmetic in words."""

    name: str
    usd_per_month: Decimal
    how: str


@dataclass(frozen=True)
class PathCost:
    """The bill of a month."""

    parts: tuple[Part, ...]
    queries: int
    success_rate: Decimal

    @property
    def usd_per_month(self) -> Decimal:
        return sum((part.usd_per_month for part in self.parts), Decimal(0))

    @property
    def usd_per_query(self) -> Decimal:
        return self.usd_per_month / self.queries

    @property
    def usd_per_1k(self) -> Decimal:
        return self.usd_per_query * 1000

    @property
    def usd_per_success(self) -> Decimal:
        """Dollars per query that ended in an accepted answer."""
        return self.usd_per_month / (self.queries * self.success_rate)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as decimal text."""
        return {
            "usd_per_month": f"{self.usd_per_month:f}",
            "usd_per_query": f"{self.usd_per_query:f}",
            "usd_per_1k": f"{self.usd_per_1k:f}",
            "usd_per_successful_answer": f"{self.usd_per_success:f}",
            "queries_per_month": self.queries,
            "success_rate": f"{self.success_rate:f}",
            "parts": [{"name": p.name, "usd_per_month": f"{p.usd_per_month:f}", "how": p.how} for p in self.parts],
        }


def machines_needed(serving: SelfHosted, attempts_per_month: Decimal) -> int:
    """Return how many machines the mean load needs at the allowed utilization."""
    per_second = attempts_per_month / (HOURS_PER_MONTH * SECONDS_PER_HOUR)
    return max(serving.min_machines, math.ceil(per_second / (serving.capacity_rps * serving.utilization)))


def vendor_usd_per_query(
    model: str,
    forecast: Forecast,
    book: PriceBook,
    *,
    cached: Decimal = Decimal(0),
    batch: Decimal = Decimal(0),
) -> Decimal:
    """Return the (mean) price of a query: `cached` share of its input from the cache, `batch` share in batches.

    Raises:
        UsageError: unknown model, or a tier that the book lacks.
    """
    row = book.find(model)
    if forecast.measured is not None:
        return vendor_usd_of(row, forecast.measured, cached=cached, batch=batch) / forecast.measured.requests
    query = forecast.query
    images = ((query.width, query.height),) * query.images
    return vendor_usd(row, images, query.text_tokens, query.output_tokens, cached=cached, batch=batch)


def path_cost(forecast: Forecast, book: PriceBook | None = None) -> PathCost:
    """Return the bill of the forecast's month.

    Raises:
        UsageError: a vendor model is unknown or a price tier is missing.
    """
    prices = book or load_prices()
    queries = Decimal(forecast.queries_per_month)
    parts = [*_serving_parts(forecast, prices)]
    for stage in forecast.stages:
        dollars = queries * stage.share * stage.usd_per_query
        parts.append(Part(stage.name, dollars, f"{queries:,} x {stage.share:%} x ${stage.usd_per_query}"))
    if forecast.escalation is not None:
        parts.append(_escalation_part(forecast, prices))
    if (review := forecast.review) is not None:
        dollars = queries * review.rate * review.minutes * review.usd_per_hour / 60
        how = f"{queries:,} x {review.rate:%} x {review.minutes} min x ${review.usd_per_hour}/h"
        parts.append(Part("review by people", dollars, how))
    if (failure := forecast.failure) is not None:
        dollars = queries * failure.rate * failure.usd_each
        parts.append(Part("failures", dollars, f"{queries:,} x {failure.rate:%} x ${failure.usd_each}"))
    parts += [Part(name, dollars, "a month") for name, dollars in forecast.monthly_usd.items()]
    return PathCost(tuple(parts), forecast.queries_per_month, forecast.success_rate)


def _serving_parts(forecast: Forecast, prices: PriceBook) -> list[Part]:
    serving, queries = forecast.serving, Decimal(forecast.queries_per_month)
    retries = queries * forecast.retry_rate
    if isinstance(serving, SelfHosted):
        return _machine_parts(serving, queries, retries)
    if isinstance(serving, VendorServing):
        each = vendor_usd_per_query(
            serving.model, forecast, prices, cached=serving.cached_share, batch=serving.batch_share
        )
        name = f"{serving.model} API"
    else:
        each, name = serving.usd_per_query, "inference"
    parts = [Part(name, queries * each, f"{queries:,} x ${each:f}")]
    if retries:
        parts.append(Part("retries", retries * each, f"{forecast.retry_rate:%} of {queries:,} x ${each:f}"))
    return parts


def _machine_parts(serving: SelfHosted, queries: Decimal, retries: Decimal) -> list[Part]:
    """Machines split into what first attempts use, what retries use, and what stands idle."""
    count = machines_needed(serving, queries + retries)
    total = count * serving.usd_per_hour * HOURS_PER_MONTH
    per_attempt = serving.usd_per_hour / (serving.capacity_rps * SECONDS_PER_HOUR)
    busy, again = queries * per_attempt, retries * per_attempt
    parts = [Part("machines, busy", busy, f"{queries:,} at {serving.capacity_rps}/s x ${serving.usd_per_hour}/h")]
    if retries:
        parts.append(Part("retries", again, f"{retries:,.0f} more attempts on the same machines"))
    idle = f"{count} machines x {HOURS_PER_MONTH} h x ${serving.usd_per_hour}, less the busy part"
    parts.append(Part("machines, idle", total - busy - again, idle))
    if serving.overhead:
        parts.append(Part("machine overhead", total * serving.overhead, f"{serving.overhead:%} of ${total:f}"))
    return parts


def _escalation_part(forecast: Forecast, prices: PriceBook) -> Part:
    escalation = forecast.escalation
    assert escalation is not None, "the caller checks"
    if (escalation.model is None) == (escalation.usd_per_query is None):
        fix = "give one of them"
        raise UsageError("needs either model or usd_per_query", field="forecast: escalation", fix=fix)
    if escalation.usd_per_query is not None:
        each, name = escalation.usd_per_query, "escalation"
    else:
        model = str(escalation.model)
        each = vendor_usd_per_query(model, forecast, prices)
        name = f"escalation to {model}"
    dollars = forecast.queries_per_month * escalation.rate * each
    return Part(name, dollars, f"{forecast.queries_per_month:,} x {escalation.rate:%} x ${each:f}")


def load_forecast(path: Path | str) -> Forecast:
    """Read a forecast from a YAML file.

    Raises:
        UsageError: it cannot be read, or a key is missing, unknown or out of range; the error names the key.
    """
    try:
        data: object = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read: {error.strerror}", field=str(path), fix="name an existing file") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        reason = str(getattr(error, "problem", None) or type(error).__name__)
        raise UsageError(f"not YAML: {reason}", field=str(path)) from error
    return parse_forecast(data if isinstance(data, Mapping) else {}, str(path))


def parse_forecast(data: Mapping[str, Any], where: str = "forecast") -> Forecast:
    """Return the forecast in `data`.  Raises UsageError naming the first key that is wrong."""
    try:
        return Forecast.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        value = None if isinstance(first["input"], Mapping) else str(first["input"])
        message = first["msg"].removeprefix("Value error, ").lower()
        raise UsageError(
            message, field=f"{where}: {key or 'the file'}", value=value, fix="correct the forecast"
        ) from error
