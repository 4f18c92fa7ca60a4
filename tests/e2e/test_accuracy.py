"""The embedded model as served: its accuracy on a sample of the easy-VQA test split, and whether answers hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fovea
from tests.e2e.conftest import ROOT, Running

pytestmark = pytest.mark.e2e


def test_evaluate_through_the_served_endpoint(qwen: Running, tmp_path: Path) -> None:
    command = ["models", "evaluate", qwen.url, "--model", "fovea-qwen", "--golden", "easy-vqa", "--limit", "600"]
    assert fovea.main([*command, "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    accuracy = report["accuracy"]
    manifest = json.loads((ROOT / "models/embedded/qwen2_5_vl/manifest.json").read_text())
    claimed = manifest["evaluation"]["accuracy"]["value"]
    assert accuracy["n"] == 600
    assert accuracy["high"] >= claimed  # the sample does not contradict the model card
    assert accuracy["value"] >= 0.95


def test_the_same_questions_again_and_in_other_words(qwen: Running, tmp_path: Path) -> None:
    command = ["models", "consistency", qwen.url, "--model", "fovea-qwen", "--golden", "easy-vqa", "--limit", "60"]
    command += ["--repeats", "3", "--variant", "Look at the picture. {question}", "--out", str(tmp_path)]
    assert fovea.main(command) == 0
    groups = json.loads((tmp_path / "consistency.json").read_text())["groups"]
    assert groups["repeats"]["runs"] == 3 and groups["wordings"]["runs"] == 2
    # at temperature 0 an answer changes at most where two tokens are as likely; words it never saw change more
    assert groups["repeats"]["same_answer"]["value"] >= 0.95 and groups["repeats"]["majority"]["value"] >= 0.9
    assert groups["wordings"]["same_answer"]["value"] <= groups["repeats"]["same_answer"]["value"]
    assert (tmp_path / "consistency.html").stat().st_size > 5000
