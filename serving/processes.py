"""What `fovea serve` started, to the last grandchild: nothing of it may outlive it, not even when it is killed (-9)."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

import psutil

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
PR_SET_CHILD_SUBREAPER = 36
LEFT = "left processes behind"
GRACE_S = 5.0
PASSED_ON = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def adopt() -> None:
    """Have processes whose parent died become children of this one (Linux; elsewhere they are not found again)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def guard(folder: Path) -> None:
    """Go on in a child of this process, which itself stays behind to clean up, however the child ends.

    Returns in the child.  This process passes SIGTERM, SIGINT and SIGHUP on, adopts what the child's death leaves
    without a parent, ends all of that, removes `folder`, and ends with the child's exit code (128 + N for a signal N).
    When it is killed itself, the child gets SIGTERM and stops as it always does.

    Call it early, while there is one thread and little memory.  Without Linux it does nothing.
    """
    if sys.platform != "linux":
        return
    sys.stdout.flush()
    sys.stderr.flush()
    adopt()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # whoever started us may ignore it, and then nobody can wait
    waited = {*PASSED_ON, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    guardian = os.getpid()
    child = os.fork()
    if child:
        os._exit(_watch(child, waited, folder))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    adopt()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if os.getppid() != guardian:  # killed before it could be told of
        os._exit(128 + signal.SIGTERM)


def _watch(child: int, waited: set[signal.Signals], folder: Path) -> int:
    ended: int | None = None
    while ended is None:
        what = signal.sigwaitinfo(waited)
        if what.si_signo == signal.SIGCHLD:
            ended = _reap(child)
        elif what.si_code <= 0:  # from a process; a terminal's reach the child without us, as one of its group
            os.kill(child, what.si_signo)
    code = os.waitstatus_to_exitcode(ended)
    if code >= 0:  # it has stopped all of them, and some take a moment
        psutil.wait_procs(psutil.Process().children(recursive=True), timeout=GRACE_S)
    left = kill_all()
    _reap(child)
    shutil.rmtree(folder, ignore_errors=True)
    if code < 0:
        print(f"fovea serve was ended by signal {-code}; so was what it had started: {len(left)}", file=sys.stderr)
    elif left:
        print(f"fovea serve {LEFT}, which were ended: {', '.join(left)}", file=sys.stderr)
    return code if code >= 0 else 128 - code


def _reap(child: int) -> int | None:
    """Let ended processes go; return the child's wait status if it was among them."""
    found: int | None = None
    with suppress(ChildProcessError):  # nobody is left to wait for
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            if pid == child:
                found = status
    return found


def kill_all() -> list[str]:
    """Kill every process that descends from this one, also those that appear meanwhile; return the names of all."""
    me, names = psutil.Process(), list[str]()
    while left := [process for process in me.children(recursive=True) if _alive(process)]:
        for process in left:
            with suppress(psutil.NoSuchProcess):  # it ended by itself meanwhile
                names.append(process.name())
                process.kill()
        psutil.wait_procs(left, timeout=1)
    return names


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
