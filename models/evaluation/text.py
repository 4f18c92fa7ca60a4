"""Scores of free text: how near an answer is to the expected one, where right or wrong says too little.

Edit distances are rapidfuzz's.  Texts are compared after `models.golden.normalize`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from models.evaluation.answers import Answer
from models.golden import GoldenItem, normalize
from models.stats import Interval, bootstrap_mean

ANLS_THRESHOLD = 0.5


def token_f1(answer: str, expected: str) -> float:
    """Return the F1 of the words that both have, each as often as it stands there (SQuAD; Rajpurkar et al. 2016)."""
    given, wanted = Counter(normalize(answer).split()), Counter(normalize(expected).split())
    common = (given & wanted).total()
    return 2 * common / (given.total() + wanted.total()) if given and wanted else float(given == wanted)


def anls(answer: str, expected: str) -> float:
    """Return 1 - edit distance / longer length, 0 where that is below 0.5 (Biten et al. 2019, ST-VQA)."""
    from rapidfuzz.distance import Levenshtein

    near = float(Levenshtein.normalized_similarity(normalize(answer), normalize(expected)))
    return near if near >= ANLS_THRESHOLD else 0.0


def word_errors(answer: str, expected: str) -> tuple[int, int]:
    """Return (insertions + deletions + substitutions of words, words expected): the parts of WER."""
    from rapidfuzz.distance import Levenshtein

    given, wanted = normalize(answer).split(), normalize(expected).split()
    return int(Levenshtein.distance(given, wanted)), len(wanted)


def character_errors(answer: str, expected: str) -> tuple[int, int]:
    """Return the same over characters: the parts of CER."""
    from rapidfuzz.distance import Levenshtein

    given, wanted = normalize(answer), normalize(expected)
    return int(Levenshtein.distance(given, wanted)), len(wanted)


def text_scores(items: Sequence[GoldenItem], answers: Mapping[str, Answer], *, seed: int = 0) -> dict[str, Any] | None:
    """Return `token_f1`, `anls`, `wer` and `cer` over the items whose expected answer is text; None without any.

    Where several answers are acceptable (rule `set`, match any) the nearest counts.  No answer is an empty text.
    WER and CER are of the whole set: all errors over all words, so that long texts weigh more; above 1 is possible.
    The intervals are 95 % bootstraps over items.
    """
    texts = [(_given(answers.get(item.id)), accepted) for item in items if (accepted := _expected(item))]
    if not texts:
        return None
    words = [min((word_errors(a, e) for e in wanted), key=_rate) for a, wanted in texts]
    characters = [min((character_errors(a, e) for e in wanted), key=_rate) for a, wanted in texts]
    return {
        "token_f1": bootstrap_mean([max(token_f1(a, e) for e in w) for a, w in texts], seed=seed).as_dict(),
        "anls": bootstrap_mean([max(anls(a, e) for e in w) for a, w in texts], seed=seed).as_dict(),
        "wer": _ratio(words, seed).as_dict(),
        "cer": _ratio(characters, seed).as_dict(),
    }


def _given(answer: Answer | None) -> str:
    return "" if answer is None or answer.text is None else answer.text


def _expected(item: GoldenItem) -> list[str]:
    """Return the acceptable texts of an item; none where the answer is a number, an object, a pattern or silence."""
    if item.rule in ("exact", "normalized") and isinstance(item.expected, str):
        return [item.expected]
    any_of = item.rule == "set" and item.options.get("match", "any") == "any"
    return [str(text) for text in item.expected] if any_of else []


def _rate(errors: tuple[int, int]) -> float:
    return errors[0] / max(1, errors[1])


def _ratio(errors: Sequence[tuple[int, int]], seed: int, resamples: int = 1000) -> Interval:
    """Return all errors over all units, with a bootstrap interval over items."""
    counts = np.asarray(errors, dtype=float)
    n = len(counts)
    if not counts[:, 1].sum():
        return Interval(None, None, None, n)
    rng = np.random.default_rng(seed)
    draws = np.empty(resamples)
    for i in range(resamples):
        wrong, units = counts[rng.integers(0, n, n)].sum(axis=0)
        draws[i] = wrong / max(1.0, units)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(counts[:, 0].sum() / counts[:, 1].sum()), float(low), float(high), n)
