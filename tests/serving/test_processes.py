"""Processes that lost their parent are found and ended, and so is everything when `fovea serve` is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from serving import processes

PROGRAM = """
import subprocess, sys, time
from serving import processes
processes.adopt()
shell = "setsid sleep 1000 & setsid sh -c 'sleep 1001; true' & echo started"
subprocess.run(["sh", "-c", shell], check=True)  # the shell ends, and leaves three processes behind
while len(found := processes.psutil.Process().children(recursive=True)) < 3:
    time.sleep(0.01)
print(*(p.pid for p in found), flush=True)
processes.kill_all()
"""


def test_nothing_outlives_it() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    started, pids = done.stdout.splitlines()
    assert started == "started" and len(pids.split()) == 3
    assert not any(map(alive, map(int, pids.split())))


def alive(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


@contextmanager
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    """A process that sleeps; it ends with the test, also with one that fails."""
    with subprocess.Popen(["sleep", "1000"]) as child:
        try:
            yield child
        finally:
            child.kill()


def test_one_that_ends_while_it_is_looked_at_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    def children(self: psutil.Process, recursive: bool = False) -> list[psutil.Process]:
        nonlocal asked
        asked += 1
        return [] if asked > 2 else [gone, alive]

    with subprocess.Popen(["sleep", "0"]) as short, sleeping() as long:
        gone, alive = psutil.Process(short.pid), psutil.Process(long.pid)
        short.wait(10)
        monkeypatch.setattr(psutil.Process, "children", children)
        processes.kill_all()
        assert not psutil.pid_exists(long.pid) and asked >= 2


def test_one_that_ends_before_it_is_killed_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: psutil.Process) -> None:
        kill(self)
        raise psutil.NoSuchProcess(self.pid)

    kill = psutil.Process.kill
    with sleeping() as child:
        one = psutil.Process(child.pid)
        monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: [one] if one.is_running() else [])
        monkeypatch.setattr(psutil.Process, "kill", gone)
        processes.kill_all()
        assert not psutil.pid_exists(child.pid)


GUARDED = """
import os, signal, subprocess, sys, time
from pathlib import Path
from serving import processes
processes.guard(Path(sys.argv[1]))
told, began = [], time.monotonic()
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, frame: told.append(number))
subprocess.run(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & true"], check=True)  # its parent ends
while not (found := processes.psutil.Process().children(recursive=True)):
    time.sleep(0.01)
    assert time.monotonic() - began < 60
print(os.getpid(), found[0].pid, flush=True)
while True:
    time.sleep(0.01)
    for number in told:
        print(signal.Signals(number).name, flush=True)
        if number == signal.SIGTERM:
            sys.exit(int(sys.argv[2]))
    told.clear()
"""


@contextmanager
def guarded(folder: Path, code: int = 0) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """A guarded program: the process that was started, the one that goes on in its place, and one that it started."""
    command = [sys.executable, "-c", GUARDED, str(folder), str(code)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    inner = other = 0
    try:
        assert process.stdout is not None
        inner, other = map(int, process.stdout.readline().split())
        assert inner != process.pid and alive(inner) and alive(other)
        yield process, inner, other
    finally:
        for pid in filter(None, (inner, other, process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def wait_until_gone(*pids: int) -> None:
    for _ in range(1000):
        if not any(map(alive, pids)):
            return
        time.sleep(0.02)
    pytest.fail(f"still there: {[pid for pid in pids if alive(pid)]}")


def test_a_killed_server_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    with guarded(folder) as (process, inner, other):
        os.kill(inner, signal.SIGKILL)
        assert process.wait(30) == 128 + signal.SIGKILL
        assert not alive(other) and not folder.exists()
        assert process.stderr is not None and "ended by signal 9" in process.stderr.read()


def test_nor_does_one_whose_guardian_is_killed(tmp_path: Path) -> None:
    with guarded(tmp_path / "none") as (process, inner, _):
        process.kill()
        wait_until_gone(inner)
        assert process.stdout is not None and "SIGTERM" in process.stdout.read()


@pytest.mark.parametrize("code", [0, 3])
def test_signals_reach_it_and_its_exit_code_is_ours(tmp_path: Path, code: int) -> None:
    with guarded(tmp_path / "none", code) as (process, _, other):
        assert process.stdout is not None and process.stderr is not None
        for name in ("SIGHUP", "SIGINT", "SIGTERM"):
            process.send_signal(signal.Signals[name])
            assert process.stdout.readline().strip() == name
        assert process.wait(30) == code and not alive(other)
        assert "left processes behind, which were ended: sleep" in process.stderr.read()


def test_a_terminals_ctrl_c_is_not_told_twice(tmp_path: Path) -> None:
    """The terminal sends it to the whole group, and one that stands for three would end a server without draining."""
    leader, follower = os.openpty()
    command = [sys.executable, "-c", GUARDED, str(tmp_path / "none"), "0"]
    process = subprocess.Popen(
        ["setsid", "--ctty", *command], stdin=follower, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    os.close(follower)
    try:
        assert process.stdout is not None
        inner = int(process.stdout.readline().split()[0])
        os.write(leader, b"\x03")
        assert process.stdout.readline() == "SIGINT\n"
        os.kill(inner, signal.SIGTERM)
        assert process.stdout.read().split() == ["SIGTERM"]
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()
        os.close(leader)
