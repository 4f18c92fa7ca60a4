"""Rows of the proof.  Nobody but the teacher's own training reads an answer of the data sets.

- The document teacher learns from truth: photographs of seed 1.
- The student's rows have no answers: published training pictures and rendered ones with questions made from templates,
  and photographs of seed 2.  Half of its yes/no questions name what the *teacher* said it sees, so that yes is as
  frequent as no.
- What is measured: the published test split, and photographs of seed 3.  Nobody trains on either.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.proof import lights
from models.embedded import shapes
from models.support.files import atomic_write

VALIDATION = 150
"""Of the training pictures, those that training is only watched on."""
Row = dict[str, Any]


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write JSONL."""
    with atomic_write(path) as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")


def photographs(folder: Path, n: int, seed: int) -> list[tuple[str, dict[str, str]]]:
    """Draw `n` photographs into `folder`; return (path relative to its parent, truth)."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for i in range(n):
        image, shown = lights.draw(np.random.default_rng([seed, i]))
        name = f"{folder.name}/{i:05d}.png"
        image.save(folder.parent / name)
        found.append((name, shown))
    return found


def published(folder: Path, n: int | None = None) -> dict[int, str]:
    """Copy the published training pictures into `folder`; return picture number -> path relative to its parent."""
    import easy_vqa

    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for number, source in sorted(easy_vqa.get_train_image_paths().items())[:n]:
        name = f"{folder.name}/{number}.png"
        shutil.copyfile(source, folder.parent / name)
        found[number] = name
    return found


def split_of(number: int, n: int) -> str:
    """Return the split of a training picture: the last ones are only looked at."""
    return "validation" if number >= n - min(VALIDATION, n // 10) else "train"


def rendered(folder: Path, n: int, seed: int) -> dict[int, str]:
    """Draw `n` more pictures of the published kind; return picture number (from 100,000) -> path."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for i in range(n):
        image, _ = shapes.render(np.random.default_rng([seed, i]))
        number = 100_000 + i
        found[number] = f"{folder.name}/{number}.png"
        image.save(folder.parent / found[number])
    return found


def light_rows(folder: Path, photos: int, seed: int, *, truth: bool = False) -> None:
    """Write `rows.jsonl` of the document task, with `truth` also `truth.jsonl`: labels for a teacher's training."""
    rows: list[Row] = []
    labels: list[Row] = []
    for i, (path, shown) in enumerate(photographs(folder / "modem", photos, seed)):
        row = {"id": f"m{i}", "image": path, "question": lights.QUESTION, "category": "modem"}
        rows.append(row | {"split": split_of(i, photos)})
        labels.append({"id": row["id"], "answer": lights.text_of(shown), "by": "renderer"})
    write_lines(folder / "rows.jsonl", rows)
    if truth:
        write_lines(folder / "truth.jsonl", labels)


def naming_rows(folder: Path, *, pictures: int, more: int, captions: bool, seed: int) -> list[Row]:
    """Return the first rows of the student, without answers: name colour and shape.

    Args:
        pictures, more: published and rendered ones.
        captions: one question for both, and the single ones about every tenth picture; otherwise these about all.
    """
    sources = published(folder / "vqa", pictures)
    known = len(sources)
    sources |= rendered(folder / "more", more, seed)
    # of the templates those that tell nothing of the answer
    single = (("color", shapes.ASK_COLOR[::2]), ("shape", shapes.ASK_SHAPE[:3]))
    rows: list[Row] = []
    for place, (number, path) in enumerate(sources.items()):
        rng = np.random.default_rng([seed, number])
        both = (("see", shapes.ASK_BOTH),) if captions else ()
        for kind, templates in (*both, *(single if not captions or place % 10 == 0 else ())):
            question = templates[int(rng.integers(len(templates)))]
            row = {"id": f"{kind}-{number}", "image": path, "question": question, "category": "naming"}
            split = split_of(place, known) if place < known else "train"
            rows.append(row | {"split": split, "synthetic": place >= known})
    return rows


def random_names(rows: Sequence[Row], *, seed: int) -> dict[str, str]:
    """Return a colour or a shape for each naming row, drawn without a look at the picture."""
    rng = np.random.default_rng([seed, 11])
    names = {"color": list(shapes.COLORS), "shape": list(shapes.SHAPES)}
    return {row["id"]: names[kind][int(rng.integers(len(names[kind])))] for row in rows
            if (kind := row["id"].partition("-")[0]) in names}  # fmt: skip


def scenes(said: Mapping[str, str]) -> dict[int, shapes.Scene]:
    """Return picture number -> what the teacher said it shows; pictures that it did not name in both ways are left out.

    Args:
        said: row id -> answer, of naming rows.
    """
    words: dict[int, set[str]] = {}
    for row, answer in said.items():
        kind, _, name = row.partition("-")
        if kind in ("see", "color", "shape"):
            words.setdefault(int(name), set()).update(answer.split())
    found = {}
    for number, seen in words.items():
        colors, forms = [c for c in shapes.COLORS if c in seen], [s for s in shapes.SHAPES if s in seen]
        if len(colors) == len(forms) == 1:  # two answers that contradict each other tell nothing
            found[number] = shapes.Scene(forms[0], colors[0], (0, 0, 0, 0))
    return found


def yes_no_rows(rows: Sequence[Row], said: Mapping[str, str], *, per_picture: int, seed: int) -> list[Row]:
    """Return rows of yes/no questions about the pictures of `rows`; `said` are the teacher's answers by row id.

    Half of them name what the teacher saw, and half say "no" or "not": category `negated`, the others `yes_no`.  A
    picture that it did not name in both ways gets none.
    """
    found: list[Row] = []
    known = scenes(said)
    asked: set[int] = set()
    for row in rows:
        number = int(row["id"].partition("-")[2])
        if number not in known or number in asked:
            continue
        asked.add(number)
        rng = np.random.default_rng([seed, number, 7])
        for i in range(per_picture):
            question, _ = shapes.draw_question(rng, known[number], dense=0.15, extra=0.0)
            category = "negated" if {"no", "not"} & set(question.split()) else "yes_no"
            found.append({**row, "id": f"ask{i}-{number}", "question": question, "category": category})
    return found


def golden_lights(folder: Path, n: int) -> Path:
    """Write the held-out photographs as a golden set; return its folder."""
    items = [
        {"id": f"modem-{i}", "image": path, "question": lights.QUESTION, "expected": shown,
         "accept": {"rule": "json"}, "category": "modem", "split": "test"}
        for i, (path, shown) in enumerate(photographs(folder / "pictures", n, 3))
    ]  # fmt: skip
    write_lines(folder / "golden.jsonl", items)
    return folder
