"""A proxy on loopback that breaks things on purpose: slow replies, 429, 500, connections cut in the middle of a reply.

Put it between a client and a server (or between a stack and its upstream), and switch `fault` while traffic flows.
"""

from __future__ import annotations

import asyncio
import random
import threading
from dataclasses import dataclass

import httptools

from loadtest.client import Target
from models.support.errors import UsageError

KINDS = ("slow", "status", "cut", "refuse")


@dataclass(frozen=True)
class Fault:
    """What goes wrong.

    Args:
        kind: `slow` (the reply waits `delay_s`), `status` (the proxy itself answers `status`), `cut` (the connection
            ends after `after` bytes of the reply), `refuse` (the connection ends before any).
        share: of the requests that it happens to.
    """

    kind: str
    share: float = 1.0
    delay_s: float = 0.0
    status: int = 500
    after: int = 200
    retry_after_s: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError("unknown fault", field="fault", value=self.kind, fix=f"use one of {', '.join(KINDS)}")


class _Requests:
    """Cuts the client's bytes into whole requests."""

    def __init__(self) -> None:
        self.complete = False
        self.parser = httptools.HttpRequestParser(self)

    def on_message_complete(self) -> None:
        self.complete = True


class FaultProxy:
    """The proxy, in a thread of its own; use as a context manager.

    Args:
        upstream: base URL of the real server (plain http).
        port: where to listen on 127.0.0.1; 0 for a free port.
    """

    def __init__(self, upstream: str, port: int = 0, seed: int = 0):
        self.target = Target.parse(upstream)
        if self.target.scheme != "http":
            raise UsageError(
                "the proxy speaks plain http only",
                field="--upstream",
                value=upstream,
                fix="name an http:// upstream, or put the proxy behind what ends TLS",
            )
        self.port = port
        self.fault: Fault | None = None
        self.injected = 0
        self.forwarded = 0
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)

    @property
    def url(self) -> str:
        """Base URL of the proxy."""
        return f"http://127.0.0.1:{self.port}{self.target.base}"

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise UsageError(
                f"cannot listen: {self._error.strerror}",
                field="--proxy-port",
                value=self.port,
                fix="choose another port",
            )
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        loop = self._loop
        try:
            server = loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024))
        except OSError as error:
            self._error = error
            self._ready.set()
            loop.close()
            return
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client connection with one upstream connection."""
        up: asyncio.StreamWriter | None = None
        back: asyncio.Task[None] | None = None
        try:
            while True:
                request = await self._request(reader)
                if request is None:
                    return
                fault = self.fault
                if fault is not None and self._random.random() >= fault.share:
                    fault = None
                if fault is not None:
                    self.injected += 1
                    if fault.kind == "refuse":
                        return
                    if fault.kind == "status":
                        writer.write(_answer(fault))
                        await writer.drain()
                        continue
                if up is None:
                    up_reader, up = await asyncio.open_connection(self.target.host, self.target.port)
                    state = _State()
                    back = asyncio.create_task(_copy_back(up_reader, writer, state))
                self.forwarded += 1
                state.delay_s = fault.delay_s if fault is not None and fault.kind == "slow" else 0.0
                state.left = fault.after if fault is not None and fault.kind == "cut" else None
                up.write(request)
                await up.drain()
        except (OSError, httptools.HttpParserError):
            return  # either side went away, or the client does not speak HTTP: the connection ends below
        finally:
            if back is not None:
                back.cancel()
            for side in (up, writer):
                if side is not None:
                    side.close()

    async def _request(self, reader: asyncio.StreamReader) -> bytes | None:
        parts = []
        requests = _Requests()
        while not requests.complete:
            data = await reader.read(1 << 16)
            if not data:
                return None
            parts.append(data)
            requests.parser.feed_data(data)
        return b"".join(parts)


class _State:
    """What happens to the reply that is coming back."""

    delay_s = 0.0
    left: int | None = None


async def _copy_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, state: _State) -> None:
    try:
        while True:
            data = await reader.read(1 << 16)
            if state.delay_s:
                await asyncio.sleep(state.delay_s)
                state.delay_s = 0.0
            if not data:
                break
            if state.left is not None and len(data) >= state.left:
                writer.write(data[: state.left])
                await writer.drain()
                break
            if state.left is not None:
                state.left -= len(data)
            writer.write(data)
            await writer.drain()
    except OSError:
        return  # the client is gone
    finally:
        writer.close()


def _answer(fault: Fault) -> bytes:
    body = b'{"error":{"message":"injected by the fault proxy","type":"injected","code":%d}}' % fault.status
    more = f"Retry-After: {fault.retry_after_s}\r\n" if fault.status in (429, 503) else ""
    head = f"HTTP/1.1 {fault.status} Injected\r\nContent-Type: application/json\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
