"""The connections of one load process: kept open, used again, and limited in number."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from time import perf_counter

from loadtest.apis import Api
from loadtest.client import Connection, Exchange, Kind, Target

SWEEP_S = 0.1  # how often running requests are checked for a timeout


class Pool:
    """Sends exchanges over free, new or the next free connections.

    Args:
        over: told when an exchange has ended, however it did.
        keep_text: read the text of replies, not only their usage.
        gaps: takes the pauses between arrivals of content, in seconds.
    """

    def __init__(
        self,
        target: Target,
        api: Api,
        over: Callable[[Exchange], None],
        *,
        keep_text: bool,
        gaps: list[float],
        timeout_s: float,
        most: int,
        tls: ssl.SSLContext | None,
    ):
        self.target, self.api, self.over = target, api, over
        self.keep_text, self.gaps = keep_text, gaps
        self.timeout_s, self.most, self.tls = timeout_s, most, tls
        self.peak = 0  # most connections at a time
        self.stopped = False
        self._open = 0
        self._free: list[Connection] = []
        self._active: set[Connection] = set()
        self._waiting: deque[Exchange] = deque()
        self._connecting: dict[asyncio.Task[None], Exchange] = {}

    async def connect(self, count: int) -> None:
        """Open connections before the clock starts, so that the first requests do not pay for handshakes.

        Raises:
            OSError: the server cannot be reached.
        """
        for _ in range(count):
            self._free.append(await self._new())
            self._open += 1
        self.peak = self._open

    async def _new(self) -> Connection:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self.timeout_s):
            _, connection = await loop.create_connection(
                self._factory, self.target.host, self.target.port, ssl=self.tls
            )
        return connection

    def _factory(self) -> Connection:
        return Connection(self, self.api)

    def place(self, exchange: Exchange, *, fresh: bool = False) -> None:
        """Give the exchange a connection: a free one (unless it has to be `fresh`), a new one, or the next free one."""
        free = self._free
        if fresh and free and self._open >= self.most:
            free.pop().discard()  # room for a new one
            self._open -= 1
        while free and not fresh:
            connection = free.pop()
            if connection.usable:
                self._active.add(connection)
                connection.start(exchange)
                return
            self._open -= 1
        if self._open < self.most:
            self._open += 1
            self.peak = max(self.peak, self._open)
            task = asyncio.get_running_loop().create_task(self._connect(exchange))
            self._connecting[task] = exchange
            task.add_done_callback(lambda done: self._connecting.pop(done, None))
        else:
            self._waiting.append(exchange)

    async def _connect(self, exchange: Exchange) -> None:
        try:
            connection = await self._new()
        except (OSError, TimeoutError) as error:  # refused, unreachable, unknown host, TLS
            self._open -= 1
            if not self.stopped:
                exchange.kind, exchange.end = Kind.CONNECT, perf_counter()
                exchange.detail = str(error) or type(error).__name__
                self._wake()  # whoever waited for this connection finds out by a try of its own
                self.over(exchange)
            return
        if self.stopped:
            connection.discard()
            return
        self._active.add(connection)
        connection.start(exchange)

    def _wake(self) -> None:
        """Let the request that waits longest have a connection: there is one fewer."""
        if self._waiting and not self.stopped:
            self.place(self._waiting.popleft())

    def on_done(self, connection: Connection, exchange: Exchange) -> None:
        """A connection tells that its request is over."""
        self._active.discard(connection)
        if connection.usable:
            if self._waiting and not self.stopped:
                self._active.add(connection)
                connection.start(self._waiting.popleft())
            else:
                self._free.append(connection)
        else:
            self._open -= 1
            self._wake()
        # A server may close an idle connection at the very moment when it is used again.  Every client sends once
        # more then, on a new connection; the time lost stays in the latency.
        if exchange.kind is Kind.RESET and connection.served > 1 and not exchange.resent and not self.stopped:
            exchange.resent, exchange.kind, exchange.detail = True, Kind.OK, ""
            self.place(exchange, fresh=True)  # those that are free may have been closed along with it
            return
        self.over(exchange)

    def stop(self) -> list[Exchange]:
        """End all running exchanges as unfinished; return those that had no connection yet, which nobody is told of."""
        self.stopped = True
        for connection in list(self._active):
            connection.abort(Kind.UNFINISHED, "stopped")
        left = [*self._waiting, *self._connecting.values()]
        self._waiting.clear()
        return left

    def close(self) -> None:
        """Close every connection."""
        self.stopped = True
        for connection in [*self._free, *self._active]:
            connection.discard()
        for task in self._connecting:
            task.cancel()

    async def sweep(self) -> None:
        """End requests that take longer than the timeout; runs until it is cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            limit = perf_counter() - self.timeout_s
            for connection in [c for c in self._active if c.exchange is not None and c.exchange.begun < limit]:
                connection.abort(Kind.TIMEOUT, f"no complete reply within {self.timeout_s:g} s")
