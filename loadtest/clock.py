"""Timers that fire when they should, and a watch over those that do not.

An event loop's own timers have a resolution of one millisecond, which is longer than the gap between requests at a
few thousand per second.  On Linux a timerfd gives the kernel's resolution; elsewhere the loop's timer is used.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Callable
from time import perf_counter

import numpy as np

from loadtest.histogram import Histogram

_CLOCK_MONOTONIC = 1
_NONBLOCK_CLOEXEC = 0o2004000
_ABSOLUTE = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Timer:
    """One timer that can be set again and again.

    Args:
        callback: called from the loop when the time has come (or a moment after).
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]):
        self._loop, self._callback = loop, callback
        self._handle: asyncio.TimerHandle | None = None
        self._fd = -1
        # perf_counter() is CLOCK_MONOTONIC on Linux, the clock that the timer is set by.
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
        if self._fd >= 0:
            self._spec = _Itimerspec()
            self._pointer = ctypes.byref(self._spec)
            loop.add_reader(self._fd, self._fired)

    def set(self, when: float) -> None:
        """Fire at `when`, in seconds of `perf_counter()`; replaces an earlier setting."""
        if self._fd < 0:
            if self._handle is not None:
                self._handle.cancel()
            self._handle = self._loop.call_later(max(0.0, when - perf_counter()), self._callback)
            return
        value = self._spec.value
        value.seconds = int(when)
        value.nanoseconds = max(1, int((when - int(when)) * 1e9))  # 0 would switch it off
        self._libc.timerfd_settime(self._fd, _ABSOLUTE, self._pointer, None)

    def _fired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # set again since it became readable
        self._callback()

    def close(self) -> None:
        """Free the timer."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        if self._handle is not None:
            self._handle.cancel()


class SelfWatch:
    """Watches the generator itself: how late its event loop runs things, and how much CPU it takes."""

    PERIOD_S = 0.01

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self.lag = Histogram()
        self._lags: list[float] = []
        self._expected = 0.0
        self._cpu = self._wall = 0.0
        self._timer = Timer(loop, self._tick)

    def start(self) -> None:
        """Begin to watch."""
        self._cpu, self._wall = time.process_time(), perf_counter()
        self._expected = perf_counter() + self.PERIOD_S
        self._timer.set(self._expected)

    def _tick(self) -> None:
        now = perf_counter()
        self._lags.append(max(0.0, now - self._expected))
        if len(self._lags) >= 512:
            self._flush()
        self._expected = now + self.PERIOD_S
        self._timer.set(self._expected)

    def _flush(self) -> None:
        self.lag.record(np.array(self._lags))
        self._lags.clear()

    def stop(self) -> float:
        """Stop watching; return the share of one CPU core that this process used."""
        self._timer.close()
        self._flush()
        wall = perf_counter() - self._wall
        return (time.process_time() - self._cpu) / wall if wall > 0 else 0.0
