"""The job's process and its own checks, as far as they need no llm-compressor: tests/e2e/test_quantize.py has that."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.support.errors import CheckFailed, UsageError
from quantize.artifact import disk_error
from quantize.job import as_error
from quantize.job_data import merge
from quantize.job_files import dequantize, parent_name
from quantize.job_tools import restore, two_bits, unquantized
from quantize.request import Event, JobRequest
from quantize.runner import find_python, read_reply, run_job
from quantize.scope import plan_scope
from tests.quantize.checkpoints import ROOT, change_weights, copy_of


def request_for(folder: Path, staging: Path, scheme: str = "w8a8", group: int | None = None) -> JobRequest:
    scope = plan_scope(folder)
    staging.mkdir(exist_ok=True)
    return JobRequest(
        model=folder, staging=staging, architecture=scope.architecture, scheme=scheme, tool="llmcompressor",
        method="rtn", group=group, expected=sorted(scope.expected), kept=scope.kept, ignore=scope.ignore,
    )  # fmt: skip


def stand_in(path: Path, script: str) -> Path:
    """Write a program that takes the place of the environment's Python: $3 is the request, $4 the reply."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_nan_in_the_weights_is_named(tmp_path: Path) -> None:
    folder = copy_of("qwen2_5_vl", tmp_path / "m")
    change_weights(folder, lambda t: t["model.layers.1.mlp.up_proj.weight"].view(-1).__setitem__(5, float("nan")))
    with pytest.raises(UsageError, match=r"1 weights are NaN or infinite.*take another one") as caught:
        run_job(request_for(folder, tmp_path / "s"), tmp_path, lambda event: None, python=Path(sys.executable))
    assert "layers.1.mlp.up_proj" in str(caught.value.value)
    assert list((tmp_path / "s").iterdir()) == []


def test_events_are_told_and_noise_is_not(tmp_path: Path) -> None:
    request = request_for(copy_of("qwen2_5_vl", tmp_path / "m"), tmp_path / "s")
    told: list[Event] = []
    reply = '{"error":{"kind":"UsageError","message":"no","field":"f","value":"v","fix":"x"}}'
    python = stand_in(
        tmp_path / "p", f"""echo noise; echo '{{"stage":"a","done":1,"total":2}}'; echo '{reply}' > "$4" """
    )
    with pytest.raises(UsageError, match=r"f: no \(got 'v'\); x"):
        run_job(request, tmp_path, told.append, python=python)
    assert told == [Event(stage="a", done=1, total=2)]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo last words >&2; exit 3", "exit code 3.*last words"),
        ("kill -9 $$", "signal 9.*memory"),
        ('echo "{" > "$4"', "without a result"),
        ('echo "{}" > "$4"', "without a result"),
    ],
)
def test_a_job_that_dies_is_one_error(tmp_path: Path, script: str, words: str) -> None:
    request = request_for(copy_of("paligemma", tmp_path / "m"), tmp_path / "s")
    with pytest.raises(CheckFailed, match=words):
        run_job(request, tmp_path, lambda event: None, python=stand_in(tmp_path / "p", script))


def test_an_interruption_ends_the_job(tmp_path: Path) -> None:
    request = request_for(copy_of("paligemma", tmp_path / "m"), tmp_path / "s")
    script = f"""echo $$ > {tmp_path}/pid; echo '{{"stage":"a"}}'; exec sleep 600"""

    def interrupt(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(request, tmp_path, interrupt, python=stand_in(tmp_path / "p", script))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_the_job_ends_when_whoever_asked_is_gone() -> None:
    code = "import time; from quantize.job import end_with_parent as f; f(); print('up', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "up\n"
    started = time.monotonic()
    process.stdin.close()
    assert process.wait(30) == 130
    assert time.monotonic() - started < 30


def test_the_environment_s_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEA_QUANTIZE_PYTHON", sys.executable)
    assert find_python(print) == Path(sys.executable)
    monkeypatch.setenv("FOVEA_QUANTIZE_PYTHON", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="FOVEA_QUANTIZE_PYTHON: no such program"):
        find_python(print)
    monkeypatch.delenv("FOVEA_QUANTIZE_PYTHON")
    monkeypatch.setattr("quantize.runner.FOLDER", tmp_path / ".venv-quantize")
    monkeypatch.setattr("quantize.runner.ROOT", tmp_path)
    with pytest.raises(UsageError, match="set FOVEA_QUANTIZE_PYTHON"):
        find_python(print)


def test_an_environment_that_is_not_finished_is_finished_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOVEA_QUANTIZE_PYTHON", raising=False)
    folder = tmp_path / ".venv-quantize"
    folder.mkdir()
    (folder / "fovea-setup.json").write_text('{"unfinished": true, "lock": "x"}')
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "setup").write_text("""echo '{"lock": "y"}' > .venv-quantize/fovea-setup.json""")
    monkeypatch.setattr("quantize.runner.FOLDER", folder)
    monkeypatch.setattr("quantize.runner.ROOT", tmp_path)
    told: list[str] = []
    assert find_python(told.append) == folder / "bin" / "python"
    assert len(told) == 1
    assert find_python(told.append) == folder / "bin" / "python"
    assert len(told) == 1  # finished: nothing is made again


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_the_disk_s_refusals_are_told_apart(code: int) -> None:
    assert disk_error(OSError(code, os.strerror(code))) == os.strerror(code)
    assert disk_error(RuntimeError(f"I/O error: {os.strerror(code)} (os error {code})")) is not None


