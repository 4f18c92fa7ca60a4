"""Processes that lost their parent are found and ended."""

from __future__ import annotations

import subprocess
import sys

import psutil

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
