"""`fovea loadtest compare`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.commands import common
from models.support.errors import FoveaError, UsageError

if TYPE_CHECKING:
    from loadtest.report import Report

EXAMPLES = """
examples:
  fovea loadtest compare before/ after/ --gate gate.yaml
  fovea loadtest compare --before http://a:8000/v1 --after http://b:8000/v1 --model m --rate 5 --duration 120 --out out

The second form loads both servers in turns (before, after, after, before, ...), so that what drifts hits both.
The exit code is 1 when the gate fails.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("reports", nargs="*", metavar="REPORT", help="folders of two runs, before and after")
    parser.add_argument("--gate", metavar="FILE", help="YAML with the changes that are not acceptable")
    live = parser.add_argument_group("load both now")
    live.add_argument("--before", metavar="URL", help="base URL of the server before the change")
    live.add_argument("--after", metavar="URL", help="base URL of the server after it")
    live.add_argument("--model", help="model name, the same on both (or --before-model)")
    live.add_argument("--before-model", help="model name on the server before the change")
    live.add_argument("--rate", type=float, metavar="R", help="open loop: mean requests per second")
    live.add_argument("--concurrency", type=int, metavar="C", help="closed loop: number of users")
    live.add_argument("--duration", type=float, default=60.0, metavar="S", help="seconds per server (default: 60)")
    live.add_argument("--rounds", type=int, default=4, help="turns per server (default: 4)")
    common.add_api(live)
    common.add_traffic(parser)
    common.add_generator(parser)
    common.add_hardware(parser)
    common.add_output(parser)
    parser.set_defaults(run=run, url="")


def run(args: argparse.Namespace) -> int:
    """Compare, print, write, and apply the gate."""
    from loadtest.compare import compare
    from loadtest.gate import apply_gate, read_gate
    from loadtest.report import load_report
    from models.support.errors import CheckFailed

    gate = read_gate(args.gate) if args.gate else None
    common.check_out(args.out)
    rounds: Rounds | None = None
    if args.before or args.after:
        if not (args.before and args.after and args.model) or args.reports:
            raise UsageError(
                "needs --before URL, --after URL and --model, and no reports",
                field="--before",
                fix="give the two servers, or two reports",
            )
        rounds = load_both(args)
        if rounds.pairs == 0:
            return rounds.end(args)
        a, b = rounds.joined()
    else:
        if len(args.reports) != 2:
            raise UsageError(
                "give two reports, or --before and --after",
                field="REPORT",
                value=len(args.reports),
                fix="name the --out folders of two runs",
            )
        a, b = (load_report(path) for path in args.reports)
    data = compare(a, b)
    data["command"] = common.command_line()
    if rounds is not None and rounds.partial:
        data["warnings"].append(f"stopped after {rounds.pairs} of {args.rounds} rounds")
    if gate is not None:
        data["gate"] = apply_gate(gate, data)
    common.publish(args, data, terminal, write)
    if rounds is not None and rounds.partial:
        return rounds.end(args)
    broken = [row for row in data.get("gate", []) if not row["passed"]]
    if broken:
        names = ", ".join(f"{row['metric']} (limit {row['limit']})" for row in broken)
        raise CheckFailed(
            f"the gate fails: {names}",
            field="--gate",
            value=args.gate,
            fix="see the report for which metric and how far; the limits are in the file of --gate",
        )
    return 130 if a.partial or b.partial else 0


@dataclass
class Rounds:
    """Both servers' runs, in turns; those of an unfinished round have no partner."""

    before: list[Report] = field(default_factory=list)
    after: list[Report] = field(default_factory=list)
    partial: bool = False
    error: FoveaError | None = None

    @property
    def pairs(self) -> int:
        """The number of whole rounds."""
        return min(sum(not r.partial for r in side) for side in (self.before, self.after))

    def joined(self) -> tuple[Report, Report]:
        """Return one report for each server over all whole rounds."""
        from loadtest.rounds import joined

        return joined(self.before[: self.pairs]), joined(self.after[: self.pairs])

    def end(self, args: argparse.Namespace) -> int:
        """Return the exit code of a comparison that did not get to its end.

        Raises:
            FoveaError: what ended it.
        """
        where = f"; the runs are in {Path(args.out) / 'rounds'}" if args.out and (self.before or self.after) else ""
        print(f"stopped after {self.pairs} of {args.rounds} rounds{where}", file=sys.stderr)
        if self.error is not None:
            raise self.error
        return 130


