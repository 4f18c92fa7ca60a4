"""Keep to the rate limits of an account instead of running into its 429s."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


class Pace:
    """Lets `per_minute` units through a minute, evenly; None: as many as come.

    Callers wait in the order in which they came; a unit that was not used is not saved up, so that no burst follows.
    """

    def __init__(
        self,
        per_minute: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        self._seconds = None if per_minute is None else 60.0 / per_minute
        self._clock, self._pause = clock, pause
        self._next = 0.0

    async def wait(self, units: float = 1.0) -> None:
        """Return when `units` may go."""
        if self._seconds is None:
            return
        now = self._clock()
        start = max(now, self._next)
        self._next = start + units * self._seconds
        if start > now:
            await self._pause(start - now)
