"""`fovea loadtest capacity`."""

from __future__ import annotations

import argparse
import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.commands import common

if TYPE_CHECKING:
    from loadtest.capacity import Capacity, Step
    from loadtest.config import RunConfig
    from loadtest.slo import Term

EXAMPLES = """
example:
  fovea loadtest capacity --url http://127.0.0.1:8000/v1 --model m --slo "p95<2s,ttft_p99<500ms,errors<1%" --peak 40

The exit code is 1 when no rate could be certified.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    common.add_target(parser)
    search = parser.add_argument_group("search")
    search.add_argument("--slo", required=True, metavar="TERMS", help='for instance "p95<2s,errors<0.1%%,accuracy>0.9"')
    search.add_argument("--start-rate", type=float, default=1.0, metavar="R", help="first rate tried (default: 1)")
    search.add_argument("--max-rate", type=float, default=10_000.0, metavar="R", help="highest rate tried")
    search.add_argument("--step", type=float, default=20.0, metavar="S", help="seconds per search run (default: 20)")
    search.add_argument(
        "--confirm", type=float, default=60.0, metavar="S", help="seconds per confirmation (default: 60)"
    )
    search.add_argument("--tolerance", type=float, default=0.1, help="relative resolution of the rate (default: 0.1)")
    common.add_traffic(parser)
    plan = parser.add_argument_group("forecast (with --peak)")
    plan.add_argument("--peak", type=float, metavar="R", help="requests per second in the busiest hour")
    plan.add_argument("--trough", type=float, default=1.0, metavar="SHARE", help="quietest hour as a share of the peak")
    plan.add_argument("--growth", type=float, default=0.0, metavar="SHARE", help="growth per month, 0.05 is 5 %%")
    plan.add_argument("--months", type=int, default=12, help="months to plan (default: 12)")
    plan.add_argument("--headroom", type=float, default=0.3, metavar="SHARE", help="for bursts (default: 0.3)")
    plan.add_argument("--spare", type=int, default=1, help="replicas that may fail (default: 1, N+1)")
    plan.add_argument("--minimum", type=int, default=1, help="fewest replicas (default: 1)")
    plan.add_argument("--gpus", type=int, default=1, help="GPUs per replica (default: 1)")
    common.add_generator(parser)
    common.add_hardware(parser)
    common.add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Search, print and write the result."""
    from loadtest.capacity import find_capacity
    from loadtest.config import make_config
    from loadtest.forecast import Demand
    from loadtest.run import run_load
    from loadtest.slo import parse_slo
    from models.support.errors import CheckFailed

    terms = parse_slo(args.slo)
    common.check_out(args.out)
    common.positive(args, "start_rate", "max_rate", "step", "confirm", "tolerance")
    demand = None
    if args.peak is not None:
        names = ("peak", "trough", "growth", "months", "headroom", "spare", "minimum", "gpus")
        demand = Demand(**{name: getattr(args, name) for name in names})
    base = common.base_config(args)
    traffic = common.class_values(args)

    def config_at(rate: float, seconds: float, number: int) -> RunConfig:
        values = {**base, "seed": args.seed + number, "check_model": base["check_model"] and number == 0}
        # The first seconds at a new rate belong to the old one.
        values["warmup_s"] = args.warmup or min(5.0, seconds / 5)
        return make_config(**values, classes=({**traffic, "rate": rate},), duration_s=seconds)

    def tell(step: Step) -> None:
        if not args.quiet:
            word = "keeps" if step.passed else "breaks"
            why = " (a queue grows)" if step.queue_grows else "" if step.report.valid else " (generator late)"
            figures = ", ".join(f"{t.text}: {_short(t, f)}" for t, f in zip(terms, step.figures, strict=True))
            print(f"{step.purpose} {step.rate:.3g} req/s {word} the SLO{why}: {figures}", file=sys.stderr)

    found = find_capacity(
        lambda rate, seconds, number: run_load(
            config_at(rate, seconds, number), progress=False if args.quiet else None
        ),
        terms,
        start=args.start_rate,
        highest=args.max_rate,
        step_s=args.step,
        confirm_s=args.confirm,
        tolerance=args.tolerance,
        tell=tell,
    )
    data = report_of(found, terms, args, demand)
    common.publish(args, data, terminal, write)
    if found.error is not None:
        raise found.error
    if found.partial:
        return 130
    if found.rate is None:
        raise CheckFailed(f"no rate could be certified: {found.reason}", field="--slo", value=args.slo)
    return 0


