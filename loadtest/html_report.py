"""report.html: readable in one minute at the top, then plots, then every table.  Made from report.json's content
alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from loadtest.money_page import add_cost
from loadtest.text_report import (
    CLASS_HEAD,
    MONEY_HEAD,
    PERCENTS,
    STAR,
    cell,
    class_rows,
    columns,
    conversations,
    dollars,
    has_starred,
    headline,
    load_line,
    money_rows,
    number,
    per_thousand,
    percent,
    recalled_line,
    time_rows,
)
from models.support.html import Axis, Page, Series, bars, details, line, scatter, table

ONE_LINE = "<style>@media screen{.figures td:not(.text){white-space:nowrap}}</style>"
NINES = [(0.0, "0 %"), (0.30103, "50 %"), (1.0, "90 %"), (2.0, "99 %"), (3.0, "99.9 %"), (4.0, "99.99 %")]


def figures_table(head: Sequence[str], rows: Sequence[Sequence[object]], text_columns: Sequence[int] = (0,)) -> str:
    """Return a table whose figures stay in one line each: a narrow screen scrolls sideways instead of breaking them.

    Paper cannot be scrolled, so there they do break.
    """
    return f'{ONE_LINE}<div class="figures">{table(head, rows, text_columns)}</div>'


def render(data: dict[str, Any]) -> str:
    """Return the page."""
    page = Page(
        f"Load test: {data['target']['model']}", f"{load_line(data)} · {data['target']['url']} · {data['started']}"
    )
    page.verdict(*headline(data))
    page.tiles(_tiles(data))
    for text in data["warnings"]:
        page.verdict("warn", text)
    page.section(
        "Latency",
        "From the moment a request should have been sent to the last byte of its reply, in ms (95 % interval).",
    )
    page.add(figures_table(["", *(label for _, label in PERCENTS)], time_rows(data)))
    if has_starred(data):
        page.text(STAR, note=True)
    page.add(over_time(data), rates_over_time(data))
    curves = {"end to end": data["curves"]["latency"], "first token": data["curves"]["ttft"]}
    page.add(distribution(curves), tail(data), against_load(data))
    if data["recalled"]:
        page.text(f"Cache: {recalled_line(data)}.", note=True)
    for text in conversations(data):
        page.text(f"Conversations: {text}; each turn carried the server's own answers.")
    _money(page, data)
    if data["accuracy"]["n"]:
        page.section(
            "Answers", f"{cell(data['accuracy'], percent)} of {data['accuracy']['n']:,} scored answers are right."
        )
        if data["wrong_answers"]:
            rows = [[w["item"], w["expected"], w["answer"]] for w in data["wrong_answers"]]
            page.add(details("The first wrong answers", table(["item", "expected", "answer"], rows, (0, 1, 2))))
    page.section("Errors", "" if data["errors_by_kind"] else "None.")
    if data["errors_by_kind"]:
        rows = [[e["kind"], e["count"], " · ".join(e["examples"])] for e in data["errors_by_kind"]]
        page.add(table(["kind", "count", "first examples"], rows, (0, 2)))
    if classes := class_rows(data):
        page.section("Classes", "Each kind of traffic against its own SLO.")
        page.add(figures_table(CLASS_HEAD, classes))
    for name, one in data.get("classes", {}).items():
        _class(page, name, one)
    _server(page, data)
    _generator(page, data)
    page.section("All of it")
    page.add(details("Every figure", table(["figure", "value", "95 % interval", "n"], _all(data))))
    setup = {k: data[k] for k in ("target", "load", "workload", "seed", "versions", "hardware")}
    page.add(details("Set-up", "<pre>" + _escape(json.dumps(setup, indent=1)) + "</pre>"))
    if data["command"]:
        page.code(data["command"])
    return page.render()


def _escape(text: str) -> str:
    from html import escape

    return escape(text)


def _tiles(data: dict[str, Any]) -> list[tuple[str, str, str]]:
    def interval(figure: dict[str, Any], show: Any = number) -> str:
        if figure["value"] is None:
            return f"n = {figure['n']:,}"
        return f"{show(figure['low'])} to {show(figure['high'])}, n = {figure['n']:,}"

    latency = data["latency_ms"]
    tiles = [(label, cell(latency[p], interval=False) + " ms", interval(latency[p])) for p, label in PERCENTS[:3]]
    tiles = [(a, b.replace("n too small ms", "n too small"), c) for a, b, c in tiles]
    if data["ttft_ms"]["p50"]["n"]:
        first = data["ttft_ms"]["p50"]
        tiles.append(("First token, P50", cell(first, interval=False) + " ms", interval(first)))
    rps = data["throughput_rps"]
    tiles.append(("Throughput", cell(rps, interval=False) + " req/s", interval(rps)))
    if data["accuracy"]["n"]:
        right = data["accuracy"]
        tiles.append(("Right answers", percent(right["value"]), interval(right, percent)))
    query = data["cost"]["usd_per_query"]
    if query["value"] is not None:
        tiles.append(("Per 1,000 queries", per_thousand(query["value"]), interval(query, per_thousand)))
    return tiles


def _column(data: dict[str, Any], key: str) -> list[float]:
    return [math.nan if row[key] is None else row[key] for row in data["timeline"]]


def _marks(data: dict[str, Any]) -> list[tuple[float, str]]:
    load = data["load"]
    marks = []
    if load["warmup_s"]:
        marks.append((load["warmup_s"], "measured from here"))
    if load["cooldown_s"]:
        marks.append((load["warmup_s"] + load["duration_s"], "to here"))
    return marks


def over_time(data: dict[str, Any]) -> str:
    """Return the plot of latency over the run."""
    t = _column(data, "t")
    series = [Series("P50", t, _column(data, "p50_ms")), Series("P99", t, _column(data, "p99_ms"))]
    goal = (data.get("goodput") or {}).get("slo", {}).get("latency_ms")
    return line(
        series,
        title="Latency over time",
        x=Axis("intended send, s", lowest=0.0),
        y=Axis("ms", log=True),
        vertical=_marks(data),
        horizontal=[(goal, "SLO")] if goal else (),
    )


def rates_over_time(data: dict[str, Any]) -> str:
    """Return the plot of offered and finished requests over the run."""
    t = _column(data, "t")
    series = [Series("offered", t, _column(data, "offered_rps")), Series("answered", t, _column(data, "done_rps"))]
    return line(
        series,
        title="Load over time",
        x=Axis("s", lowest=0.0),
        y=Axis("requests/s", lowest=0.0),
        vertical=_marks(data),
        note="Where the offered line lies above the answered one, a queue grows.",
    )


def against_load(data: dict[str, Any]) -> str:
    """Return the plot of latency against throughput, a point for each slice of the run."""
    done = _column(data, "done_rps")
    series = [Series("P50", done, _column(data, "p50_ms")), Series("P99", done, _column(data, "p99_ms"))]
    x, y = Axis("answered, requests/s", lowest=0.0), Axis("ms", log=True)
    return scatter(series, title="Latency against throughput", x=x, y=y, note="A point for each hundredth of the run.")


def distribution(curves: dict[str, list[list[float]]], title: str = "Distribution") -> str:
    """Return the plot of cumulative distributions."""
    series = [Series(n, [v for _, v in c], [100 * q for q, _ in c]) for n, c in curves.items() if c]
    return line(series, title=title, x=Axis("ms", lowest=0.0), y=Axis("% of requests", lowest=0.0, highest=100.0))


def tail(data: dict[str, Any]) -> str:
    """Return the plot of the tail: every step to the right is ten times rarer."""
    names = {"latency": "from the intended send", "service": "from the actual send"}
    return tail_of({names[k]: data["curves"][k] for k in names})


NOTE = "Far apart, the lines show what a tool that times from the actual send does not see."


def tail_of(curves: dict[str, list[list[float]]], title: str = "The tail", note: str = NOTE) -> str:
    """Return tails of several distributions on a "nines" axis."""
    series = []
    for name, points in curves.items():
        inside = [(q, v) for q, v in points if q < 1]
        if inside:
            series.append(Series(name, [-math.log10(1 - q) for q, _ in inside], [v for _, v in inside]))
    x = Axis("share of requests", lowest=0.0, ticks=NINES)
    return line(series, title=title, x=x, y=Axis("ms", log=True), note=note)


def _money(page: Page, data: dict[str, Any]) -> None:
    page.section("Dollars")
    rows = money_rows(data)
    if not rows:
        page.text(data["baselines_note"] or "No hardware section and no price book.", note=True)
        return
    page.add(table(MONEY_HEAD, rows, (0, 3)))
    named = [(r["vendor"] + " " + r["model"], 1000 * r["usd_per_query"], 0) for r in data["baselines"][:12]]
    own = data["cost"]["usd_per_query"]
    if own["value"] is not None:
        named.insert(0, ("this server", 1000 * own["value"], 1))
    if len(named) > 1:
        names, values, colors = zip(*named, strict=True)
        none = math.nan
        low = [none if not c or own["low"] is None else 1000 * own["low"] for c in colors]
        high = [none if not c or own["high"] is None else 1000 * own["high"] for c in colors]
        title = "Dollars per 1,000 queries"
        page.add(bars(names, values, title=title, low=low, high=high, colors=colors, log=True, show=dollars))
    rest = money_rows(data, 100)[len(rows) :]
    if rest:
        page.add(details(f"{len(rest)} more vendor models", table(MONEY_HEAD, rest, (0, 3))))
    note = f"{data['cost']['formula']}. Vendor rows are priced from their rules and price lists, not measured."
    page.text(note, note=True)
    if data["baselines_note"]:
        page.text(data["baselines_note"], note=True)
    if data.get("money"):
        page.section("A month of it", "The whole path against every vendor, at the volume that this load makes.")
        add_cost(page, data["money"])


def _class(page: Page, name: str, one: dict[str, Any]) -> None:
    goodput = one.get("goodput")
    met = f", {percent(goodput['share']['value'])} within its SLO" if goodput else ""
    page.section(f"Class {name}", f"{one['requests']:,} requests, {one['errors']:,} errors{met}")
    page.add(figures_table(["ms", *(label for _, label in PERCENTS)], time_rows(one)))


def _server(page: Page, data: dict[str, Any]) -> None:
    server = data.get("server") or {}
    if server:
        page.section("What the server says", "Scraped from its own metrics while the load ran.")
        page.add(_watched(server["rows"]))
        for text in server["problems"]:
            page.text(text, note=True)
    gpus = data.get("gpus") or {}
    if gpus.get("names"):
        page.section("GPUs", f"{', '.join(gpus['names'])}, of {gpus['scope']}, read through NVML.")
        page.add(_watched(gpus["rows"]))
        if gpus["energy_j"] is not None:
            page.text(f"Energy during the run: {number(gpus['energy_j'])} J.")
        for name, text in gpus["problems"].items():
            page.text(f"{name}: {text}", note=True)
    elif gpus:
        page.text(f"No GPU figures of {gpus['scope']}: {gpus['note']}.", note=True)


def _watched(rows: list[dict[str, Any]]) -> str:
    cells = [[r["name"], number(r["mean"]), number(r["max"]), number(r["last"]), r["n"], r["unit"]] for r in rows]
    return table(["metric", "mean", "max", "last", "n", ""], cells, (0, 5))


def _generator(page: Page, data: dict[str, Any]) -> None:
    own, again = data["generator"], data["retries"]
    page.section("The load generator itself")
    rows = [
        [name, *(number(values.get(k)) for k in ("p50", "p99", "max"))]
        for name, values in (("schedule slip, ms", own["slip_ms"]), ("event-loop lag, ms", own["loop_lag_ms"]))
        if values.get("p99") is not None
    ]
    page.add(table(["", "P50", "P99", "max"], rows))
    page.text(
        f"CPU: {', '.join(f'{c:.2f}' for c in own['cpu_cores'])} cores; at most {own['peak_connections']:,} "
        f"connections; {own['resent']:,} requests sent again on a new connection, {again['requests']:,} after an error "
        f"(at most {again['limit']} times each); a run is invalid when a P99 is above "
        f"{number(own['slip_bound_ms'])} ms.",
        note=True,
    )


def _all(data: dict[str, Any]) -> list[list[str]]:
    """Return every figure of the report, flattened."""
    rows = []

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict) and {"value", "low", "high", "n"} <= set(value):
            ends = "–" if value["low"] is None else f"{number(value['low'])} to {number(value['high'])}"
            rows.append([name, cell(value, interval=False), ends, f"{value['n']:,}"])
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{name}.{key}" if name else key, inner)

    walk("", {k: v for k, v in data.items() if k not in ("curves", "timeline", "server", "gpus", "money", "usage")})
    return rows


__all__ = ["columns", "distribution", "over_time", "rates_over_time", "render", "tail", "tail_of"]
