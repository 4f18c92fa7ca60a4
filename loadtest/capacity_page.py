"""What a search for capacity found, as text, Markdown and HTML.  Made from capacity.json's content alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loadtest.html_report import figures_table
from loadtest.text_report import cell, columns, md_table, number, percent
from models.support.files import atomic_write, write_json
from models.support.html import Axis, Page, Series, details, line, scatter, table


def statement(data: dict[str, Any]) -> str:
    """Return the result in one sentence."""
    if data["capacity_rps"] is not None:
        return f"≥ {data['capacity_rps']:.3g} req/s within {data['slo']} (95 % confidence)"
    return f"no rate certified for {data['slo']}: {data['reason']}"


def terminal(data: dict[str, Any]) -> str:
    """Return the result for a terminal."""
    rows = [
        [
            f"{s['rate']:.3g}",
            s["purpose"],
            "kept" if s["passed"] else "broken",
            *(cell(s["latency_ms"][p]) for p in ("p50", "p95", "p99")),
        ]
        for s in sorted(data["steps"], key=lambda s: s["rate"])
    ]
    parts = [statement(data), "", columns(["req/s", "run", "SLO", "P50 ms", "P95 ms", "P99 ms"], rows)]
    parts += [f"warning: {text}" for text in data["warnings"]]
    if "forecast" in data:
        head, rows = forecast_rows(data)
        parts += ["", columns(head, rows)]
    return "\n".join(parts)


def forecast_rows(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the forecast table."""
    head = ["month", "peak req/s", "replicas", "GPU-hours fixed", "GPU-hours following"]
    months = data["forecast"]["months"]
    keys = ["peak_rps", "gpu_hours_fixed", "gpu_hours_following"]
    if "usd_fixed" in months[0]:
        head += ["$ fixed", "$ following"]
        keys += ["usd_fixed", "usd_following"]
    rows = []
    for row in months:
        peak, *others = (number(row[key]) for key in keys)
        rows.append([str(row["month"]), peak, f"{row['replicas']:,}", *others])
    return head, rows


def write(data: dict[str, Any], folder: Path) -> None:
    """Write capacity.json, capacity.html and capacity.md."""
    write_json(folder / "capacity.json", data)
    for name, text in (("capacity.html", page(data)), ("capacity.md", markdown(data))):
        with atomic_write(folder / name) as file:
            file.write(text)


def step_rows(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the table of runs, by rate: what happened, and each term of the SLO."""

    def term(row: dict[str, Any]) -> str:
        return cell(row, percent if row["unit"] == "share" else lambda value: f"{number(value)} ms")

    steps = sorted(data["steps"], key=lambda s: s["rate"])
    rows = []
    for s in steps:
        what = "kept" if s["passed"] else "a queue grows" if s["queue_grows"] else "broken"
        if not s["valid"]:
            what = "generator late"
        done = number(s["throughput_rps"]["value"])
        rows.append([f"{s['rate']:.3g}", s["purpose"], what, done, *(term(t) for t in s["terms"])])
    return ["req/s", "run", "SLO", "answered/s", *(t["term"] for t in steps[0]["terms"])], rows


def markdown(data: dict[str, Any]) -> str:
    """Return the result for a pull-request comment."""
    sign = "✅" if data["capacity_rps"] else "❌"
    parts = [f"### {sign} `{data['target']['model']}`: {statement(data)}", "", md_table(*step_rows(data))]
    if "forecast" in data:
        parts += ["", md_table(*forecast_rows(data))]
    return "\n".join(parts + [f"- {text}" for text in data["warnings"]]) + "\n"


def page(data: dict[str, Any]) -> str:
    """Return the HTML report."""
    out = Page(f"Capacity of {data['target']['model']}", f"{data['slo']} · {data['target']['url']} · {data['started']}")
    out.verdict("ok" if data["capacity_rps"] else "warn" if data["partial"] else "bad", statement(data))
    tiles = [
        ("Certified", f"{number(data['capacity_rps'])} req/s", "95 % confidence" if data["capacity_rps"] else "none"),
        ("Highest rate that kept the SLO", f"{number(data['best_rate_rps'])} req/s", "in a search run"),
        ("Lowest rate that broke it", f"{number(data['broken_rate_rps'])} req/s", "in any run"),
    ]
    if "forecast" in data:
        first, last = data["forecast"]["months"][0], data["forecast"]["months"][-1]
        shown = f"{first['replicas']} → {last['replicas']}"
        tiles.append(("Replicas", shown, f"for {number(first['peak_rps'])} → {number(last['peak_rps'])} req/s at peak"))
    out.tiles(tiles)
    for text in data["warnings"]:
        out.verdict("warn", text)
    out.add(*_plots(data))
    out.section("Every run", "By rate; a confirmation decides at a higher confidence than a search run.")
    out.add(figures_table(*step_rows(data), (1, 2)))
    if "forecast" in data:
        demand = data["forecast"]["demand"]
        text = (
            f"One replica holds {number(data['capacity_rps'])} req/s within the SLO. With {demand['headroom']:.0%} "
            f"headroom, {demand['spare']} spare, the quietest hour at {demand['trough']:.0%} of the peak, and "
            f"{demand['growth']:.0%} growth a month; 'fixed' keeps the peak's replicas all day."
        )
        out.section("Forecast", text)
        out.add(figures_table(*forecast_rows(data)))
    setup = {k: data[k] for k in ("target", "workload", "seed", "versions", "hardware")}
    out.add(details("Set-up", table(["", ""], [[k, json.dumps(v)] for k, v in setup.items()], (0, 1))))
    if data["command"]:
        out.code(data["command"])
    return out.render()


def _plots(data: dict[str, Any]) -> tuple[str, str]:
    """Return the knee, and latency against throughput."""
    steps = sorted(data["steps"], key=lambda s: s["rate"])
    none = float("nan")

    def column(rows: list[dict[str, Any]], end: str, p: str = "p95") -> list[float]:
        return [none if s["latency_ms"][p][end] is None else s["latency_ms"][p][end] for s in rows]

    kept, broken = [s for s in steps if s["passed"]], [s for s in steps if not s["passed"]]
    series = [
        Series(name, [s["rate"] for s in rows], column(rows, "value"), column(rows, "low"), column(rows, "high"), color)
        for name, rows, color in (("SLO kept", kept, 0), ("SLO broken", broken, 1))
        if rows
    ]
    limits = [(t["limit"], t["term"]) for t in steps[0]["terms"] if t["metric"] == "latency" and t["q"] == 0.95]
    knee = scatter(
        series,
        title="P95 against the offered rate",
        x=Axis("offered rate, req/s", lowest=0.0),
        y=Axis("P95, ms", log=True),
        vertical=[(data["capacity_rps"], "certified")] if data["capacity_rps"] else [],
        horizontal=limits,
    )
    done = [s["throughput_rps"]["value"] or none for s in steps]
    curve = line(
        [Series("P50", done, column(steps, "value", "p50")), Series("P95", done, column(steps, "value"))],
        title="Latency against throughput",
        x=Axis("answered, req/s", lowest=0.0),
        y=Axis("ms", log=True),
        points=True,
        note="In the order of the offered rate: beyond the limit more load brings no more answers.",
    )
    return knee, curve