def _short(term: Term, figure: Any) -> str:
    from loadtest.text_report import cell, number, percent

    return cell(figure.to_dict(), percent if term.q is None else lambda v: number(v) + " ms")


def report_of(found: Capacity, terms: list[Term], args: argparse.Namespace, demand: Any) -> dict[str, Any]:
    """Return the result as the content of capacity.json."""
    from dataclasses import asdict

    from loadtest.forecast import plan

    last = found.steps[-1].report.data
    data: dict[str, Any] = {
        "schema_version": "1.0",
        "kind": "capacity",
        "command": last["command"],
        "started": found.steps[0].report.data["started"],
        "partial": found.partial,
        "slo": args.slo,
        "capacity_rps": found.rate,
        "confidence": 0.95,
        "best_rate_rps": found.best,
        "broken_rate_rps": found.broken,
        "reason": found.reason,
        "steps": [step.row(terms) for step in found.steps],
        "warnings": warnings_of(found),
        **{key: last[key] for key in ("seed", "target", "workload", "versions", "hardware")},
    }
    if demand is not None and found.rate is not None:
        hourly = last["hardware"]["server"]
        price = Decimal(str(hourly["usd_per_hour"])) / demand.gpus if hourly else None
        data["forecast"] = {"demand": asdict(demand), "months": plan(found.rate, demand, price)}
    return data


def warnings_of(found: Capacity) -> list[str]:
    """Return what the reader of a certificate must know."""
    said = []
    if found.rate is not None and any(figure.note for figure in found.steps[-1].figures):
        said.append(
            "a term of the certificate rests on few episodes (stalls, bursts): a longer --confirm would see more"
        )
    if found.rate is not None and found.broken is None:
        said.append("no rate tried broke the SLO: raise --max-rate to find the limit")
    return said


def statement(data: dict[str, Any]) -> str:
    """Return the result in one sentence."""
    if data["capacity_rps"] is not None:
        return f"≥ {data['capacity_rps']:.3g} req/s within {data['slo']} (95 % confidence)"
    return f"no rate certified for {data['slo']}: {data['reason']}"


def terminal(data: dict[str, Any]) -> str:
    """Return the result for a terminal."""
    from loadtest.text_report import cell, columns

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
    from loadtest.text_report import number

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
    from models.support.files import atomic_write, write_json

    write_json(folder / "capacity.json", data)
    for name, text in (("capacity.html", page(data)), ("capacity.md", markdown(data))):
        with atomic_write(folder / name) as file:
            file.write(text)


def step_rows(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the table of runs, by rate: what happened, and each term of the SLO."""
    from loadtest.text_report import cell, number, percent

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
    from loadtest.text_report import md_table

    sign = "✅" if data["capacity_rps"] else "❌"
    parts = [f"### {sign} `{data['target']['model']}`: {statement(data)}", "", md_table(*step_rows(data))]
    if "forecast" in data:
        parts += ["", md_table(*forecast_rows(data))]
    return "\n".join(parts + [f"- {text}" for text in data["warnings"]]) + "\n"


def page(data: dict[str, Any]) -> str:
    """Return the HTML report."""
    from loadtest.html_report import figures_table
    from loadtest.text_report import number
    from models.support.html import Page, details, table

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
    from models.support.html import Axis, Series, line, scatter

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
