"""Mean average precision of boxes, as COCO defines it (Lin et al. 2014; 101 recall points, IoU 0.50 to 0.95).

The boxes of all pictures are ranked by their score, and matched to the expected ones of the same label, best first.  A
box has the score that the answer gives it (`score` or `confidence`), else the confidence of the whole answer.  Equal
scores make one step of the curve, so that no order decides among them; with different scores the figures are those of
COCO's own evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from models.golden.boxes import Labelled, iou
from models.stats import Interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

THRESHOLDS = tuple(0.5 + 0.05 * i for i in range(10))
RECALLS = np.linspace(0, 1, 101)
RESAMPLES = 300


@dataclass(frozen=True)
class Picture:
    """The boxes of one item; `confidence` is that of its answer."""

    wanted: Sequence[Labelled]
    given: Sequence[Labelled]
    confidence: float | None = None

    def score(self, box: Labelled) -> float:
        """Return what a box is ranked by; 1 where nobody said anything."""
        score = box.score if box.score is not None else self.confidence
        return 1.0 if score is None else score


@dataclass(frozen=True)
class _Label:
    """All boxes of one label.

    Attributes:
        score: (boxes,) of every given box.
        hit: (boxes, thresholds), whether it was matched to an expected one at that IoU.
        picture: (boxes,) the number of its picture.
        wanted: (pictures,) how many boxes are expected.
    """

    score: NDArray[np.float64]
    hit: NDArray[np.bool_]
    picture: NDArray[np.int64]
    wanted: NDArray[np.int64]

    def precision(self, times: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the average precision at each threshold, (thresholds,); NaN where nothing is expected.

        Args:
            times: (pictures,) how often each picture counts.
        """
        total = int((self.wanted * times).sum())
        if not total:
            return np.full(len(THRESHOLDS), np.nan)
        order = np.argsort(-self.score, kind="stable")
        weight = times[self.picture[order]]
        hits = np.cumsum(self.hit[order] * weight[:, None], axis=0)
        count = np.cumsum(weight)
        last = np.r_[np.diff(self.score[order]) != 0, True][: len(order)] & (count > 0)
        return np.array([_area(hits[last, t], count[last], total) for t in range(len(THRESHOLDS))])


def _area(hits: NDArray[np.int64], count: NDArray[np.int64], total: int) -> float:
    """Return the mean over the recall points of the best precision at that recall or a higher one."""
    if not len(hits):
        return 0.0
    best = np.maximum.accumulate((hits / count)[::-1])[::-1]
    at = np.searchsorted(hits / total, RECALLS, side="left")
    return float(np.where(at < len(best), best[np.minimum(at, len(best) - 1)], 0.0).mean())


def _hits(given: Sequence[Labelled], wanted: Sequence[Labelled]) -> NDArray[np.bool_]:
    """Return for boxes of one label and picture, best first, which are matched: (given, thresholds)."""
    found = np.zeros((len(given), len(THRESHOLDS)), dtype=bool)
    overlap = [[iou(g.box, w.box) for w in wanted] for g in given]
    for t, threshold in enumerate(THRESHOLDS):
        free = set(range(len(wanted)))
        for row, values in enumerate(overlap):
            best = max(free, key=values.__getitem__, default=None)
            if best is not None and values[best] >= threshold:
                free.remove(best)
                found[row, t] = True
    return found


def _labels(pictures: Sequence[Picture]) -> dict[str, _Label]:
    """Return the boxes by label, of the labels that are expected anywhere."""
    found = {}
    for name in sorted({one.label for picture in pictures for one in picture.wanted}):
        scores: list[float] = []
        hits: list[NDArray[np.bool_]] = [np.zeros((0, len(THRESHOLDS)), dtype=bool)]
        where: list[int] = []
        counts = np.zeros(len(pictures), dtype=np.int64)
        for number, picture in enumerate(pictures):
            wanted = [one for one in picture.wanted if one.label == name]
            given = sorted((one for one in picture.given if one.label == name), key=picture.score, reverse=True)
            counts[number] = len(wanted)
            scores += [picture.score(one) for one in given]
            where += [number] * len(given)
            hits.append(_hits(given, wanted))
        found[name] = _Label(np.array(scores), np.concatenate(hits), np.array(where, dtype=np.int64), counts)
    return found


def mean_average_precision(
    pictures: Sequence[Picture], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any] | None:
    """Return `map` (over IoU 0.50 to 0.95), `map_50` and `map_75` with 95 % bootstrap intervals over the pictures,
    `by_label` (average precision over IoU 0.50 to 0.95) and `scores` (what boxes were ranked by); None without
    expected boxes.

    A box of a label that no picture expects is in no figure, as with COCO: precision and recall count it.
    """
    labels = _labels(pictures)
    if not labels:
        return None
    n = len(pictures)

    def at(times: NDArray[np.int64]) -> NDArray[np.float64]:
        # (labels, thresholds); a resample may lack a label
        return np.array([one.precision(times) for one in labels.values()])

    def figures(table: NDArray[np.float64]) -> list[float]:
        per_threshold = np.nanmean(table, axis=0)
        return [float(per_threshold.mean()), float(per_threshold[0]), float(per_threshold[5])]

    whole = at(np.ones(n, dtype=np.int64))
    rng = np.random.default_rng(seed)
    tables = [at(np.bincount(rng.integers(0, n, n), minlength=n)) for _ in range(resamples)]
    draws = np.array([figures(table) for table in tables if np.isfinite(table).any()])  # not a draw without boxes
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    names = ("map", "map_50", "map_75")
    out: dict[str, Any] = {
        name: Interval(value, float(a), float(b), n).as_dict()
        for name, value, a, b in zip(names, figures(whole), low, high, strict=True)
    }
    out["by_label"] = {name: float(row.mean()) for name, row in zip(labels, whole, strict=True)}
    out["scores"] = _scored_by(pictures)
    return out


def _scored_by(pictures: Sequence[Picture]) -> str:
    kinds = {
        "of each box" if one.score is not None else "of the answer" if picture.confidence is not None else "none"
        for picture in pictures
        for one in picture.given
    }
    return " and ".join(sorted(kinds)) or "none"