def test_other_errors_are_no_disk_errors() -> None:
    assert disk_error(ValueError("no")) is None
    assert as_error(ValueError("boom")).message == "the job failed: ValueError: boom"
    assert as_error(UsageError("bad", field="f", value=3)).value == "3"


def test_names_go_back_to_the_parent_s() -> None:
    parents = {
        "vision_tower.encoder.layers.0.fc1.weight": "vision_tower.vision_model.encoder.layers.0.fc1.weight",
        "layers.0.mlp.up_proj.weight": "language_model.model.layers.0.mlp.up_proj.weight",
    }
    endings = ("weight", "weight_packed", "weight_scale")
    assert parent_name("model.vision_tower.encoder.layers.0.fc1.weight", parents, endings) == parents[
        "vision_tower.encoder.layers.0.fc1.weight"
    ]  # fmt: skip
    packed = parent_name("model.language_model.layers.0.mlp.up_proj.weight_packed", parents, endings)
    assert packed == "language_model.model.layers.0.mlp.up_proj.weight_packed"
    assert parent_name("lm_head.weight", parents, endings) is None


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**31 - 1))
def test_int4_is_unpacked_as_it_is_packed(rows: int, groups: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-8, 8, (rows, groups * 32), generator=generator)
    packed = torch.zeros(rows, groups * 4, dtype=torch.int64)
    for place in range(8):
        packed |= (values[:, place::8] + 8) << (4 * place)
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)
    scale = torch.rand(rows, groups, generator=generator)
    request = JobRequest(
        model=Path("x"), staging=Path("y"), architecture="a", scheme="w4a16", tool="llmcompressor", method="rtn",
        group=32, expected=["m"], kept={}, ignore=[],
    )  # fmt: skip
    tensors = {"m.weight_packed": packed, "m.weight_scale": scale}
    found = dequantize(request, "m", tensors, (rows, groups * 32))
    assert torch.equal(found, values.float() * scale.repeat_interleave(32, dim=1))


def test_two_bits_leave_four_values() -> None:
    weight = torch.randn(3, 256)
    rounded = two_bits(weight)
    assert 2 <= len(rounded.unique()) <= 4
    error = float((rounded - weight).norm() / weight.norm())
    assert 0.3 < error < 1


def test_what_calibration_changed_is_put_back(tmp_path: Path) -> None:
    norm, up = torch.nn.LayerNorm(4), torch.nn.Linear(4, 4)
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.ModuleDict({"norm": norm, "up": up})])})
    request = JobRequest(
        model=tmp_path, staging=tmp_path, architecture="a", scheme="w8a8", tool="llmcompressor", method="gptq",
        expected=["layers.0.up"], kept={}, ignore=[],
    )  # fmt: skip
    before = unquantized(model, request, [])
    with torch.no_grad():
        norm.weight.add_(0.5)
        up.weight.add_(0.5)
    changed = up.weight.clone()
    assert restore(model, before) == ["layers.0.norm.weight"]
    assert torch.equal(norm.weight, torch.ones(4))
    assert torch.equal(up.weight, changed)


def test_a_reply_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="exit code 0"):
        read_reply(tmp_path / "none", 0, tmp_path / "log")


def test_items_of_one_length_are_joined_without_padding() -> None:
    def item(length: int, fill: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.full((1, length), fill), "pixel_values": torch.full((16, 3), float(fill))}

    alone = [item(5, 1), item(7, 2), item(5, 3), item(5, 4)]
    joined = merge(alone, most_tokens=10)
    assert [tuple(b["input_ids"].shape) for b in joined] == [(2, 5), (1, 5), (1, 7)]
    assert [tuple(b["pixel_values"].shape) for b in joined] == [(32, 3), (16, 3), (16, 3)]
    assert sorted(int(row[0]) for b in joined for row in b["input_ids"]) == [1, 2, 3, 4]
    assert merge([item(99, 1)], most_tokens=10)[0]["input_ids"].shape == (1, 99)
