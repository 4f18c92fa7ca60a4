"""What `fovea serve` started, to the last grandchild: nothing of it may outlive it."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

import psutil

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


def adopt() -> None:
    """Have processes whose parent died become children of this one (Linux; elsewhere they are not found again)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_all() -> None:
    """Kill every process that descends from this one, also those that appear meanwhile; returns when none is left."""
    me = psutil.Process()
    while left := [process for process in me.children(recursive=True) if _alive(process)]:
        for process in left:
            with suppress(psutil.NoSuchProcess):  # it ended by itself meanwhile
                process.kill()
        psutil.wait_procs(left, timeout=1)


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
