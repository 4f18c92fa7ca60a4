"""Sends requests by a schedule (open loop) or as users do (closed loop), and hands every result to the recorder.

Everything happens in callbacks of one event loop.  In an open loop a request is due at its *intended* time whatever
the server does; when the generator or a free connection is late, the wait counts as latency, because a user would
have waited too.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from loadtest.apis import Api
from loadtest.client import Exchange, Kind, Target
from loadtest.clock import Timer
from loadtest.pool import Pool
from loadtest.recorder import WRONG, Recorder
from loadtest.retry import pause_s, retryable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from loadtest.dialogue import Dialogues
    from loadtest.source import Source

BACKOFF_S = 0.05  # a user's pause after a failed request, doubled up to a second: no tight loop against a dead server


@dataclass
class Stream:
    """One traffic class as this process drives it.

    Args:
        times: open loop: intended send times of this process, in seconds from the start, sorted.
        users: closed loop: how many users this process plays.
        limit: closed loop: measured requests to send at most (None: no limit).
        numbers: (first, step) of the request numbers that this process draws from the source.
    """

    source: Source | Dialogues
    times: NDArray[np.float64] | None = None
    users: int = 0
    think_s: float = 0.0
    limit: int | None = None
    numbers: tuple[int, int] = (0, 1)
    issued: int = 0
    measured: int = 0


class Engine:
    """Drives all streams of one process.

    Args:
        until: closed loop users stop starting requests at this time (seconds from the start); None: by `limit` only.
        warmup_s: requests before this do not count towards `limit`.
    """

    def __init__(
        self,
        streams: list[Stream],
        target: Target,
        api: Api,
        recorder: Recorder,
        *,
        until: float | None,
        warmup_s: float,
        timeout_s: float,
        max_connections: int,
        tls: ssl.SSLContext | None,
        seed: int,
        retries: int = 0,
    ):
        self.streams, self.recorder = streams, recorder
        self.until, self.warmup_s, self.retries = until, warmup_s, retries
        self.keep_text = any(s.source.wants_text for s in streams)
        self.pool = Pool(
            target,
            api,
            self._over,
            keep_text=self.keep_text,
            gaps=recorder.gaps,
            timeout_s=timeout_s,
            most=max_connections,
            tls=tls,
        )
        self.start = 0.0
        self.stopped = False  # no more requests are started
        self.interrupted = False  # ended before its time
        self.fatal: BaseException | None = None
        self._pending = 0  # exchanges begun and not yet recorded
        self._feeds = 0  # streams and users that may still start a request
        self._finished = asyncio.Event()
        self._random = random.Random(seed)
        self._timers: list[Timer] = []
        self._failures: dict[tuple[int, int], int] = {}
        self._backing_off: dict[Exchange, asyncio.TimerHandle] = {}

    # -- the run

    async def run(self, start: float) -> None:
        """Run to the end; `start` is when second 0 of the schedule is, in seconds of `perf_counter()`.

        Raises:
            BaseException: whatever went wrong inside (a full disk, a bug); what was recorded stays.
        """
        loop = asyncio.get_running_loop()
        self.start = start
        loop.set_exception_handler(self._on_loop_error)
        for index, stream in enumerate(self.streams):
            if stream.times is not None:
                self._feeds += 1
                self._timers.append(Timer(loop, self._pump(loop, index, stream)))
                self._timers[-1].set(start)
            else:
                for user in range(stream.users):
                    self._feeds += 1
                    # Users who think arrive spread over one thinking time, not as a herd.
                    delay = self._random.random() * stream.think_s
                    when = max(0.0, start + delay - perf_counter())
                    loop.call_later(when, self._user, index, user)
        sweeper = loop.create_task(self.pool.sweep())
        try:
            await self._finished.wait()
        finally:
            sweeper.cancel()
            for timer in self._timers:
                timer.close()
            self.pool.close()
        if self.fatal is not None:
            raise self.fatal

    def stop(self) -> None:
        """End the run now: nothing more is started, and running requests are recorded as unfinished."""
        if self.stopped:
            return
        self.stopped = self.interrupted = True
        left = self.pool.stop()
        for handle in self._backing_off.values():
            handle.cancel()
        for exchange in (*left, *self._backing_off):
            exchange.kind, exchange.end = Kind.UNFINISHED, perf_counter()
            self._record(exchange)
        self._backing_off.clear()
        self._finished.set()

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        if isinstance(error, ConnectionError | TimeoutError | ssl.SSLError):
            return  # the connection's own callback reports it
        self._fail(error if isinstance(error, BaseException) else RuntimeError(str(context.get("message"))))

    def _fail(self, error: BaseException) -> None:
        if self.fatal is None:
            self.fatal = error
        self.stopped = self.interrupted = True
        self._finished.set()

    # -- who starts requests

    def _pump(self, loop: asyncio.AbstractEventLoop, index: int, stream: Stream) -> Callable[[], None]:
        """Return the callback that sends what is due in an open loop and sets the timer for what is next."""
        assert stream.times is not None
        times = stream.times.tolist()
        total = len(times)
        first, step = stream.numbers
        request = stream.source.request
        timer_at = len(self._timers)
        start = self.start

        def pump() -> None:
            if self.stopped:
                return
            now = perf_counter()
            at = stream.issued
            while at < total and start + times[at] <= now:
                item, payload, talk = request(first + at * step)
                exchange = Exchange(item, payload, start + times[at], cls=index)
                if talk is not None:
                    exchange.talk, exchange.turn = talk, talk.turn
                at += 1
                stream.issued = at
                exchange.dispatched = now
                self._begin(exchange)
                now = perf_counter()
            if at < total:
                self._timers[timer_at].set(start + times[at])
            else:
                self._feeds -= 1
                self._check_end()

        return pump

    def _user(self, index: int, user: int) -> None:
        """A user of a closed loop starts the next request, or goes home."""
        stream = self.streams[index]
        now = perf_counter()
        elapsed = now - self.start
        if elapsed < 0:  # the loop's timers may fire up to a millisecond early
            asyncio.get_running_loop().call_later(0.001, self._user, index, user)
            return
        over = self.until is not None and elapsed >= self.until
        full = stream.limit is not None and stream.measured >= stream.limit
        if self.stopped or over or full:
            self._feeds -= 1
            self._check_end()
            return
        first, step = stream.numbers
        item, payload, talk = stream.source.request(first + stream.issued * step, user)
        stream.issued += 1
        if elapsed >= self.warmup_s:
            stream.measured += 1
        exchange = Exchange(item, payload, now, user, index)
        exchange.dispatched = now
        if talk is not None:
            exchange.talk, exchange.turn = talk, talk.turn
        self._begin(exchange)

    def _next(self, exchange: Exchange) -> None:
        """After a closed-loop request: the same user thinks, backs off, or goes on at once."""
        stream = self.streams[exchange.cls]
        if stream.times is not None:
            return
        pause = self._random.expovariate(1 / stream.think_s) if stream.think_s else 0.0
        key = (exchange.cls, exchange.slot)
        if exchange.kind is Kind.OK:
            if self._failures:
                self._failures.pop(key, None)
        else:
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            pause = max(pause, exchange.retry_after, min(1.0, BACKOFF_S * 2 ** min(failures - 1, 10)))
            if self.until is not None:
                pause = min(pause, max(0.0, self.start + self.until - perf_counter()))
        if pause:
            asyncio.get_running_loop().call_later(pause, self._user, exchange.cls, exchange.slot)
        else:
            self._user(exchange.cls, exchange.slot)

    # -- one request

    def _begin(self, exchange: Exchange) -> None:
        self._pending += 1
        self.pool.place(exchange)

    def _over(self, exchange: Exchange) -> None:
        failed = exchange.kind is not Kind.OK
        if failed and exchange.retries < self.retries and not self.stopped and retryable(exchange):
            pause = pause_s(exchange, self._random)
            self.recorder.retry(exchange)
            exchange.retries += 1
            exchange.fresh()
            self._backing_off[exchange] = asyncio.get_running_loop().call_later(pause, self._again, exchange)
            return
        source = self.streams[exchange.cls].source
        if exchange.talk is not None and exchange.kind is not Kind.UNFINISHED:
            source.answered(exchange.talk, None if failed or exchange.reply is None else exchange.reply.text)
        if not failed and self.keep_text and exchange.reply is not None:
            exchange.correct = source.check(exchange.item, exchange.reply.text)
            if exchange.correct == 0 and len(self.recorder.wrong) < WRONG:
                item = source.item(exchange.item)
                wrong: dict[str, object] = {
                    "item": item.id,
                    "expected": item.expected,
                    "answer": exchange.reply.text[:200],
                }
                self.recorder.wrong.append(wrong)
        self._record(exchange)
        if not self.stopped:
            self._next(exchange)
        self._check_end()

    def _again(self, exchange: Exchange) -> None:
        del self._backing_off[exchange]
        self.pool.place(exchange)

    def _record(self, exchange: Exchange) -> None:
        self._pending -= 1
        try:
            self.recorder.add(exchange)
        except OSError as error:
            self._fail(error)

    def _check_end(self) -> None:
        if not self._feeds and not self._pending:
            self._finished.set()
