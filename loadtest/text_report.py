"""The report as text: terminal tables, Markdown for a pull request, CSV per request, Prometheus exposition format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loadtest.recorder import error_name
from models.support.files import atomic_write

if TYPE_CHECKING:
    from loadtest.report import Report

Cell = dict[str, Any]
TIMES = (
    ("end to end", "latency_ms"),
    ("time to first token", "ttft_ms"),
    ("per output token", "tpot_ms"),
    ("between tokens", "inter_token_ms"),
    ("service time", "service_ms"),
    ("client queue", "queue_ms"),
    ("per token, whole reply", "normalized_ms"),
)
PERCENTS = (("p50", "P50"), ("p95", "P95"), ("p99", "P99"), ("p99_9", "P99.9"))


def number(value: float | None) -> str:
    """Return a number with three significant digits, without an exponent where people read it."""
    if value is None:
        return "–"
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 1:
        return f"{value:.2f}"
    return f"{value:.3g}"


def dollars(value: float | None) -> str:
    """Return a sum of money with enough digits to see it."""
    if value is None:
        return "–"
    return f"${value:,.2f}" if value >= 10 else f"${float(f'{value:.3g}'):.10f}".rstrip("0").rstrip(".")


def per_thousand(value: float | None) -> str:
    """Return the price of a thousand, from the price of one."""
    return "–" if value is None else dollars(value * 1000)


def cell(figure: Cell, show: Any = number, interval: bool = True) -> str:
    """Return a figure as `12.3 (11.9 to 12.8)`, or its note when it has no value."""
    if figure["value"] is None:
        return str(figure.get("note", "–"))
    text = str(show(figure["value"]))
    if interval and figure["low"] is not None and figure["high"] is not None:
        text += f" ({show(figure['low'])} to {show(figure['high'])})"
    return text + ("*" if figure.get("note") else "")


def percent(value: float | None) -> str:
    """Return a share as a percentage."""
    return "–" if value is None else f"{100 * value:.4g} %"


def time_rows(data: dict[str, Any], interval: bool = True) -> list[list[str]]:
    """Return the latency table: name and percentiles, in ms, without rows that have no data."""
    rows = []
    for name, key in TIMES:
        group = data.get(key)
        if group and group["p50"]["n"]:
            rows.append([name, *(cell(group[p], interval=interval) for p, _ in PERCENTS)])
    return rows


def has_starred(data: dict[str, Any]) -> bool:
    """Does any percentile rest on few episodes?"""
    return any(data[k][p].get("note") == "rests on few episodes" for _, k in TIMES if k in data for p, _ in PERCENTS)


MONEY_HEAD = ["dollars", "per 1,000 queries", "per 1,000 right answers", "how"]
STAR = "* rests on few episodes (a stall, a burst): the interval may be too narrow; run longer"


def headline(data: dict[str, Any]) -> tuple[str, str, str]:
    """Return (ok | warn | bad, one line, one sentence more) for the top of a report."""
    if data["failures"]:
        return "bad", "The run failed: what was measured before is kept", "; ".join(data["failures"])
    if not data["valid"]:
        return "bad", "Invalid run: the load generator could not keep its schedule", "; ".join(data["invalid_because"])
    done = f"{data['requests']:,} requests, {data['errors']:,} errors"
    if data["partial"]:
        return "warn", f"Partial run (stopped early): {done}", "Figures are for the part that ran."
    goodput = data.get("goodput")
    if goodput and goodput["share"]["value"] is not None:
        share = goodput["share"]
        limits = ", ".join(f"{k.removesuffix('_ms')} ≤ {number(v)} ms" for k, v in goodput["slo"].items())
        kind = "ok" if share["value"] >= 0.99 else "warn"
        return kind, f"{percent(share['value'])} of requests met the SLO ({limits})", done
    kind = "ok" if not data["errors"] else "warn" if data["errors"] < data["requests"] else "bad"
    return kind, done, ""


def load_line(data: dict[str, Any]) -> str:
    """Return what load was offered, in one line."""
    parts = []
    for one in data["load"]["classes"]:
        if one["loop"] == "closed":
            how = f"closed loop, {one['concurrency']} users" + (
                f", {one['think_s']:g} s think time" if one["think_s"] else ""
            )
        elif one["trace"]:
            how = f"replay of {one['trace']}" + (f" at {one['trace_scale']:g}x" if one["trace_scale"] != 1 else "")
        else:
            how = f"open loop, {one['arrival']} {one['rate']:g} req/s"
        parts.append((f"{one['name']}: " if len(data["load"]["classes"]) > 1 else "") + f"{one['workload']}, {how}")
    return "; ".join(parts) + f"; {data['load']['duration_s']:g} s measured"


def recalled_line(data: dict[str, Any]) -> str:
    """Return how many answers the server had from a cache, in one line."""
    share = data["recalled"] / (data["requests"] - data["errors"])
    return (
        f"{data['recalled']:,} answers ({percent(share)}) came from the server's cache or a like request in flight; "
        f"the engine made {cell(data['made_rps'])} req/s"
    )


def money_rows(data: dict[str, Any], most: int = 8) -> list[list[str]]:
    """Return the dollar table: who, $ per 1,000 queries, $ per 1,000 right answers, day of the price."""
    rows = []
    spending = data["cost"]
    if spending["usd_per_query"]["value"] is not None:
        own = [cell(spending[k], per_thousand) for k in ("usd_per_query", "usd_per_correct_answer")]
        rows.append([f"this server ({data['target']['model']})", *own, "measured"])
    for row in data["baselines"][:most]:
        how = f"priced, list of {row['effective_from']}" + (" (stale)" if row.get("stale") else "")
        rows.append([f"{row['vendor']} {row['model']}", per_thousand(row["usd_per_query"]), "–", how])
    return rows


def class_rows(data: dict[str, Any]) -> list[list[str]]:
    """Return the table of traffic classes (none in a run with one class): each against its own SLO."""
    rows = []
    for name, one in data.get("classes", {}).items():
        goodput = one.get("goodput")
        met = cell(goodput["share"], percent) if goodput else "–"
        p50, p95 = (cell(one["latency_ms"][p], interval=False) for p in ("p50", "p95"))
        rows.append([name, f"{one['requests']:,}", f"{one['errors']:,}", p50, p95, met])
    return rows


CLASS_HEAD = ["class", "requests", "errors", "P50 ms", "P95 ms", "within its SLO"]


def conversations(data: dict[str, Any]) -> list[str]:
    """Return what became of the conversations, a line for each class that held some."""
    found = [one["conversations"] for one in data["workload"] if one.get("conversations")]
    return [f"{t['begun']:,} begun, {t['ended']:,} ended, {t['abandoned']:,} given up after an error" for t in found]


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned plain text."""
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    lines = []
    for row in [head, *rows]:
        first, *others = (str(c) for c in row)
        lines.append(
            "  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))])
        )
    return "\n".join(lines)


