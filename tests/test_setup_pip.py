"""How set-up runs pip: which torch it takes, how soon it gives up, and the one line for each way pip can fail."""

from __future__ import annotations

import fcntl
import hashlib
import http.server
import os
import signal
import socket
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts import setup_pip
from scripts.setup_pip import Pip, SetupError, diagnose, index_has_torch, install_torch_cpu

VERSIONS = {"torch": "2.13.0", "torchvision": "0.28.0"}


@pytest.fixture(autouse=True)
def no_other_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a test names: pip's configuration of this machine is left out."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name in ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_RETRIES"):
        monkeypatch.delenv(name, raising=False)


def pip_here(folder: Path) -> Pip:
    """This environment's pip, for commands that change nothing."""
    return Pip(Path(sys.executable), folder / "pip.log", folder)


def wheel(folder: Path, name: str, version: str, *needs: str) -> Path:
    """Write a wheel without content."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{info}/METADATA", head + "".join(f"Requires-Dist: {need}\n" for need in needs))
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return path


@contextmanager
def site(pages: dict[str, str]) -> Iterator[str]:
    """Serve these pages on loopback; yields the address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = pages.get(self.path)
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write((body or "").encode())

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def link(name: str, version: str, tag: str) -> str:
    """An entry as PyTorch's own index lists it."""
    file = f"{name}-{version}%2Bcpu-{tag}-{tag}-manylinux_2_28_x86_64.whl"
    return f'<a href="/whl/cpu/{file}#sha256=00">{file.replace("%2B", "+")}</a><br/>\n'


# which torch


def test_index_is_used_only_for_what_it_has() -> None:
    pages = {
        "/torch/": link("torch", "2.13.0", "cp311")
        + link("torch", "2.13.0", "cp312")
        + link("torch", "2.12.0", "cp313"),
        "/torchvision/": link("torchvision", "0.28.0", "cp311"),
    }
    with site(pages) as url:
        assert index_has_torch(VERSIONS, "3.11", url)
        assert not index_has_torch(VERSIONS, "3.12", url), "torchvision for 3.12 is not on the page"
        assert not index_has_torch({"torch": "2.12.0"}, "3.11", url)
        assert not index_has_torch({"torch": "2.13"}, "3.11", url)


def test_a_page_of_something_else_is_not_the_index() -> None:
    with site({"/torch/": "<h1>Please log in to the guest network</h1>"}) as url:
        assert not index_has_torch(VERSIONS, "3.11", url)


def test_dead_index_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert not index_has_torch(VERSIONS, "3.11", f"http://127.0.0.1:{closed.getsockname()[1]}")
    # One that takes the connection and then says nothing: without the limit this test would not end.
    monkeypatch.setattr(setup_pip, "PROBE_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        assert not index_has_torch(VERSIONS, "3.11", f"http://127.0.0.1:{silent.getsockname()[1]}")


class DryPip(Pip):
    """The real pip, told to install nothing; what it would have installed is noted."""

    def __init__(self, folder: Path):
        super().__init__(Path(sys.executable), folder / "pip.log", folder)
        self.installed: list[tuple[str, ...]] = []

    def install(self, *args: str, each: object = None) -> None:
        super().install("--dry-run", "--ignore-installed", *args, each=None)
        self.installed.append(args)


def test_torch_from_the_index_when_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_pip, "index_has_torch", lambda *args: True)
    asked: list[tuple[str, ...]] = []
    pip = DryPip(tmp_path)
    monkeypatch.setattr(pip, "install", lambda *args: asked.append(args))
    install_torch_cpu(pip, VERSIONS, "3.11", lambda text: None)
    assert asked == [("--index-url", setup_pip.TORCH_CPU_INDEX, "torch==2.13.0+cpu", "torchvision==0.28.0+cpu")]


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip's only source is a folder with the CUDA build of torch and torchvision, as a mirror has them."""
    monkeypatch.setattr(setup_pip, "index_has_torch", lambda *args: False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    wheel(tmp_path, "torch", "2.13.0", "nvidia-cudnn-cu13==9.20", "filelock")
    wheel(tmp_path, "torchvision", "0.28.0", "torch==2.13.0")
    return tmp_path


def test_torch_from_a_local_wheel_when_not(sources: Path) -> None:
    wheel(sources, "torch", "2.13.0+cpu", "filelock")
    pip = DryPip(sources)
    install_torch_cpu(pip, VERSIONS, "3.11", lambda text: None)
    assert pip.installed == [("torch==2.13.0+cpu",), ("torchvision==0.28.0",)]
    assert "Would install torch-2.13.0+cpu" in pip.log.read_text()


def test_the_cuda_build_is_not_taken_for_the_cpu_one(sources: Path) -> None:
    pip = DryPip(sources)
    with pytest.raises(SetupError, match=r"no CPU build of torch 2\.13\.0 is to be had for Python 3\.12") as caught:
        install_torch_cpu(pip, VERSIONS, "3.12", lambda text: None)
    assert pip.installed == []
    assert "cp312" in str(caught.value) and "PIP_FIND_LINKS" in str(caught.value) and "\n" not in str(caught.value)


def test_a_dead_mirror_is_not_taken_for_a_missing_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_pip, "index_has_torch", lambda *args: False)
    monkeypatch.setenv("PIP_RETRIES", "1")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/simple")
        with pytest.raises(SetupError, match="the package index does not answer"):
            install_torch_cpu(DryPip(tmp_path), VERSIONS, "3.11", lambda text: None)


