"""What collecting did: answers, dollars, how noisy each teacher is, the learning curve and the payback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from distill.answers import PROBLEMS, same_answer
from distill.collect.buy import Buyer
from distill.collect.journal import Journal
from distill.collect.rounds import Curve, payback
from distill.collect.spend import LedgerLimit
from distill.collect.teacher import OpenTeacher
from distill.labels import Labelled, choose, given
from distill.work import Work
from models.stats import wilson


@dataclass(frozen=True)
class Shop:
    """An open journal with its spend limit and teachers: what buying needs."""

    journal: Journal
    spend: LedgerLimit
    teachers: tuple[OpenTeacher, ...]
    buyer: Buyer


def collect_report(
    work: Work, shop: Shop, mine: set[str], found: Sequence[Labelled], curve: Curve | None
) -> dict[str, Any]:
    """Return the report; `mine` are the keys of this recipe's questions (the journal may hold earlier ones too)."""
    journal, buyer = shop.journal, shop.buyer
    by_teacher: dict[str, dict[str, Any]] = {}
    for teacher in shop.teachers:
        lines = [journal.answers[k] for k in mine if k in journal.answers]
        lines = [line for line in lines if line["teacher"] == teacher.settings.name]
        problems = dict.fromkeys(PROBLEMS, 0)
        for line in lines:
            problem = given(line, work.recipe.prompts.reply, work.recipe.task.answer_schema).problem
            if problem is not None:
                problems[problem] += 1
        usd = sum((Decimal(line["usd"]) for line in lines), Decimal(0))
        by_teacher[teacher.settings.name] = {
            "vendor": teacher.vendor,
            "model": teacher.settings.model,
            "models_reported": sorted({line["model"] for line in lines}),
            "answers": len(lines),
            "unusable": {p: n for p, n in problems.items() if n},
            "usd": f"{usd:f}",
            "usd_per_answer": f"{usd / len(lines):f}" if lines else None,
            "price": teacher.price,
            "licence": teacher.settings.licence.model_dump(),
            "noise": _noise(work, found, teacher.settings.name),
        }
    wanted = len(mine)
    have = sum(k in journal.answers for k in mine)
    first = by_teacher[work.recipe.teachers[0].name]["usd_per_answer"]
    rounds = work.recipe.budget.rounds
    return {
        "step": "collect",
        "recipe": work.recipe.name,
        "rows_labelled": sum(bool(r.answers or r.human) for r in found),
        "human_rows": sum(bool(r.human) for r in found),
        "synthetic_left_out": len(work.surplus),
        "broken_pictures": dict(work.broken),
        "answers_wanted": wanted,
        "answers": have,
        "answers_before": buyer.known,
        "answers_bought": buyer.bought,
        "failed": sum(k in journal.failures for k in mine),
        "stopped": buyer.stopped,
        "spent_usd": f"{shop.spend.spent:f}",
        "lost_usd": f"{journal.lost:f}",
        "batches_open": sorted(journal.batches),
        "reserved_usd": f"{journal.pending:f}",
        "limit_usd": f"{shop.spend.limit_usd:f}",
        "dearer_than_estimated": buyer.dearer,
        "teachers": by_teacher,
        "rounds": None if curve is None else curve.rounds,
        "payback": payback(
            shop.spend.spent,
            None if first is None else Decimal(first),
            None if rounds is None else rounds.student_usd_per_query,
        ),
    }


def _noise(work: Work, found: Sequence[Labelled], teacher: str) -> dict[str, Any]:
    """Return how often a teacher's answer is the humans', over the rows that both answered."""
    right = [
        (choice := choose([a for a in row.answers if a.teacher == teacher], work.recipe.task.accept)) is not None
        and same_answer(choice.answer, row.human[0]["answer"], work.recipe.task.accept)
        for row in found
        if len(row.human) == 1 and any(a.teacher == teacher for a in row.answers)
    ]
    return wilson(sum(right), len(right)).as_dict()
