"""The steps: each runs alone, goes on where it stopped, and is skipped when nothing that it reads has changed."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from distill.work import Work
from models.support.files import write_json


@dataclass(frozen=True)
class Step:
    """One step.  What it calls is named as `module:function` and imported when it runs: torch and vLLM are behind it.

    Attributes:
        run: `Work` -> report (or a coroutine of it); does the work and writes below `work.out / name`.
        summary: report -> a few lines for people.
        inputs: `Work` -> what the result depends on, as JSON; None: the step finds out itself what is left to do (the
            journal).
        outputs: files below its folder; the step runs again when one is missing or was changed.
        reported: whether it renews the one report of the distillation.
    """

    name: str
    run: str
    summary: Callable[[dict[str, Any]], str]
    inputs: str | None = None
    outputs: tuple[str, ...] = ()
    reported: bool = False


def _call(name: str, work: Work) -> dict[str, Any]:
    module, _, function = name.partition(":")
    found = getattr(import_module(module), function)(work)
    report: dict[str, Any] = asyncio.run(found) if inspect.iscoroutine(found) else found
    return report


def wanted(work: Work) -> list[str]:
    """Return the steps that the recipe has a section for, in order."""
    return [name for name in STEPS if name in ("collect", "filter") or getattr(work.recipe, name) is not None]


def run_steps(work: Work, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Run the steps in order; return name -> report, with `cached` true where nothing had changed."""
    return {name: _run_cached(STEPS[name], work) for name in names}


def _run_cached(step: Step, work: Work) -> dict[str, Any]:
    if step.inputs is None:
        return _call(step.run, work)
    folder = work.out / step.name
    digest = hashlib.sha256(json.dumps(_call(step.inputs, work), sort_keys=True, default=str).encode()).hexdigest()
    done = _read(folder / "done.json")
    if done and done.get("inputs") == digest and done.get("outputs") == _digests(folder, step.outputs):
        return {**done["report"], "cached": True}
    (folder / "done.json").unlink(missing_ok=True)
    report = _call(step.run, work)
    if step.reported:
        _call("distill.report:write_report", work)
    write_json(folder / "done.json", {"inputs": digest, "outputs": _digests(folder, step.outputs), "report": report})
    return {**report, "cached": False}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # never finished: it runs
    return value if isinstance(value, dict) and isinstance(value.get("report"), dict) else None


def _digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    return {name: file_digest(folder / name) for name in names}


def file_digest(path: Path) -> str:
    """Return the sha256 of a file, `missing` when there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"


def _collected(report: dict[str, Any]) -> str:
    total = max(report["rows"], report["rows_labelled"])  # rows that people labelled are not asked for
    lines = [
        f"collect: {report['rows_labelled']} of {total} rows labelled; "
        f"{report['answers_bought']} answers bought, {report['answers_before']} were there; "
        f"${report['spent_usd']} of ${report['limit_usd']} spent"
    ]
    for name, one in report["teachers"].items():
        bad = ", ".join(f"{n} {problem}" for problem, n in one["unusable"].items())
        lines.append(f"  {name}: {one['answers']} answers, ${one['usd']}{f'; unusable: {bad}' if bad else ''}")
    if report["batches_open"]:
        lines.append(f"  batches that a vendor still has: {', '.join(report['batches_open'])}")
    if report["failed"]:
        lines.append(f"  {report['failed']} answers did not come; run it again to ask for them")
    reasons = {
        "budget": "the next answer could pass budget.max_usd",
        "marginal": "a dollar bought too little accuracy (budget.rounds)",
    }
    if report["stopped"] in reasons:
        lines.append(f"  stopped: {reasons[report['stopped']]}")
    if report["rounds"]:
        last = report["rounds"][-1]
        lines.append(f"  {len(report['rounds'])} rounds; accuracy of the probe {last['accuracy']['value']:.3f}")
        if report["payback"]["queries"] is not None:
            lines.append(f"  paid back after {report['payback']['queries']:,} queries")
    return "\n".join(lines)


def _filtered(report: dict[str, Any]) -> str:
    lines = [f"filter: {report['kept']} of {report['rows']} rows kept{' (nothing had changed)' * report['cached']}"]
    for one in report["filters"]:
        if one["dropped"]:
            reasons = ", ".join(f"{n} {reason}" for reason, n in one["reasons"].items())
            lines.append(f"  {one['title']}: {one['dropped']} dropped ({reasons})")
    lines.append(f"  data card: {report['card']}")
    return "\n".join(lines)


def _trained(report: dict[str, Any]) -> str:
    exact = report["exact"]
    seen = "" if exact is None else f"; {exact['value']:.1%} of {exact['n']} validation rows word for word"
    lines = [
        f"train: {report['steps']} steps on {report['rows']} rows in {report['seconds']:.0f} s, "
        f"{report['parameters_trained']:,} of {report['parameters']:,} weights"
        f"{' (nothing had changed)' * report['cached']}",
        f"  loss {report['loss']:.4f}{seen}",
        f"  student: {report['student']}",
    ]
    if report["stopped"]:
        lines.insert(1, f"  ended early: {report['stopped']}; the model of step {report['best_step']} is kept")
    return "\n".join(lines)


def _evaluated(report: dict[str, Any]) -> str:
    lines = [f"evaluate:{' (nothing had changed)' * report['cached']}"]
    for name, arm in report["arms"].items():
        accuracy, p50 = arm["accuracy"], arm["latency_ms"]["p50"]["value"]
        time = "P50 n too small" if p50 is None else f"P50 {p50:.0f} ms"
        each = "not priced" if arm["usd_per_query"] is None else f"${float(arm['usd_per_query']):.2g} a query"
        lines.append(f"  {name}: {accuracy['value']:.4f} right ({accuracy['low']:.4f} to {accuracy['high']:.4f}, "
                     f"n {accuracy['n']}), {time}, {each}")  # fmt: skip
    for name, one in report["targets"].items():
        got = "not measured" if one["measured"] is None else f"{one['measured']:.3f}"
        lines.append(f"  target {name} {one['wanted']:g}: {got}{'' if one['holds'] else ' - missed'}")
    return "\n".join(lines)


def _exported(report: dict[str, Any]) -> str:
    gap = report["parity"]
    refused = (
        f"promotion is refused: {'; '.join(report['refused_for'])}" if report["refused_for"] else report["promote"]
    )
    also = "".join(f"\n  {name}: {one['version']}" for name, one in report.get("also", {}).items())
    return (
        f"export: {report['version']}{' (nothing had changed)' * report['cached']}; transformers and vLLM differ by "
        f"{gap['worst']:.4f} at most in {gap['steps']} steps\n  {refused}{also}"
    )


STEPS: dict[str, Step] = {
    step.name: step
    for step in (
        Step("collect", "distill.collect.hosted:collect_hosted", _collected),
        Step(
            "filter",
            "distill.filters.run:filter_rows",
            _filtered,
            "distill.filters.run:inputs",
            ("kept.jsonl", "dropped.jsonl", "card.html"),
        ),
        Step(
            "train",
            "distill.train.run:train_student",
            _trained,
            "distill.train.run:inputs",
            ("student/config.json", "student/model.safetensors"),
        ),
        Step(
            "evaluate",
            "distill.evaluate.run:evaluate_student",
            _evaluated,
            "distill.evaluate.run:inputs",
            ("report.json",),
            reported=True,
        ),
        Step(
            "export",
            "distill.export.run:export_student",
            _exported,
            "distill.export.run:inputs",
            ("report.json",),
            reported=True,
        ),
    )
}
