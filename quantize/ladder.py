"""`fovea quantize ladder`: schemes from the smallest checkpoint up, until one passes the gate.

Every rung is a folder of its own.  A rung that was made, or decided, by an earlier call is not made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.support.errors import UsageError
from models.support.files import write_json
from quantize import artifact
from quantize.engine import Held
from quantize.gate import run_gate
from quantize.hardware import find_machine, load_table
from quantize.ladder_page import write_ladder_page
from quantize.recovery import shown
from quantize.run import checkpoint_folder, quantize
from quantize.schemes import SCHEMES, find_method, find_scheme
from quantize.scope import read_config
from quantize.settings import gate_settings, run_settings
from quantize.smoothing import METHODS, SMOOTHING

Say = Callable[[str], None]


@dataclass(frozen=True)
class Rung:
    """One try: scheme, method, group (None for the largest that fits)."""

    scheme: str
    method: str
    group: int | None = None

    @property
    def name(self) -> str:
        """Folder name: `w4a16-gptq`, `w4a16-gptq-32`."""
        return f"{self.scheme}-{self.method}" + (f"-{self.group}" if self.group else "")


def parse_rungs(text: str | None, target: str) -> list[Rung]:
    """Return the rungs of `w4a16:gptq:32,w8a8`; by default those that compute well on the target, smallest first.

    Raises:
        UsageError: an unknown scheme or method, a group that is no number, or nothing computes well there.
    """
    if text is None:
        machine, table = find_machine(target), load_table()
        rungs = [Rung("w4a16", "gptq"), Rung("w4a16", "awq"), Rung("w4a16", "gptq", 32)]
        rungs += [Rung(s.name, s.methods[0]) for s in SCHEMES.values() if s.name in ("w8a8", "fp8")]
        good = [r for r in rungs if table.row(r.scheme, machine).verdict == "good"]
        if not good:
            raise UsageError("no scheme computes well there", field="target", value=target, fix="name --rungs")
        return good
    rungs = []
    for part in text.split(","):
        name, _, rest = part.strip().partition(":")
        method, _, group = rest.partition(":")
        scheme = find_scheme(name)
        if group and not group.isdigit():
            raise UsageError("the group must be a number", field="rungs", value=part, fix="w4a16:gptq:32")
        rungs.append(Rung(scheme.name, find_method(scheme, method or None), int(group) if group else None))
    return rungs


def climb(args: argparse.Namespace, rungs: list[Rung], say: Say) -> dict[str, Any]:
    """Make and gate each rung until one passes; write ladder.json and ladder.html after every rung; return the former.

    Raises:
        UsageError, CheckFailed: as `quantize` and `run_gate`; what is done stays and is taken up again.
    """
    out: Path = args.out
    parent = checkpoint_folder(args.model)
    parent_files = artifact.files_of(parent)
    architecture = str((read_config(parent).get("architectures") or ["none"])[0])
    result: dict[str, Any] = {"kind": "quantization-ladder", "model": args.model, "passed": None, "steps": []}
    reports: list[dict[str, Any]] = []
    for rung in rungs:
        folder = out / rung.name
        if rung.method in METHODS and architecture not in SMOOTHING:
            say(f"rung {rung.name} left out: no pairs of layers are known for {architecture}")
            continue
        say(f"rung {rung.name}")
        comparison = gate_settings(args, folder, out / f"{rung.name}-gate")
        with Held(comparison.out / "candidate.log") as held:
            if not (artifact.is_artifact(folder) and artifact.read_manifest(folder)["parent"]["files"] == parent_files):
                chosen = {"scheme": rung.scheme, "method": rung.method, "group": rung.group}
                quantize(run_settings(args, out=folder, replace=folder.exists(), **chosen), say, held)
            report = run_gate(comparison, say, held)
        reports.append(report)
        result["steps"].append(step_of(rung, folder, comparison.out / "report.html", report))
        if report["verdict"]["outcome"] == "pass":
            result["passed"] = rung.name
        write_json(out / "ladder.json", result)
        write_ladder_page(out / "ladder.html", result, reports)
        if result["passed"] is not None:
            break
    return result


def step_of(rung: Rung, folder: Path, page: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Return what the ladder keeps of one rung and its gate's report."""
    return {
        "rung": rung.name,
        "folder": str(folder),
        "report": str(page),
        "outcome": report["verdict"]["outcome"],
        "sentence": report["verdict"]["sentence"],
        "recovery": report["recovery"],
        "size_ratio": report["figures"]["size_ratio"],
        "failed_categories": report["verdict"]["failed_categories"],
        "figures": {name: figures_of(side) for name, side in report["sides"].items()},
    }


def figures_of(side: dict[str, Any]) -> dict[str, Any]:
    """Return what a rung's row says of one side: speed, memory, money."""
    rate = side["rate_at_slo"]
    return {
        "latency_p95_ms": side["latency_ms"]["p95"]["value"],
        "requests_per_s": side["requests_per_s"],
        "rate_at_slo_per_s": rate["certified_per_s"] if rate else None,
        "memory_bytes": side["memory_bytes"],
        "picture_share": side["picture"]["share"] if side["picture"] else None,
        "usd_per_query": side["usd_per_query"],
    }


def print_ladder(result: dict[str, Any], out: Path) -> None:
    """Print a line per rung (the parent's first), and which one passed."""
    from models.support.terminal import print_table

    steps = result["steps"]
    head = ["rung", "verdict", "recovery", "size", "p95 ms", "1/s", "1/s in SLO", "memory GiB", "$/1,000"]
    rows = [["parent", "", "", "1.00", *_cells(steps[0]["figures"]["parent"])]] if steps else []
    for step in steps:
        failed = f" ({', '.join(step['failed_categories'])})" if step["failed_categories"] else ""
        told = [step["rung"], step["outcome"] + failed, shown(step["recovery"]), f"{step['size_ratio']:.2f}"]
        rows.append([*told, *_cells(step["figures"]["candidate"])])
    print_table(head, rows)
    passed = result["passed"]
    print(f"passed            {passed if passed else 'none'}: {out / passed if passed else 'keep the parent'}")
    if steps:
        print(f"report            {out / 'ladder.html'}")


def _cells(figures: dict[str, Any]) -> list[str]:
    def text(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [
        text(figures["latency_p95_ms"], ".1f"),
        text(figures["requests_per_s"], ".1f"),
        text(figures["rate_at_slo_per_s"], ".1f"),
        f"{figures['memory_bytes'] / 2**30:.2f}",
        text(figures["usd_per_query"] and 1000 * figures["usd_per_query"], ".5f"),
    ]
