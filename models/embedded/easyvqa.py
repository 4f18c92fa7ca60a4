"""easy-VQA as it is published (package `easy-vqa`, MIT): 4,000 + 1,000 pictures, 38,575 + 9,673 questions.

The split is the set's own.  Training code calls `training_items` only; the test split is read by `models.golden`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class TrainingPicture:
    """One published training picture with all of its questions: `pixels` is (64, 64, 3) uint8."""

    pixels: np.ndarray
    questions: tuple[tuple[str, str], ...]


def training_items() -> list[TrainingPicture]:
    """Return the published training split, one entry per picture."""
    import easy_vqa

    by_picture: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for question, answer, picture in zip(*easy_vqa.get_train_questions(), strict=True):
        by_picture[picture].append((question, answer))
    paths = easy_vqa.get_train_image_paths()
    items = []
    for picture, questions in sorted(by_picture.items()):
        with Image.open(paths[picture]) as image:
            items.append(TrainingPicture(np.asarray(image.convert("RGB")), tuple(questions)))
    return items
