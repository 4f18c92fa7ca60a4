"""Distillation against the real stack: a served teacher labels; the engine says what the weights it loaded say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from distill.export.parity import parity
from distill.steps import run_steps
from distill.work import open_work
from models.embedded import shapes
from models.golden import load_golden
from tests.e2e.conftest import ROOT, Running

EMBEDDED = ROOT / "models" / "embedded" / "qwen2_5_vl"
N = 24


def test_a_student_learns_from_what_the_stack_answers(qwen: Running, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    truth: dict[str, str] = {}
    rows = []
    for i in range(N):
        picture, scene = shapes.render(rng)
        picture.save(tmp_path / f"{i}.png")
        truth[f"r{i}"] = scene.color
        rows.append({"id": f"r{i}", "image": f"{i}.png", "question": "what color is the shape?",
                     "split": "train" if i < N - 6 else "validation"})  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "name": "colours",
        "task": {"description": "Name the colour.", "answer_schema": {"enum": list(shapes.COLORS)}},
        "data": {"rows": "rows.jsonl"},
        "teachers": [{"name": "own", "model": "fovea-qwen", "base_url": qwen.url, "temperature": 0, "max_tokens": 8,
                      "price": {"input": "0.10", "output": "0.40"}, "licence": {"training": "allowed"}}],
        "prompts": {"reply": "text"},
        "budget": {"max_usd": "1.00"},
        "student": {"model": "qwen2-5-vl-embedded", "max_tokens": 64},
        "train": {"base": str(EMBEDDED), "batch": 6, "stages": [{"steps": 4, "rate": 1e-4}], "evaluate_every": 2},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    work = open_work(tmp_path / "recipe.yaml", tmp_path / "out")
    reports = run_steps(work, ["collect", "filter", "train"])
    assert reports["collect"]["answers"] == N and float(reports["collect"]["spent_usd"]) > 0
    kept = [json.loads(line) for line in (tmp_path / "out/filter/kept.jsonl").read_text().splitlines()]
    right = sum(row["answer"] == truth[row["id"]] for row in kept)
    assert len(kept) == N and right >= N - 2  # the teacher names colours in pictures of this kind nearly always
    # what the engine answers greedily, the trainer's own forward finds likeliest: prompt, picture and end agree
    assert reports["train"]["exact"]["n"] == 6 and reports["train"]["exact"]["value"] >= 5 / 6


@pytest.mark.parametrize("harm", [False, True])
def test_the_engine_says_what_the_weights_say(qwen: Running, tmp_path: Path, harm: bool) -> None:
    folder = EMBEDDED
    if harm:
        import shutil

        from safetensors.torch import load_file, save_file

        folder = Path(shutil.copytree(EMBEDDED, tmp_path / "harmed"))
        weights = load_file(folder / "model.safetensors")
        name = next(n for n in weights if n.endswith("layers.2.mlp.down_proj.weight"))
        weights[name] = -weights[name]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    items = load_golden("easy-vqa").sample(8, 1)
    found = parity(folder, qwen.url, "fovea-qwen", items, 8)
    assert found["items"] == 8 and found["steps"] >= 16
    if harm:
        assert found["worst"] > 0.1
    else:
        assert found["worst"] < 0.05 and found["mean"] < 0.005 and found["greedy"] == 1
