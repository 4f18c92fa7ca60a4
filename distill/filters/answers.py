"""Filters on what was said: is it usable, does it fit schema and units, do samples and teachers agree?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from distill.answers import PROBLEMS, same_answer
from distill.filters.base import Context, Drop, register
from distill.labels import Given, Labelled, choose
from distill.units import UnitProblem, apply_units

HUMAN = "human"


@register("human", "Human labels")
async def human(rows: Sequence[Labelled], context: Context) -> list[Drop]:
    """A human's label is the row's answer; people who contradict each other make the row useless."""
    accept = context.recipe.task.accept
    drops = []
    for row in rows:
        if not row.human:
            continue
        first = row.human[0]
        other = next((h for h in row.human[1:] if not same_answer(h["answer"], first["answer"], accept)), None)
        if other is not None:
            text = f"{first['by']} says {first['answer']!r}, {other['by']} says {other['answer']!r}"
            drops.append(Drop(row, "contradiction", text))
            continue
        try:
            row.answer = apply_units(first["answer"], context.recipe.task.units)
        except UnitProblem as error:
            drops.append(Drop(row, "units", f"{first['by']}: {error}"))
            continue
        row.source, row.confidence, row.agreement = HUMAN, None, 1.0
    return drops


@register("usable", "Usable answers")
async def usable(rows: Sequence[Labelled], context: Context) -> list[Drop]:
    """Mark each answer that fits not schema or units; drop rows without a usable one."""
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(dict(context.recipe.task.answer_schema))
    counts: Counter[str] = Counter()
    drops = []
    for row in rows:
        for one in row.answers:
            _validate(one, validator, context)
            counts[one.problem or "usable"] += 1
        if row.source == HUMAN or any(a.problem is None for a in row.answers):
            continue
        if row.answers:
            kind, _ = Counter(str(a.problem) for a in row.answers).most_common(1)[0]
            detail = next(a.detail for a in row.answers if a.problem == kind)
            drops.append(Drop(row, kind, f"{PROBLEMS.get(kind, kind)}{f': {detail}' if detail else ''}"))
        else:
            last: Mapping[str, Any] = row.failed[-1]["error"] if row.failed else {"message": "nobody answered"}
            drops.append(Drop(row, "failed", f"{PROBLEMS['failed']}: {last['message']}"))
    context.notes["answers"] = dict(counts)
    return drops


def _validate(one: Given, validator: Any, context: Context) -> None:
    if one.problem is not None:
        return
    least = context.recipe.filters.min_confidence
    try:
        one.answer = apply_units(one.answer, context.recipe.task.units)
    except UnitProblem as error:
        one.problem, one.detail = "units", str(error)
        return
    wrong = next(validator.iter_errors(one.answer), None)
    if wrong is not None:
        one.problem, one.detail = "schema", wrong.message[:200]
    elif least and one.confidence is not None and one.confidence < least:
        one.problem, one.detail = "unsure", f"confidence {one.confidence:.2f} is below {least:.2f}"


@register("agreement", "Agreement")
async def agreement(rows: Sequence[Labelled], context: Context) -> list[Drop]:
    """Choose the answer that most say; drop rows on which too few agree."""
    settings, accept = context.recipe.filters.agreement, context.recipe.task.accept
    drops = []
    for row in rows:
        if row.source == HUMAN:
            continue
        choice = choose(row.answers, accept)
        assert choice is not None, "rows without a usable answer were dropped before"
        said = ", ".join(f"{a.teacher}: {a.answer!r}" for a in row.answers if a.problem is None)[:300]
        if choice.share < settings.min_share - 1e-9:
            drops.append(Drop(row, "disagreement", f"{choice.share:.0%} agree; {said}"))
        elif len(choice.teachers) < settings.min_teachers:
            drops.append(Drop(row, "few_teachers", f"{len(choice.teachers)} of {settings.min_teachers}; {said}"))
        row.answer, row.agreement, row.source = choice.answer, choice.share, choice.best.teacher
        row.confidence, row.rationale = choice.best.confidence, choice.best.rationale
    return drops
