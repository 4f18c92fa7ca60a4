"""Pictures: read whole before a dollar is spent on them, compared by eye-like hashes, shown small."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distill.rows import Row, Rows
from models.golden import ImageRef
from models.golden.check import difference_hash
from models.support.errors import UsageError

THUMBNAIL = 16


def open_whole(path: Path) -> ImageRef:
    """Return the picture at `path` after decoding every pixel of it.

    Raises:
        ValueError: it is missing, unreadable or cut short; the text says which.
    """
    found = ImageRef.open(path)
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).split("\n")[0][:120] or type(error).__name__
        raise ValueError(f"the picture is cut short or damaged: {reason}") from error
    return found


def open_pictures(rows: Rows, wanted: Iterable[Row], max_broken: int) -> tuple[dict[str, ImageRef], dict[str, str]]:
    """Return (row id -> picture, row id -> why it is broken); each file is decoded once.

    Raises:
        UsageError: more than `max_broken` rows have no usable picture; names the first of them.
    """
    by_path: dict[Path, ImageRef | str] = {}
    pictures: dict[str, ImageRef] = {}
    broken: dict[str, str] = {}
    first: Row | None = None
    for row in wanted:
        path = rows.path(row)
        if path not in by_path:
            try:
                by_path[path] = open_whole(path)
            except ValueError as error:
                by_path[path] = str(error)
        found = by_path[path]
        if isinstance(found, str):
            broken[row.id] = found
            first = first or row
        else:
            pictures[row.id] = found
    if first is not None and len(broken) > max_broken:
        more = f"; {len(broken)} rows in all" if len(broken) > 1 else ""
        raise UsageError(
            broken[first.id] + more,
            field=rows.where(first),
            value=first.image,
            fix=f"repair or remove it, or allow it with data.max_broken_rows (now {max_broken})",
        )
    return pictures, broken


@dataclass(frozen=True)
class Looks:
    """What a set of pictures looks like: `hashes` (n,) uint64, `colours` (n, 16 * 16 * 3) float32 from 0 to 1."""

    hashes: NDArray[np.uint64]
    colours: NDArray[np.float32]

    def near(self, other: int, looks: Looks, max_bits: int, max_difference: float) -> NDArray[np.intp]:
        """Return the indices of the pictures here that picture number `other` of `looks` looks like."""
        bits = np.bitwise_count(self.hashes ^ looks.hashes[other])
        close = np.flatnonzero(bits <= max_bits)
        difference = np.abs(self.colours[close] - looks.colours[other]).max(axis=1, initial=0.0)
        return close[difference <= max_difference]


def looks_of(pictures: Sequence[ImageRef]) -> Looks:
    """Return the difference hash and the colours of each picture.

    The hash alone sees no colour: a red and a blue circle at one place have the same.
    """
    hashes = np.array([difference_hash(p) for p in pictures], dtype=np.uint64)
    colours = np.zeros((len(pictures), THUMBNAIL * THUMBNAIL * 3), dtype=np.float32)
    for i, picture in enumerate(pictures):
        with Image.open(io.BytesIO(picture.read())) as image:
            small = image.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        colours[i] = np.asarray(small, dtype=np.float32).ravel() / 255
    return Looks(hashes, colours)


def thumbnail_uri(picture: ImageRef, side: int = 160) -> str:
    """Return the picture as a data URI, at most `side` pixels wide and high."""
    with Image.open(io.BytesIO(picture.read())) as image:
        small = image.convert("RGB")
        small.thumbnail((side, side))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
