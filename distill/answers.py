"""What a model said, taken apart: the answer, its confidence and rationale, or what is wrong with it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.golden import RULES, find_object, is_abstention

# reason -> what people read in the data card
PROBLEMS = {
    "refused": "the teacher refused",
    "truncated": "the answer was cut off at max_tokens",
    "prose": "prose where JSON was asked for",
    "no_answer": "the JSON object has no answer",
    "empty": "an empty answer",
    "failed": "no answer came (error)",
    "schema": "does not fit task.answer_schema",
    "units": "does not fit task.units",
    "unsure": "the teacher is less sure than filters.min_confidence",
}


@dataclass(frozen=True)
class Said:
    """One answer; `problem` is one of `PROBLEMS` and `detail` says more, or both are None and there is an answer."""

    answer: Any = None
    confidence: float | None = None
    rationale: str | None = None
    problem: str | None = None
    detail: str | None = None


def parse_reply(text: str, finish_reason: str, reply: str, answer_schema: Mapping[str, Any]) -> Said:
    """Return what a reply says.

    Args:
        reply: `json` (an object with answer, confidence, rationale; prose and fences around it are forgiven) or `text`.
        answer_schema: an object that has the fields of this schema, without the envelope, is taken as the answer.
    """
    if finish_reason == "refused":
        return Said(problem="refused", detail=text[:200] or None)
    if finish_reason == "length":
        return Said(problem="truncated", detail=text[-120:])
    if not text.strip():
        return Said(problem="empty")
    if reply == "text":
        return Said(answer=text.strip())
    found = find_object(text)
    if found is None:
        return Said(problem="prose", detail=text[:200])
    if "answer" not in found:
        known = answer_schema.get("properties")
        if isinstance(known, dict) and found.keys() & known.keys():
            return Said(answer=found)
        return Said(problem="no_answer", detail=json.dumps(found, ensure_ascii=False)[:200])
    rationale = found.get("rationale")
    return Said(
        found["answer"], _confidence(found.get("confidence")), rationale if isinstance(rationale, str) else None
    )


def _confidence(value: object) -> float | None:
    """Return a probability; whatever else a model writes there is no confidence at all."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value) if 0 <= value <= 1 else None


def same_answer(first: Any, second: Any, accept: Mapping[str, Any]) -> bool:
    """Return whether two answers are the same under a rule of golden sets (`task.accept`; by kind without one)."""
    if _abstains(first) or _abstains(second):
        return _abstains(first) and _abstains(second)
    rule, options = _rule_for(second, accept)
    if RULES[rule].validate(second, options) is not None:
        return bool(first == second)
    text = json.dumps(first, ensure_ascii=False) if isinstance(first, dict | list) else str(first)
    return RULES[rule].check(text, second, options)


def _abstains(value: Any) -> bool:
    return value is None or (isinstance(value, str) and is_abstention(value))


def _rule_for(value: Any, accept: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if accept:
        return str(accept["rule"]), {k: v for k, v in accept.items() if k != "rule"}
    if isinstance(value, dict):
        return "json", {}
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return ("numeric" if number else "normalized"), {}


def class_of(answer: Any) -> str:
    """Return the answer as one line of text, equal for answers that are written alike."""
    text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False, sort_keys=True)
    return " ".join(text.casefold().split())[:120]
