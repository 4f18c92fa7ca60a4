"""The train step: kept rows in, `train/student` (a checkpoint that can be served), curve and report out."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill.recipe import Recipe
from distill.recipe.train import Train
from distill.train.curve import curve_page
from distill.train.group import Group
from distill.training_rows import TrainingRows
from distill.work import Work
from models.cost.ledger import significant
from models.support.errors import CheckFailed, UsageError
from models.support.files import atomic_write, write_json
from models.support.progress import Progress

VERSION = 2
"""Raised when the same recipe would train another student."""


def base_of(folder: Path, name: str) -> str:
    """Return a checkpoint as transformers takes it: the folder relative to the recipe, or the hub id as it is."""
    path = folder / name
    if path.is_dir():
        return str(path.resolve())
    if name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise UsageError(
            "no such folder", field="train.base", value=name, fix="name a checkpoint, relative to the recipe"
        )
    return name


def settings(work: Work) -> tuple[Recipe, Train]:
    """Return recipe and section.  Raises UsageError when the recipe has none."""
    if work.recipe.train is None:
        raise UsageError("is missing", field="train", fix="add it: fovea distill schema describes it")
    return work.recipe, work.recipe.train


def inputs(work: Work) -> dict[str, Any]:
    """Return what the student depends on."""
    from distill.steps import file_digest

    recipe, train = settings(work)
    assert recipe.student is not None, "checked by the recipe"
    bases = [base_of(work.folder, train.base)]
    if train.logits is not None:
        bases.append(base_of(work.folder, train.logits.checkpoint))
    return {
        "version": VERSION,
        "kept": file_digest(work.out / "filter" / "kept.jsonl"),
        "bases": [_checkpoint_digest(Path(base)) if Path(base).is_dir() else base for base in bases],
        "seed": recipe.seed,
        # a setting that a later release adds, left at its default, must not train every student anew
        "student": recipe.student.model_dump(mode="json", exclude_defaults=True),
        "train": train.model_dump(
            mode="json", exclude_defaults=True, exclude={"usd_per_hour", "threads", "checkpoint_every", "workers"}
        ),
    }


def _checkpoint_digest(folder: Path) -> str:
    from distill.steps import file_digest

    names = sorted(p.name for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".jinja"))
    return hashlib.sha256(json.dumps([(n, file_digest(folder / n)) for n in names]).encode()).hexdigest()


def train_student(work: Work) -> dict[str, Any]:
    """Train, or go on; write student, curve and report; return the report.

    With `train.workers` above 1 that many processes do it together (`distill.train.several`).

    Raises:
        RowError: a row cannot be trained on.
        CheckFailed: out of memory, or the loss is no number.
        UsageError: no kept rows, no checkpoint, disk full.
        KeyboardInterrupt: the last checkpoint is kept.
    """
    if settings(work)[1].workers > 1:
        from distill.train.several import train_together

        return train_together(work)
    return train_alone(work, Group())


def train_alone(work: Work, group: Group) -> dict[str, Any]:
    """Train in this process, as one of `group`; the first of them writes and returns the report, the others nothing."""
    import torch

    from distill.train.loop import Loop
    from distill.train.model import SHARING, core_of, load_model, load_processor
    from distill.train.rows import EncodedRows
    from distill.train.save import save_student
    from distill.train.state import Point

    recipe, train = settings(work)
    student = recipe.student
    assert student is not None
    if train.threads is not None:
        torch.set_num_threads(train.threads)
    torch.manual_seed(recipe.seed)
    source = base_of(work.folder, train.base)
    processor = load_processor(source, train.image_tokens)

    def rows_of(split: str) -> TrainingRows:
        def tokens(text: str) -> int:
            return len(processor.tokenizer(text, add_special_tokens=False)["input_ids"])

        kept, images = work.out / "filter" / "kept.jsonl", work.rows.file.parent
        return TrainingRows(kept, images, student, tokens, split=split, most_image_tokens=train.image_tokens)

    # the rows are looked at before the model is loaded: a broken one is told in seconds
    training = rows_of("train")
    validation = rows_of("validation") if has_split(work.out / "filter" / "kept.jsonl", "validation") else None
    if validation is None and train.patience is not None:
        raise UsageError("needs validation rows that were kept, and there are none", field="train.patience",
                         value=train.patience, fix="mark rows with split validation, or leave it out")  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with _must_fit(train, source):
        model = load_model(train, source)
        if train.method != "qlora":
            model = model.to(device)
    _fast_attention(model)
    core, folder = core_of(model), work.out / "train"
    form: dict[str, Any] = {
        "longest": student.max_tokens,
        "core": core,
        "shared": model.config.model_type in SHARING,
    }
    encoded = EncodedRows(training, processor, **form)
    looked = None if validation is None else EncodedRows(validation, processor, **form)
    identity = hashlib.sha256(json.dumps(inputs(work), sort_keys=True).encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    with Progress(train.steps, "train", "steps") as progress:

        def told(point: Point, steps: int) -> None:
            shown = "" if point.exact is None else f", {point.exact:.1%} of validation word for word"
            progress.update(point.step, f"loss {point.loss:.4f}{shown}")
            with atomic_write(folder / "curve.html") as file:
                file.write(curve_page(recipe.name, loop.state, steps))

        with _must_fit(train, source):
            teacher = _teacher(train, work.folder, processor, device)
        loop = Loop(model, train, recipe.seed, encoded, looked, folder, identity, teacher=teacher, group=group,
                    told=told)  # fmt: skip
        started = time.monotonic()
        state = loop.run()
    if not group.first:
        return {}
    measured = None if looked is None else loop.measure(looked)
    moved, every = sum(p.numel() for p in loop.parameters.values()), sum(p.numel() for p in model.parameters())
    save_student(model, processor, train, source, folder)
    report = {
        "step": "train",
        "recipe": recipe.name,
        "base": train.base,
        "method": train.method,
        "tower": train.tower,
        "seed": recipe.seed,
        "rows": len(encoded),
        "validation_rows": 0 if looked is None else len(looked),
        "dropped_rows": dict(training.dropped),
        "parameters": every,
        "parameters_trained": moved,
        "workers": group.size,
        "steps": state.step,
        "stopped": state.stopped,
        "best_step": state.best_step or None,
        "tokens": state.tokens,
        "seconds": round(state.seconds, 1),
        "seconds_now": round(time.monotonic() - started, 1),
        "resumed_at": loop.resumed_at,
        "usd": None if train.usd_per_hour is None else significant(train.usd_per_hour * _hours(state.seconds)),
        "loss": state.curve[-1].loss,
        "validation_loss": None if measured is None else measured[0],
        "exact": None if measured is None else _share(measured[1], looked),
        "student": str(folder / "student"),
    }
    write_json(folder / "report.json", report | _made())
    for name in ("checkpoint.pt", "best.pt"):  # they are larger than the student, and what they were for is done
        (folder / name).unlink(missing_ok=True)
    return report


def _share(exact: float, rows: Any) -> dict[str, Any]:
    from models.stats import wilson

    return wilson(round(exact * len(rows)), len(rows)).as_dict()


def _hours(seconds: float) -> Any:
    from decimal import Decimal

    return Decimal(repr(seconds)) / 3600


def _made() -> dict[str, Any]:
    from models.evaluation.context import command, hardware, versions

    return {"versions": versions(), "hardware": hardware() | {"role": "training"}, "command": command()}


def has_split(kept: Path, split: str) -> bool:
    """Return whether a row of this split was kept."""
    from distill.labels import read_labels

    return any(row.split == split for row in read_labels(kept))


@contextmanager
def _must_fit(train: Train, source: str) -> Iterator[None]:
    """Say what to change where the weights alone fill the device.  Raises CheckFailed."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        smaller = "a smaller base" if train.method == "qlora" else "method qlora, or a smaller base"
        raise CheckFailed(
            "out of memory before the first step: the weights do not fit", field="train.base", value=source,
            fix=f"use {smaller}; leave train.logits out where it is set: its teacher is loaded too",
        ) from error  # fmt: skip


def _teacher(train: Train, folder: Path, processor: Any, device: str) -> Any:
    """Return the teacher of logit distillation, frozen.  Raises UsageError where its vocabulary is another."""
    if train.logits is None:
        return None
    from distill.train.model import load_model, load_processor

    source = base_of(folder, train.logits.checkpoint)
    if load_processor(source).tokenizer.get_vocab() != processor.tokenizer.get_vocab():
        raise UsageError("the teacher has another vocabulary than the student", field="train.logits.checkpoint",
                         value=train.logits.checkpoint, fix="leave it out: learn from the answers")  # fmt: skip
    teacher = load_model(train.model_copy(update={"method": "full", "prune": None}), source)
    return teacher.requires_grad_(False).eval().to(device)


def _fast_attention(model: Any) -> None:
    """On a CPU, one attention call for all pictures of a batch that have one size (the same values, sooner)."""
    if model.config.model_type == "qwen2_5_vl" and next(model.parameters()).device.type == "cpu":
        from models.embedded.architectures import batch_vision_attention

        batch_vision_attention()
