"""What `run`, `gate` and a rung of the ladder take from the same command-line arguments."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from models.support.errors import UsageError
from quantize.engine import EngineSettings
from quantize.gate import GateSettings
from quantize.run import RunSettings


def engine_settings(args: argparse.Namespace) -> EngineSettings:
    """Return how both sides of a comparison are served.  Raises UsageError for an argument that is no command line."""
    try:
        more = tuple(shlex.split(args.engine_args))
    except ValueError as error:
        raise UsageError(str(error), field="engine-args", value=args.engine_args, fix="close the quotes") from error
    return EngineSettings(max_model_len=args.max_model_len, kv_gib=args.kv_gib, kv_dtype=args.kv_dtype, arguments=more)


def run_settings(args: argparse.Namespace, **chosen: Any) -> RunSettings:
    """Return the settings of making one checkpoint; `chosen`: out, scheme, method, group, replace, vision."""
    return RunSettings(
        model=args.model,
        calibration=args.calibration,
        samples=args.samples,
        traffic=args.traffic,
        target=args.target,
        seed=args.seed,
        max_tokens=args.max_tokens,
        engine=engine_settings(args),
        **chosen,
    )


def gate_settings(args: argparse.Namespace, candidate: Path, out: Path) -> GateSettings:
    """Return the settings of one comparison.  Raises UsageError as `GateSettings`."""
    return GateSettings(
        parent=args.model,
        candidate=candidate,
        golden=args.golden,
        out=out,
        limit=args.limit,
        seed=args.seed,
        concurrency=args.concurrency,
        thresholds=args.thresholds,
        usd_per_hour=args.usd_per_hour,
        slo_ms=args.slo_ms,
        parents=args.parents,
        engine=engine_settings(args),
    )
