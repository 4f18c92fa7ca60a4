"""A device that the weights alone fill: said before the first step, with what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distill.steps import run_steps
from distill.train import model as model_module
from models.support.errors import CheckFailed
from tests.distill.training import EMBEDDED, training_work


@pytest.mark.parametrize(("method", "fix"), [("full", "use method qlora"), ("qlora", "use a smaller base")])
def test_a_base_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, fix: str) -> None:
    def full(*_: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(model_module, "load_model", full)
    with pytest.raises(CheckFailed, match=rf"train\.base: out of memory before the first step.*{fix}") as caught:
        run_steps(training_work(tmp_path, method=method), ["train"])
    assert caught.value.exit_code == 1 and not (tmp_path / "out/train/student").exists()


def test_a_teacher_that_does_not_fit_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, loaded = model_module.load_model, []

    def second(*given: Any) -> Any:
        loaded.append(given)
        if len(loaded) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(*given)

    monkeypatch.setattr(model_module, "load_model", second)
    work = training_work(tmp_path, logits={"checkpoint": str(EMBEDDED / "qwen2_5_vl")})
    with pytest.raises(CheckFailed, match=r"out of memory before the first step.*leave train\.logits out"):
        run_steps(work, ["train"])
