"""From recorded answers to figures, each with its interval and sample size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import Any

from models.cost.ledger import significant
from models.evaluation.answers import Answer
from models.evaluation.evidence import box_scores, explanation_scores
from models.evaluation.text import text_scores
from models.golden import RULES, GoldenItem
from models.golden.structured import JsonFields
from models.stats import (
    block_quantile,
    calibration_error_interval,
    reliability,
    risk_coverage,
    wilson,
)

ECE_BINS = 15


def score(items: Sequence[GoldenItem], answers: Mapping[str, Answer], *, seed: int = 0) -> dict[str, Any]:
    """Return the scores of `answers` (by item id) to `items`.

    An item without an answer (an error) counts as wrong: a server that fails on hard items must not look better for it.
    `accuracy_answered` leaves such items out.  Answers are judged now, by the items' rules, not when they came.

    Returns:
        `accuracy`, `accuracy_answered`, `by_category`, `by_tag`, `by_field` (of JSON answers), `text` (token F1,
        ANLS, WER, CER), `boxes`, `explanation` (each None where the set has nothing of the kind), `errors` (kind ->
        count), `answered`, `truncated`, `latency_ms` (p50, p95, p99), `calibration` and `risk_coverage` (None without
        logprobs), `tokens`, and `cost` (None where answers are not priced; dollars as decimal text).
    """
    right = {item.id: is_right(item, answers.get(item.id)) for item in items}
    given = [answers[item.id] for item in items if item.id in answers and answers[item.id].error is None]
    failed = Counter(
        "not_asked" if (answer := answers.get(item.id)) is None else answer.error
        for item in items
        if not _ok(answers, item)
    )
    # in order of time: neighbours waited in one queue
    latencies = [a.latency_ms for a in sorted(given, key=lambda a: a.at) if a.latency_ms is not None]
    return {
        "accuracy": share(items, right),
        "accuracy_answered": share([i for i in items if _ok(answers, i)], right),
        "by_category": _groups(items, right, lambda item: [item.category]),
        "by_tag": _groups(items, right, lambda item: [f"{k}={v}" for k, v in sorted(item.tags.items())]),
        "by_field": _by_field(items, answers),
        "text": text_scores(items, answers, seed=seed),
        "boxes": box_scores(items, answers, seed=seed),
        "explanation": explanation_scores(items, answers),
        "answered": len(given),
        "truncated": sum(1 for a in given if a.finish_reason == "length"),
        "errors": dict(sorted(failed.items(), key=str)),
        "latency_ms": {
            f"p{round(100 * q)}": block_quantile(latencies, q, seed=seed).as_dict() for q in (0.50, 0.95, 0.99)
        },
        "calibration": _calibration(given, right, seed),
        "risk_coverage": _risk_coverage(given, right),
        "cost": _cost(given, right),
        "tokens": {
            "prompt": sum(a.prompt_tokens or 0 for a in given),
            "completion": sum(a.completion_tokens or 0 for a in given),
        },
    }


def is_right(item: GoldenItem, answer: Answer | None) -> bool:
    """Return whether there is an answer and the item's rule accepts it."""
    return answer is not None and answer.text is not None and item.check(answer.text)


def share(items: Sequence[GoldenItem], right: Mapping[str, bool]) -> dict[str, Any]:
    """Return the share of right items with its Wilson interval."""
    return wilson(sum(right[item.id] for item in items), len(items)).as_dict()


def _ok(answers: Mapping[str, Answer], item: GoldenItem) -> bool:
    answer = answers.get(item.id)
    return answer is not None and answer.error is None


def _groups(items: Sequence[GoldenItem], right: Mapping[str, bool], names: Any) -> dict[str, Any]:
    groups: dict[str, list[GoldenItem]] = {}
    for item in items:
        for name in names(item):
            groups.setdefault(name, []).append(item)
    return {name: share(groups[name], right) for name in sorted(groups)}


def _by_field(items: Sequence[GoldenItem], answers: Mapping[str, Answer]) -> dict[str, Any]:
    """Share of right values per field, over the items whose answer is a JSON object; no answer is a wrong value."""
    rule = RULES[JsonFields.name]
    assert isinstance(rule, JsonFields)
    right: dict[str, list[bool]] = {}
    for item in items:
        if item.rule == rule.name:
            answer = answers.get(item.id)
            text = "" if answer is None or answer.text is None else answer.text
            for field, ok in rule.fields(text, item.expected, item.options).items():
                right.setdefault(field, []).append(ok)
    return {field: wilson(sum(hits), len(hits)).as_dict() for field, hits in sorted(right.items())}


def _with_confidence(given: Sequence[Answer], right: Mapping[str, bool]) -> tuple[list[float], list[bool]]:
    pairs = [(a.confidence, right[a.id]) for a in given if a.confidence is not None]
    return [c for c, _ in pairs], [r for _, r in pairs]


def _calibration(given: Sequence[Answer], right: Mapping[str, bool], seed: int) -> dict[str, Any] | None:
    confidence, correct = _with_confidence(given, right)
    if not confidence:
        return None
    return {
        "ece": calibration_error_interval(confidence, correct, ECE_BINS, seed=seed).as_dict(),
        "mean_confidence": sum(confidence) / len(confidence),
        "method": f"{ECE_BINS} equal-mass bins, confidence = product of the answer's token probabilities",
        "bins": [asdict(b) for b in reliability(confidence, correct, ECE_BINS)],
    }


def _risk_coverage(given: Sequence[Answer], right: Mapping[str, bool]) -> dict[str, Any] | None:
    confidence, correct = _with_confidence(given, right)
    return asdict(risk_coverage(confidence, correct)) if confidence else None


def _cost(given: Sequence[Answer], right: Mapping[str, bool]) -> dict[str, Any] | None:
    """Dollars as the vendor's usage and the price book make them; errors are not billed and not counted."""
    priced = [a for a in given if a.usd is not None]
    if not priced:
        return None
    total = sum((Decimal(a.usd) for a in priced if a.usd is not None), Decimal(0))
    correct = sum(right[a.id] for a in priced)
    gaps = [a.image_tokens_difference for a in priced if a.image_tokens_difference is not None]
    return {
        "usd_total": f"{total:f}",
        "usd_per_query": f"{total / len(priced):f}",
        "usd_per_right_answer": f"{total / correct:f}" if correct else None,
        "n": len(priced),
        "image_tokens_reported_minus_rule": sum(gaps) / len(gaps) if gaps else None,
        "note": "measured: the vendor's own usage, priced by the book",
    }


def machine_cost(usd_per_hour: Decimal, wall_s: float, asked: int, accuracy: float | None) -> dict[str, Any] | None:
    """Return dollars per answer of a served model: the machine's price for the time of the run, over its answers.

    It is the price at this run's concurrency: a machine that is less busy costs more per answer (`fovea loadtest`
    measures capacity).  None where nothing was asked now.  Per right answer: over the share that is right.
    """
    if not asked:
        return None
    each = usd_per_hour * Decimal(repr(wall_s)) / 3600 / asked
    return {
        "usd_total": significant(each * asked),
        "usd_per_query": significant(each),
        "usd_per_right_answer": significant(each / Decimal(repr(accuracy))) if accuracy else None,
        "n": asked,
        "image_tokens_reported_minus_rule": None,
        "note": f"the machine at ${usd_per_hour} an hour, busy with this run alone, at its concurrency",
    }
