"""How good are the labels so far?  A probe answers held-out questions from them and says which it got right."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.answers import same_answer
from distill.images import Looks, looks_of
from distill.recipe.ask import Probe
from distill.rows import Row
from distill.work import Work
from models.golden import ImageRef, normalize
from models.support.errors import CheckFailed


@dataclass(frozen=True)
class Labels:
    """What a probe gets: labelled rows, held-out rows with the truth, and the work that they are part of."""

    rows: Sequence[tuple[Row, Any]]
    truth: Sequence[tuple[Row, Any]]
    work: Work

    @property
    def pictures(self) -> Mapping[str, ImageRef]:
        return self.work.pictures

    @property
    def accept(self) -> Mapping[str, Any]:
        return self.work.recipe.task.accept


Measure = Callable[[Labels, Probe], dict[str, bool]]


def nearest(labels: Labels, probe: Probe) -> dict[str, bool]:
    """Answer each held-out row with the label of the row that looks most like it, among those with the same question.

    Distance: mean difference of colour at 16x16 pixels.  It says how well the labels cover the pictures, not how good a
    student will be; a round that does not help it may still help a student.
    """
    looks = _Looks(labels.pictures)
    by_question: dict[str, list[int]] = {}
    for i, (row, _) in enumerate(labels.rows):
        by_question.setdefault(normalize(row.question), []).append(i)
    right = {}
    for row, truth in labels.truth:
        candidates = by_question.get(normalize(row.question), [])
        if not candidates:
            right[row.id] = False
            continue
        own = looks.colours(row.id)
        distance = [float(np.abs(looks.colours(labels.rows[i][0].id) - own).mean()) for i in candidates]
        found = labels.rows[candidates[int(np.argmin(distance))]][1]
        right[row.id] = same_answer(found, truth, labels.accept)
    return right


class _Looks:
    """The colours of pictures, computed when they are first asked for."""

    def __init__(self, pictures: Mapping[str, ImageRef]):
        self._pictures = pictures
        self._known: dict[int, Looks] = {}

    def colours(self, row_id: str) -> np.ndarray:
        picture = self._pictures[row_id]
        if id(picture) not in self._known:
            self._known[id(picture)] = looks_of([picture])
        return self._known[id(picture)].colours[0]


def command(labels: Labels, probe: Probe) -> dict[str, bool]:
    """Run the recipe's own program on the labels.

    Raises:
        CheckFailed: it fails, takes too long, or prints something else.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name, pairs in (("labels.jsonl", labels.rows), ("truth.jsonl", labels.truth)):
            path = Path(folder) / name
            lines = [
                json.dumps(row.model_dump() | {"image": str(labels.pictures[row.id].path.resolve()), "answer": answer})
                for row, answer in pairs
            ]
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            files.append(str(path))
        field = "budget.rounds.probe.command"
        try:
            ran = subprocess.run(
                [*probe.command, *files], capture_output=True, text=True, timeout=probe.timeout_s, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CheckFailed(f"cannot be run: {error}", field=field, value=probe.command[0]) from error
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckFailed(f"exit code {ran.returncode}: {last[:200]}", field=field, value=probe.command[0])
    try:
        right = json.loads(ran.stdout.strip().splitlines()[-1])["correct"]
        return {row.id: bool(right[row.id]) for row, _ in labels.truth}
    except (ValueError, KeyError, IndexError, TypeError) as error:
        fix = 'print {"correct": {row id: true or false}} with every row of TRUTH as the last line'
        raise CheckFailed("printed no result", field=field, value=probe.command[0], fix=fix) from error


def student(labels: Labels, probe: Probe) -> dict[str, bool]:
    """Train the recipe's student on the labels, and have it answer the held-out rows (`distill.train.probe`)."""
    from distill.train.probe import right_answers

    return right_answers(labels.work, labels.rows, labels.truth, probe.steps)


PROBES: dict[str, Measure] = {"nearest": nearest, "student": student, "command": command}
