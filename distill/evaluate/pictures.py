"""The same questions with the picture hidden, or damaged: does the student look, and how much does it take?"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from PIL import Image

from models.golden import GoldenSet
from models.golden.rendered.damage import DAMAGE
from models.golden.rendered.receipts import as_image
from models.golden.sets import export


def hidden(image: Image.Image, rng: random.Random) -> tuple[Image.Image, str]:
    """Return a plain grey picture of the same size."""
    return Image.new("RGB", image.size, (127, 127, 127)), "hidden"


def damaged(image: Image.Image, rng: random.Random) -> tuple[Image.Image, str]:
    """Return the picture with one kind of damage, drawn by the item."""
    kind = rng.choice(sorted(DAMAGE))
    return DAMAGE[kind](image, rng), kind


KINDS: dict[str, Callable[[Image.Image, random.Random], tuple[Image.Image, str]]] = {
    "hidden": hidden,
    "damaged": damaged,
}


def variant(golden: GoldenSet, kind: str, n: int, seed: int, folder: Path) -> Path:
    """Write a golden set of `n` items of `golden` whose pictures were changed; return its folder.

    The tag `picture` says what was done to it.
    """
    items = []
    for item in golden.sample(n, seed):
        with Image.open(io.BytesIO(item.image_bytes())) as image:
            picture, done = KINDS[kind](image.convert("RGB"), random.Random(f"{seed}-{item.id}"))
        items.append(replace(item, image=as_image(picture, item.id), tags={**item.tags, "picture": done}))
    export(GoldenSet(f"{golden.name}-{kind}", items), folder)
    return folder
