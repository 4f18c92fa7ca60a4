"""Return on investment of a deployment: benefits, costs, break-even and KPIs, each figure with its source.

Categories, definitions and targets are those of the implementation playbook, part 4.  What is stated names its source;
what is measured is taken from a load test, a cost report or a running server with `from: NAME` (`loadtest.roi_data`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loadtest.forecast_file import refuse_other_currency
from loadtest.roi_data import Datum, gather, pick
from models.cost.compare import payback_months
from models.cost.forecast import Amount, Share
from models.cost.roi import MONTHS, Roi, labour_saved
from models.prices import Money, reason
from models.support.errors import UsageError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Data(_Strict):
    """Where measured figures come from."""

    report: str | None = None
    cost: str | None = None
    metrics: str | None = None


class _Line(_Strict):
    name: str = Field(min_length=1)
    source: str = Field(default="", description="who says so; needed for everything that is stated")
    measured: str | None = Field(default=None, alias="from", description="name of a measured figure")


class Volume(_Line):
    """Items (tickets, products, documents) a month."""

    name: str = "items a month"
    per_month: Annotated[Amount, Field(gt=0)] | None = None


class Benefit(_Line):
    """A benefit of a year; which keys it needs depends on its kind."""

    group: Literal["savings", "productivity", "revenue"] = "savings"
    kind: Literal["time_saved", "errors_avoided", "amount", "revenue"]
    minutes_each: Amount | None = None
    usd_per_hour: Money | None = None
    errors_per_month: Amount | None = None
    usd_each: Money | None = None
    usd_per_year: Money | None = None
    lift: Share | None = None
    margin: Share = Decimal(1)


class Cost(_Line):
    """A cost: once, every year, or per item."""

    group: Literal["direct", "implementation", "ongoing"] = "direct"
    kind: Literal["once", "yearly", "per_item"]
    usd: Money | None = None
    usd_per_year: Money | None = None
    usd_each: Money | None = None


class Kpi(_Strict):
    """A value that the data does not have, and whose it is."""

    value: Amount
    source: str = Field(min_length=1)
    target: Amount | None = None


class RoiConfig(_Strict):
    """A whole roi.yaml."""

    title: str = "Return on investment"
    data: Data = Data()
    volume: Volume
    benefits: tuple[Benefit, ...] = Field(min_length=1)
    costs: tuple[Cost, ...] = Field(min_length=1)
    kpis: dict[str, Kpi] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known_kpis(self) -> RoiConfig:
        for name in self.kpis:
            if name not in KPIS:
                raise ValueError(f"kpis: {name!r} is none of {', '.join(KPIS)}")
        return self


@dataclass(frozen=True)
class Target:
    """A KPI of the playbook: what it is, which measured figures give it, and the bound that it should keep."""

    label: str
    unit: Literal["share", "s", "usd", "number"]
    sense: Literal["at least", "below", "watch"]
    bound: Decimal | None
    measured: tuple[str, ...] = ()


D = Decimal
KPIS: Mapping[str, Target] = {
    "accuracy": Target("Accuracy", "share", "at least", D("0.85"), ("report.accuracy", "cost.success_rate")),
    "latency_p95": Target("Latency, P95", "s", "below", D(5), ("metrics.p95_s", "report.p95_s")),
    "availability": Target("Availability", "share", "at least", D("0.995"), ("metrics.availability",)),
    "error_rate": Target("Error rate", "share", "below", D("0.01"), ("metrics.error_rate", "report.error_rate")),
    "cost_per_query": Target(
        "Cost per query", "usd", "watch", None, ("cost.usd_per_query", "metrics.usd_per_query", "report.usd_per_query")
    ),
    "task_completion": Target("Task completion", "share", "at least", D("0.85")),
    "time_savings": Target("Time savings", "share", "at least", D("0.30")),
    "csat": Target("User satisfaction (CSAT, 1 to 5)", "number", "at least", D("4.0")),
    "nps": Target("Net promoter score", "number", "at least", D(30)),
    "adoption": Target("Adoption", "share", "at least", D("0.80")),
    "override_rate": Target("Override rate (people disagree)", "share", "watch", None),
    "escalation_rate": Target("Escalation rate", "share", "watch", None),
}


@dataclass(frozen=True)
class Row:
    """One line of the result, dollars a year (or once)."""

    name: str
    group: str
    usd: Decimal
    how: str
    source: str

    def as_dict(self) -> dict[str, str]:
        """Return the line, its dollars as decimal text."""
        return {**vars(self), "usd": f"{self.usd:f}"}


def parse_roi(given: Mapping[str, Any], where: str) -> RoiConfig:
    """Return a checked config.

    Raises:
        UsageError: a key is wrong (it is named), or the currency is not USD.
    """
    data = dict(given)
    refuse_other_currency(data, where)
    try:
        return RoiConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        value = first["input"] if isinstance(first["input"], str | int | float) else None
        raise UsageError(
            reason(first["msg"]), field=f"{where}: {key}", value=value, fix="see docs/money.md, ROI"
        ) from error


def compute(config: RoiConfig, where: str) -> dict[str, Any]:
    """Return the result, JSON-ready, dollars as decimal text.

    Raises:
        UsageError: a line lacks a key or a source, or names a figure that the data does not have.
    """
    data = gather(config.data.report, config.data.cost, config.data.metrics)
    volume = _stated_or_measured(config.volume, "per_month", data, f"{where}: volume")
    benefits = [_benefit(b, volume, data, f"{where}: benefits[{i}] ({b.name})") for i, b in enumerate(config.benefits)]
    costs = [_cost(c, volume, data, f"{where}: costs[{i}] ({c.name})") for i, c in enumerate(config.costs)]
    for what, rows in (("benefits", benefits), ("costs", [row for _, row in costs])):
        names = [row.name for row in rows]
        if len(set(names)) < len(names):
            raise UsageError(
                "two lines have the same name",
                field=f"{where}: {what}",
                value=", ".join(names),
                fix="give each line a name of its own",
            )
    once = {row.name: row.usd for first, row in costs if first}
    yearly = {row.name: row.usd for first, row in costs if not first}
    roi = Roi({row.name: row.usd for row in benefits}, once, yearly)
    cash = payback_months(sum(once.values(), D(0)), (roi.benefit - roi.yearly_cost) / MONTHS)
    return {
        "title": config.title,
        "currency": "USD",
        "volume": {"per_month": f"{volume.value:f}", "source": volume.source},
        "benefits": [row.as_dict() for row in benefits],
        "costs": [{**row.as_dict(), "once": first} for first, row in costs],
        "benefit_usd_per_year": f"{roi.benefit:f}",
        "first_year_cost_usd": f"{roi.first_year_cost:f}",
        "yearly_cost_usd": f"{roi.yearly_cost:f}",
        "roi_first_year": f"{roi.first_year:f}",
        "roi_later_years": None if roi.later_years is None else f"{roi.later_years:f}",
        "break_even_months": None if roi.break_even_months is None else f"{roi.break_even_months:f}",
        "payback_months": None if cash is None else f"{cash:f}",
        "kpis": _kpis(config, data),
    }


def _stated_or_measured(line: _Line, key: str, data: dict[str, Datum], where: str) -> Datum:
    stated = getattr(line, key)
    if (stated is None) == (line.measured is None):
        raise UsageError(f"needs either {key} or from", field=where, fix="give one of them")
    if line.measured is not None:
        return pick(data, line.measured, f"{where}.from")
    if not line.source:
        raise UsageError("has no source", field=f"{where}.source", fix="say who says so, and of which day")
    return Datum(stated, line.source)


def _needed(line: Benefit, keys: tuple[str, ...], where: str) -> list[Decimal]:
    for key in keys:
        if getattr(line, key) is None:
            raise UsageError(f"is required for kind {line.kind}", field=f"{where}.{key}", fix="add it")
    if not line.source:
        raise UsageError("has no source", field=f"{where}.source", fix="say who says so, and of which day")
    return [getattr(line, key) for key in keys]


def _benefit(line: Benefit, volume: Datum, data: dict[str, Datum], where: str) -> Row:
    if line.kind == "time_saved":
        minutes, wage = _needed(line, ("minutes_each", "usd_per_hour"), where)
        usd = labour_saved(volume.value, minutes, wage)
        how = f"{volume.value:,.6g} items x {minutes} min x ${wage}/h x {MONTHS}"
        return Row(line.name, line.group, usd, how, f"{line.source}; items: {volume.source}")
    if line.kind == "errors_avoided":
        errors, each = _needed(line, ("errors_per_month", "usd_each"), where)
        return Row(line.name, line.group, errors * each * MONTHS, f"{errors} x ${each} x {MONTHS}", line.source)
    if line.kind == "revenue":
        sales, lift = _needed(line, ("usd_per_year", "lift"), where)
        how = f"{lift:%} of ${sales:,} sales x {line.margin:%} margin"
        return Row(line.name, line.group, sales * lift * line.margin, how, line.source)
    if line.measured is not None and not line.measured.endswith("per_month") and "_per_month." not in line.measured:
        raise UsageError(
            "must name a figure in dollars a month",
            field=f"{where}.from",
            value=line.measured,
            fix="name one that ends with usd_per_month",
        )
    found = _stated_or_measured(line, "usd_per_year", data, where)
    if line.measured is None:
        return Row(line.name, line.group, found.value, "a year", found.source)
    return Row(line.name, line.group, found.value * MONTHS, f"${found.value:.2f} a month x {MONTHS}", found.source)


def _cost(line: Cost, volume: Datum, data: dict[str, Datum], where: str) -> tuple[bool, Row]:
    """Return whether it is paid once, and the line."""
    key = {"once": "usd", "yearly": "usd_per_year", "per_item": "usd_each"}[line.kind]
    unit = {"once": None, "yearly": "usd_per_month", "per_item": "usd_per_query"}[line.kind]
    if line.measured is not None and (unit is None or not line.measured.endswith(unit)):
        fix = f"name a figure that ends in {unit}" if unit else "state usd"
        raise UsageError(f"does not fit kind {line.kind}", field=f"{where}.from", value=line.measured, fix=fix)
    found = _stated_or_measured(line, key, data, where)
    if line.kind == "per_item":
        how = f"{volume.value:,.6g} items x ${found.value:.6g} x {MONTHS}"
        source = f"{found.source}; items: {volume.source}"
        return False, Row(line.name, line.group, volume.value * found.value * MONTHS, how, source)
    if line.measured is not None:
        return False, Row(line.name, line.group, found.value * MONTHS, f"a month x {MONTHS}", found.source)
    once = line.kind == "once"
    return once, Row(line.name, line.group, found.value, "once" if once else "a year", found.source)


def _kpis(config: RoiConfig, data: dict[str, Datum]) -> list[dict[str, Any]]:
    """Return every KPI: measured first, else stated, else not measured."""
    rows = []
    for name, target in KPIS.items():
        found = next((data[m] for m in target.measured if m in data), None)
        stated = config.kpis.get(name)
        if found is None and stated is not None:
            found = Datum(stated.value, stated.source)
        bound = stated.target if stated is not None and stated.target is not None else target.bound
        kept = None
        if found is not None and bound is not None and target.sense != "watch":
            kept = found.value >= bound if target.sense == "at least" else found.value < bound
        rows.append(
            {
                "name": name,
                "label": target.label,
                "unit": target.unit,
                "value": None if found is None else f"{found.value:f}",
                "sense": target.sense,
                "target": None if bound is None else f"{bound:f}",
                "kept": kept,
                "source": "not measured" if found is None else found.source,
            }
        )
    return rows
