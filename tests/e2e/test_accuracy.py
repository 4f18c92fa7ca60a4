"""The embedded model as served: its accuracy on a sample of the easy-VQA test split, and whether answers hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, Running

pytestmark = pytest.mark.e2e


def test_evaluate_through_the_served_endpoint(qwen: Running, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "fovea.py"), "models", "evaluate", qwen.url, "--model", "fovea-qwen"]
    command += ["--golden", "easy-vqa", "--limit", "600", "--out", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    accuracy = report["accuracy"]
    manifest = json.loads((ROOT / "models/embedded/qwen2_5_vl/manifest.json").read_text())
    claimed = manifest["evaluation"]["accuracy"]["value"]
    assert accuracy["n"] == 600
    assert accuracy["high"] >= claimed  # the sample does not contradict the model card
    assert accuracy["value"] >= 0.95


def test_the_same_questions_again_and_in_other_words(qwen: Running, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "fovea.py"), "models", "consistency", qwen.url, "--model", "fovea-qwen"]
    command += ["--golden", "easy-vqa", "--limit", "60", "--repeats", "3", "--out", str(tmp_path), "--json"]
    done = subprocess.run(
        [*command, "--variant", "Look at the picture. {question}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    groups = json.loads(done.stdout)["groups"]
    assert groups["repeats"]["runs"] == 3 and groups["wordings"]["runs"] == 2
    # at temperature 0 an answer changes at most where two tokens are as likely; words it never saw change more
    assert groups["repeats"]["same_answer"]["value"] >= 0.95 and groups["repeats"]["majority"]["value"] >= 0.9
    assert groups["wordings"]["same_answer"]["value"] <= groups["repeats"]["same_answer"]["value"]
    assert (tmp_path / "consistency.html").stat().st_size > 5000
