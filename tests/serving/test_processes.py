"""Processes that lost their parent are found and ended."""

from __future__ import annotations

import subprocess
import sys

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
    for pid in map(int, pids.split()):
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_one_that_ends_while_it_is_looked_at_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    def children(self: psutil.Process, recursive: bool = False) -> list[psutil.Process]:
        nonlocal asked
        asked += 1
        return [] if asked > 2 else [gone, alive]

    with subprocess.Popen(["sleep", "0"]) as short, subprocess.Popen(["sleep", "1000"]) as long:
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
    with subprocess.Popen(["sleep", "1000"]) as child:
        one = psutil.Process(child.pid)
        monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: [one] if one.is_running() else [])
        monkeypatch.setattr(psutil.Process, "kill", gone)
        processes.kill_all()
        assert not psutil.pid_exists(child.pid)