def terminal(data: dict[str, Any]) -> str:
    """Return the compact summary for a terminal."""
    _, line, more = headline(data)
    parts = [line + (f"\n{more}" if more else ""), load_line(data), ""]
    parts.append(columns(["latency, ms (95 % interval)", *(label for _, label in PERCENTS)], time_rows(data)))
    if has_starred(data):
        parts.append(STAR)
    parts.append("")
    if classes := class_rows(data):
        parts += [columns(CLASS_HEAD, classes), ""]
    parts.append(
        f"throughput  {cell(data['throughput_rps'])} req/s, {number(data['tokens']['completion_per_s'])} tokens/s"
    )
    if data["recalled"]:
        parts.append(f"cache       {recalled_line(data)}")
    if data["accuracy"]["n"]:
        parts.append(f"accuracy    {cell(data['accuracy'], percent)} of {data['accuracy']['n']:,} scored answers")
    for row in data["errors_by_kind"]:
        example = f": {row['examples'][0][:120]}" if row["examples"] else ""
        parts.append(f"error       {row['kind']} x {row['count']:,}{example}")
    parts += [f"{'chats':11} {text}" for text in conversations(data)]
    own = data["generator"]
    slip = f"slip p99 {number(own['slip_ms']['p99'])} ms, " if own["slip_ms"]["p99"] is not None else ""
    parts.append(
        f"generator   {slip}loop lag p99 {number(own['loop_lag_ms'].get('p99'))} ms, CPU {own['cpu_cores']} cores"
    )
    money = money_rows(data)
    if money:
        parts += ["", columns(MONEY_HEAD, money)]
    parts += [f"warning: {text}" for text in data["warnings"]]
    return "\n".join(parts)


def md_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |" for row in rows])