def load_both(args: argparse.Namespace) -> Rounds:
    """Load both servers in turns with the same seeds.  Each run's reports are written as soon as it is over.

    Raises:
        UsageError: the options are wrong, or the very first run is not possible.
    """
    from loadtest.config import make_config
    from loadtest.run import run_load, write_reports

    common.positive(args, "rate", "concurrency", "duration", "rounds")
    base = common.base_config(args)
    load = {"rate": args.rate, "concurrency": args.concurrency}
    if args.rate is None and args.concurrency is None:
        raise UsageError("no load given", field="--rate", fix="give --rate or --concurrency")
    traffic = {**common.class_values(args), **load}
    urls = {"before": (args.before, args.before_model or args.model), "after": (args.after, args.model)}
    rounds = Rounds()
    side = "before"
    try:
        for number in range(args.rounds):
            for side in ("before", "after") if number % 2 == 0 else ("after", "before"):
                url, model = urls[side]
                values = {**base, "url": url, "model": model, "seed": args.seed + number}
                values["check_model"] = base["check_model"] and number == 0
                config = make_config(**values, classes=(traffic,), duration_s=args.duration / args.rounds)
                report = run_load(config, progress=False if args.quiet else None)
                getattr(rounds, side).append(report)
                if args.out:
                    write_reports(report, Path(args.out) / "rounds" / f"{side}-{number + 1}")
                if report.partial:
                    raise KeyboardInterrupt
    except (KeyboardInterrupt, FoveaError) as error:
        if isinstance(error, FoveaError) and error.field == "--url":
            error.field = f"--{side}"  # as this command calls it
        if not rounds.before and isinstance(error, FoveaError):
            raise
        rounds.partial, rounds.error = True, error if isinstance(error, FoveaError) else None
    return rounds


def _show(row: dict[str, Any], value: float | None) -> str:
    from loadtest.text_report import dollars, number, percent

    if row["unit"] == "share":
        return percent(value)
    return dollars(value) if row["unit"] == "USD" else number(value)


def table_rows(data: dict[str, Any]) -> list[list[str]]:
    """Return the table of the comparison."""
    rows = []
    for row in data["rows"]:
        if row["difference"] is None:
            rows.append([row["metric"], "–", "–", row["note"], "", row["verdict"]])
            continue
        change = row.get("relative") or row["difference"]
        show = (lambda v: f"{100 * v:+.1f} %") if "relative" in row else (lambda v: f"{v:+.3g}")
        interval = f"{show(change['value'])} ({show(change['low'])} to {show(change['high'])})"
        effect = row["effect_size"]
        size = f"{effect['name']} {effect['value']:+.2f}"
        rows.append([row["metric"], _show(row, row["a"]), _show(row, row["b"]), interval, size, row["verdict"]])
    return rows


HEAD = ["", "before", "after", "change (95 % interval)", "effect size", "verdict"]


def summary(data: dict[str, Any]) -> tuple[str, str]:
    """Return (kind of verdict box, one line)."""
    worse = [r["metric"] for r in data["rows"] if r["verdict"] == "worse"]
    better = [r["metric"] for r in data["rows"] if r["verdict"] == "better"]
    broken = [r["metric"] for r in data.get("gate", []) if not r["passed"]]
    if broken:
        return "bad", f"The gate fails: {', '.join(broken)}"
    parts = [f"{word}: {', '.join(names)}" for word, names in (("worse", worse), ("better", better)) if names]
    return ("warn" if worse else "ok"), "; ".join(parts).capitalize() or "No difference can be told"