# one line for each failure, from pip's real output


def failure(pip: Pip, *args: str) -> str:
    """What set-up would print for this installation."""
    with pytest.raises(SetupError) as caught:
        pip.install("--dry-run", "--ignore-installed", *args)
    text = str(caught.value)
    assert "\n" not in text and "Traceback" not in text
    assert str(pip.log) in text and pip.log.read_text().count("$ pip install") == 1
    return text


def test_dead_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_RETRIES", "1")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/simple"
        text = failure(pip_here(tmp_path), "--index-url", url, "orjson==3.13.0")
    assert text.startswith("the package index does not answer")


def test_broken_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_RETRIES", "0")
    with site({"/simple/orjson/": "<html></html>"}) as url:
        text = failure(pip_here(tmp_path), "--index-url", f"{url}/simple", "orjson==3.13.0")
    assert text.startswith("the package index lacks a package of the lock")


def test_file_that_is_not_the_locked_one(tmp_path: Path) -> None:
    made = wheel(tmp_path, "alpha", "1.0")
    lock = tmp_path / "a.lock"
    lock.write_text(f"alpha==1.0 --hash=sha256:{'0' * 64}\n")
    arguments = ("--no-index", "--find-links", str(tmp_path), "--require-hashes", "-r", str(lock))
    assert failure(pip_here(tmp_path), *arguments).startswith(
        "the package index served a file that the lock does not name"
    )
    lock.write_text(f"alpha==1.0 --hash=sha256:{hashlib.sha256(made.read_bytes()).hexdigest()}\n")
    pip_here(tmp_path).install("--dry-run", *arguments)  # the true hash passes


OSERROR = "ERROR: Could not install packages due to an OSError: "
OTHERS = {
    OSERROR + "[Errno 28] No space left on device": "the disk is full",
    OSERROR + "[Errno 13] Permission denied: '/x'": "the environment's folder cannot be written to",
    "[SSL: CERTIFICATE_VERIFY_FAILED]\nERROR: No matching distribution found": "the package index's certificate",
    "HTTPError: 503 Server Error: Service Unavailable\nERROR: HTTP error 503": "the package index does not answer",
    "Traceback (most recent call last):\n  File x\nZeroDivisionError": "pip failed [pip said: ZeroDivisionError]",
    "": "pip failed [pip said: nothing]",
}


@pytest.mark.parametrize(("output", "start"), OTHERS.items())
def test_diagnosis_of_other_failures(output: str, start: str) -> None:
    text = str(diagnose(output, Path("x.log")))
    assert text.startswith(start) and "x.log" in text and "\n" not in text


def test_settings_that_lead_pip_astray_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_TARGET", "/elsewhere")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("PIP_INDEX_URL", "http://mirror.invalid/simple")
    env = pip_here(tmp_path).env
    assert "PIP_TARGET" not in env and "PYTHONPATH" not in env
    assert env["PIP_INDEX_URL"] == "http://mirror.invalid/simple"


def test_the_users_patience_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_TIMEOUT", "PIP_DEFAULT_TIMEOUT", "PIP_RETRIES"):
        monkeypatch.delenv(name, raising=False)
    assert setup_pip.patience() == ["--timeout", "30", "--retries", "2"]
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "180")
    assert setup_pip.patience() == ["--retries", "2"]


def test_a_pip_that_outlives_its_set_up_still_holds_the_lock(tmp_path: Path) -> None:
    """As after a kill -9 of set-up alone: the next one must wait for that pip, not write beside it."""
    with (tmp_path / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        pip = Pip(tmp_path / "pip", tmp_path / "pip.log", tmp_path, keep=(held.fileno(),))
        (tmp_path / "pip").write_text("#!/bin/sh\nexec sleep 60 >/dev/null 2>&1 </dev/null & echo $!\n")
        (tmp_path / "pip").chmod(0o755)
        outlives = int(pip.run())
    try:
        with (tmp_path / "lock").open("a") as second, pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.kill(outlives, signal.SIGKILL)
    with (tmp_path / "lock").open("a") as second:
        fcntl.flock(second, fcntl.LOCK_EX)  # free again
