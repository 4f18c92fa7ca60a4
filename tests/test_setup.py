"""Set-up's own logic: when it works, what it does again, how it goes on, and the one line that it prints on failure."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts import setup_env, setup_site
from scripts.setup_pip import SetupError

ROOT = Path(__file__).resolve().parent.parent
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
PROJECT = """
[build-system]
requires = ["setuptools"]
[project]
name = "p"
version = "1"
[tool.setuptools]
py-modules = []
[tool.ruff]
line-length = 100
"""


class RecordingPip:
    """Stands for pip: notes what it was asked to do, and fails where a test says so."""

    calls: list[list[str]]
    fail: Callable[[list[str]], None]

    def __init__(self, python: Path, log: Path, temporary: Path, keep: tuple[int, ...] = ()):
        self.log = log

    def run(self, *args: str, each: object = None) -> str:
        type(self).fail(list(args))
        type(self).calls.append(list(args))
        return ""

    def install(self, *args: str, each: object = None) -> None:
        self.run("install", *args)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project with locks; real virtual environments, a recorded pip and no GPU."""
    (tmp_path / "requirements").mkdir()
    (tmp_path / "serving").mkdir()
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "serving" / "torchvision_ops.py").write_text("# operators\n")
    for name in ("cpu", "gpu", "quantize-cpu", "quantize-gpu"):
        (tmp_path / "requirements" / f"{name}.lock").write_text("alpha==1.0 \\\n    --hash=sha256:00\nbeta==2.0\n")
    for name in ("cpu-dev", "gpu-dev"):
        (tmp_path / "requirements" / f"{name}.lock").write_text("tester==3.0\n")
    (tmp_path / "requirements" / "torch-cpu.lock").write_text("torch==2.13.0\ntorchvision==0.28.0\n")

    RecordingPip.calls, RecordingPip.fail = [], staticmethod(lambda args: None)
    monkeypatch.setattr(setup_env, "Pip", RecordingPip)
    monkeypatch.setattr(setup_env, "install_torch_cpu", lambda pip, pins, python, say: pip.install("torch"))
    monkeypatch.setattr(setup_env, "install_operators", lambda *args: "native")
    monkeypatch.setattr(setup_env, "compile_all", lambda *args: None)
    monkeypatch.setattr(setup_env, "gpu_trace", lambda: "")
    real_run = subprocess.run

    def quick_run(command: Any, **options: Any) -> Any:
        if command[0] == "nvidia-smi":
            raise FileNotFoundError(command[0])
        if "venv" in command:  # without pip a virtual environment takes a tenth of a second
            made = real_run([*command, "--without-pip"], **options)
            (Path(command[-1]) / "lib" / f"python{PYTHON}" / "site-packages" / "pip").mkdir()
            return made
        return real_run(command, **options)

    monkeypatch.setattr(setup_env.subprocess, "run", quick_run)
    for name in ("FOVEA_PROFILE", "PYTHON"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def installs() -> list[str]:
    """The first argument of interest of every recorded installation."""
    return [" ".join(call) for call in RecordingPip.calls]


def quietly(text: str) -> None:
    """Take a progress line and drop it."""


def stamp_of(project: Path) -> dict[str, Any]:
    return dict(json.loads((project / ".venv" / "fovea-setup.json").read_text()))


def test_second_run_finds_nothing_to_do(project: Path) -> None:
    assert setup_env.set_up("serve", quietly, project) is True
    done = list(RecordingPip.calls)
    assert any("--require-hashes" in call for call in done)
    assert stamp_of(project)["profile"] == "cpu"
    assert setup_env.set_up("serve", quietly, project) is False
    assert RecordingPip.calls == done


def test_changed_lock_installs_again_into_the_same_environment(project: Path) -> None:
    setup_env.set_up("serve", quietly, project)
    keepsake = project / ".venv" / "keepsake"
    keepsake.touch()
    (project / "requirements" / "cpu.lock").write_text("alpha==1.1\n")
    RecordingPip.calls = []
    assert setup_env.set_up("serve", quietly, project) is True
    assert keepsake.exists()
    assert ["uninstall", "--yes", "beta"] in RecordingPip.calls
    assert "beta" not in stamp_of(project)["packages"]


def test_an_image_gets_what_runs_and_a_checkout_what_tests_need_too(project: Path) -> None:
    def locks_of_the_last() -> list[str]:
        (call,) = [call for call in RecordingPip.calls if "--require-hashes" in call]
        RecordingPip.calls = []
        return [Path(word).name for word in call if word.endswith(".lock")]

    assert setup_env.set_up("serve", quietly, project, development=False) is True
    assert locks_of_the_last() == ["cpu.lock"]
    assert "tester" not in stamp_of(project)["packages"]
    assert setup_env.set_up("serve", quietly, project, development=False) is False
    assert setup_env.set_up("serve", quietly, project) is True
    assert locks_of_the_last() == ["cpu.lock", "cpu-dev.lock"]
    assert "tester" in stamp_of(project)["packages"]
    assert setup_env.set_up("serve", quietly, project, development=False) is True
    assert ["uninstall", "--yes", "tester"] in RecordingPip.calls


@pytest.mark.parametrize(("old", "new", "again"), [("100", "120", False), ('version = "1"', 'version = "2"', True)])
def test_only_the_parts_of_pyproject_that_matter_count(project: Path, old: str, new: str, again: bool) -> None:
    setup_env.set_up("serve", quietly, project)
    (project / "pyproject.toml").write_text(PROJECT.replace(old, new))
    assert setup_env.set_up("serve", quietly, project) is again


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), SetupError("dead index")])
def test_interrupted_set_up_goes_on_where_it_stopped(project: Path, interruption: BaseException) -> None:
    def stop(args: list[str]) -> None:
        if "--require-hashes" in args:
            raise interruption

    RecordingPip.fail = staticmethod(stop)
    with pytest.raises(type(interruption)):
        setup_env.set_up("serve", quietly, project)
    assert stamp_of(project)["unfinished"] is True
    keepsake = project / ".venv" / "keepsake"
    keepsake.touch()
    RecordingPip.fail = staticmethod(lambda args: None)
    assert setup_env.set_up("serve", quietly, project) is True
    assert keepsake.exists(), "the environment was made anew instead of completed"
    assert "unfinished" not in stamp_of(project)


