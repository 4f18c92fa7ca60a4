"""The folder that a quantization leaves: whole or not there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from models.support.errors import CheckFailed, UsageError
from quantize import artifact
from tests.quantize.checkpoints import EMBEDDED


def finished(folder: Path, text: str = "new") -> None:
    (folder / "model.safetensors").write_text(text)
    (folder / "manifest.json").write_text(json.dumps({"kind": artifact.KIND}))


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_it_takes_its_name_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with artifact.staging(out, need_bytes=1, replace=False) as staged:
        assert not out.exists()
        finished(staged)
    assert names(tmp_path / "deep") == ["out"]
    assert artifact.is_artifact(out)


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_failed_or_interrupted_one(tmp_path: Path, error: BaseException) -> None:
    out = tmp_path / "out"

    def fail() -> None:
        with artifact.staging(out, need_bytes=1, replace=False) as staged:
            finished(staged)
            raise error

    with pytest.raises(type(error)):
        fail()
    assert names(tmp_path) == []


def test_what_a_killed_job_left_is_cleared(tmp_path: Path) -> None:
    stale = tmp_path / ".out.partial"
    stale.mkdir()
    (stale / "half").write_text("x")
    (tmp_path / ".out.lock").write_text("")
    with artifact.staging(tmp_path / "out", need_bytes=1, replace=False) as staged:
        assert names(staged) == []
        finished(staged)
    assert names(tmp_path) == ["out"]


def test_an_existing_folder_is_replaced_only_when_asked_and_ours(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("x")
    with pytest.raises(UsageError, match="is there already"), artifact.staging(out, need_bytes=1, replace=False):
        pass
    with pytest.raises(UsageError, match="not replaced"), artifact.staging(out, need_bytes=1, replace=True):
        pass
    assert (out / "precious").exists()
    (out / "manifest.json").write_text(json.dumps({"kind": artifact.KIND}))
    with artifact.staging(out, need_bytes=1, replace=True) as staged:
        finished(staged, "newer")
    assert (out / "model.safetensors").read_text() == "newer"
    assert names(tmp_path) == ["out"]


def test_a_failed_replacement_keeps_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    finished(out, "old")

    def fail() -> None:
        with artifact.staging(out, need_bytes=1, replace=True):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (out / "model.safetensors").read_text() == "old"


def test_two_jobs_do_not_share_a_name(tmp_path: Path) -> None:
    with (tmp_path / ".out.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with (
            pytest.raises(UsageError, match="another job writes there"),
            artifact.staging(tmp_path / "out", need_bytes=1, replace=False),
        ):
            pass


def test_a_full_disk_is_found_before_the_work(tmp_path: Path) -> None:
    with (
        pytest.raises(CheckFailed, match=r"MB are needed.*free space"),
        artifact.staging(tmp_path / "out", need_bytes=10**18, replace=False),
    ):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_during_the_work_is_one_error(tmp_path: Path, code: int) -> None:
    def fill() -> None:
        with artifact.staging(tmp_path / "out", need_bytes=1, replace=False) as staged:
            finished(staged)
            raise OSError(code, os.strerror(code), str(staged / "tokenizer.json"))

    with pytest.raises(CheckFailed, match=f"cannot save: {os.strerror(code)}.*tokenizer.json.*free space"):
        fill()
    assert names(tmp_path) == []


def test_other_errors_of_the_work_are_not_the_disk_s(tmp_path: Path) -> None:
    def fail() -> None:
        with artifact.staging(tmp_path / "out", need_bytes=1, replace=False):
            raise FileNotFoundError(errno.ENOENT, "x", "y")

    with pytest.raises(FileNotFoundError):
        fail()
    assert names(tmp_path) == []


def test_a_place_for_the_report_is_looked_at_before_the_work(tmp_path: Path) -> None:
    artifact.check_place(tmp_path / "a" / "b", "report")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"report: cannot write: .*file is no folder"):
        artifact.check_place(tmp_path / "file" / "report", "report")
    assert names(tmp_path) == ["file"]


def test_an_unwritable_place_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UsageError, match="cannot write"),
        artifact.staging(tmp_path / "file" / "out", need_bytes=1, replace=False),
    ):
        pass


def staged_copy(tmp_path: Path, **config: Any) -> Path:
    staged = tmp_path / "staged"
    staged.mkdir()
    parent = json.loads((EMBEDDED / "qwen2_5_vl" / "config.json").read_text())
    (staged / "config.json").write_text(json.dumps(parent | config))
    return staged


def test_companions_are_copied_and_compared(tmp_path: Path) -> None:
    staged = staged_copy(tmp_path, quantization_config={"quant_method": "compressed-tensors"})
    found = artifact.copy_companions(EMBEDDED / "qwen2_5_vl", staged)
    assert found.pop("config.json") == "adds quantization_config"
    assert set(found) == {
        "chat_template.jinja", "generation_config.json", "processor_config.json", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    assert set(found.values()) == {"same"}
    for name in found:
        assert (staged / name).read_bytes() == (EMBEDDED / "qwen2_5_vl" / name).read_bytes()
    assert not (staged / "model.safetensors").exists() and not (staged / "README.md").exists()


def test_a_config_that_changed_otherwise_is_refused(tmp_path: Path) -> None:
    staged = staged_copy(tmp_path, image_token_id=7)
    with pytest.raises(CheckFailed, match="more than the quantization") as caught:
        artifact.copy_companions(EMBEDDED / "qwen2_5_vl", staged)
    assert caught.value.value == "image_token_id"


def test_digests_name_every_file_but_manifest_and_card(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(EMBEDDED / "paligemma", folder)
    first = artifact.files_of(folder)
    assert "model.safetensors" in first and "manifest.json" not in first
    (folder / "manifest.json").write_text("{}")
    assert artifact.files_of(folder) == first
    (folder / "config.json").write_text("{}")
    assert artifact.files_of(folder) != first
    with pytest.raises(UsageError, match=r"no readable manifest\.json"):
        artifact.read_manifest(tmp_path)
