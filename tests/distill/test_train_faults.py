"""What goes wrong in training stops it with one error that names the row, the setting or the file."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.recipe.train import Train
from distill.steps import run_steps
from distill.train.loop import Loop
from distill.train.model import core_of, load_model, load_processor
from distill.train.rows import EncodedRows
from distill.training_rows import RowError, TrainingRows
from distill.work import open_work
from models.support.errors import CheckFailed, UsageError
from tests.distill.training import EMBEDDED, training_work

QWEN = EMBEDDED / "qwen2_5_vl"


@pytest.mark.parametrize("harm", ["missing", "truncated", "unreadable"])
def test_a_broken_picture_stops_the_job_with_the_rows_id(tmp_path: Path, harm: str) -> None:
    work = training_work(tmp_path)
    path = tmp_path / "p3.png"
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:60] if harm == "truncated" else b"no picture")
    with pytest.raises(RowError, match="row 'r3': ") as caught:
        run_steps(work, ["train"])
    assert caught.value.exit_code == 2 and not (tmp_path / "out/train/student").exists()


def test_a_row_that_would_be_cut_off(tmp_path: Path) -> None:
    work = training_work(tmp_path)
    model = load_model(Train(base="x"), QWEN)
    assert work.recipe.student is not None
    rows = TrainingRows(work.out / "filter/kept.jsonl", work.folder, work.recipe.student, lambda text: 0)
    with pytest.raises(RowError, match=r"row 'r0': \d+ tokens of prompt and picture and \d of answer are more than 20"):
        EncodedRows(rows, load_processor(QWEN), longest=20, core=core_of(model))


def test_out_of_memory_says_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Loop, items: Any, own: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Loop, "_loss", full)
    with pytest.raises(
        CheckFailed, match=r"train.batch: out of memory at step 1: 4 rows in 1 parts .*train.accumulate"
    ):
        run_steps(training_work(tmp_path), ["train"])


def test_a_loss_that_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Loop._loss
    monkeypatch.setattr(Loop, "_loss", lambda self, items, own: real(self, items, own) * float("nan"))
    with pytest.raises(CheckFailed, match=r"stages\[0\].rate: the loss is nan at step 1"):
        run_steps(training_work(tmp_path), ["train"])


def test_a_full_disk_at_a_checkpoint(tmp_path: Path) -> None:
    """The limit on a file's size stands for the disk: writing fails in the middle, as it does when nothing is left."""
    work = training_work(tmp_path)
    whole = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoint = tmp_path / "out/train/checkpoint.pt"
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, whole[1]))
        with pytest.raises(UsageError, match=r"the checkpoint cannot be written: .*free space") as caught:
            run_steps(work, ["train"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, whole)
    assert caught.value.exit_code == 2 and not list((tmp_path / "out/train").glob("*.p*t*"))
    assert run_steps(work, ["train"])["train"]["steps"] == 6 and not checkpoint.exists()


def test_a_damaged_checkpoint_is_an_error(tmp_path: Path) -> None:
    work = training_work(tmp_path)
    (tmp_path / "out/train").mkdir()
    (tmp_path / "out/train/checkpoint.pt").write_bytes(b"PK nothing")
    with pytest.raises(UsageError, match="the checkpoint is damaged"):
        run_steps(work, ["train"])


def test_bad_sections(tmp_path: Path) -> None:
    def refused(says: str, **train: Any) -> None:
        with pytest.raises(UsageError, match=says):
            work = training_work(tmp_path, **train)
            run_steps(work, ["train"])

    refused("train.base: no such folder", base="./nowhere")
    refused("train.base: no checkpoint", base=str(tmp_path))
    refused("accumulate is 9, but a batch has 4 rows", accumulate=9)
    refused("prune needs method full", method="lora", prune={"layers": 2})
    refused("prune cuts nothing", prune={})
    refused("no training row has one of these categories .*known: blue, green, red", stages=[{"categories": ["x"]}])
    refused("no training row has one of these categories", stages=[{"shares": {"x": 1, "red": 1}}])
    refused("shares.red: input should be greater than 0", stages=[{"shares": {"red": 0}}])
    refused("give one of them", stages=[{"shares": {"red": 1}, "categories": ["red"]}])
    refused("did you mean 'checkpoint_every'", checkpoint_evry=3)
    work = training_work(tmp_path, validation=0, patience=2)
    with pytest.raises(UsageError, match=r"train.patience: needs validation rows"):
        run_steps(work, ["train"])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("train:", "trian:"))
    with pytest.raises(UsageError, match="did you mean 'train'"):
        open_work(recipe, tmp_path / "out")


def test_nothing_to_train(tmp_path: Path) -> None:
    work = training_work(tmp_path)
    shutil.rmtree(tmp_path / "out/filter")
    with pytest.raises(UsageError, match=r"kept\.jsonl"):
        run_steps(work, ["train"])