def test_packages_dropped_while_interrupted_are_still_removed(project: Path) -> None:
    setup_env.set_up("serve", quietly, project)
    (project / "requirements" / "cpu.lock").write_text("alpha==1.1\n")

    def stop(args: list[str]) -> None:
        raise KeyboardInterrupt

    RecordingPip.fail = staticmethod(stop)
    with pytest.raises(KeyboardInterrupt):
        setup_env.set_up("serve", quietly, project)
    RecordingPip.fail = staticmethod(lambda args: None)
    setup_env.set_up("serve", quietly, project)
    assert ["uninstall", "--yes", "beta"] in RecordingPip.calls


def broken_link(project: Path) -> Path:
    (project / ".venv" / "bin" / "python").unlink()
    (project / ".venv" / "bin" / "python").symlink_to(project / "gone")
    return project


def half_removed(project: Path) -> Path:
    (project / ".venv" / "pyvenv.cfg").unlink()
    return project


def moved(project: Path) -> Path:
    there = project.with_name(f"{project.name}-moved")
    project.rename(there)
    return there


def other_vllm(project: Path) -> Path:
    (project / ".venv" / "fovea-setup.json").unlink()
    (project / ".venv" / "lib" / f"python{PYTHON}" / "site-packages" / "vllm-0.29.0.dist-info").mkdir()
    return project


@pytest.mark.parametrize("damage", [broken_link, half_removed, moved, other_vllm])
def test_an_environment_that_cannot_be_mended_is_made_anew(project: Path, damage: Callable[[Path], Path]) -> None:
    setup_env.set_up("serve", quietly, project)
    (project / ".venv" / "keepsake").touch()
    project = damage(project)
    assert setup_env.set_up("serve", quietly, project) is True
    assert not (project / ".venv" / "keepsake").exists()
    assert setup_env.set_up("serve", quietly, project) is False


def test_an_environment_made_by_hand_is_taken_over(project: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(project / ".venv")], check=True)
    (project / ".venv" / "keepsake").touch()
    assert setup_env.set_up("serve", quietly, project) is True
    assert (project / ".venv" / "keepsake").exists()


