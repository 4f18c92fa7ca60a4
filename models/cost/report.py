"""Print a forecast's bill, or the articles' examples, as text or JSON."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from models.cli import print_json, print_table
from models.cost.articles import Line, other_figures, worked_examples
from models.cost.compare import BreakEven, break_even, payback_months, tornado
from models.cost.forecast import Forecast, SelfHosted, VendorServing
from models.cost.path import PathCost, path_cost
from models.prices import PriceBook


def print_forecast(forecast: Forecast, against: list[str], book: PriceBook, as_json: bool) -> int:
    """`fovea models cost --forecast`."""
    result = forecast_report(forecast, against, book)
    if as_json:
        print_json(result)
        return 0
    print(result["sentence"] + "\n")
    rows = [[p["name"], dollars(Decimal(p["usd_per_month"])), p["how"]] for p in result["cost"]["parts"]]
    rows.append(["total", dollars(Decimal(result["cost"]["usd_per_month"])), ""])
    print_table(["part", "$ a month", "how"], rows)
    if result["against"]:
        print()
        head = ["against", "$ a month there", "break-even, queries a month", "payback, months"]
        print_table(
            head, [[a["model"], a["usd_per_month"], a["break_even"], a["payback_months"]] for a in result["against"]]
        )
    print("\nwhat moves dollars per accepted answer most, each 50 % lower and higher:")
    swings = [
        [s["factor"], f"{s['low_input']}: {s['usd_at_low']}", f"{s['high_input']}: {s['usd_at_high']}"]
        for s in result["tornado"]
    ]
    print_table(["assumption", "lower", "higher"], swings)
    return 0


def forecast_report(forecast: Forecast, against: list[str], book: PriceBook) -> dict[str, Any]:
    """Return the bill, each comparison, the tornado and one sentence; dollars as decimal text.

    Raises:
        UsageError: a vendor model is unknown, or break-even is asked of a forecast without own machines.
    """
    cost = path_cost(forecast, book)
    comparisons = [_compare(forecast, cost, model, book) for model in against]
    return {
        "sentence": sentence(forecast, cost),
        "cost": cost.as_dict(),
        "one_time_usd": {name: f"{amount:f}" for name, amount in forecast.one_time_usd.items()},
        "against": comparisons,
        "tornado": [
            {
                "factor": s.factor,
                "low_input": s.low_input,
                "high_input": s.high_input,
                "usd_at_low": f"{s.usd_at_low:.6f}",
                "usd_at_high": f"{s.usd_at_high:.6f}",
            }
            for s in tornado(forecast, book)
        ],
    }


def sentence(forecast: Forecast, cost: PathCost) -> str:
    """Return what a finance person can quote, with the assumptions it stands on."""
    largest = max(cost.parts, key=lambda part: part.usd_per_month)
    return (
        f"An accepted answer costs ${cost.usd_per_success:.5f}, ${dollars(cost.usd_per_month)} a month for "
        f"{forecast.queries_per_month:,} queries of which {forecast.success_rate:.1%} succeed; "
        f"the largest part is {largest.name} (${dollars(largest.usd_per_month)} a month)."
    )


def dollars(amount: Decimal) -> str:
    """Return an amount in whole cents."""
    return f"{amount:,.2f}"


def _compare(forecast: Forecast, cost: PathCost, model: str, book: PriceBook) -> dict[str, Any]:
    """The same month with the vendor in the place of the forecast's serving; its own monthly costs drop out."""
    there = forecast.model_copy(update={"serving": VendorServing(kind="vendor", model=model), "monthly_usd": {}})
    vendor = path_cost(there, book)
    even: BreakEven | None = break_even(forecast, model, book) if isinstance(forecast.serving, SelfHosted) else None
    months = payback_months(sum(forecast.one_time_usd.values(), Decimal(0)), vendor.usd_per_month - cost.usd_per_month)
    return {
        "model": model,
        "usd_per_month": dollars(vendor.usd_per_month),
        "usd_per_successful_answer": f"{vendor.usd_per_success:f}",
        "break_even": None if even is None else (even.queries_per_month or "never"),
        "why": None if even is None else even.why,
        "payback_months": "never" if months is None else f"{months:.1f}",
        "note": "priced, not measured",
    }


def print_articles(as_json: bool) -> int:
    """`fovea models cost --articles`: every printed figure beside what its own inputs make."""
    groups: list[tuple[str, list[Line]]] = [(e.name, list(e.lines)) for e in worked_examples()]
    groups.append(("elsewhere", other_figures()))
    rows = [
        [name, line.name, line.printed, _figure(line.computed), "" if line.holds else line.why or "differs"]
        for name, lines in groups
        for line in lines
    ]
    if as_json:
        keys = ("example", "figure", "printed", "computed", "disagrees")
        print_json({"figures": [dict(zip(keys, [str(v) for v in row], strict=True)) for row in rows]})
        return 0
    wrong = sum(1 for row in rows if row[-1])
    print(f"{len(rows)} figures, {wrong} do not follow from the articles' own inputs")
    print_table(["example", "figure", "printed", "computed", "why it differs"], rows)
    return 0


def _figure(value: Decimal) -> str:
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.4f}"
