"""Filters on pictures: no training picture may look like one of a held-out split or of a golden set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from distill.filters.base import Context, Drop, register
from distill.images import Looks, looks_of
from distill.labels import Labelled
from models.golden import ImageRef, normalize
from models.golden.sets import unique_images


@register("duplicates", "Duplicates by look")
async def duplicates(rows: Sequence[Labelled], context: Context) -> list[Drop]:
    """Drop the second row with the same picture and question, and rows whose picture looks like a held-out one.

    Test pictures are held out from training and validation, validation pictures from training.  Test rows are never
    labelled, so they are taken from the data.
    """
    drops: dict[str, Drop] = {}
    seen: dict[tuple[str, str], str] = {}
    for row in rows:
        first = seen.setdefault((row.image_sha256, normalize(row.question)), row.id)
        if first != row.id:
            drops[row.id] = Drop(row, "repeated", f"same picture and question as {first}")
    pictures = context.work.pictures
    for split, before in (("test", ("train", "validation")), ("validation", ("train",))):
        held = {pictures[r.id].digest: (r.id, pictures[r.id]) for r in context.work.usable if r.split == split}
        candidates = [r for r in rows if r.split in before and r.id not in drops]
        for row, twin in _twins(candidates, list(held.values()), context):
            drops[row.id] = Drop(row, f"like_{split}", f"its picture looks like that of {split} row {twin}")
    return list(drops.values())


@register("contamination", "Golden sets", lambda recipe: bool(recipe.filters.contamination))
async def contamination(rows: Sequence[Labelled], context: Context) -> list[Drop]:
    """Drop rows whose picture is in a golden set or looks like one that is."""
    drops: dict[str, Drop] = {}
    for golden in context.work.golden:
        names = {id(item.image): item.id for item in reversed(golden.items)}
        held = [(f"{golden.name}/{names[id(image)]}", image) for image in unique_images(golden.items)]
        for row, twin in _twins([r for r in rows if r.id not in drops], held, context):
            drops[row.id] = Drop(row, "golden", f"its picture looks like that of golden item {twin}")
        context.notes[golden.name] = {"pictures": len(held), "digest": golden.digest}
    return list(drops.values())


def _twins(
    rows: Sequence[Labelled], held: Sequence[tuple[str, ImageRef]], context: Context
) -> list[tuple[Labelled, str]]:
    """Return (row, name of the held-out picture that it looks like)."""
    if not rows or not held:
        return []
    settings, pictures = context.recipe.filters.duplicates, context.work.pictures
    theirs, mine = _looks([image for _, image in held]), _looks([pictures[row.id] for row in rows])
    found = []
    for i, row in enumerate(rows):
        near = theirs.near(i, mine, settings.max_bits, settings.max_difference)
        if len(near):
            found.append((row, held[int(near[0])][0]))
    return found


def _looks(pictures: Sequence[ImageRef]) -> Looks:
    unique = {id(p): p for p in pictures}
    order = {key: i for i, key in enumerate(unique)}
    looks = looks_of(list(unique.values()))
    places = [order[id(p)] for p in pictures]
    return replace(looks, hashes=looks.hashes[places], colours=looks.colours[places])
