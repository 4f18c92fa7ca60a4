"""Real stacks for the end-to-end tests: `fovea serve` in a process of its own, Ray Serve, HAProxy and vLLM on CPU."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

import fovea
from serving.runtime import free_port

ROOT = Path(__file__).resolve().parents[2]
HTTP = httpx.Client(timeout=120)
"""One for all: to make one takes longer than most requests here."""


@dataclass
class Running:
    """A served stack."""

    process: subprocess.Popen[str]
    base: str
    lines: list[str]
    key: str = "none"

    @property
    def url(self) -> str:
        """The OpenAI API's address."""
        return f"{self.base}/v1"

    @property
    def client(self) -> Any:
        """The unmodified OpenAI client; no retries, so that an error is seen."""
        return openai.OpenAI(base_url=self.url, api_key=self.key, max_retries=0, timeout=120)


@contextmanager
def served(stack: dict[str, object], folder: Path) -> Iterator[Running]:
    """Serve a stack until the block ends; then it must stop cleanly."""
    port = free_port()
    path = folder / "stack.yaml"
    path.write_text(yaml.safe_dump({**stack, "listen": {"port": port}}))
    command = [sys.executable, str(ROOT / "fovea.py"), "serve", str(path), "--json"]
    log = (folder / "serve.err").open("w+")
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    lines: list[str] = []
    ready = threading.Event()

    def read() -> None:
        for line in process.stdout or ():
            lines.append(line)
            if line.startswith("{") and json.loads(line).get("ready"):
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        ready.wait(600)
        if process.poll() is not None or not ready.is_set():
            log.seek(0)
            pytest.fail(f"fovea serve did not start: {''.join(lines)}\n{log.read()[-3000:]}")
        yield Running(process, f"http://127.0.0.1:{port}", lines)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(90)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        log.close()


def command(*words: str, **environment: str) -> dict[str, Any]:
    """Run `fovea` in this process with --json and return what it printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        for name, value in environment.items():
            patch.setenv(name, value)
        code = fovea.main([*words, "--json"])
    assert code == 0, (words, printed.getvalue()[-2000:])
    result: dict[str, Any] = json.loads(printed.getvalue())
    return result


def model(family: str, **more: object) -> dict[str, object]:
    """Return the stack entry of an embedded model."""
    names = {"qwen2_5_vl": "fovea-qwen", "paligemma": "fovea-paligemma"}
    return {"name": names[family], "source": f"embedded:{family}", "max_model_len": 2048, **more}


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One model, one replica: the stack that `make demo` serves."""
    stack: dict[str, object] = {
        "models": [model("qwen2_5_vl", engine_args={"tool_call_parser": "hermes"})],
        "media": {"image_pixels": 4_000_000, "images": 4},
        "limits": {"body_bytes": 8 * 2**20},
    }
    with served(stack, tmp_path_factory.mktemp("qwen")) as running:
        yield running
