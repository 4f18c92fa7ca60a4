"""The threshold of semantic recall, from labelled pairs of questions.

A pair is a line `{"same": true|false, "a": TEXT, "b": TEXT}` (`kind` may say what it tries).  Two questions are taken
for one when their words that count are the same and the cosine of their embeddings reaches the threshold.  Wanted is
the highest threshold that keeps 95 of 100 pairs of one that have the same words, or a higher one if a pair of two
passes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.support.errors import UsageError
from serving.recall.words import meaning

if TYPE_CHECKING:
    from serving.recall.embed import Embedder

KEPT = 0.95
PAIRS = Path(__file__).with_name("pairs.jsonl")


@dataclass(frozen=True, slots=True)
class Judged:
    """One pair: what it is, and what was found."""

    same: bool
    a: str
    b: str
    words: bool
    cosine: float


def read_pairs(path: Path) -> list[tuple[bool, str, str]]:
    """Return the labelled pairs of a file.

    Raises:
        UsageError: it cannot be read, or a line is none; the line is named.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read the pairs: {error}", field="PAIRS", value=str(path), fix="name an existing JSONL file"
        ) from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            one = json.loads(line)
            same, a, b = one["same"], one["a"], one["b"]
        except (ValueError, KeyError, TypeError) as error:
            fix = 'write {"same": true, "a": TEXT, "b": TEXT}'
            raise UsageError("is no pair", field=f"{path}:{number}", value=line[:80], fix=fix) from error
        if not (isinstance(same, bool) and isinstance(a, str) and isinstance(b, str)):
            raise UsageError(
                "`same` is true or false, `a` and `b` are texts",
                field=f"{path}:{number}",
                fix='write lines like {"same": true, "a": "...", "b": "..."}',
            )
        found.append((same, a, b))
    if not any(same for same, _, _ in found) or all(same for same, _, _ in found):
        raise UsageError(
            "needs pairs of both kinds",
            field="PAIRS",
            value=str(path),
            fix="add pairs that mean the same, and pairs that do not",
        )
    return found


def judge(pairs: list[tuple[bool, str, str]], embedder: Embedder) -> list[Judged]:
    """Compare every pair, as questions about one picture."""
    return [Judged(same, a, b, meaning(a, 1) == meaning(b, 1), embedder.cosine(a, b)) for same, a, b in pairs]


def summary(judged: list[Judged]) -> dict[str, Any]:
    """Return the threshold and what it does, with and without the words."""
    one = [pair for pair in judged if pair.same]
    two = [pair for pair in judged if not pair.same]
    passed = sorted(pair.cosine for pair in one if pair.words)
    nearest = max((pair.cosine for pair in two if pair.words), default=0.0)
    kept = passed[int(len(passed) * (1 - KEPT))] if passed else 1.0
    threshold = max(int(1000 * kept) / 1000, min(1.0, int(1000 * nearest + 1) / 1000))

    def found(pairs: list[Judged], words: bool, at: float) -> int:
        return sum(pair.cosine >= at and (pair.words or not words) for pair in pairs)

    alone = max(pair.cosine for pair in two)
    return {
        "threshold": threshold,
        "of_one": {"pairs": len(one), "recalled": found(one, True, threshold), "same_words": len(passed)},
        "of_two": {
            "pairs": len(two), "wrong": found(two, True, threshold), "words_alone": found(two, True, -1.0),
            "cosine_alone_at_this_threshold": found(two, False, threshold),
        },
        "cosine_alone": {
            "threshold_without_a_wrong_one": round(alone, 3), "recalled": found(one, False, alone + 1e-6),
        },
        "missed": [asdict(pair) for pair in one if not pair.words or pair.cosine < threshold],
        "wrong": [asdict(pair) for pair in two if pair.words and pair.cosine >= threshold],
    }  # fmt: skip
