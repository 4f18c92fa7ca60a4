"""PaliGemma's `<loc>` output as boxes.

A detection reads `<locYMIN><locXMIN><locYMAX><locXMAX> label`, each place in 1024ths of the picture's side (the model
sees the picture squeezed to a square, so the places are of the picture itself); several are separated by `;`.  A
segmentation has 16 `<segNNN>` codes of a mask after its box; they are passed on as they are.
"""

from __future__ import annotations

import re
from typing import Any

BINS = 1024
_ONE = re.compile(r"((?:<loc\d{4}>){4})((?:<seg\d{3}>){16})?([^<;]*)")


def boxes_in(text: str, size: tuple[int, int] | None) -> list[dict[str, Any]]:
    """Return the boxes of an answer.

    Args:
        size: width and height of the picture, px; None when the request has not exactly one.

    Returns:
        For each, `label`, `box` (x0, y0, x1, y1 in 0..1), with a size `pixels` (in px), with a mask `segments`.
    """
    found = []
    for match in _ONE.finditer(text):
        y0, x0, y1, x1 = (min(int(place), BINS - 1) / BINS for place in re.findall(r"\d{4}", match.group(1)))
        one: dict[str, Any] = {"label": match.group(3).strip(), "box": [x0, y0, x1, y1]}
        if size is not None:
            width, height = size
            one["pixels"] = [round(x0 * width, 1), round(y0 * height, 1), round(x1 * width, 1), round(y1 * height, 1)]
        if match.group(2):
            one["segments"] = [int(code) for code in re.findall(r"\d{3}", match.group(2))]
        found.append(one)
    return found
