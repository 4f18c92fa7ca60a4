"""What a golden set is made of: images, items and the set with its digest."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from models.golden.rules import RULES
from models.support.errors import UsageError
from models.support.files import atomic_write

# What the OpenAI, Anthropic and Gemini APIs take as they are; other formats must be converted by whoever builds a set.
MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}


@dataclass(frozen=True, eq=False)
class ImageRef:
    """An image file, shared by every question about it.

    Attributes:
        path: where it lies.
        media_type: `image/png`, `image/jpeg`, `image/webp` or `image/gif`.
        width, height: pixels, as stored (before any EXIF rotation).
    """

    path: Path
    media_type: str
    width: int
    height: int

    @classmethod
    def open(cls, path: Path) -> ImageRef:
        """Read the header of `path`.

        Raises:
            ValueError: there is no such file, or it is not an image of a known type (the text says which).
        """
        try:
            with Image.open(path) as image:
                kind, (width, height) = image.format or "", image.size
        except FileNotFoundError:
            raise ValueError("there is no such image file") from None
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
            raise ValueError(f"not a readable image: {type(error).__name__}") from error
        if kind not in MEDIA_TYPES:
            raise ValueError(f"image type {kind} is not one of {', '.join(MEDIA_TYPES)}")
        return cls(path, MEDIA_TYPES[kind], width, height)

    def read(self) -> bytes:
        """Return the file's bytes.  Raises UsageError when it has gone since the set was read."""
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read the image: {error.strerror}", field=str(self.path)) from error

    @cached_property
    def digest(self) -> str:
        """sha256 of the bytes, hex."""
        return hashlib.sha256(self.read()).hexdigest()


@dataclass(frozen=True, eq=False)
class RenderedImage(ImageRef):
    """A picture made by the project itself, held in memory; `path` is only its name."""

    data: bytes = field(default=b"", repr=False)

    def read(self) -> bytes:
        return self.data


@dataclass(frozen=True, slots=True)
class GoldenItem:
    """One question about one image, its answer and the rule that decides which answers are right.

    `tags` holds what slices an evaluation further: `difficulty`, `perturbation`, `language`...  `evidence`: phrases,
    one of which a right explanation names.  `labels`: what each annotator answered, None where one did not.
    """

    id: str
    image: ImageRef
    question: str
    category: str
    expected: Any
    rule: str = "normalized"
    options: Mapping[str, Any] = field(default_factory=dict)
    split: str = "test"
    tags: Mapping[str, str] = field(default_factory=dict)
    evidence: tuple[str, ...] = ()
    labels: tuple[str | None, ...] = ()

    def image_bytes(self) -> bytes:
        """Return the encoded image, as stored."""
        return self.image.read()

    @property
    def media_type(self) -> str:
        return self.image.media_type

    @property
    def width(self) -> int:
        return self.image.width

    @property
    def height(self) -> int:
        return self.image.height

    def check(self, answer_text: str) -> bool:
        """Return whether `answer_text` is acceptable under the item's rule."""
        return RULES[self.rule].check(answer_text, self.expected, self.options)

    def as_dict(self) -> dict[str, Any]:
        """Return what identifies the item: everything that could change a score, the image by its digest."""
        more = {"evidence": list(self.evidence), "labels": list(self.labels)}
        return {
            "id": self.id,
            "image": self.image.digest,
            "question": self.question,
            "category": self.category,
            "expected": self.expected,
            "accept": {"rule": self.rule, **self.options},
            "split": self.split,
            "tags": dict(self.tags),
            **{key: value for key, value in more.items() if value},
        }


@dataclass(frozen=True)
class GoldenSet:
    """A named list of items with unique ids."""

    name: str
    items: list[GoldenItem] = field(repr=False)
    source: str = ""
    licence: str = ""

    @cached_property
    def digest(self) -> str:
        """sha256 over all items, independent of their order: two sets with one digest score every answer alike."""
        total = hashlib.sha256()
        for item in sorted(self.items, key=lambda i: i.id):
            total.update(json.dumps(item.as_dict(), sort_keys=True).encode())
            total.update(b"\n")
        return total.hexdigest()

    @property
    def categories(self) -> dict[str, int]:
        """Category -> number of items, in order of name."""
        return dict(sorted(Counter(i.category for i in self.items).items()))

    def sample(self, limit: int | None, seed: int = 0) -> list[GoldenItem]:
        """Return `limit` items drawn without replacement by `seed` (all of them, in order, when None or too many).

        Raises:
            UsageError: `limit` is less than 1.
        """
        if limit is None or limit >= len(self.items):
            return list(self.items)
        if limit < 1:
            raise UsageError("must be at least 1", field="limit", value=limit, fix="leave it out to ask all items")
        return random.Random(seed).sample(self.items, limit)


def export(golden: GoldenSet, folder: Path) -> Path:
    """Write a set as `golden.jsonl` with its images, the form that `load_golden` reads; return the file.

    Raises:
        UsageError: the folder cannot be written to.
    """
    suffix = {kind: f".{name.lower()}" for name, kind in MEDIA_TYPES.items()}
    names: dict[int, str] = {}
    for image in unique_images(golden.items):
        names[id(image)] = f"images/{image.digest[:16]}{suffix[image.media_type]}"
        with atomic_write(folder / names[id(image)], "wb") as file:
            file.write(image.read())
    with atomic_write(folder / "golden.jsonl") as file:
        for item in golden.items:
            row = item.as_dict() | {"image": names[id(item.image)]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return folder / "golden.jsonl"


def unique_images(items: Iterable[GoldenItem]) -> list[ImageRef]:
    """Return the distinct images of `items`, in order of first use."""
    return list({id(i.image): i.image for i in items}.values())
