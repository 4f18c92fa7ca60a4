"""A served stack for the benchmarks and drills: `fovea serve` in a session of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.support.errors import CheckFailed

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Served:
    """A running stack.

    Attributes:
        url: without `/v1`.
        process: `fovea serve`; all its processes descend from it.
        start_s: seconds from start to ready.
    """

    url: str
    process: subprocess.Popen[str]
    start_s: float


@contextmanager
def served(stack: dict[str, Any], folder: Path) -> Iterator[Served]:
    """Serve a stack on a free port of loopback until the block ends.

    Raises:
        CheckFailed: it did not start; its log is named.
    """
    from serving.runtime import free_port

    port = free_port()
    path = folder / "stack.yaml"
    path.write_text(json.dumps({**stack, "listen": {"port": port}}))
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "fovea.py"), "serve", str(path), "--json"],
            stdout=subprocess.PIPE, stderr=log, start_new_session=True, text=True,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event.get("ready"):
                break
        else:
            raise CheckFailed("the stack did not start", field=str(path), fix=f"read {folder / 'serve.log'}")
        yield Served(f"http://127.0.0.1:{port}", process, float(event["seconds"]))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
