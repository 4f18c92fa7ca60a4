"""The cost part of a load test: what a right answer costs along its whole path, against every vendor.

Measured are the usage, the throughput and the accuracy; a forecast (`models.cost.path.Forecast`, every measured key may
be left out) adds what a load test cannot know: volume, stages, review, people.  Without a forecast the month is one
machine with this load for its utilization.  Every assumption is listed with where it is from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from loadtest.baselines import Baseline, labelled_baselines
from loadtest.money_inputs import from_report, one_machine
from models.baselines import rule_of, uncounted
from models.cost.compare import break_even, payback_months, tornado
from models.cost.forecast import FlatServing, Forecast, SelfHosted
from models.cost.ledger import cents, usd, usd_per_request
from models.cost.path import PathCost, path_cost
from models.cost.usage import image_tokens_per_query
from models.machines import MachineBook
from models.prices import PriceBook, load_prices
from models.support.errors import UsageError

CURVE_POINTS = 41
DRAWN = ("gpt-4o", "gemini-2.5-flash", "claude-sonnet-4-5")  # where the caller names no vendor


def interval(data: Mapping[str, Any], forecast: Forecast, stated: Mapping[str, Any], book: PriceBook) -> list[str]:
    """Return dollars per right answer with throughput and accuracy both at the good, and both at the bad end.

    Each end is that of a 95 % interval, so the interval of both together is wider than 95 %.
    """
    ends = []
    for end in ("high", "low"):
        change: dict[str, Any] = {}
        if "success_rate" not in stated and data["accuracy"].get(end):
            change["success_rate"] = Decimal(repr(data["accuracy"][end]))
        rps = data["made_rps"][end]
        own = isinstance(forecast.serving, SelfHosted)
        if own and "capacity_rps" not in (stated.get("serving") or {}) and rps:
            change["serving"] = forecast.serving.model_copy(update={"capacity_rps": Decimal(repr(rps))})
            if "queries_per_month" not in stated:
                change["queries_per_month"] = one_machine(change["serving"])
        ends.append(f"{path_cost(forecast.model_copy(update=change), book).usd_per_success:f}")
    return ends


def cost_part(
    data: Mapping[str, Any],
    stated: Mapping[str, Any] | None = None,
    *,
    where: str = "forecast",
    measured: Sequence[Baseline] = (),
    against: Sequence[str] = (),
    book: PriceBook | None = None,
    machines: MachineBook | None = None,
) -> dict[str, Any]:
    """Return the cost part of a report, JSON-ready, dollars as decimal text.

    Args:
        data: a load test's report (its `usage`, `accuracy`, `throughput_rps`, `made_rps`, `load`, `hardware`).
        stated: the forecast's keys as they were written.
        measured: baselines from other reports.
        against: vendor models whose break-even curves are drawn.
        machines: prices of the forecast's `serving.machine`.

    Raises:
        UsageError: as `from_report`, or a vendor model is unknown or lacks a price.
    """
    prices, own = book or load_prices(), dict(stated or {})
    forecast, notes = from_report(data, own, where, machines)
    bill = path_cost(forecast, prices)
    rows = [_row(forecast, bill, one, prices) for one in labelled_baselines(forecast, prices, measured)]
    rows.sort(key=lambda r: Decimal(r["usd_per_month"]))
    drawn = _drawn(rows, against)
    low_high = interval(data, forecast, own, prices)
    scored = "success_rate" in own or data["accuracy"]["n"] > 0
    part = {
        "currency": "USD",
        "model": data["target"]["model"],
        "sentence": _sentence(forecast, bill, rows, drawn, scored=scored, model=data["target"]["model"]),
        "assumptions": [vars(note) for note in notes],
        "cost": bill.as_dict(),
        "image_tokens": own_image_tokens(data["target"], forecast),
        "usd_per_right_answer": {
            "value": f"{bill.usd_per_success:f}",
            "low": min(low_high, key=Decimal),
            "high": max(low_high, key=Decimal),
            "n": data["accuracy"]["n"] or data["usage"]["requests"],
        },
        "run": _run(data, forecast, prices),
        "one_time_usd": {name: f"{usd:f}" for name, usd in forecast.one_time_usd.items()},
        "baselines": rows,
        "left_out": uncounted(forecast.usage, prices),
        "curve": _curve(forecast, prices, drawn),
        "tornado": [
            {key: f"{value:f}" if isinstance(value, Decimal) else value for key, value in vars(s).items()}
            for s in tornado(forecast, prices)
        ],
    }
    return part


def own_image_tokens(target: Mapping[str, Any], forecast: Forecast) -> str | None:
    """Return the image tokens of a mean query at the served model, as text; None when nobody knows its rule."""
    names = (target["model"], target.get("root", ""))
    model = next((name for name in names if rule_of(name) is not None), None)
    if model is None:
        return None
    try:
        return f"{image_tokens_per_query(model, forecast.usage):.6g} ({rule_of(model)})"
    except UsageError:  # a size that its rule refuses
        return None


def cost_or_why(data: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """Return the cost part of a run without a forecast, or None and why there is none."""
    if data["hardware"]["server"] is None:
        return None, "no hardware section given"
    try:
        return cost_part(data, where="the run"), ""
    except UsageError as error:
        return None, str(error)


def _row(forecast: Forecast, bill: PathCost, one: Baseline, book: PriceBook) -> dict[str, Any]:
    """The same month with this baseline in the place of the own serving; its own monthly costs drop out."""
    serving = FlatServing(kind="flat", usd_per_query=one.usd_per_query)
    change: dict[str, Any] = {"serving": serving, "monthly_usd": {}}
    if one.success_rate is not None:
        change["success_rate"] = one.success_rate
    there = path_cost(forecast.model_copy(update=change), book)
    saving = there.usd_per_month - bill.usd_per_month
    even = None
    if isinstance(forecast.serving, SelfHosted):
        even = break_even(forecast, one.model, book, usd_per_query=one.usd_per_query)
    months = payback_months(sum(forecast.one_time_usd.values(), Decimal(0)), saving)
    return {
        **one.as_dict(),
        "usd_per_month": f"{there.usd_per_month:f}",
        "usd_per_query_whole_path": f"{there.usd_per_query:f}",
        "usd_per_right_answer": f"{there.usd_per_success:f}" if one.success_rate is not None else None,
        "saving_usd_per_month": f"{saving:f}",
        "break_even_queries": None if even is None else even.queries_per_month,
        "break_even_machines": None if even is None else even.machines,
        "break_even_why": None if even is None else even.why,
        "payback_months": None if months is None else f"{months:.1f}",
    }


def _run(data: Mapping[str, Any], forecast: Forecast, book: PriceBook) -> dict[str, Any]:
    """What the requests of the run itself cost here, and would have cost at each vendor: exact, in whole cents.

    As on the bill (`models.cost.ledger`): an answer from a cache costs nothing here, and saved the price of one.
    """
    answered, recalled = data["usage"]["requests"], data["usage"]["recalled"]
    out: dict[str, Any] = {"answered": answered, "recalled": recalled}
    serving = forecast.serving
    if isinstance(serving, SelfHosted):
        each = usd_per_request(serving.usd_per_hour, serving.capacity_rps, serving.utilization)
        out["usd_per_made_answer"] = f"{each:f}"
        out |= {"own_usd": cents(each * (answered - recalled)), "cache_saved_usd": cents(each * recalled)}
    avoided = {}
    if forecast.measured is not None:
        for one in labelled_baselines(forecast, book, ()):
            avoided[one.model] = cents(one.usd_per_query * answered)
    return {**out, "vendor_usd": avoided}


def _drawn(rows: Sequence[Mapping[str, Any]], against: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return the rows whose curves are drawn: those asked for, or else the measured ones and a model per vendor."""
    if against:
        return [row for name in against for row in rows if row["model"] == name]
    measured = [row for row in rows if row["measured"] and row["usd_per_query"] is not None]
    return (measured + [row for name in DRAWN for row in rows if row["model"] == name])[:5] or list(rows[:3])


