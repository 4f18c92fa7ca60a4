"""The evaluate step: every arm answers, then everything is compared item by item."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from distill.evaluate.arms import Arm, arms_of, seed_name
from distill.evaluate.ask import PLAIN, ask, sets_of, usd_per_query
from distill.evaluate.cascade import Both, cascade
from distill.evaluate.pictures import KINDS
from distill.recipe.evaluate import Evaluate
from distill.work import Work
from models.cost.ledger import significant
from models.evaluation.compare import Evaluated, compare
from models.evaluation.consistency import consistency
from models.evaluation.context import command, hardware, versions
from models.evaluation.score import is_right
from models.golden import GoldenItem
from models.stats import block_quantile, paired_ratio, wilson
from models.support.errors import UsageError
from models.support.files import write_json

VERSION = 3
Answers = Mapping[tuple[str, str], Evaluated]


def section_of(work: Work) -> Evaluate:
    """Return the section.  Raises UsageError when the recipe has none, or nothing is trained."""
    if work.recipe.evaluate is None:
        raise UsageError("is missing", field="evaluate", fix="add it: fovea distill schema describes it")
    if work.recipe.train is None:
        raise UsageError("is missing", field="train", fix="an evaluation is of a student that was trained")
    return work.recipe.evaluate


def inputs(work: Work) -> dict[str, Any]:
    """Return what the result depends on."""
    section = section_of(work)
    return {
        "version": VERSION,
        "arms": [(a.name, a.digest, a.url if a.folder is None else None, a.model) for a in arms_of(work)],
        "sets": [golden.digest for golden, _ in sets_of(work)],
        "evaluate": section.model_dump(mode="json"),
        "seed": work.recipe.seed,
    }


def evaluate_student(work: Work) -> dict[str, Any]:
    """Ask everybody, compare, write `evaluate/report.json`; return the report.

    Raises:
        CheckFailed: a stack did not start, or stopped answering; what was answered is kept.
    """
    section = section_of(work)
    arms = arms_of(work)
    answers = {arm.name: ask(work, arm) for arm in arms}
    report = {
        "step": "evaluate",
        "recipe": work.recipe.name,
        "seed": work.recipe.seed,
        "concurrency": section.concurrency,
        "usd_per_hour": f"{section.usd_per_hour:f}",
        "load": "closed loop: everybody is asked the same items by the same number of users, one arm after the other",
        "arms": {arm.name: _arm(work, arm, answers[arm.name]) for arm in arms},
        "student_against": {
            name: _against(work, answers[name], answers["student"]) for name in answers if name != "student"
        },
        "pictures": _changed_pictures(work, answers["student"]),
        "consistency": _consistency(work, section, answers["student"]),
        "seeds": _seeds(work, section, answers),
        "cascade": _cascade(work, answers["teacher"], answers["student"]),
        "versions": versions(),
        "hardware": hardware(),
        "command": command(),
    }
    report["targets"] = targets(report, section)
    write_json(work.out / "evaluate" / "report.json", report)
    return report


def _plain(work: Work, answers: Answers) -> list[Evaluated]:
    return [answers[golden.name, PLAIN] for golden, _ in sets_of(work)]


def _asked(work: Work, one: Evaluated) -> list[GoldenItem]:
    section = section_of(work)
    golden = next(g for g, _ in sets_of(work) if g.digest == one.report["golden"]["digest"])
    return golden.sample(section.limit, work.recipe.seed)


def _rights(work: Work, answers: Answers) -> list[tuple[GoldenItem, bool]]:
    found = []
    for one in _plain(work, answers):
        found += [(item, is_right(item, one.answers.get(item.id))) for item in _asked(work, one)]
    return found


def _arm(work: Work, arm: Arm, answers: Answers) -> dict[str, Any]:
    """Return an arm's figures over all sets, and per set."""
    plain = _plain(work, answers)
    right = [r for _, r in _rights(work, answers)]
    each = usd_per_query(plain)
    accuracy = wilson(sum(right), len(right))
    return {
        "model": arm.model,
        "digest": arm.digest,
        **_weights(arm),
        "accuracy": accuracy.as_dict(),
        "latency_ms": _latency(plain),
        "usd_per_query": None if each is None else significant(each),
        "usd_per_right_answer": None
        if each is None or not accuracy.value
        else significant(each / Decimal(repr(accuracy.value))),
        "sets": {
            one.report["golden"]["name"]: {
                key: one.report[key]
                for key in ("accuracy", "by_category", "by_field", "latency_ms", "calibration", "risk_coverage", "cost",
                            "errors", "truncated", "tokens")
            } | {"requests_per_s": one.report["run"]["requests_per_s"], "folder": str(one.folder)}
            for one in plain
        },
    }  # fmt: skip


def _weights(arm: Arm) -> dict[str, int | None]:
    """Return `parameters`, from the headers of the checkpoint's files (None where they are packed), and `bytes`."""
    if arm.folder is None or arm.digest is None:
        return {"parameters": None, "bytes": None}
    from safetensors import safe_open

    total = 0
    paths = sorted(arm.folder.glob("*.safetensors"))
    for path in paths:
        with safe_open(path, framework="np") as file:
            total += sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118
    packed = "quantization_config" in json.loads((arm.folder / "config.json").read_text("utf-8"))
    return {"parameters": None if packed else total, "bytes": sum(path.stat().st_size for path in paths)}


