"""A small HTTP server with known behaviour, for tests of the load tester.

It speaks enough of the OpenAI chat API: whole and streamed replies, usage, errors of every kind.  Latency is planned
per request by `Plan`, and a stall can be planted: no reply leaves while it lasts, as when a process is paused.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import httptools


@dataclass
class Plan:
    """What the server does with one request."""

    first_s: float = 0.0  # until the first byte of the reply
    gap_s: float = 0.0  # between streamed pieces
    pieces: tuple[str, ...] = ("yes",)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None  # sent instead of an answer
    cut_after: int | None = None  # close the connection after so many bytes of the reply
    segments: int = 0  # send the reply in pieces of so many bytes
    end_mark: bool = True  # streamed replies end with [DONE]
    hang_up: bool = False  # close the connection after a whole reply, without a word of it


Decide = Callable[[dict[str, Any]], Plan]


def holding(answers: int, first_s: float) -> Decide:
    """Answer so many requests, each after `first_s`, and no other: a run goes no further until the test says so."""
    seen = itertools.count()
    return lambda request: Plan(first_s=first_s if next(seen) < answers else 3600)


class _Http(asyncio.Protocol):
    def __init__(self, server: Server):
        self.server = server
        self.transport: Any = None
        self.tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.server.connections += 1
        self.server.transports.add(transport)
        self._fresh()

    def _fresh(self) -> None:
        self.url, self.body = b"", b""
        self.headers: dict[str, str] = {}
        self.parser = httptools.HttpRequestParser(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.server.transports.discard(self.transport)
        for task in self.tasks:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(self.url.decode(), self.body))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        self.url, self.body = b"", b""

    async def _answer(self, url: str, body: bytes) -> None:
        server = self.server
        arrived = perf_counter()
        if url.endswith("/models"):
            if server.key and self.headers.get("authorization") != f"Bearer {server.key}":
                await self._whole(401, {}, b'{"error":{"message":"bad key"}}', Plan())
                return
            data = {"object": "list", "data": [{"id": server.model}]}
            await self._whole(200, {}, json.dumps(data).encode(), Plan())
            return
        request = json.loads(body)
        server.requests.append((arrived, request))
        plan = server.decide(request)
        await server.pass_stall()
        if plan.first_s:
            await asyncio.sleep(plan.first_s)
            await server.pass_stall()
        usage = {"prompt_tokens": 7, "completion_tokens": len(plan.pieces), "total_tokens": 7 + len(plan.pieces)}
        if plan.status != 200 or plan.body is not None or not request.get("stream"):
            message = {"role": "assistant", "content": "".join(plan.pieces)}
            reply = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
            await self._whole(plan.status, plan.headers, plan.body or json.dumps(reply).encode(), plan)
            return
        await self._stream(plan, usage)
        if plan.hang_up:
            self.transport.close()

    async def _whole(self, status: int, headers: dict[str, str], body: bytes, plan: Plan) -> None:
        extra = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
        await self._send(head.encode() + body, plan)

    async def _stream(self, plan: Plan, usage: dict[str, int]) -> None:
        extra = "".join(f"{k}: {v}\r\n" for k, v in plan.headers.items()).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n" + extra + b"\r\n"
        sent = 0

        async def event(value: Any) -> bool:
            nonlocal sent, head
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
            data = f"data: {text}\n\n".encode()
            chunk = head + f"{len(data):x}\r\n".encode() + data + b"\r\n"
            head = b""
            if plan.cut_after is not None and sent + len(chunk) > plan.cut_after:
                self.transport.write(chunk[: max(0, plan.cut_after - sent)])
                self.transport.close()
                return False
            sent += len(chunk)
            await self._send(chunk, plan)
            return True

        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        if not await event({"choices": [choice]}):
            return
        for number, piece in enumerate(plan.pieces):
            if number and plan.gap_s:
                await asyncio.sleep(plan.gap_s)
            await self.server.pass_stall()
            if not await event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]}):
                return
        if plan.end_mark:
            await event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            await event({"choices": [], "usage": usage})
            await event("[DONE]")
        self.transport.write(b"0\r\n\r\n")

    async def _send(self, data: bytes, plan: Plan) -> None:
        if plan.cut_after is not None and plan.cut_after < len(data):
            self.transport.write(data[: plan.cut_after])
            self.transport.close()
            return
        if not plan.segments:
            self.transport.write(data)
            return
        for at in range(0, len(data), plan.segments):
            self.transport.write(data[at : at + plan.segments])
            await asyncio.sleep(0.0005)  # so that each piece is a segment of its own


class Server:
    """The server, in a thread of its own; use as a context manager."""

    def __init__(self, decide: Decide | Plan | None = None, model: str = "m", key: str = ""):
        plan = decide if isinstance(decide, Plan) else Plan()
        self.decide: Decide = decide if callable(decide) else (lambda request: plan)
        self.model, self.key = model, key
        self.requests: list[tuple[float, dict[str, Any]]] = []
        self.connections = 0
        self.transports: set[Any] = set()
        self.port = 0
        self._stall_from = self._stall_to = 0.0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def stall(self, begin: float, length: float) -> None:
        """Let nothing out from `begin` (in `perf_counter()` time) on for `length` seconds."""
        self._stall_from, self._stall_to = begin, begin + length

    async def pass_stall(self) -> None:
        now = perf_counter()
        if self._stall_from <= now < self._stall_to:
            await asyncio.sleep(self._stall_to - now)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            self._loop.create_server(lambda: _Http(self), "127.0.0.1", 0, backlog=1024)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(self._hang_up())
        self._loop.close()

    async def _hang_up(self) -> None:
        """Reset every connection, those too that are being accepted now: none may be left that nobody answers on."""
        while self.transports or len(asyncio.all_tasks()) > 1:
            for transport in list(self.transports):
                transport.abort()
            await asyncio.sleep(0)

    def __enter__(self) -> Server:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def die(self) -> None:
        """Answer nothing more, reset every connection and refuse new ones, as when the process is killed."""
        with suppress(RuntimeError):  # the loop is closed: it is dead already
            self._loop.call_soon_threadsafe(self._loop.stop)

    def __exit__(self, *error: object) -> None:
        self.die()
        self._thread.join(10)
