"""The whole path of a query in dollars a month: serving, idle capacity, retries, stages, escalation, review, failures.

Every part is `Decimal`; the total is their exact sum.  Nothing has a hidden default: what is not in the forecast costs
0 and is not listed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from models.cost.forecast import HOURS_PER_MONTH, SECONDS_PER_HOUR, Forecast, SelfHosted, VendorServing
from models.cost.ledger import significant
from models.cost.usage import vendor_usd_of
from models.prices import PriceBook, load_prices
from models.support.errors import UsageError


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
    """Return how many machines the mean load needs at the allowed utilization, less what a cache answers."""
    per_second = attempts_per_month * (1 - serving.recalled_share) / (HOURS_PER_MONTH * SECONDS_PER_HOUR)
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
    usage = forecast.usage
    return vendor_usd_of(book.find(model), usage, cached=cached, batch=batch) / usage.requests


def path_cost(forecast: Forecast, book: PriceBook | None = None) -> PathCost:
    """Return the bill of the forecast's month.

    Raises:
        UsageError: a vendor model is unknown or a price tier is missing.
    """
    prices = book or load_prices()
    queries = Decimal(forecast.queries_per_month)
    parts = [*_serving_parts(forecast, prices)]
    for stage in forecast.stages:
        dollars = queries * stage.share * stage.usd_each
        parts.append(Part(stage.name, dollars, f"{queries:,} x {stage.share:%} x {stage.how}"))
    if forecast.escalation is not None:
        parts.append(_escalation_part(forecast, prices))
    if (review := forecast.review) is not None:
        dollars = queries * review.rate * review.minutes * review.usd_per_hour / 60
        how = f"{queries:,} x {review.rate:%} x {review.minutes} min x ${review.usd_per_hour:f}/h"
        parts.append(Part("review by people", dollars, how))
    if (failure := forecast.failure) is not None:
        dollars = queries * failure.rate * failure.usd_each
        parts.append(Part("failures", dollars, f"{queries:,} x {failure.rate:%} x ${failure.usd_each:f}"))
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
    asked = 1 - serving.recalled_share
    per_attempt = asked * serving.usd_per_hour / (serving.capacity_rps * SECONDS_PER_HOUR)
    busy, again = queries * per_attempt, retries * per_attempt
    less = f" less {serving.recalled_share:.2%} from a cache" if serving.recalled_share else ""
    how = f"{queries:,}{less} at {significant(serving.capacity_rps, 6)}/s x ${serving.usd_per_hour:f}/h"
    parts = [Part("machines, busy", busy, how)]
    if retries:
        parts.append(Part("retries", again, f"{retries:,.0f} more attempts on the same machines"))
    idle = f"{count:,} x {HOURS_PER_MONTH} h x ${serving.usd_per_hour:f}/h, less the busy part"
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
