"""`fovea loadtest run`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from loadtest.commands import common
from models.support.errors import UsageError

EXAMPLES = """
examples:
  fovea loadtest run --url http://127.0.0.1:8000/v1 --model fovea-vqa --rate 5 --duration 60 --out out
  fovea loadtest run --url http://127.0.0.1:8000/v1 --model m --workload mine.jsonl --concurrency 8 --requests 500

The exit code is 1 when the run is invalid (the generator was late) or nothing succeeded, 2 for bad input.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    common.add_target(parser)
    load = parser.add_argument_group("load (one of --rate, --concurrency, --trace, --classes)")
    load.add_argument("--rate", type=float, metavar="R", help="open loop: mean requests per second")
    load.add_argument("--concurrency", type=int, metavar="C", help="closed loop: number of users")
    load.add_argument("--think", type=float, default=0.0, metavar="S", help="closed loop: mean pause of a user")
    load.add_argument("--trace", metavar="FILE", help="open loop: replay the times of a recorded trace (JSONL or CSV)")
    load.add_argument("--trace-scale", type=float, default=1.0, metavar="X", help="replay so many times faster")
    load.add_argument("--classes", metavar="FILE", help="YAML list of traffic classes, each with its own load and SLO")
    load.add_argument("--duration", type=float, metavar="S", help="seconds to measure")
    load.add_argument("--requests", type=int, metavar="N", help="requests to measure, instead of --duration")
    common.add_traffic(parser)
    slo = parser.add_argument_group("SLO of one request (for goodput)")
    slo.add_argument("--slo-ttft-ms", type=float, metavar="MS", help="time to first token at most")
    slo.add_argument("--slo-tpot-ms", type=float, metavar="MS", help="time per output token at most")
    slo.add_argument("--slo-latency-ms", type=float, metavar="MS", help="end to end at most")
    common.add_generator(parser)
    common.add_hardware(parser)
    common.add_output(parser)
    parser.set_defaults(run=run)


def classes_of(args: argparse.Namespace) -> tuple[dict[str, Any], ...]:
    """Return the traffic classes that the options (or the classes file) describe."""
    if args.classes:
        return read_classes(args.classes)
    if args.rate is None and args.concurrency is None and args.trace is None:
        raise UsageError("no load given", field="--rate", fix="give --rate, --concurrency, --trace or --classes")
    load = {"rate": args.rate, "concurrency": args.concurrency, "think_s": args.think, "trace": args.trace}
    slo = {"ttft_ms": args.slo_ttft_ms, "tpot_ms": args.slo_tpot_ms, "latency_ms": args.slo_latency_ms}
    return ({**common.class_values(args), **load, "trace_scale": args.trace_scale, "slo": slo},)


def read_classes(path: str) -> tuple[dict[str, Any], ...]:
    """Return the traffic classes of a YAML file: a list, or a map with the key `classes`.

    Raises:
        UsageError: it cannot be read, or is not such a list.
    """
    import yaml

    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot read: {error.strerror}", field="--classes", value=path, fix="name an existing file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(
            f"not YAML: {' '.join(str(error).split())}", field="--classes", value=path, fix="mend the file there"
        ) from error
    rows = loaded.get("classes") if isinstance(loaded, dict) else loaded
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UsageError("must be a list of traffic classes", field="--classes", value=path, fix="see docs/loadtest.md")
    return tuple(rows)


def print_path(args: argparse.Namespace, paths: dict[str, Path]) -> None:
    """Say where the report is."""
    if not args.json:
        print(f"report      {paths['html']}")


def run(args: argparse.Namespace) -> int:
    """Run the load, print and write the report."""
    from loadtest.config import make_config
    from loadtest.run import run_load, write_reports
    from loadtest.text_report import terminal
    from models.support.errors import CheckFailed

    common.positive(args, "rate", "duration", "requests", "concurrency")
    common.check_out(args.out)
    values = common.base_config(args)
    if args.duration is None and args.requests is None and args.trace is None:
        raise UsageError("no end given", field="--duration", fix="give --duration seconds or --requests number")
    config = make_config(**values, classes=classes_of(args), duration_s=args.duration, requests=args.requests)
    report = run_load(config, progress=False if args.quiet else None)
    data = report.data
    common.publish(args, data, terminal, lambda data, folder: print_path(args, write_reports(report, folder)))
    if data["failures"]:
        raise CheckFailed(
            f"the run ended early: {'; '.join(data['failures'])}", fix="what was measured is in the report"
        )
    if not report.valid:
        raise CheckFailed(
            f"invalid run: {'; '.join(data['invalid_because'])}", fix="use more --processes or a quieter machine"
        )
    if data["requests"] and data["errors"] == data["requests"]:
        raise CheckFailed("not one request succeeded", fix="see the errors above")
    if report.partial:
        return 130
    return 0
