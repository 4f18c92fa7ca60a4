"""Is a golden set sound?  Duplicates, conflicting labels, leaks from another split, agreement between annotators."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from models.golden.rules import normalize
from models.golden.sets import GoldenItem, GoldenSet, ImageRef, unique_images

# Two images whose 64-bit difference hashes differ in at most so many bits are reported as near duplicates.
NEAR_BITS = 4


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or suspicious: `kind`, the ids of the items and a sentence."""

    kind: str
    ids: tuple[str, ...]
    text: str


def check_golden(golden: GoldenSet, against: GoldenSet | None = None) -> list[Finding]:
    """Return what is suspicious in `golden`, and what it shares with `against` (a training set, say).

    `duplicate`: same image and question twice.  `conflict`: the same, with different answers.  `leak`: an image of
    another split, in the set itself or in `against`, byte for byte.  `near_leak`: one that looks the same.
    """
    findings = [*_repeated(golden), *_split_leaks(golden)]
    if against is not None:
        findings += _leaks(golden, against)
    return findings


def _repeated(golden: GoldenSet) -> list[Finding]:
    groups: dict[Hashable, list[GoldenItem]] = defaultdict(list)
    for item in golden.items:
        groups[item.image.digest, normalize(item.question)].append(item)
    found = []
    for items in groups.values():
        if len(items) == 1:
            continue
        ids = tuple(i.id for i in items)
        answers = {_comparable(i.expected) for i in items}
        kind, text = (
            ("duplicate", "the same question about the same image")
            if len(answers) == 1
            else (
                "conflict",
                "the same question about the same image has different answers",
            )
        )
        found.append(Finding(kind, ids, text))
    return found


def _comparable(expected: Any) -> str:
    return normalize(expected) if isinstance(expected, str) else repr(expected)


def _split_leaks(golden: GoldenSet) -> list[Finding]:
    splits: dict[str, dict[str, str]] = defaultdict(dict)
    for item in golden.items:
        splits[item.image.digest].setdefault(item.split, item.id)
    return [
        Finding("leak", tuple(by_split.values()), f"one image is in the splits {', '.join(sorted(by_split))}")
        for by_split in splits.values()
        if len(by_split) > 1
    ]


def _leaks(golden: GoldenSet, against: GoldenSet) -> list[Finding]:
    mine = _first_ids(golden)
    theirs = _first_ids(against)
    found = [
        Finding("leak", (mine[digest][0], theirs[digest][0]), f"the image is in {against.name} too")
        for digest in mine.keys() & theirs.keys()
    ]
    hashes = {digest: difference_hash(image) for digest, (_, image) in theirs.items()}
    for digest, (item_id, image) in mine.items():
        if digest in theirs:
            continue
        own = difference_hash(image)
        near = next((d for d, other in hashes.items() if (own ^ other).bit_count() <= NEAR_BITS), None)
        if near is not None:
            text = f"an image of {against.name} looks the same"
            found.append(Finding("near_leak", (item_id, theirs[near][0]), text))
    return found


def _first_ids(golden: GoldenSet) -> dict[str, tuple[str, ImageRef]]:
    first: dict[str, tuple[str, ImageRef]] = {}
    for item in golden.items:
        first.setdefault(item.image.digest, (item.id, item.image))
    return first


def difference_hash(image: ImageRef) -> int:
    """Return the 64-bit difference hash of the picture: bit i says whether pixel i is darker than its right neighbour.

    The picture is reduced to 9x8 grey pixels first, so that size, format and light compression hardly matter.
    """
    with Image.open(io.BytesIO(image.read())) as picture:
        pixels = picture.convert("L").resize((9, 8), Image.Resampling.BILINEAR).tobytes()
    bits = 0
    for row in range(8):
        for column in range(8):
            bits = bits << 1 | (pixels[row * 9 + column] < pixels[row * 9 + column + 1])
    return bits


@dataclass(frozen=True)
class Agreement:
    """How far annotators agree: share of equal labels, Cohen's kappa (two) or Krippendorff's alpha (any number)."""

    observed: float
    kappa: float | None
    alpha: float
    items: int


def agreement(labels: Sequence[Sequence[str | None]]) -> Agreement:
    """Return the agreement of annotators; `labels[i][j]` is annotator j's label of item i, None where there is none.

    Krippendorff's alpha for nominal data (Krippendorff 2011) takes any number of annotators and gaps; Cohen's kappa
    (Cohen 1960) is given where there are exactly two and no gap.  1 is perfect, 0 is chance.

    Raises:
        ValueError: no item has two labels, or the rows differ in length.
    """
    if len({len(row) for row in labels}) > 1:
        raise ValueError("every item needs one entry per annotator")
    rows = [[value for value in row if value is not None] for row in labels]
    paired = [row for row in rows if len(row) >= 2]
    if not paired:
        raise ValueError("no item has two labels")
    pairs = agreeing = 0.0
    totals: dict[str, int] = defaultdict(int)
    disagreement = 0.0
    for row in paired:
        m = len(row)
        equal = sum(row[i] == row[j] for i in range(m) for j in range(m) if i != j)
        pairs, agreeing = pairs + m * (m - 1), agreeing + equal
        disagreement += (m * (m - 1) - equal) / (m - 1)
        for value in row:
            totals[value] += 1
    n = sum(totals.values())
    expected = (n * n - sum(c * c for c in totals.values())) / (n - 1)
    alpha = 1.0 if expected == 0 else 1 - disagreement / expected
    return Agreement(agreeing / pairs, _kappa(labels), alpha, len(paired))


def _kappa(labels: Sequence[Sequence[str | None]]) -> float | None:
    if any(len(row) != 2 or None in row for row in labels):
        return None
    n = len(labels)
    observed = sum(a == b for a, b in labels) / n
    left: dict[str | None, int] = defaultdict(int)
    right: dict[str | None, int] = defaultdict(int)
    for a, b in labels:
        left[a] += 1
        right[b] += 1
    chance = sum(left[k] * right[k] for k in left) / n**2
    return 1.0 if chance == 1 else (observed - chance) / (1 - chance)


def summary(golden: GoldenSet, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the set's size, categories, tags, digest and findings, JSON-ready."""
    tags: dict[str, int] = defaultdict(int)
    for item in golden.items:
        for key, value in item.tags.items():
            tags[f"{key}={value}"] += 1
    return {
        "name": golden.name,
        "items": len(golden.items),
        "images": len(unique_images(golden.items)),
        "categories": golden.categories,
        "tags": dict(sorted(tags.items())),
        "digest": golden.digest,
        "source": golden.source,
        "licence": golden.licence or None,
        "agreement": _annotators(golden),
        "findings": [asdict(f) for f in findings],
    }


def _annotators(golden: GoldenSet) -> dict[str, Any] | None:
    """Return the agreement of the annotators, over the items that name at least two labels; None without such."""
    rows = [[None if v is None else normalize(v) for v in item.labels] for item in golden.items]
    rows = [row for row in rows if sum(v is not None for v in row) >= 2]
    width = max(map(len, rows), default=0)
    return asdict(agreement([row + [None] * (width - len(row)) for row in rows])) if rows else None
