"""Answers that are boxes: where in the picture something is.

An answer is read from JSON (`[{"label": "circle", "box": [x0, y0, x1, y1]}]`; `bbox` and `bbox_2d` are understood too,
and a `score` or `confidence` of each box), or from PaliGemma's location tokens (`<loc0100><loc0200><loc0300><loc0400>
circle ; ...`, y before x, of 1,024).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from models.golden.rules import normalize, register

Box = tuple[float, float, float, float]
_LOC = re.compile(r"((?:<loc\d{4}>){4})\s*([^;<]*)")
_KEYS = ("box", "bbox", "bbox_2d")
_SCORES = ("score", "confidence")


@dataclass(frozen=True)
class Labelled:
    """A box (x0, y0, x1, y1), as a share of the picture's width and height, with its label (normalized).

    `score` is how sure the answer is of it, 0 to 1, where it says so.
    """

    label: str
    box: Box
    score: float | None = None


def iou(a: Box, b: Box) -> float:
    """Return intersection over union; 0 for boxes without area."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union > 0 else 0.0


def parse_boxes(answer: str, scale: float = 1.0) -> list[Labelled]:
    """Return the boxes in an answer; what is no box is left out.  `scale`: the JSON coordinates that mean 1."""
    found = []
    for locations, label in _LOC.findall(answer):
        y0, x0, y1, x1 = (int(text) / 1023 for text in re.findall(r"\d{4}", locations))
        found.append(Labelled(normalize(label), (x0, y0, x1, y1)))
    if found:
        return [one for one in found if _sound(one.box)]
    start = min((i for i in (answer.find("["), answer.find("{")) if i >= 0), default=-1)
    if start < 0:
        return []
    try:
        value, _ = json.JSONDecoder().raw_decode(answer[start:])
    except (ValueError, RecursionError):
        return []
    rows = value if isinstance(value, list) else [value]
    return [one for row in rows if (one := _row(row, scale)) is not None]


def _row(row: Any, scale: float) -> Labelled | None:
    if not isinstance(row, dict):
        return None
    box = next((row[key] for key in _KEYS if key in row), None)
    if not isinstance(box, list) or len(box) != 4 or not all(type(v) in (int, float) for v in box):
        return None
    try:
        x0, y0, x1, y1 = (float(v) / scale for v in box)
    except OverflowError:
        return None
    if not _sound((x0, y0, x1, y1)):
        return None
    score = next((row[key] for key in _SCORES if key in row), None)
    sure = float(score) if isinstance(score, int | float) and type(score) is not bool and 0 <= score <= 1 else None
    return Labelled(normalize(str(row.get("label", ""))), (x0, y0, x1, y1), sure)


def _sound(box: Box) -> bool:
    return all(map(math.isfinite, box)) and box[0] < box[2] and box[1] < box[3]


def match(given: Sequence[Labelled], wanted: Sequence[Labelled]) -> list[float]:
    """Return, per wanted box, the IoU of the given box assigned to it (0 where none): best sum over equal labels."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    if not wanted:
        return []
    overlap = np.array([[iou(g.box, w.box) if g.label == w.label else 0.0 for g in given] for w in wanted])
    best = [0.0] * len(wanted)
    if given:
        for row, column in zip(*linear_sum_assignment(-overlap), strict=True):
            best[row] = float(overlap[row, column])
    return best


@register
class Boxes:
    """Every expected box is found (equal label, IoU of at least `iou`, 0.5 without) and there is no box too many.

    `expected` is a list of `{"label", "box"}` with coordinates as shares of the picture; `scale` is what the answer's
    coordinates mean 1 by (1000 for Qwen3-VL; 1 without).  Location tokens have a scale of their own.
    """

    name: ClassVar[str] = "boxes"
    known_options: ClassVar[frozenset[str]] = frozenset({"iou", "scale"})

    def validate(self, expected: Any, options: Mapping[str, Any]) -> str | None:
        if not isinstance(expected, list) or not expected:
            return "expected must be a non-empty list of boxes"
        for row in expected:
            one = _row(row, 1.0)
            if one is None or min(one.box) < 0 or max(one.box) > 1:
                return 'a box is {"label": "...", "box": [x0, y0, x1, y1]} with shares of the picture, x0 < x1, y0 < y1'
        threshold, scale = options.get("iou", 0.5), options.get("scale", 1)
        if type(threshold) not in (int, float) or not 0 < threshold <= 1:
            return "accept.iou must be above 0 and at most 1"
        if type(scale) not in (int, float) or not 0 < scale <= 1e6:
            return "accept.scale must be above 0"
        return None

    def check(self, answer: str, expected: Any, options: Mapping[str, Any]) -> bool:
        given, overlaps = self.compare(answer, expected, options)
        return given == len(overlaps) and min(overlaps) >= options.get("iou", 0.5)

    def compare(self, answer: str, expected: Any, options: Mapping[str, Any]) -> tuple[int, list[float]]:
        """Return how many boxes the answer has, and per expected box the IoU of the one matched to it."""
        given, wanted = self.read(answer, expected, options)
        return len(given), match(given, wanted)

    def read(self, answer: str, expected: Any, options: Mapping[str, Any]) -> tuple[list[Labelled], list[Labelled]]:
        """Return the boxes of the answer, and the expected ones."""
        wanted = [one for row in expected if (one := _row(row, 1.0)) is not None]
        return parse_boxes(answer, float(options.get("scale", 1))), wanted
