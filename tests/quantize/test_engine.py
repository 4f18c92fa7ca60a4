"""Serving one checkpoint: the command line, reasons of failures, the first answer."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from models.support.errors import CheckFailed, UsageError
from quantize.accept import accept, ask, drawn_picture
from quantize.engine import (
    IN_PROCESS,
    ROOT,
    EngineSettings,
    Held,
    Served,
    command,
    environment,
    free_port,
    reason,
    served,
    wait_ready,
)
from quantize.run import engine_for
from quantize.schemes import find_scheme
from serving.engine import engine_environment
from serving.stack import Model


def test_both_sides_get_the_same_command_but_for_the_checkpoint() -> None:
    settings = EngineSettings(max_model_len=512, kv_dtype="fp8", arguments=("--seed", "3"))
    first, second = (command(Path(f"/{n}"), n, 8000, settings) for n in ("a", "b"))
    assert [w for w, v in zip(first, second, strict=True) if w != v] == ["/a", "a"]
    text = " ".join(first)
    for words in ("--max-model-len 512", "--kv-cache-dtype fp8", "--seed 3", "--host 127.0.0.1", "--max-logprobs 20"):
        assert words in text


@pytest.mark.parametrize(("gpu", "compiler"), [(False, "sh"), (False, "no-such-compiler"), (True, "sh")])
def test_the_engine_runs_as_the_stack_runs_it(gpu: bool, compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantize.engine._has_gpu", lambda: gpu)
    monkeypatch.setenv("CXX", compiler)
    for name in ("VLLM_USE_AOT_COMPILE", "TORCHINDUCTOR_CACHE_DIR", "TORCHDYNAMO_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    executor = f"--distributed-executor-backend {IN_PROCESS}"
    plain = " ".join(command(Path("/m"), "m", 1, EngineSettings()))
    assert (executor in plain) is not gpu
    two = EngineSettings(arguments=("--tensor-parallel-size", "2"))
    assert executor not in " ".join(command(Path("/m"), "m", 1, two))
    found = environment(EngineSettings(kv_gib=3, without=("A", "B")))
    assert found["VLLM_DISABLED_KERNELS"] == "A,B" and "VLLM_DISABLED_KERNELS" not in environment(EngineSettings())
    assert found["VLLM_CPU_KVCACHE_SPACE"] == "3" and str(ROOT) in found["PYTHONPATH"].split(":")
    assert (found.get("VLLM_USE_AOT_COMPILE") == "0") is not gpu
    assert ("--enforce-eager" in plain) is (found.get("TORCHDYNAMO_DISABLE") == "1") is (compiler != "sh")
    if not gpu:  # what a CPU's engine is told is what the stack tells it
        stack = engine_environment(Model(name="m", source="s", cpu_kv_cache_gib=3))
        assert {k: v for k, v in stack.items() if k != "DO_NOT_TRACK"}.items() <= found.items()
    module, _, name = IN_PROCESS.rpartition(".")
    assert f"class {name}(" in (ROOT / f"{module.replace('.', '/')}.py").read_text()


def test_bitsandbytes_is_named_to_the_engine() -> None:
    assert engine_for(find_scheme("w8a8"), EngineSettings()) == EngineSettings()
    assert engine_for(find_scheme("nf4"), EngineSettings()).arguments == ("--quantization", "bitsandbytes")


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ("INFO x\n(pid=1) ERROR ValueError: size 7\nRuntimeError: Engine core init failed", "ValueError: size 7"),
        ("(pid=1) WARNING limits like `OSError: [Errno 24] x`\n(pid=2) RuntimeError: shape", "RuntimeError: shape"),
        ("INFO x\nKilled", "Killed"),
        ("", "it said nothing"),
    ],
)
def test_the_engine_s_own_reason(tmp_path: Path, log: str, told: str) -> None:
    path = tmp_path / "log"
    path.write_text(log)
    assert reason(path) == told


def test_an_engine_that_ends_or_never_answers_is_one_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("ValueError: no such thing")
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    with pytest.raises(CheckFailed, match=r"vLLM did not start.*ValueError: no such thing"):
        wait_ready(ended, free_port(), log)
    sleeping = subprocess.Popen(["sleep", "60"])
    try:
        with pytest.raises(CheckFailed, match=r"not ready after 0\.5 s"):
            wait_ready(sleeping, free_port(), log, timeout_s=0.5)
    finally:
        sleeping.kill()
        sleeping.wait()


def test_an_engine_that_cannot_start_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = [sys.executable, "-c", "print('OSError: no weights'); raise SystemExit(1)"]
    monkeypatch.setattr("quantize.engine.command", lambda *a: child)
    with pytest.raises(CheckFailed, match="OSError: no weights"), served(tmp_path, "m", tmp_path / "log"):
        pass


def test_memory_of_a_process_that_is_gone_is_nothing() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert Served("", "", gone.pid, 0.0).memory_bytes() == 0


class Replies(BaseHTTPRequestHandler):
    """Answers every request with the class's `status` and `body`."""

    status, body = 200, b""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    found = HTTPServer(("127.0.0.1", 0), Replies)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}/v1"
    found.shutdown()


