"""Have an arm answer every golden set, and the student also the changed ones; what was answered is not asked again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path

from distill.evaluate.arms import Arm, address
from distill.evaluate.pictures import KINDS, variant
from distill.export.parity import parity
from distill.recipe.evaluate import Evaluate
from distill.work import Work
from models.evaluation import EvaluationSettings, evaluate
from models.evaluation.compare import Evaluated, read_evaluation
from models.golden import GoldenSet, load_golden
from models.providers import VENDORS
from models.support.errors import CheckFailed, UsageError
from models.support.files import write_json

PLAIN = "plain"


@dataclass(frozen=True)
class Job:
    """One set, asked of one arm in one wording; `kind` is `plain`, `hidden`, `damaged`, `repeat-2` or `wording-2`."""

    arm: Arm
    golden: GoldenSet
    spec: str
    kind: str
    limit: int | None
    out: Path
    prompt: str = "{question}"


def sets_of(work: Work) -> list[tuple[GoldenSet, str]]:
    """Return the golden sets with their names or paths.  Raises UsageError where one is not there."""
    section = work.recipe.evaluate
    assert section is not None
    specs = [str((work.folder / n).resolve()) if (work.folder / n).exists() else n for n in section.golden]
    return [(_loaded(spec, _stamp(Path(spec))), spec) for spec in specs]


@lru_cache(maxsize=8)
def _loaded(spec: str, stamp: int) -> GoldenSet:
    """Read a set once: its pictures are opened, and every step of the comparison asks for it."""
    return load_golden(spec)


def _stamp(path: Path) -> int:
    file = path / "golden.jsonl" if path.is_dir() else path
    return file.stat().st_mtime_ns if file.is_file() else 0


def jobs_of(work: Work, arm: Arm) -> list[Job]:
    """Return what an arm is asked: all sets; the student also with changed pictures and other wordings."""
    section = work.recipe.evaluate
    assert section is not None
    found = []
    for golden, spec in sets_of(work):
        folder = work.out / "evaluate" / "answers" / arm.key / golden.name
        found.append(Job(arm, golden, spec, PLAIN, section.limit, folder / PLAIN))
        if arm.name != "student":
            continue
        for kind in KINDS if section.robust_items else ():
            made = work.out / "evaluate" / "sets" / f"{golden.name}-{kind}-{golden.digest[:12]}-{section.robust_items}"
            if not (made / "golden.jsonl").exists():
                variant(golden, kind, section.robust_items, work.recipe.seed, made)
            found.append(Job(arm, load_golden(made), str(made.resolve()), kind, None, folder / kind))
        again = [(f"repeat-{number}", "{question}") for number in range(2, section.repeats + 2)]
        for kind, prompt in [*again, *((f"wording-{n}", text) for n, text in enumerate(section.variants, 2))]:
            limit = min(section.robust_items or 200, section.limit or 10**9)
            found.append(Job(arm, golden, spec, kind, limit, folder / kind, prompt))
    return found


def ask(work: Work, arm: Arm) -> dict[tuple[str, str], Evaluated]:
    """Return (golden set's name in the recipe, kind) -> evaluation; the arm is served only if something is missing.

    Raises:
        CheckFailed: it did not start, stopped answering, or the spend limit was reached.
    """
    section = work.recipe.evaluate
    assert section is not None
    jobs = jobs_of(work, arm)
    names = [golden.name for golden, _ in sets_of(work)]
    with ExitStack() as running:
        url: str | None = None
        for job in jobs:
            if _finished(job) is None:
                url = url or running.enter_context(address(arm))
                _evaluate(work, section, job, url)
        if arm.name == "student" and work.recipe.export is not None and not parity_path(work, arm).exists():
            # while it is served anyway: a start of the engine takes longer than all of this
            measure_parity(work, arm, url or running.enter_context(address(arm)))
    found = {}
    for job in jobs:
        finished = _finished(job)
        assert finished is not None
        name = next(n for n in sorted(names, key=len, reverse=True) if job.golden.name.startswith(n))
        found[name, job.kind] = finished
    return found


def parity_path(work: Work, arm: Arm) -> Path:
    """Return where the comparison of engine and weights lies: other weights or items are another file."""
    assert work.recipe.export is not None
    return work.out / "evaluate" / f"parity-{arm.key}-{work.recipe.export.parity_items}.json"


def measure_parity(work: Work, arm: Arm, url: str) -> None:
    """Compare the engine at `url` with the arm's weights on the first items of every set, and write it down."""
    section, wanted = work.recipe.evaluate, work.recipe.export
    assert section is not None and wanted is not None and arm.folder is not None
    sets = [golden for golden, _ in sets_of(work)]
    each = -(-wanted.parity_items // len(sets))
    items = [item for golden in sets for item in golden.sample(each, work.recipe.seed)][: wanted.parity_items]
    write_json(parity_path(work, arm), parity(arm.folder, url, arm.model, items, section.max_tokens))


def _finished(job: Job) -> Evaluated | None:
    """Return the evaluation that lies there, if it is this one and complete."""
    try:
        found = read_evaluation(job.out)
    except UsageError:
        return None
    report = found.report
    wanted = len(job.golden.items) if job.limit is None else min(job.limit, len(job.golden.items))
    same = report["golden"]["digest"] == job.golden.digest and report["golden"]["asked"] == wanted
    return found if same and report["run"]["stopped"] is None else None


def _evaluate(work: Work, section: Evaluate, job: Job, url: str) -> None:
    vendor = url.partition("/")[0] in VENDORS
    # a teacher that is asked elsewhere has its key, its address and its prices in the recipe
    teacher = work.recipe.teachers[0] if job.arm.folder is None else None
    key = None if teacher is None or teacher.api_key_env is None else os.environ.get(teacher.api_key_env)
    prices = work.recipe.budget.prices
    report = evaluate(
        EvaluationSettings(
            url=url,
            model=job.arm.model,
            golden=job.spec,
            out=job.out,
            limit=job.limit,
            seed=work.recipe.seed,
            concurrency=section.concurrency,
            max_tokens=section.max_tokens,
            prompt=job.prompt,
            fresh=_foreign(job),
            api_key=key,
            vendor_url=teacher.vendor_url if vendor and teacher is not None else None,
            prices=None if prices is None else work.folder / prices,
            max_usd=section.max_usd if vendor else None,
            usd_per_hour=None if vendor else section.usd_per_hour,
        )
    )
    if report["run"]["stopped"] is not None:
        raise CheckFailed(f"stopped early: {report['run']['stopped']}", field="evaluate.max_usd",
                          value=str(section.max_usd), fix="raise it, or lower evaluate.limit")  # fmt: skip


def _foreign(job: Job) -> bool:
    """Return whether the folder holds the answers of another set (its golden set was changed meanwhile)."""
    import json

    try:
        there = json.loads((job.out / "run.json").read_text("utf-8"))
        return bool(there["golden"]["digest"] != job.golden.digest)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def usd_per_query(arms: Sequence[Evaluated]) -> Decimal | None:
    """Return dollars of a query over several evaluations of one arm; None where one is not priced."""
    total, n = Decimal(0), 0
    for one in arms:
        cost = one.report.get("cost")
        if cost is None:
            return None
        total, n = total + Decimal(cost["usd_per_query"]) * cost["n"], n + cost["n"]
    return total / n if n else None
