"""Budgeted labelling: what each round of labels cost and brought, when to stop, and when it is paid back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from distill.recipe.ask import Rounds
from models.stats import Interval, paired_difference, wilson


@dataclass
class Curve:
    """The learning curve over dollars.  `add` says whether to go on."""

    settings: Rounds
    rounds: list[dict[str, Any]] = field(default_factory=list)
    _last: dict[str, bool] = field(default_factory=dict)
    _poor: int = 0

    def add(self, labelled: int, usd: Decimal, right: Mapping[str, bool]) -> bool:
        """Record a round and return whether the next one is worth its price.

        Gain = accuracy now minus before, in points over the same held-out rows; gain per dollar = gain / the round's
        dollars.  `patience` rounds in a row below `min_points_per_dollar` end the labelling.  The first round is
        compared with nothing and never ends it; neither does a round that was free.

        Args:
            labelled: rows labelled in all.
            usd: dollars of all rounds so far.
        """
        before = Decimal(self.rounds[-1]["usd"]) if self.rounds else Decimal(0)
        accuracy = wilson(sum(right.values()), len(right))
        entry: dict[str, Any] = {
            "round": len(self.rounds) + 1,
            "labelled": labelled,
            "usd": f"{usd:f}",
            "accuracy": accuracy.as_dict(),
        }
        if self._last:
            ids = sorted(right)
            gain = paired_difference([self._last[i] for i in ids], [right[i] for i in ids])
            cost = float(usd - before)
            entry["gain_points"] = _points(gain)
            entry["points_per_dollar"] = None
            if cost > 0 and gain.value is not None:
                entry["points_per_dollar"] = 100 * gain.value / cost
                self._poor = self._poor + 1 if entry["points_per_dollar"] < self.settings.min_points_per_dollar else 0
        self._last = dict(right)
        self.rounds.append(entry)
        return self._poor < self.settings.patience


def _points(gain: Interval) -> dict[str, Any]:
    return {k: 100 * v if k != "n" and v is not None else v for k, v in gain.as_dict().items()}


def payback(
    spent: Decimal, teacher_usd_per_query: Decimal | None, student_usd_per_query: Decimal | None
) -> dict[str, Any]:
    """Return after how many queries the labels are paid back: spent / (teacher's - student's price of a query)."""
    result: dict[str, Any] = {
        "label_usd": f"{spent:f}",
        "teacher_usd_per_query": None if teacher_usd_per_query is None else f"{teacher_usd_per_query:f}",
        "student_usd_per_query": None if student_usd_per_query is None else f"{student_usd_per_query:f}",
        "queries": None,
    }
    if teacher_usd_per_query is None:
        return result | {"note": "the teacher has no price per query"}
    if student_usd_per_query is None:
        return result | {"note": "give budget.rounds.student_usd_per_query"}
    saved = teacher_usd_per_query - student_usd_per_query
    if saved <= 0:
        return result | {"note": "the student costs as much as the teacher or more: never"}
    return result | {"queries": math.ceil(spent / saved)}
