"""Filters that ask a model: would the answer come without the picture, and does a judge think it right?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from distill.answers import same_answer
from distill.collect.buy import Question, question
from distill.collect.teacher import OpenTeacher, open_teacher
from distill.filters.answers import HUMAN
from distill.filters.base import Context, Drop, register
from distill.labels import Given, Labelled, given
from distill.recipe.ask import Teacher
from models.support.errors import CheckFailed

_JUDGEMENT: dict[str, Any] = {"enum": ["yes", "no"]}


async def _ask(
    context: Context,
    settings: Teacher,
    rows: Sequence[Labelled],
    make: Callable[[Labelled, OpenTeacher, int], Question],
    reply: str,
    schema: dict[str, Any],
) -> dict[str, list[Given]]:
    """Return row id -> what the model says (all samples), bought where the journal does not know it yet."""
    shop = context.shop
    model = open_teacher(settings, context.work.book, shop.spend)
    try:

        def questions() -> Iterator[Question]:
            for row in rows:
                for sample in range(settings.samples):
                    yield make(row, model, sample)

        before = shop.buyer.bought
        shop.buyer.reply, shop.buyer.answer_schema = reply, schema
        await shop.buyer.buy(questions())
        if shop.buyer.stopped == "interrupted":
            raise KeyboardInterrupt
        found = {
            row.id: [
                given(line, reply, schema)
                for sample in range(settings.samples)
                if (line := shop.journal.answers.get(make(row, model, sample).key)) is not None
            ]
            for row in rows
        }
    finally:
        await model.provider.close()
    missing = sum(len(said) < settings.samples for said in found.values())
    if missing and shop.buyer.stopped == "budget":
        raise CheckFailed(
            f"the dollars end before the check: {missing} of {len(rows)} rows are not asked about",
            field="budget.max_usd",
            value=f"{shop.spend.limit_usd:f}",
            fix=f"raise it (${shop.spend.spent:f} are spent), or leave the check out; what was answered is kept",
        )
    context.notes.update(model=settings.model, asked=len(rows), unanswered=missing, bought=shop.buyer.bought - before)
    return found


@register("image_blind", "Answered without image", lambda recipe: recipe.filters.image_blind is not None)
async def image_blind(rows: Sequence[Labelled], context: Context) -> list[Drop]:
    """Drop rows whose answer every sample gives without seeing the picture.

    Chance does this too (half of all yes/no questions, with one sample): ask several samples, or set `min_confidence`.
    """
    settings = context.recipe.filters.image_blind
    assert settings is not None
    by_id = {row.id: row for row in context.work.usable}

    def make(row: Labelled, model: OpenTeacher, sample: int) -> Question:
        return question(row.id, model, context.work.prompts.blind(by_id[row.id]), None, sample, "blind")

    task = context.recipe.task
    found = await _ask(context, settings.model, rows, make, context.recipe.prompts.reply, task.answer_schema)
    drops = []
    for row in rows:
        said = found[row.id]
        guessed = [
            a.problem is None
            and same_answer(a.answer, row.answer, task.accept)
            and (a.confidence is None or a.confidence >= settings.min_confidence)
            for a in said
        ]
        if guessed and all(guessed):
            drops.append(Drop(row, "blind", f"answered {said[0].answer!r} without the picture"))
    return drops


@register("judge", "Judged wrong", lambda recipe: recipe.filters.judge is not None)
async def judge(rows: Sequence[Labelled], context: Context) -> list[Drop]:
    """Drop answers that most of the judge's samples call wrong; human labels are not judged."""
    settings = context.recipe.filters.judge
    assert settings is not None
    by_id = {row.id: row for row in context.work.usable}
    judged = [row for row in rows if row.source != HUMAN]

    def make(row: Labelled, model: OpenTeacher, sample: int) -> Question:
        words = context.work.prompts.judge(by_id[row.id], row.answer)
        return question(row.id, model, words, context.work.pictures[row.id], sample, "judge")

    found = await _ask(context, settings.model, judged, make, "json", _JUDGEMENT)
    drops = []
    for row in judged:
        said = [a for a in found[row.id] if a.problem is None]
        against = [a for a in said if str(a.answer).strip().casefold() == "no"]
        sure = [a for a in against if a.confidence is None or a.confidence >= settings.min_confidence]
        if sure and 2 * len(sure) > len(said):
            drops.append(Drop(row, "judged_wrong", f"{row.answer!r}: {sure[0].rationale or 'no reason given'}"))
    problems = Counter(a.problem for answers in found.values() for a in answers if a.problem is not None)
    context.notes["unusable"] = dict(problems)
    return drops
