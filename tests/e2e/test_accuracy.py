"""The embedded models' accuracy as served: `fovea models evaluate` on a sample of the easy-VQA test split."""

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
