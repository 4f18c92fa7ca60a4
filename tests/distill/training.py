"""A work folder that is ready to be trained on: pictures of squares, kept rows, a recipe with the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.labels import Labelled, write_labels
from distill.work import Work, open_work
from models.golden import ImageRef
from tests.distill.simulator import write_data, write_recipe

EMBEDDED = Path(__file__).resolve().parents[2] / "models" / "embedded"


def training_work(folder: Path, n: int = 12, *, validation: int = 4, **train: Any) -> Work:
    """Return a work of `n` kept rows, the last `validation` of which are for validation."""
    rows = write_data(folder, n)
    kept = [
        Labelled(
            **{"synthetic": False, **row, "split": "validation" if i >= n - validation else "train"},
            image_sha256=ImageRef.open(folder / row["image"]).digest,
            answers=[],
            answer=row["category"],
            source="sim",
        )
        for i, row in enumerate(rows)
    ]
    write_labels(folder / "out/filter/kept.jsonl", kept)
    section = {
        "base": str(EMBEDDED / "qwen2_5_vl"),
        "batch": 4,
        "stages": [{"steps": 6, "rate": 0.001, "warmup": 0.2}],
        "evaluate_every": 2,
        "checkpoint_every": 2,
        "threads": 1,
    } | train
    student = {"model": "qwen2-5-vl-embedded", "max_tokens": 80}
    return open_work(write_recipe(folder, "http://127.0.0.1:9", student=student, train=section), folder / "out")
