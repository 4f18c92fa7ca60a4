"""Servers for the benchmarks and drills: started in a session of their own, stopped with all that they started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.support.errors import CheckFailed
from serving.processes import LEFT

if TYPE_CHECKING:
    import psutil

ROOT = Path(__file__).resolve().parent.parent
LONGEST_START_S = 600
STOP_S = 90
LEFT_S = 10.0
"""So long processes may take to end after the server has."""


@dataclass
class Served:
    """A running server.

    Attributes:
        url: without `/v1`.
        process: what was started; all its processes descend from it.
        start_s: seconds from start to ready.
        left: once it was stopped: names of the processes that outlived it, or that it had to end by force.
    """

    url: str
    process: subprocess.Popen[bytes]
    start_s: float
    left: list[str] = field(default_factory=list)


@contextmanager
def running(command: list[str], port: int, probe: str, log: Path, environment: dict[str, str]) -> Iterator[Served]:
    """Start a server on a port of loopback, yield it when `probe` answers 200, and stop it.

    Args:
        command: what to run, in a session of its own.
        port: where it will listen.
        probe: path that says that it is ready.
        log: its output goes there.
        environment: beside this process's own.

    Raises:
        CheckFailed: it ended or was not ready within 10 minutes; its log is named.
    """
    url, began = f"http://127.0.0.1:{port}", time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **environment}, start_new_session=True
        )
    found = Served(url, process, 0.0)
    try:
        while not answers(url + probe):
            if process.poll() is not None or time.monotonic() - began > LONGEST_START_S:
                raise CheckFailed("the server did not start", field=command[0], fix=f"read {log}")
            time.sleep(0.1)
        found.start_s = time.monotonic() - began
        yield found
    finally:
        family = family_of(process.pid)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        found.left = left_of(family)


def answers(url: str) -> bool:
    """Return whether an address answers 200 within 5 s."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@contextmanager
def awake(server: Served, probe: str) -> Iterator[None]:
    """Let a stopped server run until the block ends: several can be measured in turn, each with the whole machine.

    Raises:
        CheckFailed: it does not answer within a minute.
    """
    signal_all(server, signal.SIGCONT)
    ends = time.monotonic() + 60
    while not answers(server.url + probe):
        if time.monotonic() > ends:
            raise CheckFailed("the server does not answer after a pause", field=server.url, fix="run the bench again")
        time.sleep(0.1)
    yield
    signal_all(server, signal.SIGSTOP)


def signal_all(server: Served, number: signal.Signals) -> None:
    """Send a signal to a server and all processes that descend from it."""
    import psutil

    for process in (server.process, *family_of(server.process.pid)):
        try:
            process.send_signal(number)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue  # it ended while we looked


def family_of(pid: int) -> list[psutil.Process]:
    """Return the processes that descend from one; none when it has ended."""
    import psutil

    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def left_of(family: list[psutil.Process]) -> list[str]:
    """Return the names of those that still run after `LEFT_S`; they are killed."""
    import psutil

    _, left = psutil.wait_procs(family, timeout=LEFT_S)
    names = []
    for process in left:
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                names.append(process.name())
                process.kill()
        except psutil.NoSuchProcess:
            continue  # it ended while we looked
    return names


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
    command = [sys.executable, str(ROOT / "fovea.py"), "serve", str(path)]
    log = folder / "serve.log"
    with running(command, port, "/ready", log, {"HF_HUB_OFFLINE": "1"}) as found:
        yield found
    found.left += [line for line in log.read_text(errors="replace").splitlines() if LEFT in line]
