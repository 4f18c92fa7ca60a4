"""Own machines against a vendor: break-even volume, payback, and which assumption moves the result most."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from models.cost.forecast import HOURS_PER_MONTH, SECONDS_PER_HOUR, Forecast, SelfHosted
from models.cost.path import path_cost, vendor_usd_per_query
from models.prices import PriceBook, load_prices
from models.support.errors import UsageError


@dataclass(frozen=True)
class BreakEven:
    """The smallest monthly volume at which own machines cost no more than the vendor; None: there is none."""

    model: str
    queries_per_month: int | None
    machines: int | None
    vendor_usd_per_query: Decimal
    why: str


def break_even(
    forecast: Forecast, model: str, book: PriceBook | None = None, *, usd_per_query: Decimal | None = None
) -> BreakEven:
    """Return the break-even volume of the forecast's own machines against `model`, priced (or at a known price).

    Stages, escalation, review and failures cost the same on both sides and drop out.  With n machines the month costs
    n C + M (C: a machine with its overhead, M: the forecast's `monthly_usd`), and serves up to n K queries, K being
    the capacity at the allowed utilization, less retries, more what a cache answers.  The vendor costs p per query
    with its retries.  The volume is v = (n C + M) / p for the smallest n with v <= n K, that is n (p K - C) >= M.

    Raises:
        UsageError: the forecast is not self-hosted, or the model has no price.
    """
    serving = _self_hosted(forecast)
    price = usd_per_query
    if price is None:
        price = vendor_usd_per_query(model, forecast, book or load_prices())
    each = price * (1 + forecast.retry_rate)
    machine = serving.usd_per_hour * HOURS_PER_MONTH * (1 + serving.overhead)
    monthly = sum(forecast.monthly_usd.values(), Decimal(0))
    attempts = (1 + forecast.retry_rate) * (1 - serving.recalled_share)
    capacity = serving.capacity_rps * serving.utilization * SECONDS_PER_HOUR * HOURS_PER_MONTH / attempts
    margin = each * capacity - machine
    if each <= 0:
        return BreakEven(model, None, None, price, "the vendor charges nothing")
    if margin < 0 or (margin == 0 and monthly > 0):
        why = f"a full machine costs ${machine / capacity:f} per query and the vendor ${each:f}"
        return BreakEven(model, None, None, price, why)
    count = serving.min_machines if margin == 0 else max(serving.min_machines, math.ceil(monthly / margin))
    volume = ((count * machine + monthly) / each).to_integral_value(rounding=ROUND_CEILING)
    return BreakEven(
        model, int(volume), count, price, f"{count} machines and ${monthly:f} a month against ${each:f} a query"
    )


def payback_months(one_time: Decimal, saving_per_month: Decimal) -> Decimal | None:
    """Return the months until savings have paid `one_time`; None when nothing is saved."""
    return one_time / saving_per_month if saving_per_month > 0 else None


@dataclass(frozen=True)
class Swing:
    """What one assumption does to dollars per successful answer between its low and its high value."""

    factor: str
    low_input: str
    high_input: str
    usd_at_low: Decimal
    usd_at_high: Decimal

    @property
    def span(self) -> Decimal:
        return abs(self.usd_at_high - self.usd_at_low)


def _self_hosted(forecast: Forecast) -> SelfHosted:
    if not isinstance(forecast.serving, SelfHosted):
        fix = "use kind: self_hosted"
        raise UsageError(
            "break-even needs own machines", field="forecast: serving", value=forecast.serving.kind, fix=fix
        )
    return forecast.serving


def _scaled(share: Decimal, factor: Decimal) -> Decimal:
    return min(Decimal(1), share * factor)


def _traffic(f: Forecast, factor: Decimal) -> tuple[Forecast, str]:
    volume = max(1, int(f.queries_per_month * factor))
    return f.model_copy(update={"queries_per_month": volume}), f"{volume:,} queries"


def _output(f: Forecast, factor: Decimal) -> tuple[Forecast, str]:
    tokens = int(f.query.output_tokens * factor)
    change: dict[str, object] = {"query": f.query.model_copy(update={"output_tokens": tokens})}
    if f.measured is not None:
        change["measured"] = f.measured.with_output(factor)
    return f.model_copy(update=change), f"{tokens} tokens"


def _escalation(f: Forecast, factor: Decimal) -> tuple[Forecast, str] | None:
    if f.escalation is None:
        return None
    rate = _scaled(f.escalation.rate, factor)
    return f.model_copy(update={"escalation": f.escalation.model_copy(update={"rate": rate})}), f"{rate:.2%}"


def _utilization(f: Forecast, factor: Decimal) -> tuple[Forecast, str] | None:
    if not isinstance(f.serving, SelfHosted):
        return None
    share = _scaled(f.serving.utilization, factor)
    return f.model_copy(update={"serving": f.serving.model_copy(update={"utilization": share})}), f"{share:.2%}"


def _recalled(f: Forecast, factor: Decimal) -> tuple[Forecast, str] | None:
    if not isinstance(f.serving, SelfHosted) or not f.serving.recalled_share:
        return None
    share = min(Decimal("0.99"), f.serving.recalled_share * factor)
    return f.model_copy(update={"serving": f.serving.model_copy(update={"recalled_share": share})}), f"{share:.2%}"


def _review(f: Forecast, factor: Decimal) -> tuple[Forecast, str] | None:
    if f.review is None:
        return None
    rate = _scaled(f.review.rate, factor)
    return f.model_copy(update={"review": f.review.model_copy(update={"rate": rate})}), f"{rate:.2%}"


def _success(f: Forecast, factor: Decimal) -> tuple[Forecast, str]:
    # wrong answers are what varies: 98 % right at +50 % is 97 % right
    rate = max(Decimal("0.01"), 1 - (1 - f.success_rate) * factor)
    return f.model_copy(update={"success_rate": rate}), f"{rate:.2%} right"


FACTORS: Mapping[str, Callable[[Forecast, Decimal], tuple[Forecast, str] | None]] = {
    "traffic": _traffic,
    "output length": _output,
    "escalation rate": _escalation,
    "utilization": _utilization,
    "answers from a cache": _recalled,
    "review rate": _review,
    "wrong answers": _success,
}


def tornado(forecast: Forecast, book: PriceBook | None = None, *, swing: Decimal = Decimal("0.5")) -> list[Swing]:
    """Return, widest first, what each assumption does when it is `swing` lower and higher, all others held.

    An output length changes nothing on own machines here: their capacity is an input, measured at one length.

    Raises:
        UsageError: swing is not between 0 and 1, or as `path_cost`.
    """
    if not 0 < swing < 1:
        raise UsageError("must lie between 0 and 1", field="swing", value=str(swing))
    prices = book or load_prices()
    swings = []
    for name, change in FACTORS.items():
        low, high = change(forecast, 1 - swing), change(forecast, 1 + swing)
        if low is None or high is None:
            continue
        at_low, at_high = (path_cost(f, prices).usd_per_success for f, _ in (low, high))
        swings.append(Swing(name, low[1], high[1], at_low, at_high))
    return sorted(swings, key=lambda s: s.span, reverse=True)