def terminal(data: dict[str, Any]) -> str:
    """Return the comparison for a terminal."""
    from loadtest.text_report import columns

    how = "paired request by request" if data["paired"] else "not paired"
    parts = [f"{summary(data)[1]} ({how})", "", columns(HEAD, table_rows(data))]
    if "gate" in data:
        rows = [
            [g["metric"], g["limit"], "passed" if g["passed"] else "FAILED", g.get("note", "")] for g in data["gate"]
        ]
        parts += ["", columns(["gate", "limit", "", ""], rows)]
    return "\n".join(parts + [f"warning: {text}" for text in data["warnings"]])


def write(data: dict[str, Any], folder: Path) -> None:
    """Write compare.json, compare.html and compare.md."""
    from models.support.files import atomic_write, write_json

    write_json(folder / "compare.json", data)
    for name, text in (("compare.html", page(data)), ("compare.md", markdown(data))):
        with atomic_write(folder / name) as file:
            file.write(text)


def markdown(data: dict[str, Any]) -> str:
    """Return the comparison for a pull-request comment."""
    from loadtest.text_report import md_table

    kind, text = summary(data)
    sign = {"ok": "✅", "warn": "⚠️", "bad": "❌"}[kind]
    parts = [f"### {sign} {text}", "", md_table(HEAD, table_rows(data))]
    if "gate" in data:
        rows = [[g["metric"], g["limit"], "passed" if g["passed"] else "**failed**"] for g in data["gate"]]
        parts += ["", md_table(["gate", "limit", ""], rows)]
    return "\n".join(parts + [f"- {w}" for w in data["warnings"]]) + "\n"


SHOWN = ("latency_p50", "latency_p95", "latency_p99", "ttft_p50", "errors", "accuracy", "usd_per_query")


def tiles(data: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the metrics that matter most as (name, before and after, change)."""
    found = []
    for row in data["rows"]:
        if row["metric"] in SHOWN and row["difference"] is not None:
            label, values = row["metric"].replace("_", " "), (row["a"], row["b"])
            if row["unit"] == "USD":
                label, values = "$ per 1,000 queries", (1000 * row["a"], 1000 * row["b"])
            elif row["unit"] == "ms":
                label += ", ms"
            change = row.get("relative") or row["difference"]
            text = f"{100 * change['value']:+.1f} %" if "relative" in row else f"{change['value']:+.3g}"
            shown = " → ".join(_show(row, value) for value in values)
            found.append((label, shown, f"{text}, {row['verdict']}"))
    return found


def page(data: dict[str, Any]) -> str:
    """Return the HTML report."""
    from loadtest.html_report import distribution, figures_table, tail_of
    from models.support.html import Axis, Page, Series, line

    a, b = data["a"], data["b"]
    out = Page("Before and after", f"{a['target']['url']} ({a['started']}) · {b['target']['url']} ({b['started']})")
    out.verdict(*summary(data))
    out.tiles(tiles(data))
    for text in data["warnings"]:
        out.verdict("warn", text)
    how = (
        "Request by request: both runs sent the same at the same times."
        if data["paired"]
        else "The runs are not paired."
    )
    out.section("Difference", f"{how} Times are in ms.")
    rows = [[row[0].replace("_", " "), *row[1:]] for row in table_rows(data)]
    out.add(figures_table(HEAD, rows, (0, 5)))
    if "gate" in data:
        out.section("Gate")
        rows = [
            [g["metric"], g["limit"], "passed" if g["passed"] else "failed", g.get("note", "")] for g in data["gate"]
        ]
        out.add(figures_table(["metric", "limit", "", ""], rows, (0, 2, 3)))
    out.section("Latency, end to end")
    curves = {"before": a["curves"]["latency"], "after": b["curves"]["latency"]}
    out.add(distribution(curves), tail_of(curves, note=""))
    series = []
    for name, side in (("before", a), ("after", b)):
        points = [r for r in side["timeline"] if r["p50_ms"] is not None]
        series.append(Series(name, [r["t"] for r in points], [r["p50_ms"] for r in points]))
    out.add(line(series, title="P50 over time", x=Axis("s", lowest=0.0), y=Axis("ms", lowest=0.0)))
    out.code(data["command"])
    return out.render()
