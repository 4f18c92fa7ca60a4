"""The student as a probe of its labels: trained on those that are there, it answers held-out rows of known truth."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.answers import parse_reply, same_answer
from distill.labels import Labelled, write_labels
from distill.recipe.train import Train
from distill.rows import Row
from distill.work import Work
from models.support.files import write_json

ASKED = 64
"""Rows that it answers together."""
Pairs = Sequence[tuple[Row, Any]]


def right_answers(work: Work, rows: Pairs, truth: Pairs, steps: int | None) -> dict[str, bool]:
    """Train the student from its base on `rows`, and return for each row of `truth` whether it answers it right.

    The result is kept in `collect/probes`, so that going on trains no round again; the student is not.  The held-out
    rows are not looked at in training: none of them decides when it ends.

    Raises:
        RowError, UsageError, CheckFailed: as the train step.
    """
    from distill.steps import file_digest, run_steps
    from distill.train.run import inputs

    train = work.recipe.train
    assert train is not None, "checked by the recipe"
    recipe = work.recipe.model_copy(update={"train": shortened(train, steps)})
    with tempfile.TemporaryDirectory(prefix="fovea-probe-") as folder:
        inside = replace(work, recipe=recipe, out=Path(folder))
        held_out = inside.out / "truth.jsonl"
        write_labels(inside.out / "filter" / "kept.jsonl", _labelled(work, rows))
        write_labels(held_out, _labelled(work, truth))
        known = json.dumps([inputs(inside), file_digest(held_out), dict(work.recipe.task.accept)], sort_keys=True)
        kept = work.out / "collect" / "probes" / f"{hashlib.sha256(known.encode()).hexdigest()[:16]}.json"
        if not kept.exists():
            run_steps(inside, ["train"])
            write_json(kept, {"correct": _asked(inside, held_out, {row.id: answer for row, answer in truth})})
        found: dict[str, bool] = json.loads(kept.read_text("utf-8"))["correct"]
        return found


def shortened(train: Train, steps: int | None) -> Train:
    """Return the section for one process, without early stop, with about `steps` steps: every stage as much shorter."""
    share = 1.0 if steps is None else steps / train.steps
    stages = [stage.model_copy(update={"steps": max(1, round(share * stage.steps))}) for stage in train.stages]
    return train.model_copy(update={"stages": stages, "patience": None, "workers": 1})


def _labelled(work: Work, pairs: Pairs) -> list[Labelled]:
    return [
        Labelled(
            **row.model_dump(), image_sha256=work.pictures[row.id].digest, answers=[], answer=answer, source="probe"
        )
        for row, answer in pairs
    ]


def _asked(work: Work, held_out: Path, truth: dict[str, Any]) -> dict[str, bool]:
    import torch

    from distill.train.model import core_of, load_model, load_processor
    from distill.train.rows import EncodedRows
    from distill.train.sample import written
    from distill.training_rows import TrainingRows

    folder, form = work.out / "train" / "student", work.recipe.student
    assert form is not None, "checked by the recipe"
    processor, model = load_processor(folder), load_model(Train(base=str(folder)), folder)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")

    def tokens(text: str) -> int:
        return len(processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    found = TrainingRows(held_out, work.rows.file.parent, form, tokens, split="validation")
    rows = EncodedRows(found, processor, longest=form.max_tokens, core=core_of(model))
    # an answer that goes on for longer than every right one is a wrong one
    most = 8 + max(len(item.ids) - item.start for item in rows.items)
    right = dict.fromkeys(truth, False)  # rows that may be left out (`student.max_dropped_rows`) are not answered
    for first in range(0, len(rows), ASKED):
        items = rows.items[first : first + ASKED]
        for item, ids in zip(items, written(model, rows, items, most, contextlib.nullcontext()), strict=True):
            said: Any = processor.tokenizer.decode(ids, skip_special_tokens=True)
            if form.target != "answer":
                said = parse_reply(said, "stop", "json", work.recipe.task.answer_schema).answer
            right[item.id] = same_answer(said, truth[item.id], work.recipe.task.accept)
    return right
