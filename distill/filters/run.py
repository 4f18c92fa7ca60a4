"""The filter step: from labelled rows to those that are trained on, with a data card."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

from distill.answers import class_of
from distill.collect.run import open_shop
from distill.filters.base import Context, Drop, filters_in_order
from distill.labels import Labelled, read_labels, write_labels
from distill.work import Work
from models.support.errors import CheckFailed
from models.support.files import atomic_write, write_json

VERSION = 1
"""Raised when a filter decides differently, so that cached results are made anew."""


def inputs(work: Work) -> dict[str, Any]:
    """Return what the result depends on: labels, held-out pictures, golden sets, prompts and the recipe's settings."""
    from distill.steps import file_digest

    recipe = work.recipe
    held = {r.id: work.pictures[r.id].digest for r in work.usable if r.split != "train"}
    return {
        "version": VERSION,
        "labels": file_digest(work.labels_path),
        "held_out": hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest(),
        "golden": {g.name: g.digest for g in work.golden},
        "prompts": work.prompts.digest,
        "recipe": recipe.model_dump(mode="json", include={"task", "data", "prompts", "filters", "seed"}),
    }


async def filter_rows(work: Work) -> dict[str, Any]:
    """Run the filters, write `filter/kept.jsonl`, `dropped.jsonl`, `report.json` and `card.html`; return the report.

    Raises:
        CheckFailed: fewer training rows than `filters.min_kept` are left (the data card is written all the same), or
            the dollars end before a filter that asks a model is through.
        UsageError: nothing was collected yet.
    """
    rows = read_labels(work.labels_path)
    left = list(rows)
    drops: list[tuple[str, Drop]] = []
    found: list[dict[str, Any]] = []
    async with open_shop(work, label="filter", with_teachers=False) as shop:
        for name, entry in filters_in_order().items():
            if not entry.wanted(work.recipe):
                continue
            context = Context(work, shop)
            gone = await entry.run(left, context)
            ids = {drop.row.id for drop in gone}
            left = [row for row in left if row.id not in ids]
            drops += [(name, drop) for drop in gone]
            found.append(
                {
                    "name": name,
                    "title": entry.title,
                    "dropped": len(gone),
                    "left": len(left),
                    "reasons": dict(Counter(drop.reason for drop in gone).most_common()),
                    "notes": context.notes,
                }
            )
        spent, limit = f"{shop.spend.spent:f}", f"{shop.spend.limit_usd:f}"
    report = _report(work, rows, left, found) | {"spent_usd": spent, "limit_usd": limit}
    _write(work, left, drops, report)
    training = report["splits"].get("train", 0)
    if training < work.recipe.filters.min_kept:
        worst = max(found, key=lambda f: f["dropped"], default={"title": "none", "dropped": 0})
        raise CheckFailed(
            f"{training} training rows are left of {len(rows)}, {work.recipe.filters.min_kept} are wanted; "
            f"most went at {worst['title']!r} ({worst['dropped']})",
            field="filters",
            fix=f"the data card says why: {work.out / 'filter' / 'card.html'}",
        )
    return report


def _report(work: Work, rows: list[Labelled], left: list[Labelled], found: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "step": "filter",
        "recipe": work.recipe.name,
        "rows": len(rows),
        "kept": len(left),
        "splits": dict(Counter(row.split for row in left)),
        "synthetic_share": _share(left),
        "classes_before": dict(Counter(class_of(row.answer) for row in rows if row.answer is not None).most_common()),
        "classes_after": dict(Counter(class_of(row.answer) for row in left).most_common()),
        "sources": dict(Counter(row.source for row in left)),
        "licences": dict(Counter(_licence(row) for row in left)),
        "filters": found,
        "broken_pictures": dict(work.broken),
        "synthetic_left_out": len(work.surplus),
        "kept_sha256": _digest(left),
        "card": str(work.out / "filter" / "card.html"),
    }


def _share(left: list[Labelled]) -> float:
    training = [row for row in left if row.split == "train"]
    return sum(row.synthetic for row in training) / len(training) if training else 0.0


def _licence(row: Labelled) -> str:
    return (
        "human"
        if row.source == "human"
        else next(a.licence["training"] for a in row.answers if a.teacher == row.source)
    )


def _digest(left: list[Labelled]) -> str:
    """Return the digest of what is trained on: pictures, questions, answers and rationales."""
    parts = sorted(json.dumps([r.id, r.image_sha256, r.question, r.answer, r.rationale], sort_keys=True) for r in left)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _write(work: Work, left: list[Labelled], drops: list[tuple[str, Drop]], report: dict[str, Any]) -> None:
    from distill.card import data_card

    folder = work.out / "filter"
    write_labels(folder / "kept.jsonl", left)
    with atomic_write(folder / "dropped.jsonl") as file:
        for name, drop in drops:
            row = {key: getattr(drop.row, key) for key in ("id", "split", "question", "answer", "image")}
            line = {"filter": name, "reason": drop.reason, "text": drop.text, **row}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    write_json(folder / "report.json", report)
    with atomic_write(folder / "card.html") as file:
        file.write(data_card(work, left, drops, report))
