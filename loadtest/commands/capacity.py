"""`fovea loadtest capacity`."""

from __future__ import annotations

import argparse
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
        **{key: last[key] for key in ("seed", "target", "workload", "versions", "hardware")},
    }
    if demand is not None and found.rate is not None:
        hourly = last["hardware"]["server"]
        price = Decimal(str(hourly["usd_per_hour"])) / demand.gpus if hourly else None
        data["forecast"] = {"demand": asdict(demand), "months": plan(found.rate, demand, price)}
    return data


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
    if data["broken_rate_rps"] is None:
        parts.append("No rate tried broke the SLO: raise --max-rate to find the limit.")
    if "forecast" in data:
        head, rows = forecast_rows(data)
        parts += ["", columns(head, rows)]
    return "\n".join(parts)


def forecast_rows(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the forecast table."""
    head = ["month", "peak req/s", "replicas", "GPU-hours fixed", "GPU-hours following"]
    months = data["forecast"]["months"]
    keys = ["month", "peak_rps", "replicas", "gpu_hours_fixed", "gpu_hours_following"]
    if "usd_fixed" in months[0]:
        head += ["$ fixed", "$ following"]
        keys += ["usd_fixed", "usd_following"]
    return head, [[f"{row[k]:,}" for k in keys] for row in months]


def write(data: dict[str, Any], folder: Path) -> None:
    """Write capacity.json and capacity.html."""
    from models.support.files import atomic_write, write_json

    write_json(folder / "capacity.json", data)
    with atomic_write(folder / "capacity.html") as file:
        file.write(page(data))


def page(data: dict[str, Any]) -> str:
    """Return the HTML report."""
    from loadtest.text_report import cell
    from models.support.html import Axis, Page, Series, line, scatter, table

    out = Page(f"Capacity of {data['target']['model']}", f"{data['slo']} · {data['target']['url']} · {data['started']}")
    out.verdict("ok" if data["capacity_rps"] else "bad", statement(data))
    steps = sorted(data["steps"], key=lambda s: s["rate"])
    marks = [(data["capacity_rps"], "certified")] if data["capacity_rps"] else []
    none = float("nan")

    def column(rows: list[dict[str, Any]], end: str, p: str = "p95") -> list[float]:
        return [none if s["latency_ms"][p][end] is None else s["latency_ms"][p][end] for s in rows]

    kept, broken = [s for s in steps if s["passed"]], [s for s in steps if not s["passed"]]
    series = [
        Series(name, [s["rate"] for s in rows], column(rows, "value"), column(rows, "low"), column(rows, "high"), color)
        for name, rows, color in (("SLO kept", kept, 0), ("SLO broken", broken, 1))
        if rows
    ]
    x, y = Axis("offered rate, req/s", lowest=0.0), Axis("P95, ms", log=True)
    knee = scatter(series, title="P95 against the offered rate", x=x, y=y, vertical=marks)
    by_done = sorted(steps, key=lambda s: s["throughput_rps"]["value"] or 0.0)
    done = [s["throughput_rps"]["value"] or none for s in by_done]
    curve = line(
        [Series("P50", done, column(by_done, "value", "p50")), Series("P95", done, column(by_done, "value"))],
        title="Latency against throughput",
        x=Axis("answered, req/s", lowest=0.0),
        y=Axis("ms", log=True),
        points=True,
    )
    out.add(knee, curve)
    out.section("Every run")
    rows = [
        [f"{s['rate']:.3g}", s["purpose"], "kept" if s["passed"] else "broken"]
        + ["yes" if s["queue_grows"] else "no"]
        + [cell(s["latency_ms"][p]) for p in ("p50", "p95", "p99")]
        + ["; ".join(f"{t['term']}: {cell(t)}" for t in s["terms"])]
        for s in steps
    ]
    head = ["req/s", "run", "SLO", "queue grows", "P50 ms", "P95 ms", "P99 ms", "terms"]
    out.add(table(head, rows, (1, 2, 3, 7)))
    if "forecast" in data:
        out.section("Forecast", f"One replica holds {data['capacity_rps']:.3g} req/s within the SLO.")
        head, cells = forecast_rows(data)
        out.add(table(head, cells))
    if data["command"]:
        out.code(data["command"])
    return out.render()
