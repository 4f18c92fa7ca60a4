"""Dollars per query and per right answer, beside what vendors charge for the same queries.  Money is decimal.

    usd_per_query          = usd_per_hour / (3600 * throughput_rps * utilization)
    usd_per_correct_answer = usd_per_query / accuracy

`throughput_rps` is what this run sustained (successful replies per second), so both figures are for *this* load:
they are as low as the hardware allows only when the run was at capacity.  `utilization` is the share of paid hours
in which such load is there. Intervals follow from those of throughput and accuracy (independent relative errors
added in squares).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal, localcontext
from typing import Any

from loadtest.config import Hardware
from loadtest.stats import Figure
from loadtest.workloads.base import Shape
from models.cost.ledger import usd_per_request

FORMULA = "usd_per_hour / (3600 * throughput_rps * utilization); per correct answer: divided by accuracy"
CHARS_PER_TOKEN = 4  # for text whose tokens the server did not count


def money(value: Decimal) -> float:
    """Return dollars as a JSON number with at most 8 significant digits (the arithmetic before it was decimal)."""
    with localcontext() as context:
        context.prec = 8
        return float(+value)


def per_query(hardware: Hardware, throughput: Figure) -> dict[str, Any]:
    """Return `usd_per_query` as a figure; the value is None when nothing succeeded."""

    def dollars(rps: float | None) -> float | None:
        if rps is None or rps <= 0:
            return None
        return money(usd_per_request(hardware.usd_per_hour, Decimal(repr(rps)), hardware.utilization))

    value = dollars(throughput.value)
    figure: dict[str, Any] = {
        "value": value,
        "low": dollars(throughput.high),
        "high": dollars(throughput.low),
        "n": throughput.n,
    }
    if value is None:
        figure["note"] = "no successful request" if throughput.n == 0 else throughput.note
    return figure


def per_correct(query: dict[str, Any], accuracy: Figure) -> dict[str, Any]:
    """Return `usd_per_correct_answer` as a figure."""
    value, share = query["value"], accuracy.value
    if value is None or share is None:
        return {"value": None, "low": None, "high": None, "n": accuracy.n, "note": "answers were not scored"}
    if share <= 0:
        return {"value": None, "low": None, "high": None, "n": accuracy.n, "note": "no answer was right"}
    dollars = Decimal(repr(value)) / Decimal(repr(share))
    ends: list[float | None] = []
    for query_end, share_end in (("low", accuracy.high), ("high", accuracy.low)):
        if query[query_end] is None or not share_end:
            ends.append(None)
            continue
        spread = math.hypot(math.log(query[query_end] / value), math.log(share / share_end))
        sign = 1 if query_end == "high" else -1
        ends.append(money(dollars * Decimal(repr(math.exp(sign * spread)))))
    return {"value": money(dollars), "low": ends[0], "high": ends[1], "n": accuracy.n}


def baselines(shapes: Sequence[tuple[Shape, int]]) -> tuple[list[dict[str, Any]], str]:
    """Return what vendors charge for queries like these, cheapest first, and a note when that cannot be said.

    Args:
        shapes: (shape, completion tokens or -1) of a sample of the queries.
    """
    if not shapes:
        return [], "no successful request to price"
    try:
        from models.baselines import QueryShape, vendor_baselines
    except ImportError as error:
        return [], f"the price book is not there: {error}"
    queries = []
    for (shape, tokens), times in Counter(shapes).items():
        if shape.images and not (shape.width and shape.height):
            return [], "the size of the images is not known"
        text = max(1, round(shape.text_chars / CHARS_PER_TOKEN))
        queries += [QueryShape(shape.width, shape.height, shape.images, text, max(0, tokens))] * times
    rows = []
    for row in vendor_baselines(queries):
        rows.append({**row, "usd_per_query": money(Decimal(str(row["usd_per_query"])))})
    return sorted(rows, key=lambda r: r["usd_per_query"]), ""
