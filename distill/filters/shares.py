"""Filters on shares: how much of the training set one class, and synthetic rows, may be."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from distill.answers import class_of
from distill.filters.base import Context, Drop, register, training
from distill.labels import Labelled
from distill.rows import most_beside, order_of


@register("balance", "Class balance", lambda recipe: recipe.filters.balance is not None)
async def balance(rows: Sequence[Labelled], context: Context) -> list[Drop]:
    """Thin classes, in the seed's order, until none has more than `max_share` of the training rows.

    Raising the bar for one class shrinks the whole, so the largest classes are cut to one common size: the largest n
    with n <= max_share * (sum of all classes cut to n).
    """
    settings, seed = context.recipe.filters.balance, context.recipe.seed
    assert settings is not None
    classes: dict[str, list[Labelled]] = defaultdict(list)
    for row in sorted(training(rows), key=lambda r: order_of(r.id, seed)):
        classes[row.category if settings.by == "category" else class_of(row.answer)].append(row)
    size = _common_size([len(members) for members in classes.values()], settings.max_share)
    if size is None:
        context.notes["unreachable"] = (
            f"{len(classes)} classes cannot each stay within {settings.max_share:.0%}; nothing was dropped"
        )
        return []
    return [
        Drop(row, "too_many", f"class {name!r} has {len(members)} rows; {size} are kept")
        for name, members in classes.items()
        for row in members[size:]
    ]


def _common_size(sizes: Sequence[int], max_share: float) -> int | None:
    """Return the largest size to cut classes to so that none is above the share; None when there is none above 0."""
    for size in range(max(sizes, default=0), 0, -1):
        cut = [min(s, size) for s in sizes]
        if max(cut) <= max_share * sum(cut) + 1e-9:
            return size
    return None


@register("synthetic", "Synthetic share")
async def synthetic(rows: Sequence[Labelled], context: Context) -> list[Drop]:
    """Drop synthetic training rows over `data.max_synthetic_share`: other filters may have taken real ones away."""
    share, seed = context.recipe.data.max_synthetic_share, context.recipe.seed
    made = sorted((r for r in training(rows) if r.synthetic), key=lambda r: order_of(r.id, seed))
    real = sum(not r.synthetic for r in training(rows))
    allowed = len(made) if share >= 1 else most_beside(real, share)
    counts = Counter("synthetic" if r.synthetic else "real" for r in training(rows))
    context.notes.update(counts)
    return [
        Drop(row, "synthetic", f"{len(made)} synthetic beside {real} real rows; {allowed} may stay ({share:.0%})")
        for row in made[allowed:]
    ]
