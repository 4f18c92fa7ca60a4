"""Checkpoints that the comparison needs and nobody has yet: pruned base, students of other seeds and of fewer bits."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from distill.recipe.evaluate import Quantized
from distill.recipe.train import Train
from distill.train.run import base_of
from distill.training_rows import target_of
from distill.work import Work
from models.golden import GoldenItem, GoldenSet
from models.golden.sets import export
from models.support.errors import CheckFailed, UsageError

ROOT = Path(__file__).resolve().parents[2]
FEWEST = 32
"""Rows that `fovea quantize` calibrates on at the least."""


def pruned_base(work: Work, train: Train) -> Path:
    """Return the base as training began with it, written once: pruning is part of what training has to repair."""
    from distill.train.model import load_model, load_processor
    from distill.train.save import save_checkpoint

    assert train.prune is not None
    source = base_of(work.folder, train.base)
    said = json.dumps([source, train.prune.model_dump(), train.image_tokens])
    folder = work.out / "evaluate" / f"base-{hashlib.sha256(said.encode()).hexdigest()[:12]}"
    if not (folder / "config.json").is_file():
        beside = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(beside, ignore_errors=True)
        save_checkpoint(load_model(train, source), load_processor(source, train.image_tokens), beside)
        beside.rename(folder)
    return folder


def reseeded(work: Work, seed: int) -> Path:
    """Return the student as another seed trains it on the same rows; trained, or gone on with, where it is not there.

    Raises:
        UsageError, CheckFailed: as the train step.
    """
    from distill.steps import run_steps

    other = replace(work, recipe=work.recipe.model_copy(update={"seed": seed}), out=work.out / "seeds" / str(seed))
    rows = other.out / "filter" / "kept.jsonl"
    rows.parent.mkdir(parents=True, exist_ok=True)
    if (kept := work.out / "filter" / "kept.jsonl").is_file():  # otherwise the train step says what is missing
        shutil.copyfile(kept, rows)
    run_steps(other, ["train"])
    return other.out / "train" / "student"


def quantized(work: Work, name: str, wanted: Quantized, student: Path, digest: str) -> Path:
    """Return the student in fewer bits, made by `fovea quantize run` where it is not there yet.

    It is calibrated on rows that the student was trained on.

    Raises:
        UsageError, CheckFailed: what `fovea quantize` said; its own checks (files, first answer) are part of the run.
    """
    folder = work.out / "quantize" / f"{name}-{digest[:12]}-{wanted.scheme}"
    if (folder / "manifest.json").is_file():
        return folder
    command = [sys.executable, "-m", "fovea", "quantize", "run", str(student), "--scheme", wanted.scheme,
               "--calibration", str(_calibration(work, wanted.samples)), "--samples", str(wanted.samples),
               "--seed", str(work.recipe.seed), "--out", str(folder), "--json"]  # fmt: skip
    if wanted.method is not None:
        command += ["--method", wanted.method]
    print(f"quantizing the student: {wanted.scheme}", file=sys.stderr)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == 0 and (folder / "manifest.json").is_file():
        return folder
    said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    kind = UsageError if done.returncode == UsageError.exit_code else CheckFailed
    raise kind(f"fovea quantize: {said[-1][:300] if said else 'said nothing'}", field=f"evaluate.also.{name}",
               value=wanted.scheme, fix="leave it out to go on without it")  # fmt: skip


def _calibration(work: Work, samples: int) -> Path:
    """Write training rows as a golden set (their answers are not used); return its folder."""
    from distill.labels import read_labels

    kept = [row for row in read_labels(work.out / "filter" / "kept.jsonl") if row.split == "train"]
    if len(kept) < FEWEST:
        raise UsageError(f"{len(kept)} training rows were kept, {FEWEST} are needed to calibrate on",
                         field="evaluate.also")  # fmt: skip
    items = [
        GoldenItem(id=row.id, image=work.pictures[row.id], question=row.question, category=row.category,
                   expected=target_of(row, "answer"))
        for row in kept
    ]  # fmt: skip
    folder = work.out / "quantize" / "calibration"
    drawn = GoldenSet("calibration", items).sample(min(len(items), 2 * samples), work.recipe.seed)
    export(GoldenSet("calibration", list(drawn)), folder)
    return folder
