"""`fovea doctor`: what this machine has, what is wrong with it, and what to do about it.

Every check is a function that returns rows; a row is ok, warn (works, but slower or with less) or fail (will not work),
and one that is not ok carries its fix.  A check that breaks is itself a failed row, so one broken driver does not
hide the rest.  Exit code 1 when any row failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from models.support.errors import UsageError

Status = Literal["ok", "warn", "fail"]
DEFAULT_PORT = 8000


@dataclass(frozen=True)
class Row:
    """One finding.

    Args:
        name: what was looked at.
        status: ok, warn or fail.
        detail: what was found, with units.
        fix: what to do; set when `status` is not ok.
    """

    name: str
    status: Status
    detail: str
    fix: str | None = None


@dataclass(frozen=True)
class Machine:
    """Where the checks look; tests point these elsewhere.

    Args:
        root: the project's folder (`requirements/` and the environment's stamp).
        port: the port that `fovea serve` would take, None when the user named none.
        proc: the process file system.
        cgroup: the control-group file system.
    """

    root: Path = field(default_factory=lambda: Path(__file__).resolve().parent.parent)
    port: int | None = None
    proc: Path = Path("/proc")
    cgroup: Path = Path("/sys/fs/cgroup")


Check = Callable[[Machine], Iterable[Row]]
CHECKS: dict[str, Check] = {}


def check(name: str) -> Callable[[Check], Check]:
    """Register a check; the order of registration is the order of the report."""

    def register(function: Check) -> Check:
        CHECKS[name] = function
        return function

    return register


def examine(machine: Machine) -> list[Row]:
    """Run every check; one that raises becomes a failed row."""
    import serving.doctor_hardware
    import serving.doctor_software  # noqa: F401  both register their checks

    rows: list[Row] = []
    for name, function in CHECKS.items():
        try:
            rows += function(machine)
        except Exception as error:
            rows.append(Row(name, "fail", f"the check itself failed: {type(error).__name__}: {error}", "report it"))
    return rows


def as_json(rows: list[Row]) -> str:
    """Return the rows as one JSON object."""
    failed = [row.name for row in rows if row.status == "fail"]
    return json.dumps({"ok": not failed, "failed": failed, "checks": [asdict(row) for row in rows]}, indent=2)


def as_text(rows: list[Row], color: bool) -> str:
    """Return the rows as a table, each fix on a line below its row, and a last line that counts."""
    codes = {"ok": "32", "warn": "33", "fail": "31"}
    width = max(len(row.name) for row in rows)
    lines = []
    for row in rows:
        word = f"{row.status:4}"
        lines.append(
            f"{f'{chr(27)}[{codes[row.status]}m{word}{chr(27)}[0m' if color else word}  "
            f"{row.name:{width}}  {row.detail}"
        )
        if row.fix:
            lines.append(f"{'':6}{'':{width}}  -> {row.fix}")
    counts = [f"{sum(row.status == status for row in rows)} {status}" for status in ("ok", "warn", "fail")]
    return "\n".join([*lines, "", ", ".join(counts)])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fovea doctor`."""
    parser.add_argument("--port", type=int, help=f"the port to serve on (default {DEFAULT_PORT}); in use is a failure")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report; return 1 when any row failed.

    Raises:
        UsageError: the port is not one.
    """
    if args.port is not None and not 1 <= args.port <= 65535:
        raise UsageError("must be between 1 and 65535", field="--port", value=args.port, fix="name a port that is free")
    rows = examine(Machine(port=args.port))
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(as_json(rows) if args.json else as_text(rows, color))
    return 1 if any(row.status == "fail" for row in rows) else 0
