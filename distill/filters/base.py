"""What every filter is: rows in, and which of them to drop and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from distill.collect.report import Shop
from distill.labels import Labelled
from distill.recipe import Recipe
from distill.work import Work


@dataclass(frozen=True)
class Drop:
    """A row that goes: `reason` is a short code, `text` says it of this row."""

    row: Labelled
    reason: str
    text: str


@dataclass
class Context:
    """What filters need beside the rows.  `notes` takes what a filter has to say about itself (JSON)."""

    work: Work
    shop: Shop
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        return self.work.recipe


class Filter(Protocol):
    """Looks at all rows that are left and returns those to drop; it may fill in a row's chosen answer."""

    async def __call__(self, rows: Sequence[Labelled], context: Context) -> list[Drop]: ...


@dataclass(frozen=True)
class Entry:
    """A filter in the registry: its title in the data card, and whether the recipe asks for it."""

    title: str
    run: Filter
    wanted: Callable[[Recipe], bool]


FILTERS: dict[str, Entry] = {}


def register(
    name: str, title: str, wanted: Callable[[Recipe], bool] = lambda recipe: True
) -> Callable[[Filter], Filter]:
    """Add a filter to `FILTERS` (decorator)."""

    def add(run: Filter) -> Filter:
        FILTERS[name] = Entry(title, run, wanted)
        return run

    return add


# Free filters come before those that ask a model; shares last, because every other filter changes them.
ORDER = (
    "human", "usable", "agreement", "duplicates", "contamination", "image_blind", "judge", "balance", "synthetic",
)  # fmt: skip


def filters_in_order() -> dict[str, Entry]:
    """Return all filters in the order in which they run, however their modules came to be imported."""
    import importlib

    for name in ("answers", "pictures", "asked", "shares"):
        importlib.import_module(f"distill.filters.{name}")
    return {name: FILTERS[name] for name in ORDER}


def training(rows: Sequence[Labelled]) -> list[Labelled]:
    """Return the rows of split train."""
    return [row for row in rows if row.split == "train"]