def _latency(plain: Sequence[Evaluated]) -> dict[str, Any]:
    values = [
        answer.latency_ms
        for one in plain
        for answer in sorted(one.answers.values(), key=lambda a: a.at)
        if answer.latency_ms is not None
    ]
    return {f"p{round(q * 100)}": block_quantile(values, q).as_dict() for q in (0.5, 0.95)}


def _against(work: Work, other: Answers, student: Answers) -> dict[str, Any]:
    """Return the student's accuracy minus, and over, another's, paired; per set and category."""
    theirs = {(i.image.digest, i.id): r for i, r in _rights(work, other)}
    mine = {(i.image.digest, i.id): r for i, r in _rights(work, student)}
    keys = sorted(theirs.keys() & mine.keys())
    ratio = paired_ratio([theirs[k] for k in keys], [mine[k] for k in keys], seed=work.recipe.seed)
    sets = {
        one.report["golden"]["name"]: compare(one, two, seed=work.recipe.seed)
        for one, two in zip(_plain(work, other), _plain(work, student), strict=True)
    }
    a, b = _latency(_plain(work, other))["p50"], _latency(_plain(work, student))["p50"]
    mine_usd, their_usd = usd_per_query(_plain(work, student)), usd_per_query(_plain(work, other))
    return {
        "accuracy_ratio": ratio.as_dict(),
        "sets": sets,
        "p50_ratio": None if not a["value"] or not b["value"] else {
            "value": a["value"] / b["value"], "low": a["low"] / b["high"], "high": a["high"] / b["low"],
            "n": min(a["n"], b["n"]), "note": "ends of both intervals against each other: wider than 95 %",
        },
        "usd_saved": None if not mine_usd or not their_usd else float(1 - mine_usd / their_usd),
    }  # fmt: skip


def _changed_pictures(work: Work, answers: Answers) -> dict[str, Any]:
    """Return, per set and kind, the accuracy with the changed picture, and on the same items with the true one."""
    section = section_of(work)
    found: dict[str, Any] = {}
    for golden, _ in sets_of(work):
        for kind in KINDS if section.robust_items else ():
            changed, plain = answers[golden.name, kind], answers[golden.name, PLAIN]
            items = [i for i in golden.items if i.id in changed.answers and i.id in plain.answers]
            same = sum(changed.answers[i.id].text == plain.answers[i.id].text for i in items)
            true = sum(is_right(i, plain.answers[i.id]) for i in items)
            found.setdefault(golden.name, {})[kind] = {
                "accuracy": changed.report["accuracy"],
                "with_the_true_picture": wilson(true, len(items)).as_dict(),
                "same_answer": wilson(same, len(items)).as_dict(),
                "by_damage": {
                    tag.partition("=")[2]: figure
                    for tag, figure in changed.report["by_tag"].items()
                    if tag.startswith("picture=")
                },
            }
    return found


def _consistency(work: Work, section: Evaluate, answers: Answers) -> dict[str, Any] | None:
    if not section.variants and not section.repeats:
        return None
    found = {}
    for golden, _ in sets_of(work):
        runs = {kind: one.answers for (name, kind), one in answers.items() if name == golden.name and kind not in KINDS}
        items = [i for i in golden.items if all(i.id in run for run in runs.values())]
        found[golden.name] = consistency(items, runs, seed=work.recipe.seed)
    return found


def _seeds(work: Work, section: Evaluate, answers: Mapping[str, Answers]) -> dict[str, Any] | None:
    """Return, per set, how far the students of all seeds agree, and the spread of their accuracies."""
    if not section.seeds:
        return None
    names = ["student", *map(seed_name, section.seeds)]
    found = {}
    for golden, _ in sets_of(work):
        runs = {name: answers[name][golden.name, PLAIN].answers for name in names}
        items = [i for i in golden.items if all(i.id in run for run in runs.values())]
        one = consistency(items, runs, seed=work.recipe.seed)
        shares = [figure["value"] for figure in one["accuracy"].values()]
        found[golden.name] = one | {"mean": float(np.mean(shares)), "sd": float(np.std(shares, ddof=1))}
    return found


def _cascade(work: Work, teacher: Answers, student: Answers) -> dict[str, Any] | None:
    """Return the cascade over all sets; None without confidences or prices."""
    costs = usd_per_query(_plain(work, student)), usd_per_query(_plain(work, teacher))
    if costs[0] is None or costs[1] is None:
        return None
    items = []
    for one, two in zip(_plain(work, teacher), _plain(work, student), strict=True):
        for item in _asked(work, two):
            mine, theirs = two.answers.get(item.id), one.answers.get(item.id)
            if mine is not None and mine.confidence is not None:
                name = f"{two.report['golden']['name']}/{item.id}"
                items.append(Both(name, mine.confidence, is_right(item, mine), is_right(item, theirs)))
    return cascade(items, costs[0], costs[1], section_of(work).targets.keep)


def targets(report: Mapping[str, Any], section: Evaluate) -> dict[str, Any]:
    """Return what was wanted, what was measured, and whether it holds (None: not measured)."""
    against, wanted = report["student_against"]["teacher"], section.targets
    measured = {
        "keep": (wanted.keep, against["accuracy_ratio"]["value"]),
        "faster": (wanted.faster, (against["p50_ratio"] or {}).get("value")),
        "cheaper": (wanted.cheaper, against["usd_saved"]),
    }
    return {
        name: {"wanted": want, "measured": got, "holds": None if got is None else got >= want}
        for name, (want, got) in measured.items()
    }