def test_the_profile_follows_the_user_and_stays(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEA_PROFILE", "gpu")
    setup_env.set_up("serve", quietly, project)
    assert stamp_of(project)["profile"] == "gpu"
    assert any("gpu.lock" in call for call in installs())
    monkeypatch.delenv("FOVEA_PROFILE")
    assert setup_env.set_up("serve", quietly, project) is False
    monkeypatch.setenv("FOVEA_PROFILE", "cpu")
    (project / ".venv" / "keepsake").touch()
    assert setup_env.set_up("serve", quietly, project) is True
    assert not (project / ".venv" / "keepsake").exists(), "both builds of vllm own the same files"
    monkeypatch.setenv("FOVEA_PROFILE", "tpu")
    with pytest.raises(SetupError, match="FOVEA_PROFILE must be cpu or gpu"):
        setup_env.choose_profile(quietly)


@pytest.mark.parametrize(
    ("profile", "lacks", "said"), [("cpu", True, True), ("cpu", False, False), ("gpu", True, False)]
)
def test_the_library_that_the_cpu_engine_is_linked_to(
    project: Path, monkeypatch: pytest.MonkeyPatch, profile: str, lacks: bool, said: bool
) -> None:
    monkeypatch.setenv("FOVEA_PROFILE", profile)
    monkeypatch.setattr(setup_env, "lacks_numa", lambda: lacks)
    lines: list[str] = []
    assert setup_env.set_up("serve", lines.append, project) is True, "everything else is there: the user adds it later"
    assert any("apt install libnuma1" in line for line in lines) is said


@pytest.mark.parametrize(
    ("listing", "code", "profile"),
    [("GPU 0: NVIDIA H100", 0, "gpu"), ("No devices were found", 0, "cpu"), ("driver mismatch", 9, "cpu")],
)
def test_the_profile_follows_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listing: str, code: int, profile: str
) -> None:
    script(tmp_path / "nvidia-smi", f"echo '{listing}'; exit {code}")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("FOVEA_PROFILE", raising=False)
    monkeypatch.setattr(setup_env, "gpu_trace", lambda: "/dev/nvidia0")
    said: list[str] = []
    assert setup_env.choose_profile(said.append) == profile
    assert bool(said) is (profile == "cpu"), "a GPU that cannot be used must be mentioned"


def test_two_at_once_do_the_work_once(project: Path) -> None:
    waiting = threading.Event()
    results: list[bool] = []

    def slow(args: list[str]) -> None:
        if "--require-hashes" in args:
            assert waiting.wait(30), "the second set-up did not wait"

    def second() -> None:
        results.append(setup_env.set_up("serve", lambda text: waiting.set() if "waiting" in text else None, project))

    started = threading.Thread(target=second)

    def first_says(text: str) -> None:
        if text.startswith("making"):  # the first holds the lock now
            started.start()

    RecordingPip.fail = staticmethod(slow)
    assert setup_env.set_up("serve", first_says, project) is True
    started.join(30)
    assert results == [False]


def one_line(captured: Any) -> str:
    """The only line on stderr."""
    lines = str(captured.err).strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@contextlib.contextmanager
def in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real = setup_env.set_up
    monkeypatch.setattr(setup_env, "set_up", lambda name, say, **more: real(name, say, project, **more))
    yield


def test_full_disk_is_one_line_and_leaves_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(project)._replace(free=int(1.5e9))
    monkeypatch.setattr(setup_env.shutil, "disk_usage", lambda path: usage)
    with in_project(project, monkeypatch):
        assert setup_env.main(["serve"]) == 1
    assert "6.0 GB of free disk are needed" in one_line(capsys.readouterr())
    assert not (project / ".venv").exists()


def test_disk_that_fills_up_midway_is_one_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(args: list[str]) -> None:
        raise OSError(28, "No space left on device", "/somewhere/file")

    RecordingPip.fail = staticmethod(full)
    with in_project(project, monkeypatch):
        assert setup_env.main(["serve"]) == 1
    assert one_line(capsys.readouterr()) == "set-up: /somewhere/file: No space left on device"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("machine", lambda: "aarch64", "Linux on x86-64"),
        ("libc_ver", lambda: ("glibc", "2.17"), "glibc 2.31 or newer"),
    ],
)
def test_a_machine_that_the_locks_are_not_for(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: Callable[[], object],
    text: str,
) -> None:
    monkeypatch.setattr(setup_env.platform, name, value)
    with in_project(project, monkeypatch):
        assert setup_env.main(["serve"]) == 1
    assert text in one_line(capsys.readouterr())


