"""Rows of the proof.  Nobody but the teacher's own training reads an answer of the data sets.

- The teacher learns from truth: published training questions of easy-VQA, and modem photographs of seed 1.
- The student's rows have no answers: published training pictures with questions made from templates, and photographs
  of seed 2.  Half of its yes/no questions name what the *teacher* said it sees, so that yes is as frequent as no.
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


def teacher_rows(folder: Path, *, pictures: int, photos: int, per_picture: int, seed: int) -> None:
    """Write `rows.jsonl` and `truth.jsonl` (human labels) for the teacher."""
    import easy_vqa

    paths = published(folder / "vqa", pictures)
    questions: dict[int, list[tuple[str, str]]] = {}
    for question, answer, number in zip(*easy_vqa.get_train_questions(), strict=True):
        questions.setdefault(number, []).append((question, answer))
    rows: list[Row] = []
    truth: list[Row] = []
    for place, (number, path) in enumerate(paths.items()):
        rng = np.random.default_rng([seed, number])
        chosen = rng.permutation(len(questions[number]))[:per_picture]
        pairs = [questions[number][i] for i in chosen]
        known = _scene(questions[number])
        if known is not None:  # the published ones say no seven times in eight: as many that are true
            pairs += [shapes.draw_question(rng, known, dense=0.2) for _ in range(per_picture)]
        for i, (question, answer) in enumerate(pairs):
            row = {"id": f"v{number}-{i}", "image": path, "question": question, "category": "vqa"}
            rows.append(row | {"split": split_of(place, len(paths))})
            truth.append({"id": row["id"], "answer": answer, "by": "easy-VQA"})
    for i, (path, shown) in enumerate(photographs(folder / "modem", photos, 1)):
        row = {"id": f"m{i}", "image": path, "question": lights.QUESTION, "category": "modem"}
        rows.append(row | {"split": split_of(i, photos)})
        truth.append({"id": row["id"], "answer": lights.text_of(shown), "by": "renderer"})
    write_lines(folder / "rows.jsonl", rows)
    write_lines(folder / "truth.jsonl", truth)


def _scene(pairs: Sequence[tuple[str, str]]) -> shapes.Scene | None:
    answers = [answer for _, answer in pairs]
    shape = next((a for a in answers if a in shapes.SHAPES), None)
    color = next((a for a in answers if a in shapes.COLORS), None)
    return shapes.Scene(shape, color, (0, 0, 0, 0)) if shape and color else None


def naming_rows(folder: Path, *, pictures: int, photos: int, seed: int) -> list[Row]:
    """Return the first rows of the student, without answers: name colour, shape and lights."""
    paths = published(folder / "vqa", pictures)
    rows: list[Row] = []
    for place, (number, path) in enumerate(paths.items()):
        rng = np.random.default_rng([seed, number])
        # of the templates those that tell nothing of the answer
        for kind, templates in (("color", shapes.ASK_COLOR[::2]), ("shape", shapes.ASK_SHAPE[:3])):
            question = templates[int(rng.integers(len(templates)))]
            row = {"id": f"{kind}-{number}", "image": path, "question": question, "category": "naming"}
            rows.append(row | {"split": split_of(place, len(paths))})
    for i, (path, _) in enumerate(photographs(folder / "modem", photos, 2)):
        row = {"id": f"modem-{i}", "image": path, "question": lights.QUESTION, "category": "modem"}
        rows.append(row | {"split": split_of(i, photos)})
    return rows


def random_names(rows: Sequence[Row], *, seed: int) -> dict[str, str]:
    """Return a colour or a shape for each naming row, drawn without a look at the picture."""
    rng = np.random.default_rng([seed, 11])
    names = {"color": list(shapes.COLORS), "shape": list(shapes.SHAPES)}
    return {row["id"]: names[kind][int(rng.integers(len(names[kind])))] for row in rows
            if (kind := row["id"].partition("-")[0]) in names}  # fmt: skip


def yes_no_rows(rows: Sequence[Row], said: Mapping[str, str], *, per_picture: int, seed: int) -> list[Row]:
    """Return rows of yes/no questions about the pictures of `rows`; `said` are the teacher's answers by row id.

    Half of them name what the teacher saw.  A picture that it did not name in both ways gets none.
    """
    found: list[Row] = []
    for row in rows:
        kind, _, number = row["id"].partition("-")
        color, shape = said.get(f"color-{number}"), said.get(f"shape-{number}")
        if kind != "color" or color not in shapes.COLORS or shape not in shapes.SHAPES:
            continue
        rng = np.random.default_rng([seed, int(number), 7])
        scene = shapes.Scene(shape, color, (0, 0, 0, 0))
        for i in range(per_picture):
            question, _ = shapes.draw_question(rng, scene, dense=0.15, extra=0.0)
            found.append({**row, "id": f"ask{i}-{number}", "question": question, "category": "yes_no"})
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