def _curve(forecast: Forecast, book: PriceBook, drawn: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Dollars a month over the volume, without what both sides pay alike (stages, escalation, review, failures)."""
    bare = forecast.model_copy(update={"stages": (), "escalation": None, "review": None, "failure": None})
    here = Decimal(forecast.queries_per_month)
    evens = [Decimal(row["break_even_queries"]) for row in drawn if row["break_even_queries"]]
    low, high = min([here, *evens]) / 5, max([here, *evens]) * 5
    ratio = (high / low) ** (Decimal(1) / (CURVE_POINTS - 1))
    volumes = sorted({max(1, int(low * ratio**i)) for i in range(CURVE_POINTS)})

    def bills(change: dict[str, Any]) -> list[str]:
        return [
            cents(path_cost(bare.model_copy(update={**change, "queries_per_month": v}), book).usd_per_month)
            for v in volumes
        ]

    vendors = {}
    for row in drawn:
        serving = FlatServing(kind="flat", usd_per_query=Decimal(row["usd_per_query"]))
        vendors[f"{row['vendor']} {row['model']}"] = bills({"serving": serving, "monthly_usd": {}})
    return {"queries": volumes, "own_usd": bills({}), "vendors_usd": vendors}


def _sentence(
    forecast: Forecast,
    bill: PathCost,
    rows: Sequence[Mapping[str, Any]],
    drawn: Sequence[Mapping[str, Any]],
    *,
    scored: bool,
    model: str,
) -> str:
    """Return what a finance person can quote."""
    what = "a right answer" if scored else "an answered query (answers were not scored)"
    text = (
        f"On our own machines {what} of {model} costs {usd(bill.usd_per_success)}, and "
        f"{forecast.queries_per_month:,} queries a month cost {usd(bill.usd_per_month)}"
    )
    if not isinstance(forecast.serving, SelfHosted):
        text = (
            f"{what[0].upper()}{what[1:]} costs {usd(bill.usd_per_success)}, and "
            f"{forecast.queries_per_month:,} queries a month cost {usd(bill.usd_per_month)}"
        )
    if not drawn:
        return text + "."
    one = drawn[0]
    saving = Decimal(one["saving_usd_per_month"])
    word = "less" if saving >= 0 else "more"
    text += f": {usd(abs(saving))} a month {word} than with {one['model']} ({one['label']})"
    if isinstance(forecast.serving, SelfHosted):
        even = one["break_even_queries"]
        text += f"; break-even is at {even:,} queries a month" if even else "; at no volume is there a break-even"
    return text + "."


__all__ = ["cost_or_why", "cost_part"]