def markdown(data: dict[str, Any]) -> str:
    """Return the report for a pull-request comment."""
    kind, line, more = headline(data)
    sign = {"ok": "✅", "warn": "⚠️", "bad": "❌"}[kind]
    parts = [f"### {sign} {line}", more, f"`{data['target']['model']}`: {load_line(data)}", ""]
    parts.append(md_table(["ms (95 % interval)", *(label for _, label in PERCENTS)], time_rows(data)))
    if has_starred(data):
        parts.append(STAR.replace("*", "\\*", 1))
    if classes := class_rows(data):
        parts += ["", md_table(CLASS_HEAD, classes)]
    facts = [f"throughput {cell(data['throughput_rps'])} req/s"]
    if data["recalled"]:
        facts.append(recalled_line(data))
    if data["accuracy"]["n"]:
        facts.append(f"accuracy {cell(data['accuracy'], percent)}")
    parts += ["", ", ".join(facts), ""]
    money = money_rows(data)
    if money:
        parts.append(md_table(MONEY_HEAD, money))
    if data["errors_by_kind"]:
        rows = [[r["kind"], str(r["count"]), (r["examples"] or [""])[0][:120]] for r in data["errors_by_kind"]]
        parts.append(md_table(["error", "count", "first example"], rows))
    parts += [f"- {text}" for text in data["warnings"]]
    return "\n".join(p for p in parts if p is not None) + "\n"


COUNTS = ("prompt_tokens", "completion_tokens", "correct")
CSV_HEAD = (
    "class,item,intended_s,dispatched_s,sent_s,first_s,last_s,end_s,latency_ms,ttft_ms,status,outcome,"
    "chunks,prompt_tokens,completion_tokens,correct,max_gap_ms,turn,retries,recalled,worker\n"
)


def write_csv(path: Path, report: Report) -> None:
    """Write one line per request, warm-up and cool-down included, in order of the intended send."""
    classes = [c["name"] for c in report.data["load"]["classes"]]
    with atomic_write(path) as file:
        file.write(CSV_HEAD)
        for row in report.records:
            name = classes[row["cls"]]
            item = report.items[row["cls"]].get(int(row["item"]), str(row["item"]))
            times = [row[k] for k in ("intended", "dispatched", "sent", "first", "last", "end")]
            fields = [_quote(name), _quote(item), *("" if np.isnan(t) else f"{t:.6f}" for t in times)]
            fields.append(f"{1e3 * (row['end'] - row['intended']):.3f}")
            fields.append("" if np.isnan(row["first"]) else f"{1e3 * (row['first'] - row['intended']):.3f}")
            fields += [str(row["status"]), error_name(row["kind"], row["status"]), str(row["chunks"])]
            fields += [str(row[k]) if row[k] >= 0 else "" for k in COUNTS]
            fields += [f"{1e3 * row['max_gap']:.3f}", *(str(row[k]) for k in ("turn", "retries", "recalled", "worker"))]
            file.write(",".join(fields) + "\n")


def _quote(text: str) -> str:
    """Return a CSV field; one that a spreadsheet would take for a formula is made text."""
    if text[:1] in ("=", "+", "-", "@"):
        text = "'" + text
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n\r') else text


def prometheus(data: dict[str, Any]) -> str:
    """Return the main figures in Prometheus text format (for a textfile collector or a push gateway)."""
    model = data["target"]["model"].replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    lines: list[str] = []

    def metric(name: str, text: str, samples: Sequence[tuple[str, float | None]]) -> None:
        known = [(labels, value) for labels, value in samples if value is not None]
        if known:
            lines.append(f"# HELP fovea_loadtest_{name} {text}\n# TYPE fovea_loadtest_{name} gauge")
            lines.extend(f'fovea_loadtest_{name}{{model="{model}"{labels}}} {value}' for labels, value in known)

    for key, text in (("latency_ms", "end to end from the intended send"), ("ttft_ms", "time to first token")):
        samples = [
            (f',quantile="{q}",bound="{end}"', data[key][p][end])
            for p, q in (("p50", "0.5"), ("p95", "0.95"), ("p99", "0.99"))
            for end in ("value", "low", "high")
        ]
        metric(key.replace("_ms", "_milliseconds"), text, samples)
    metric("requests", "measured requests", [("", data["requests"])])
    metric("errors", "failed requests", [("", data["errors"])])
    metric("retried_requests", "requests sent again after an error", [("", data["retries"]["requests"])])
    metric("recalled", "answers from a cache of the server", [("", data["recalled"])])
    metric("throughput_rps", "successful replies per second", [("", data["throughput_rps"]["value"])])
    metric("accuracy", "share of scored answers that were right", [("", data["accuracy"]["value"])])
    metric("usd_per_query", "dollars per successful query", [("", data["cost"]["usd_per_query"]["value"])])
    metric("valid", "1 when the generator kept its schedule", [("", int(data["valid"]))])
    return "\n".join(lines) + "\n"
