"""What the cost part stands on: the forecast with its gaps filled from a load test, every input with its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from models.cost.forecast import HOURS_PER_MONTH, SECONDS_PER_HOUR, Forecast, SelfHosted, parse_forecast
from models.machines import MachineBook
from models.support.errors import UsageError


@dataclass(frozen=True)
class Assumption:
    """One input of the figures, as text, and where it is from."""

    name: str
    value: str
    source: str


def from_report(
    data: Mapping[str, Any], stated: Mapping[str, Any], where: str, machines: MachineBook | None = None
) -> tuple[Forecast, list[Assumption]]:
    """Return the forecast with its gaps filled from a report, and every assumption with its source.

    Args:
        machines: prices of `serving.machine`; the shipped book when None.

    Raises:
        UsageError: a key is wrong, or neither the forecast nor the report has it; it is named.
    """
    values, notes = dict(stated), []

    def fill(key: str, value: Any, text: str, source: str) -> None:
        if key in stated:
            notes.append(Assumption(key, _short(stated[key]), where))
        else:
            values[key] = value
            notes.append(Assumption(key, text, source))

    usage, right = data["usage"], data["accuracy"]
    if "query" in stated:
        notes.append(Assumption("query", _short(stated["query"]), where))
    elif usage["groups"]:
        values["query"], values["measured"] = _typical(usage["groups"]), {"groups": usage["groups"]}
        text = (
            f"{_mean(usage['groups'], 'text_tokens')} text and {_mean(usage['groups'], 'output_tokens')} output tokens"
        )
        images = sum(len(g["images"]) * g["requests"] for g in usage["groups"]) / usage_requests(usage)
        notes.append(
            Assumption(
                "query (mean)",
                f"{images:.3g} images, {text}",
                f"measured, n = {usage['requests']:,}; {usage['text_tokens_from']}",
            )
        )
    else:
        fix = "give query in the forecast"
        raise UsageError(f"the usage is not known: {usage['note']}", field=f"{where}: query", fix=fix)
    if right["value"] or "success_rate" in stated:
        fill("success_rate", repr(right["value"]), f"{right['value'] or 0:.2%}", f"measured, n = {right['n']:,}")
    elif right["n"] == 0:
        fill("success_rate", 1, "100 %", "answers were not scored: every answered query counts as right")
    else:
        raise UsageError(
            "no answer was right, so there is no price of a right one",
            field="accuracy",
            value=0,
            fix="load it with a workload whose answers the model knows",
        )
    values["serving"] = _serving(data, stated.get("serving"), where, notes)
    serving = values["serving"]
    if "queries_per_month" not in stated:
        if serving["kind"] != "self_hosted":
            raise UsageError("is required", field=f"{where}: queries_per_month", fix="say how many queries a month has")
        # checked as a forecast first, so that a wrong key is named as any other
        checked = parse_forecast({**values, "queries_per_month": 1}, where, machines).serving
        assert isinstance(checked, SelfHosted), "its kind says so"
        values["queries_per_month"] = one_machine(checked)
        text = f"{values['queries_per_month']:,}"
        notes.append(Assumption("queries a month", text, "one machine with this load for its utilization"))
    else:
        notes.append(Assumption("queries a month", _short(stated["queries_per_month"]), where))
    for key in sorted(set(stated) - {"query", "success_rate", "serving", "queries_per_month"}):
        notes.append(Assumption(key, _short(stated[key]), where))
    forecast = parse_forecast(values, where, machines)
    if isinstance(forecast.serving, SelfHosted) and forecast.serving.price_source:
        looked_up = Assumption("usd_per_hour", f"{forecast.serving.usd_per_hour}", forecast.serving.price_source)
        notes.append(looked_up)
    return forecast, notes


def usage_requests(usage: Mapping[str, Any]) -> int:
    """Return how many requests the groups of a `usage` section hold."""
    return sum(int(g["requests"]) for g in usage["groups"])


def _mean(groups: Sequence[Mapping[str, Any]], key: str) -> str:
    return f"{sum(g[key] for g in groups) / sum(g['requests'] for g in groups):.3g}"


def _typical(groups: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    first = groups[0]
    width, height = first["images"][0] if first["images"] else (1, 1)
    tokens = {key: round(first[key] / first["requests"]) for key in ("text_tokens", "output_tokens")}
    return {"width": width, "height": height, "images": len(first["images"]), **tokens}


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_short(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(_short(v) for v in value)
    if isinstance(value, float):
        return f"{Decimal(repr(value)):f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _serving(data: Mapping[str, Any], stated: Any, where: str, notes: list[Assumption]) -> dict[str, Any]:
    """Return the `serving` section, machines filled in from the report."""
    given = dict(stated) if isinstance(stated, Mapping) else {}
    if stated is not None and not isinstance(stated, Mapping):
        raise UsageError(
            "must be a mapping with kind",
            field=f"{where}: serving",
            value=str(stated),
            fix="write `kind: ...` and its settings; docs/money.md has them",
        )
    if given.setdefault("kind", "self_hosted") != "self_hosted":
        notes.append(Assumption("serving", _short(given), where))
        return given
    hardware = data["hardware"]["server"] or {}
    about = " ".join(filter(None, (hardware.get("name"), hardware.get("source")))) or "the run's hardware section"
    rps, recalled = data["made_rps"], data["usage"]["recalled"]
    measured = None if not rps["value"] else f"{sustained(data, made=True):f}"
    share = Decimal(recalled) / data["usage"]["requests"]
    if recalled and "recalled_share" not in given:
        if share == 1:
            fix = "run with other questions, or give the share of a day"
            raise UsageError("every answer came from a cache", field=f"{where}: serving.recalled_share", fix=fix)
        given["recalled_share"] = f"{share:f}"
        notes.append(Assumption("recalled_share", f"{share:.2%}", f"measured, n = {data['usage']['requests']:,}"))
    found = (
        ("usd_per_hour", hardware.get("usd_per_hour"), about, "give the price of a machine, --usd-per-hour of the run"),
        ("capacity_rps", measured, f"measured, n = {rps['n']:,}; as high as this load, no higher", "no reply came"),
        ("utilization", hardware.get("utilization"), about, "give the share of the hours in which such load is there"),
    )
    for key, value, source, fix in found:
        if key == "usd_per_hour" and given.get("machine") is not None and key not in given:
            continue  # its price and where that is from are noted once it was looked up
        elif key in given:
            notes.append(Assumption(key, str(given[key]), where))
        elif value is None:
            raise UsageError("is neither in the forecast nor in the report", field=f"{where}: serving.{key}", fix=fix)
        else:
            given[key] = value
            notes.append(Assumption(key, f"{Decimal(value):.6g}", source))
    for key in sorted(set(stated or {}) - {"kind", "machine", *(k for k, *_ in found)}):
        notes.append(Assumption(key, str(given[key]), where))
    return given


def sustained(data: Mapping[str, Any], *, made: bool = False) -> Decimal:
    """Return the successful replies per second of a run, from its exact count and duration.

    Args:
        made: only those that the engine made, and no cache answered.
    """
    return Decimal(data["made_rps" if made else "throughput_rps"]["n"]) / Decimal(repr(data["load"]["duration_s"]))


def one_machine(serving: SelfHosted) -> int:
    """Return the queries of a month that fill one machine for its utilization."""
    made = serving.capacity_rps * serving.utilization * SECONDS_PER_HOUR * HOURS_PER_MONTH
    return max(1, int(made / (1 - serving.recalled_share)))
