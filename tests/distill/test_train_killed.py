"""A training that is killed with -9 goes on from its last checkpoint; its curve is that of a run that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from distill.labels import read_labels
from distill.steps import run_steps
from tests.distill.training import training_work

ROOT = Path(__file__).resolve().parents[2]
# dropout draws at every step: the generator's state has to come back too
SECTION: dict[str, Any] = {
    "method": "lora",
    "lora": {"rank": 4, "dropout": 0.2},
    "stages": [{"steps": 7, "rate": 1e-3}, {"steps": 400, "rate": 1e-3}],
    "evaluate_every": 3,
    "checkpoint_every": 2,
}


def curve(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "out/train/curve.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def test_kill_minus_nine(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    whole.mkdir()
    training_work(killed, **SECTION)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "fovea.py"), "distill", "train", str(killed / "recipe.yaml"), "--out",
         str(killed / "out")],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 240
        # in the second stage, and not at its end
        while not (killed / "out/train/curve.jsonl").exists() or len(curve(killed)) < 5:
            assert process.poll() is None and time.monotonic() < deadline, process.stderr and process.stderr.read()
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    seen = curve(killed)
    steps = 7 + 3 * (len(seen) + 2)
    short = SECTION | {"stages": [SECTION["stages"][0], {"steps": 400, "rate": 1e-3}]}
    assert seen[-1]["step"] < 407 and read_labels(killed / "out/filter/kept.jsonl")
    # both to the same step: the rest of the 400 would take long and show nothing more
    from distill.train import loop

    class Enough(Exception):
        pass

    def until(work: Any) -> int:
        real = loop.Loop._look
        first: list[int] = []

        def look(self: loop.Loop, point: loop.Point, last: bool) -> None:
            first[:] = first or [self.resumed_at]
            real(self, point, last)
            if point.step >= steps:
                raise Enough

        loop.Loop._look = look  # type: ignore[method-assign]
        try:
            run_steps(work, ["train"])
        except Enough:
            return first[0]
        finally:
            loop.Loop._look = real  # type: ignore[method-assign]
        raise AssertionError("the training ended before it was stopped")

    resumed_at = until(training_work(killed, **short))
    assert resumed_at >= 2 and until(training_work(whole, **short)) == 0
    assert curve(killed) == curve(whole) and curve(killed)[: len(seen)] == seen
