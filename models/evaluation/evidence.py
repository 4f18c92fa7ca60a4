"""Explanations and boxes: is the reason there, is it the right one, and where does the model see it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.evaluation.answers import Answer
from models.evaluation.detection import THRESHOLDS, Picture, mean_average_precision
from models.golden import GoldenItem, find_object, normalize
from models.golden.boxes import Boxes, match
from models.stats import bootstrap_mean, wilson

FIELDS = ("evidence", "explanation", "reason")


def explanation(text: str) -> str:
    """Return what an answer gives as its reason: the fields `evidence`, `explanation` or `reason` of a JSON answer, or
    what follows "because" in plain text; empty when there is none."""
    found = find_object(text)
    if found is not None:
        given = [found[name] for name in FIELDS if found.get(name)]
        return " ".join(" ".join(map(str, v)) if isinstance(v, list) else str(v) for v in given)
    _, because, tail = text.partition("because")
    return tail.strip() if because else ""


def explanation_scores(items: Sequence[GoldenItem], answers: Mapping[str, Answer]) -> dict[str, Any] | None:
    """Return over the items with known evidence: `present` (a reason is given), `correct` (it names one of the item's
    evidence phrases), `right_for_the_right_reason` (and the answer is right); None without such items."""
    with_truth = [item for item in items if item.evidence]
    if not with_truth:
        return None
    present = correct = both = 0
    for item in with_truth:
        answer = answers.get(item.id)
        text = "" if answer is None or answer.text is None else answer.text
        reason = f" {normalize(explanation(text))} "
        named = any(f" {normalize(phrase)} " in reason for phrase in item.evidence)
        present += bool(reason.strip())
        correct += named
        both += named and item.check(text)
    n = len(with_truth)
    counts = {"present": present, "correct": correct, "right_for_the_right_reason": both}
    return {name: wilson(count, n).as_dict() for name, count in counts.items()}


def box_scores(items: Sequence[GoldenItem], answers: Mapping[str, Answer], *, seed: int = 0) -> dict[str, Any] | None:
    """Return over the items whose answer is boxes: `mean_iou` per expected box, `precision`, `recall` and `f1` at IoU
    0.5, 0.75 and their mean over 0.50 to 0.95 (`f1_mean`), and what `mean_average_precision` returns; None without
    such items.
    """
    rule = Boxes()
    overlaps: list[float] = []
    pictures: list[Picture] = []
    given_count = 0
    for item in items:
        if item.rule != rule.name:
            continue
        answer = answers.get(item.id)
        text = "" if answer is None or answer.text is None else answer.text
        given, wanted = rule.read(text, item.expected, item.options)
        given_count += len(given)
        overlaps += match(given, wanted)
        pictures.append(Picture(wanted, given, None if answer is None else answer.confidence))
    if not overlaps:
        return None

    def at(threshold: float) -> dict[str, float]:
        hits = sum(overlap >= threshold for overlap in overlaps)
        precision = hits / given_count if given_count else 0.0
        return {"precision": precision, "recall": hits / len(overlaps), "f1": 2 * hits / (given_count + len(overlaps))}

    return {
        "boxes": len(overlaps),
        "given": given_count,
        "mean_iou": bootstrap_mean(overlaps, seed=seed).as_dict(),
        "at_0.50": at(0.5),
        "at_0.75": at(0.75),
        "f1_mean": sum(at(t)["f1"] for t in THRESHOLDS) / len(THRESHOLDS),
        **(mean_average_precision(pictures, seed=seed) or {}),
    }