# scripts/setup: finding Python


def script(path: Path, body: str) -> None:
    """Write an executable shell script."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def find_python(path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/setup with nothing on PATH but `path` and the shell's own tools."""
    script(path / "dirname", 'exec /usr/bin/dirname "$@"')
    command = ["/bin/sh", str(ROOT / "scripts" / "setup"), "serve"]
    return subprocess.run(command, env={"PATH": str(path), **env}, capture_output=True, text=True, check=False)


def test_no_python_at_all(tmp_path: Path) -> None:
    ran = find_python(tmp_path)
    assert ran.returncode == 1
    assert ran.stderr.strip() == (
        "set-up: Python 3.11 or 3.12 is needed; found no Python. "
        "Install one, or name it: make setup PYTHON=/path/to/python3.12"
    )


def test_wrong_pythons_are_named(tmp_path: Path) -> None:
    script(tmp_path / "python3", "echo 3.9")
    script(tmp_path / "python3.12", "echo 3.12; exit 1")
    ran = find_python(tmp_path)
    assert ran.returncode == 1
    assert len(ran.stderr.strip().splitlines()) == 1
    assert "python3 is 3.9" in ran.stderr
    assert "apt install python3.12-venv" in ran.stderr


def test_the_first_python_that_fits_is_taken(tmp_path: Path) -> None:
    script(tmp_path / "python3", "echo 3.13")
    script(tmp_path / "python3.11", 'case $1 in -c) echo 3.11;; *) echo "ran $0 $*";; esac')
    ran = find_python(tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.strip() == f"ran {tmp_path}/python3.11 -m scripts.setup_env serve"


def test_a_named_python_that_is_neither(tmp_path: Path) -> None:
    script(tmp_path / "python3.11", "echo 3.11")
    script(tmp_path / "mine", "echo 3.8")
    ran = find_python(tmp_path, PYTHON="mine")
    assert ran.returncode == 1
    assert "PYTHON=mine is neither; mine is 3.8" in ran.stderr


# site-packages after an interrupted pip


def package(site: Path, name: str, content: str, size: int | None = None, record: bool = True) -> Path:
    """Lay out an installed package of one module and one compiled file."""
    (site / f"{name}.py").write_text(content)
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    if record:
        lines = [f"{name}.py,sha256=x,{len(content) if size is None else size}", f"{name}.pyc,sha256=x,999"]
        (info / "RECORD").write_text("\n".join([*lines, f"{info.name}/RECORD,,"]) + "\n")
        (site / f"{name}.pyc").write_bytes(b"compiled anew")
    return info


def test_sweep_removes_what_an_interrupted_pip_left(tmp_path: Path) -> None:
    whole = package(tmp_path, "whole", "x = 1\n")
    cut = package(tmp_path, "cut", "x = 1\n", size=4000)
    unrecorded = package(tmp_path, "unrecorded", "x = 1\n", record=False)
    lost = package(tmp_path, "lost", "x = 1\n")
    (tmp_path / "lost.py").unlink()
    (tmp_path / "~orch").mkdir()
    assert set(setup_site.damaged(tmp_path)) == {cut, unrecorded, lost}
    setup_site.sweep(tmp_path)
    assert {path.name for path in tmp_path.glob("*-info")} == {whole.name}
    assert not (tmp_path / "~orch").exists()


def test_has_knows_local_build_tags(tmp_path: Path) -> None:
    (tmp_path / "torch-2.13.0+cpu.dist-info").mkdir()
    (tmp_path / "hf_xet-1.8.0.dist-info").mkdir()
    assert setup_site.has(tmp_path, "torch", "2.13.0")
    assert setup_site.has(tmp_path, "hf-xet", "1.8.0")
    assert not setup_site.has(tmp_path, "torch", "2.13")
    assert not setup_site.has(tmp_path, "torchvision", "0.28.0")
