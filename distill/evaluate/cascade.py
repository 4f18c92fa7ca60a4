"""The cascade: the student answers where it is sure enough, the teacher the rest.  From which confidence on?

The threshold is chosen on one half of the items and measured on the other, so that it is not flattered by its choice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from models.cost.ledger import significant
from models.stats import wilson

POINTS = 60


@dataclass(frozen=True)
class Both:
    """One item asked of both: the student's confidence, and who is right."""

    id: str
    confidence: float
    student: bool
    teacher: bool


def cascade(items: Sequence[Both], student_usd: Decimal, teacher_usd: Decimal, keep: float) -> dict[str, Any] | None:
    """Return the threshold with the fewest dollars per right answer, and the one that also keeps the accuracy.

    Args:
        student_usd, teacher_usd: dollars of a query; an item that is passed on costs both.
        keep: share of the teacher's accuracy that `kept` must reach.

    Returns:
        `cheapest` and `kept` (None where no threshold reaches it), each with `threshold`, and, on the half that did not
        choose it, `accuracy`, `passed_on`, `usd_per_query`, `usd_per_right_answer`; `curve` over all items.
        None with fewer than 40 items.
    """
    if len(items) < 40:
        return None
    ordered = sorted(items, key=lambda i: hashlib.sha256(i.id.encode()).digest())
    choosing, measuring = ordered[::2], ordered[1::2]
    thresholds = _thresholds(choosing)
    worth = [_at(choosing, t, student_usd, teacher_usd) for t in thresholds]
    least = keep * sum(i.teacher for i in choosing) / len(choosing)
    priced = [(row["_each"], t) for row, t in zip(worth, thresholds, strict=True) if row["_each"] is not None]
    enough = [
        (row["_each"], t)
        for row, t in zip(worth, thresholds, strict=True)
        if row["_each"] is not None and row["accuracy"]["value"] >= least
    ]

    def chosen(found: list[tuple[Decimal, float]]) -> dict[str, Any] | None:
        return None if not found else _public(_at(measuring, min(found)[1], student_usd, teacher_usd))

    return {
        "cheapest": chosen(priced),
        "kept": chosen(enough),
        "keep": keep,
        "n_chosen_on": len(choosing),
        "n_measured_on": len(measuring),
        "curve": [_public(_at(ordered, t, student_usd, teacher_usd)) for t in _thresholds(ordered)],
    }


def _thresholds(items: Sequence[Both]) -> list[float]:
    """Return 0 (nothing is passed on), quantiles of the confidence, and just above 1 (everything is)."""
    sure = sorted({i.confidence for i in items})
    step = max(1, len(sure) // POINTS)
    return [0.0, *sure[::step], 1.0 + 1e-9]


def _at(items: Sequence[Both], threshold: float, student: Decimal, teacher: Decimal) -> dict[str, Any]:
    passed = sum(i.confidence < threshold for i in items)
    right = sum(i.teacher if i.confidence < threshold else i.student for i in items)
    n = len(items)
    total = student * n + teacher * passed
    return {
        "threshold": threshold,
        "accuracy": wilson(right, n).as_dict(),
        "passed_on": wilson(passed, n).as_dict(),
        "usd_per_query": significant(total / n),
        "_each": total / right if right else None,
    }


def _public(row: dict[str, Any]) -> dict[str, Any]:
    each = row["_each"]
    shown = {key: value for key, value in row.items() if key != "_each"}
    return shown | {"usd_per_right_answer": None if each is None else significant(each)}
