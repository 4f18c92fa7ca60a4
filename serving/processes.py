"""What `fovea serve` started, to the last grandchild: nothing of it may outlive it."""

from __future__ import annotations

import ctypes
import sys

import psutil

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


def adopt() -> None:
    """Have processes whose parent died become children of this one (Linux; elsewhere they are not found again)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_all() -> None:
    """Kill every process that descends from this one, also those that appear meanwhile; returns when none is left."""
    me = psutil.Process()
    while left := [p for p in me.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]:
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=1)
