"""The families' part of the benchmark: which checkpoints it makes, how they are served, what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.catalog import load_catalog
from models.support.errors import CheckFailed
from quantize import bench_families
from quantize.bench_families import engine_of, families, print_families, variants
from quantize.smoothing import SMOOTHING


def test_one_variant_of_every_architecture_that_ran_on_a_picture(tmp_path: Path) -> None:
    rows = [
        {"variant": "llava-next-mistral-7b", "result": "ran", "asked": "an image"},
        {"variant": "llava-next-vicuna-13b", "result": "ran", "asked": "an image"},
        {"variant": "llama-4-scout", "result": "refused", "reason": "x"},
        {"variant": "whisper-tiny", "result": "ran", "asked": "a transcription"},
        {"variant": "colpali-v1.3", "result": "ran", "asked": "an embedding"},
    ]
    (tmp_path / "results.json").write_text(json.dumps({"rows": rows}))
    assert variants(tmp_path / "results.json") == ["llava-next-mistral-7b"]
    # AWQ is tried on all that ran here: there are pairs of layers for them
    for name in variants():
        assert load_catalog().find(name)[0].engine.architecture in SMOOTHING


def test_a_recipe_s_arguments_are_the_engine_s() -> None:
    found = engine_of({"max_model_len": 8192, "hf_overrides": {"a": ["b"]}, "runner": "pooling"})
    assert found.max_model_len == 8192
    assert " ".join(found.arguments).endswith('--hf-overrides {"a": ["b"]} --runner pooling')
    assert engine_of({}).max_model_len == bench_families.CONTEXT


def test_a_family_that_fails_is_a_row_and_what_was_tried_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[str] = []

    def make(out: Path, model: str, scheme: str, method: str, **more: Any) -> dict[str, Any]:
        tried.append(f"{out.parent.name} {scheme}-{method}")
        if scheme == "w8a8":
            raise CheckFailed("0 modules fit", field="method", value="x")
        module = {"quantized": True}
        return {
            "architecture": "A", "group": 64, "modules": [module, module, {"quantized": False}], "smoothed": ["n"] * 4,
            "accepted": {"kernels": {"l": "K"}, "prompt_tokens": 28}, "seconds": {"total": 9.0},
        }  # fmt: skip

    for name in ("smolvlm-256m", "qwen3-vl-2b"):
        folder = tmp_path / "families" / name / "bf16"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")  # built before
    monkeypatch.setattr(bench_families, "variants", lambda: ["smolvlm-256m", "qwen3-vl-2b"])
    monkeypatch.setattr(bench_families, "make", make)
    rows = families(tmp_path)
    assert tried == [f"{n} {s}" for n in ("smolvlm-256m", "qwen3-vl-2b") for s in ("w4a16-awq", "w8a8-gptq")]
    assert families(tmp_path) == rows and len(tried) == 4
    capsys.readouterr()
    print_families(rows)
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[2] == "| smolvlm-256m | w4a16-awq, groups of 64 | 2, 1 | 4 | 28 | K |"
    assert "0 modules fit" in lines[3]
    assert len({line.count("|") for line in lines}) == 1