@pytest.mark.parametrize(
    ("status", "body"), [(500, b"{}"), (200, b"not json"), (200, b"{}"), (200, b'{"choices": [{"message": 3}]}')]
)
def test_no_answer_is_one_error(server: str, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes) -> None:
    monkeypatch.setattr(Replies, "status", status)
    monkeypatch.setattr(Replies, "body", body)
    with pytest.raises(CheckFailed, match="no answer"):
        ask(server, "m", "what?", drawn_picture(), "image/png")


def accepting(monkeypatch: pytest.MonkeyPatch, server: str, text: str | None, tokens: int) -> None:
    """Make `accept` find an engine at `server` that answers `text` to a prompt of so many tokens."""
    from contextlib import contextmanager

    @contextmanager
    def stand_in(*args: Any) -> Iterator[Served]:
        yield Served(server, "candidate", 1, 1.0, {"A": "B"})

    body = {"choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": tokens}}
    monkeypatch.setattr(Replies, "body", json.dumps(body).encode())
    monkeypatch.setattr("quantize.engine.served", stand_in)


def test_acceptance(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    accepting(monkeypatch, server, "red", 40)
    found = accept(tmp_path, Held(tmp_path / "log"), None, None, EngineSettings())
    assert found["answer"] == "red" and found["kernels"] == {"A": "B"}
    assert accept(tmp_path, Held(tmp_path / "log"), None, 40, EngineSettings())["prompt_tokens"] == 40
    with pytest.raises(CheckFailed, match="calibration saw 39 prompt tokens where the engine has 40"):
        accept(tmp_path, Held(tmp_path / "log"), None, 39, EngineSettings())
    accepting(monkeypatch, server, " ", 40)
    with pytest.raises(CheckFailed, match="loads but answers nothing"):
        accept(tmp_path, Held(tmp_path / "log"), None, None, EngineSettings())


def test_the_engine_ends_when_whoever_served_it_is_killed(tmp_path: Path) -> None:
    code = """
import subprocess, sys, time
from quantize.engine import end_with_parent
child = subprocess.Popen(["sleep", "600"], preexec_fn=end_with_parent, start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the engine outlived its parent"
        time.sleep(0.05)


def test_a_held_engine_runs_until_it_is_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from contextlib import contextmanager

    running: list[str] = []

    @contextmanager
    def stand_in(model: Path, name: str, log: Path, settings: EngineSettings) -> Iterator[Served]:
        running.append(name)
        try:
            yield Served("http://x/v1", name, 1, 1.0)
        finally:
            running.remove(name)

    monkeypatch.setattr("quantize.engine.served", stand_in)
    with pytest.raises(ValueError, match="later"), Held(tmp_path / "log") as held:
        assert held.start(tmp_path, "candidate", EngineSettings()) is held.engine
        assert running == ["candidate"]
        held.close()
        assert held.engine is None and not running
        held.start(tmp_path, "candidate", EngineSettings())
        raise ValueError("later")
    assert not running


@pytest.mark.parametrize("wrong", [{"max_model_len": 3}, {"kv_gib": 0}])
def test_an_engine_without_room_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be at least"):
        EngineSettings(**wrong)
