"""Two processes under Ray Train take the steps that one takes, and say what is wrong as one does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill.steps import run_steps
from models.support.errors import CheckFailed, UsageError
from tests.distill.training import training_work

SECTION: dict[str, Any] = {"precision": "fp32", "stages": [{"steps": 4, "rate": 1e-3}], "evaluate_every": 2}


@pytest.fixture
def ray_here() -> Iterator[None]:
    """A small Ray that gives away more processors than there may be."""
    import os

    import ray

    from distill.cluster import ROOT

    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": environment})
    try:
        yield
    finally:
        ray.shutdown()


def curve(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out/train/curve.jsonl").read_text().splitlines()]


def test_two_workers_take_the_steps_of_one(tmp_path: Path, ray_here: None) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    alone.mkdir()
    both.mkdir()
    run_steps(training_work(alone, **SECTION), ["train"])
    work = training_work(both, workers=2, **SECTION)
    report = run_steps(work, ["train"])["train"]
    assert report["workers"] == 2 and report["steps"] == 4 and report["exact"]["n"] == 4
    one, two = curve(alone), curve(both)
    assert [p["step"] for p in two] == [2, 4]
    for key in ("loss", "validation_loss"):
        assert [p[key] for p in two] == pytest.approx([p[key] for p in one], rel=1e-3)
    assert (both / "out/train/student/model.safetensors").is_file()
    assert run_steps(work, ["train"])["train"]["cached"]


@pytest.fixture
def without_processes(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Have a trainer that runs the first worker in this process and fails as Ray's does; no Ray is started."""
    import ray.train
    import ray.train.torch

    from distill.train import several

    died: list[BaseException] = []

    class Trainer:
        def __init__(self, worker: Any, *, train_loop_config: dict[str, str], **_: object):
            self.worker, self.config = worker, train_loop_config

        def fit(self) -> None:
            # where it is the main thread, Ray catches Ctrl-C, and ends the program with exit code 0
            assert threading.current_thread() is not threading.main_thread()
            try:
                if died:
                    raise died[0]
                self.worker(self.config)
            except Exception as error:
                raise ray.train.WorkerGroupError(f"rank 0: {error}", {0: error}) from error

    monkeypatch.setattr(ray.train.torch, "TorchTrainer", Trainer)
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(several, "cluster", lambda cpus: nullcontext(0.0))
    return died


def test_what_a_worker_finds_is_said_as_alone(tmp_path: Path, without_processes: list[BaseException]) -> None:
    work = training_work(tmp_path, workers=2, **SECTION)
    (tmp_path / "p3.png").unlink()
    with pytest.raises(UsageError, match="row 'r3'") as caught:
        run_steps(work, ["train"])
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="workers is 5, but a batch has 4 rows"):
        training_work(tmp_path, workers=5)


def test_ctrl_c(tmp_path: Path, without_processes: list[BaseException]) -> None:
    """It comes out as it went in, so that the command says what is kept and ends with 130."""
    without_processes.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run_steps(training_work(tmp_path, workers=2, **SECTION), ["train"])


def test_a_worker_that_dies(tmp_path: Path, without_processes: list[BaseException]) -> None:
    without_processes.append(RuntimeError("The actor died unexpectedly"))
    with pytest.raises(CheckFailed, match=r"train\.workers: a worker failed: rank 0: The actor died.*run it again"):
        run_steps(training_work(tmp_path, workers=2, **SECTION), ["train"])
