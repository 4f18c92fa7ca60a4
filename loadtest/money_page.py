"""The cost part as blocks of a page, and as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from loadtest.text_report import columns
from models.cost.ledger import usd
from models.cost.plots import ranking, tornado_plot, waterfall
from models.support.html import Axis, Page, Series, details, line, table

HEAD = (
    "", "image tokens a query", "$/query", "$/right answer", "$ a month", "break-even, queries a month",
    "payback, months", "how", "price since", "read, source",
)  # fmt: skip
TEXT = (0, 1, 7)
# What the terminal shows of the book beside every measured baseline: four models of each vendor, large and small
SHOWN = (
    "gpt-4o", "gpt-4o-mini", "gpt-4.1", "gpt-5", "gemini-2.5-pro", "gemini-2.5-flash", "gemini-3.1-pro",
    "gemini-3.8-flash", "claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-4-5", "claude-haiku-5-5",
)  # fmt: skip
LABELS = {"one_time_usd": "one-time costs"}


def dollars(value: float) -> str:
    """Return a number of dollars for a label."""
    return usd(f"{value:.12g}")


def rows_of(part: Mapping[str, Any], models: Collection[str] | None = None) -> tuple[list[str], list[list[str]]]:
    """Return (head, rows) of the table: the own machines first, then every baseline, cheapest month first.

    Args:
        models: only these models of the price book (and everything that was measured); None: all.
    """
    cost, right = part["cost"], part["usd_per_right_answer"]
    own = [
        part["model"],
        part["image_tokens"] or "",
        usd(cost["usd_per_query"]),
        f"{usd(right['value'])} ({usd(right['low'])} to {usd(right['high'])})",
        usd(cost["usd_per_month"]),
        *("", "", "own machines: see the assumptions", "", ""),
    ]
    once = bool(part["one_time_usd"])
    wanted = [r for r in part["baselines"] if models is None or r["measured"] or r["model"] in models]
    rows = [own, *(_row(row, once) for row in wanted)]
    kept = [i for i in range(len(HEAD)) if any(row[i] for row in rows)]
    return [HEAD[i] for i in kept], [[row[i] for i in kept] for row in rows]


def noted(head: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]], list[str]]:
    """Return the table with the sources as notes below it, one for each: (head, rows, notes)."""
    if HEAD[-1] not in head:
        return head, rows, []
    notes: dict[str, int] = {}
    for row in rows:
        source, _, read = row[-1].rpartition(", read ")
        if source:
            row[-1] = f"{read} [{notes.setdefault(source, len(notes) + 1)}]"
    return head, rows, [f"[{number}] {source}" for source, number in notes.items()]


def text_columns(head: Sequence[str]) -> list[int]:
    """Return the columns of `rows_of` that are aligned left."""
    return [i for i, name in enumerate(head) if HEAD.index(name) in TEXT]


def _row(row: Mapping[str, Any], once: bool) -> list[str]:
    right = row["usd_per_right_answer"]
    query = row["usd_per_query_whole_path"]
    even = row["break_even_queries"]
    read = f", read {row['read']}{', over 90 days ago' if row['stale'] else ''}" if row["read"] else ""
    n = f", n = {row['n']:,}" if row["n"] else ""
    return [
        f"{row['vendor']} {row['model']}",
        "" if row["image_tokens"] in (None, "0") else f"{row['image_tokens']} ({row['image_rule']})",
        usd(query),
        usd(right) if right else f"at least {usd(query)}",
        usd(row["usd_per_month"]),
        f"{even:,}" if even else "never",
        (row["payback_months"] or "never") if once else "",
        row["label"] + n,
        row["effective_from"],
        row["source"] + read,
    ]


def tiles(part: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the four prices as (name, dollars, what it is)."""
    cost, right = part["cost"], part["usd_per_right_answer"]
    between = f"{usd(right['low'])} to {usd(right['high'])}"
    return [
        ("a query", usd(cost["usd_per_query"]), "the whole path"),
        ("1,000 queries", usd(cost["usd_per_1k"]), "the whole path"),
        ("a right answer", usd(right["value"]), between),
        ("a month", usd(cost["usd_per_month"]), f"{cost['queries_per_month']:,} queries"),
    ]


def add_cost(page: Page, part: Mapping[str, Any], *, headline: bool = True) -> None:
    """Append the sentence with its assumptions, the plots and the table."""
    if headline:
        page.verdict("ok", part["sentence"], assumed(part))
    page.tiles(tiles(part))
    rows = [[LABELS.get(a["name"], a["name"]), a["value"], a["source"]] for a in part["assumptions"]]
    page.add(details("Every assumption, and where it is from", table(["assumption", "value", "from"], rows, (0, 1, 2))))
    parts = [(p["name"], float(p["usd_per_month"])) for p in part["cost"]["parts"]]
    fall = waterfall(parts, title="Dollars a month, by part", show=dollars, total="a month")
    page.add(fall, curve(part))
    page.add(_tornado(part), _right(part))
    head, rows, sources = noted(*rows_of(part))
    page.add(table(head, rows, text_columns(head)))
    for source in sources:
        page.text(source, note=True)
    if part["left_out"]:
        page.text(f"No image-token rule is known for {', '.join(part['left_out'])}: left out.", note=True)
    page.text(
        "$/right answer of a priced model is a lower bound: what it costs if every one of its answers is right. "
        "A month at a vendor keeps the rest of the path (stages, review, failures) and drops own machines and monthly "
        "costs. The interval takes the 95 % ends of throughput and accuracy together.",
        note=True,
    )
    swings = [
        [s["factor"], s["low_input"], usd(s["usd_at_low"]), s["high_input"], usd(s["usd_at_high"])]
        for s in part["tornado"]
    ]
    head = ["assumption", "lower", "$/right answer", "higher", "$/right answer"]
    page.add(details("What each assumption was moved to", table(head, swings)))
    bill = [[p["name"], usd(p["usd_per_month"]), p["how"]] for p in part["cost"]["parts"]]
    page.add(details("The arithmetic of every part", table(["part", "$ a month", "how"], bill, (0, 2))))


