"""`fovea loadtest capacity`."""

from __future__ import annotations

import argparse
import sys
from decimal import Decimal
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
    from loadtest.capacity_page import terminal, write
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
        raise CheckFailed(
            f"no rate could be certified: {found.reason}",
            field="--slo",
            value=args.slo,
            fix="raise --confirm, or set an SLO that the server can hold at its lowest rate",
        )
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
