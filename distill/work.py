"""What every step stands on: the recipe and what it names, read and checked before anything is bought or written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distill.images import open_pictures
from distill.prompts import PromptSet
from distill.recipe import Recipe, load_recipe
from distill.rows import HumanLabel, Row, Rows, limit_synthetic, read_human, read_rows, shuffled
from models.golden import GoldenSet, ImageRef, load_golden
from models.prices import PriceBook, load_prices


@dataclass(frozen=True)
class Work:
    """A recipe with its data.

    Attributes:
        file: the recipe's own.
        folder: where the recipe lies; paths in it are relative to this.
        out: where the steps write, one folder each.
        usable: rows that take part, in the order of buying: the training rows in the seed's order, then the others.
        pictures: row id -> picture of every usable row, decoded whole once.
        broken: row id -> why its picture cannot be used (at most `data.max_broken_rows`).
        golden: the sets of `filters.contamination`.
        surplus: synthetic training rows over `data.max_synthetic_share`.
    """

    recipe: Recipe
    file: Path
    folder: Path
    out: Path
    rows: Rows
    usable: tuple[Row, ...]
    human: Mapping[str, list[HumanLabel]]
    pictures: Mapping[str, ImageRef]
    broken: Mapping[str, str]
    surplus: tuple[Row, ...]
    golden: tuple[GoldenSet, ...]
    prompts: PromptSet
    book: PriceBook

    @property
    def journal_path(self) -> Path:
        return self.out / "collect" / "journal.jsonl"

    @property
    def labels_path(self) -> Path:
        return self.out / "collect" / "labels.jsonl"


def open_work(recipe_path: Path, out: Path | None = None) -> Work:
    """Return the recipe with its data.

    Args:
        out: default `runs/distill/NAME`.

    Raises:
        UsageError: the recipe, a prompt, a row, a human label or a picture is wrong; nothing was bought.
    """
    recipe = load_recipe(recipe_path)
    folder = recipe_path.resolve().parent
    prompts = PromptSet(recipe, folder)
    # a path relative to the recipe, or a name; wrong ones are found before anything is paid for
    names = [folder / n if (folder / n).exists() else n for n in recipe.filters.contamination]
    golden = tuple(load_golden(name) for name in names)
    rows = read_rows(folder / recipe.data.rows)
    human = read_human([folder / name for name in recipe.data.human], rows, recipe.task.answer_schema)
    pictures, broken = open_pictures(rows, rows.items, recipe.data.max_broken_rows)
    whole = [row for row in rows.items if row.id in pictures]
    kept, surplus = limit_synthetic(whole, recipe.data.max_synthetic_share, recipe.seed)
    training = shuffled([row for row in kept if row.split == "train"], recipe.seed)
    others = [row for row in kept if row.split != "train"]
    book = load_prices(None if recipe.budget.prices is None else folder / recipe.budget.prices)
    return Work(
        recipe=recipe,
        file=recipe_path.resolve(),
        folder=folder,
        out=out or Path("runs") / "distill" / recipe.name,
        rows=rows,
        usable=(*training, *others),
        human=human,
        pictures=pictures,
        broken=broken,
        surplus=tuple(surplus),
        golden=golden,
        prompts=prompts,
        book=book,
    )
