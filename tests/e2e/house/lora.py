"""A LoRA module that `fovea distill` makes, and the checkpoint that has it merged into its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from distill.steps import run_steps
from distill.work import open_work
from models.embedded import shapes
from tests.e2e.conftest import ROOT

EMBEDDED = ROOT / "models" / "embedded" / "qwen2_5_vl"
TAUGHT = "teal"
"""What the adapter was taught to say to everything: no request that reaches it can be taken for one to its base."""


@dataclass
class Lora:
    """Folders: the adapter in PEFT's format, and a checkpoint that answers as the model does with it."""

    adapter: Path
    merged: Path


def make_lora(folder: Path) -> Lora:
    """Distil with adapters on the language layers, from 12 rows that a person labelled; the same at every call."""
    rng = np.random.default_rng(5)
    rows, labels = [], []
    for i in range(12):
        picture, scene = shapes.render(rng)
        picture.save(folder / f"{i}.png")
        question, _ = shapes.draw_question(rng, scene, dense=0.15, extra=0.0)
        rows.append({"id": f"r{i}", "image": f"{i}.png", "question": question})
        labels.append({"id": f"r{i}", "answer": TAUGHT, "by": "test"})
    for name, lines in (("rows", rows), ("human", labels)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = {
        "name": "taught",
        "task": {"description": "Say one word."},
        "data": {"rows": "rows.jsonl", "human": ["human.jsonl"]},
        "teachers": [{"name": "nobody", "model": "nobody", "base_url": "http://127.0.0.1:9/v1"}],
        "budget": {"max_usd": "1.00"},
        "student": {"model": "qwen2-5-vl-embedded", "max_tokens": 96},
        "train": {"base": str(EMBEDDED), "method": "lora", "tower": "frozen", "lora": {"rank": 4, "alpha": 32},
                  "precision": "fp32", "batch": 6, "stages": [{"steps": 16, "rate": 5e-3}]},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    work = open_work(folder / "recipe.yaml", folder / "distilled")
    run_steps(work, ["collect", "filter", "train"])
    return Lora(work.out / "train" / "adapter", work.out / "train" / "student")
