"""The export step: parity, registration with lineage, the evaluation attached, what still stands before promotion."""

from __future__ import annotations

import json
from typing import Any

from distill.evaluate.arms import Arm, address, arms_of, checkpoint_digest
from distill.evaluate.ask import PLAIN, measure_parity, parity_path, sets_of
from distill.recipe.evaluate import Export
from distill.steps import file_digest
from distill.work import Work
from models.evaluation.compare import read_evaluation
from models.registry import Registry, open_registry
from models.registry.gates import problems
from models.registry.schema import Policy, Requirement, Version, report_summary
from models.support.errors import CheckFailed, UsageError
from models.support.files import write_json

NAME = "student"


def section_of(work: Work) -> Export:
    """Return the section.  Raises UsageError when the recipe has none."""
    if work.recipe.export is None:
        raise UsageError("is missing", field="export", fix="add it: fovea distill schema describes it")
    return work.recipe.export


def inputs(work: Work) -> dict[str, Any]:
    """Return what the result depends on."""
    return {
        "export": section_of(work).model_dump(mode="json"),
        "student": checkpoint_digest(work.out / "train" / "student"),
        "evaluation": file_digest(work.out / "evaluate" / "report.json"),
    }


def export_student(work: Work) -> dict[str, Any]:
    """Check parity, register, attach the evaluation; write `export/report.json` and return it.

    Raises:
        CheckFailed: transformers and vLLM differ by more than the tolerance: nothing is registered.
        UsageError: there is no evaluation of this student.
    """
    section = section_of(work)
    arms = {arm.name: arm for arm in arms_of(work)}
    evaluations = {name: _evaluations(work, arms[name]) for name in (NAME, *section.also)}
    found = _parity(work, arms[NAME])
    if found["worst"] > section.parity_tolerance:
        raise CheckFailed(
            f"transformers and vLLM differ by {found['worst']:.3f} in a token's probability",
            field="export.parity_tolerance", value=section.parity_tolerance,
            fix=f"{work.out / 'evaluate'} has parity-*.json, which says on which items; nothing was registered",
        )  # fmt: skip
    registry = open_registry(None if section.store is None else str((work.folder / section.store).resolve()))
    version, stood = _publish(work, registry, arms[NAME], section.name, evaluations[NAME])
    report = {
        "step": "export",
        "recipe": work.recipe.name,
        **stood,
        "parity": {k: v for k, v in found.items() if k != "by_item"} | {"tolerance": section.parity_tolerance},
        "lineage": {"parent": version.parent, "data": version.data},
        "also": {
            name: _publish(work, registry, arms[name], f"{section.name}-{name}", evaluations[name], version.ref)[1]
            for name in section.also
        },
    }
    write_json(work.out / "export" / "report.json", report)
    return report


def _publish(
    work: Work, registry: Registry, arm: Arm, name: str, evaluations: list[dict[str, Any]], parent: str | None = None
) -> tuple[Version, dict[str, Any]]:
    """Register the arm where its weights are no version of `name` yet, attach what it answered, set the gate.

    Returns:
        The version, and what the report says of it.
    """
    section = section_of(work)
    known = registry.versions(name) if name in registry.names() else []
    version = next((v for v in known if v.digest == arm.digest), None) or _register(work, registry, arm, name, parent)
    if registry.policy(name) is None:
        registry.set_policy(name, _policy(work, section))
    attached = {r["sha256"] for r in registry.state(name).reports.get(version.number, [])}
    for report in evaluations:
        report["target"] = {"name": version.name, "version": version.number, "digest": version.digest}
        if report_summary(report)["sha256"] not in attached:
            registry.attach(version.ref, report, by=section.by)
    state = registry.state(name)
    return version, {
        "version": version.ref,
        "digest": version.digest,
        "stage": state.stages[version.number],
        "refused_for": problems(registry, version, state, "canary"),
        "promote": f"fovea models promote {version.ref} --to canary",
    }


def _evaluations(work: Work, arm: Arm) -> list[dict[str, Any]]:
    """Return the plain evaluations of exactly these weights, one a golden set."""
    folder = work.out / "evaluate" / "answers" / arm.key
    try:
        return [read_evaluation(folder / golden.name / PLAIN).report for golden, _ in sets_of(work)]
    except UsageError as error:
        raise UsageError(
            "these weights were not evaluated", field=str(folder), fix="run fovea distill evaluate"
        ) from error


def _parity(work: Work, arm: Arm) -> dict[str, Any]:
    """Return what the evaluation measured while the student was served; measure it now where it did not."""
    path = parity_path(work, arm)
    if not path.exists():
        with address(arm) as url:
            measure_parity(work, arm, url)
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def _register(work: Work, registry: Registry, arm: Arm, name: str, parent: str | None) -> Version:
    recipe, section = work.recipe, section_of(work)
    assert arm.folder is not None and recipe.train is not None, "an arm that was made here"
    teachers = ", ".join(f"{t.name} ({t.model})" for t in recipe.teachers)
    return registry.register(
        arm.folder,
        name,
        by=section.by,
        parent=parent or recipe.train.base,
        recipe=recipe.model_dump(mode="json"),
        data={"kept": file_digest(work.out / "filter" / "kept.jsonl")} | {g.name: g.digest for g, _ in sets_of(work)},
        licence=section.licence or None,
        note=f"distilled from {teachers}; report {work.out / 'report.json'}",
    )


def _policy(work: Work, section: Export) -> Policy:
    return Policy(
        require=[
            Requirement(golden=golden.name, min_accuracy=section.min_accuracy, min_items=section.min_items,
                        max_drop=section.max_drop)
            for golden, _ in sets_of(work)
        ]
    )  # fmt: skip
