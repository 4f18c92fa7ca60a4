"""Dollars per query and per right answer, beside what vendors charge for the same queries.  Money is decimal.

    usd_per_query          = usd_per_hour / (3600 * throughput_rps * utilization)
    usd_per_correct_answer = usd_per_query / accuracy

`throughput_rps` is what this run sustained (successful replies per second, those from a cache of the server too), so
both figures are for *this* load: they are as low as the hardware allows only when the run was at capacity.
`utilization` is the share of paid hours in which such load is there. Intervals follow from those of throughput and
accuracy (independent relative errors added in squares).
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, localcontext
from typing import Any

from loadtest.config import Hardware
from loadtest.stats import Figure
from models.baselines import vendor_baselines
from models.cost.ledger import usd_per_request
from models.cost.usage import MeasuredUsage

FORMULA = "usd_per_hour / (3600 * throughput_rps * utilization); per correct answer: divided by accuracy"


def money(value: Decimal) -> float:
    """Return dollars as a JSON number with at most 8 significant digits.

    The one place where a float stands for money: a report's figures are JSON numbers.  Nothing is computed from it; the
    exact dollars stand beside it as decimal text.
    """
    with localcontext() as context:
        context.prec = 8
        return float(+value)


def per_query(hardware: Hardware, throughput: Figure) -> dict[str, Any]:
    """Return `usd_per_query` as a figure; the value is None when nothing succeeded."""

    def dollars(rps: float | None) -> Decimal | None:
        if rps is None or rps <= 0:
            return None
        return usd_per_request(hardware.usd_per_hour, Decimal(repr(rps)), hardware.utilization)

    ends = dollars(throughput.value), dollars(throughput.high), dollars(throughput.low)
    note = "no successful request" if throughput.n == 0 else throughput.note
    return _figure(*ends, throughput.n, note)


def _figure(
    value: Decimal | None, low: Decimal | None, high: Decimal | None, n: int, note: str | None
) -> dict[str, Any]:
    """Return dollars as a report's figure: JSON numbers, and under `usd` exact decimal text; `note` without a value."""
    found = {"value": value, "low": low, "high": high}
    figure: dict[str, Any] = {name: None if usd is None else money(usd) for name, usd in found.items()}
    figure["n"] = n
    figure["usd"] = {name: None if usd is None else f"{usd:f}" for name, usd in found.items()}
    if value is None:
        figure["note"] = note
    return figure


def per_correct(query: dict[str, Any], accuracy: Figure) -> dict[str, Any]:
    """Return `usd_per_correct_answer` as a figure, from that of `per_query`."""
    exact = {name: None if usd is None else Decimal(usd) for name, usd in query["usd"].items()}
    value, share = exact["value"], _share(accuracy.value)
    if value is None or share is None:
        return _figure(None, None, None, accuracy.n, "answers were not scored")
    if share <= 0:
        return _figure(None, None, None, accuracy.n, "no answer was right")
    dollars = value / share
    low, high = (
        _end(dollars, value, exact[end], share, _share(share_end), sign)
        for end, share_end, sign in (("low", accuracy.high, -1), ("high", accuracy.low, 1))
    )
    return _figure(dollars, low, high, accuracy.n, None)


def _share(value: float | None) -> Decimal | None:
    return None if value is None else Decimal(repr(value))


def _end(
    dollars: Decimal, query: Decimal, query_end: Decimal | None, share: Decimal, share_end: Decimal | None, sign: int
) -> Decimal | None:
    """Return one end of the interval: the relative errors of both, added in squares."""
    if query_end is None or not share_end:
        return None
    spread = ((query_end / query).ln() ** 2 + (share / share_end).ln() ** 2).sqrt()
    return dollars * (sign * spread).exp()


def baselines(usage: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Return what vendors charge for the run's queries, cheapest first, and a note when that cannot be said.

    Args:
        usage: the report's `usage` section.
    """
    if not usage["groups"]:
        return [], usage["note"] or "no successful request to price"
    measured = MeasuredUsage.model_validate({"groups": usage["groups"]})
    rows = [
        {**row, "usd_per_query": money(row["usd_per_query"]), "usd": f"{row['usd_per_query']:f}"}
        for row in vendor_baselines(measured)
    ]
    return rows, ""