def curve(part: Mapping[str, Any]) -> str:
    """Return the plot of dollars a month over the volume."""
    data = part["curve"]
    x = [float(v) for v in data["queries"]]
    series = [Series("own machines", x, [float(v) for v in data["own_usd"]])]
    for name, values in data["vendors_usd"].items():
        series.append(Series(name, x, [float(v) for v in values], dash=True))
    rows = {f"{row['vendor']} {row['model']}": row for row in part["baselines"]}
    drawn = [rows[name] for name in data["vendors_usd"]]
    here = float(part["cost"]["queries_per_month"])
    marks = [(here, "forecast")]
    for row in drawn[:1]:
        even = row["break_even_queries"]
        if even and not 0.1 < even / here < 10:  # its text would lie over the other's
            marks.append((float(even), "break-even"))
    never = [row["model"] for row in drawn if not row["break_even_queries"]]
    note = (
        "What differs: the model's own cost, retries and monthly costs; the rest of the path is the same on both sides."
    )
    if never:
        note += f" No volume at which own machines cost less than {', '.join(never)}."
    return line(
        series,
        title="Break-even",
        x=Axis("queries a month", log=True),
        y=Axis("$ a month", log=True),
        vertical=marks,
        note=note,
    )


def _tornado(part: Mapping[str, Any]) -> str:
    rows = [
        (s["factor"], s["low_input"], s["high_input"], float(s["usd_at_low"]), float(s["usd_at_high"]))
        for s in part["tornado"]
    ]
    note = "Each assumption 50 % lower and 50 % higher, the others held; a longer output is free on own machines here, "
    return tornado_plot(
        rows,
        float(part["cost"]["usd_per_successful_answer"]),
        title="What moves dollars per right answer",
        show=dollars,
        note=note + "whose capacity was measured at one length.",
    )


def _right(part: Mapping[str, Any]) -> str:
    right = part["usd_per_right_answer"]
    own = float(right["value"])
    none = math.nan
    bars = [(part["model"], dollars(own), own, float(right["low"]), float(right["high"]), 1)]
    for row in part["baselines"][:11]:
        value = row["usd_per_right_answer"] or row["usd_per_query_whole_path"]
        shown = usd(value) if row["usd_per_right_answer"] else f"at least {usd(value)}"
        bars.append((f"{row['vendor']} {row['model']}", shown, float(value), none, none, 2 if row["measured"] else 0))
    return ranking(
        bars,
        title="Dollars per right answer",
        keys=[("this server", 1), ("measured", 2), ("priced", 0)],
        note="The eleven cheapest baselines; a priced one as if every answer of it were right.",
    )


MAIN = ("query (mean)", "query", "success_rate", "usd_per_hour", "capacity_rps", "utilization")


def assumed(part: Mapping[str, Any]) -> str:
    """Return the main assumptions of the sentence, in one line."""
    found = {a["name"]: a for a in part["assumptions"]}
    named = [f"{n.replace('_', ' ')} {found[n]['value']} ({found[n]['source']})" for n in MAIN if n in found]
    return "Assumes " + "; ".join(named) + ". All of them are below."


def terminal(part: Mapping[str, Any], most: int = 12) -> str:
    """Return the cost part for a terminal: what was measured, and `most` models of the price book at the most."""
    lines = [part["sentence"], "", "   ".join(f"{name} {dollars}" for name, dollars, _ in tiles(part)), ""]
    bill = [[p["name"], usd(p["usd_per_month"]), p["how"]] for p in part["cost"]["parts"]]
    bill.append(["total", usd(part["cost"]["usd_per_month"]), ""])
    width = max(len(row[0]) for row in bill)
    lines += [f"{name.ljust(width)}  {amount.rjust(14)}  {how}" for name, amount, how in bill]
    drawn = list(part["curve"]["vendors_usd"])
    priced = [row["model"] for row in part["baselines"] if not row["measured"]]
    first = [m for m in priced if any(name.endswith(f" {m}") for name in drawn)]
    chosen = list(dict.fromkeys([*first, *(m for m in SHOWN if m in priced), *priced]))[:most]
    head, rows, sources = noted(*rows_of(part, chosen))
    lines += ["", columns(head, rows), *sources]
    if len(priced) > len(chosen):
        lines.append(f"({len(priced) - len(chosen)} more models of the price book: see --json or the page)")
    if part["left_out"]:
        lines.append(f"(no image-token rule is known for {', '.join(part['left_out'])}: left out)")
    lines += ["", "assumptions:"]
    lines += [f"  {a['name']}: {a['value']}  [{a['source']}]" for a in part["assumptions"]]
    return "\n".join(lines)
