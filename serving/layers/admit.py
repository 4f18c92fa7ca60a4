"""What may enter: not while draining, not beyond the concurrency limit, not too large, not too slowly.

Reads the body, once, into the exchange.  A request that is not let in gets 503 with Retry-After, 413 or 408; nothing
waits in a queue that the client cannot see.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from serving.errors import ApiError
from serving.exchange import exchange_of
from serving.stack import Limits

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from serving.stack import Model, Stack

PROBES = ("/health", "/ready", "/metrics", "/load", "/ping", "/version")


class Gate:
    """Whether new requests are let in, and how many are inside; shared by the layer and the replica that drains."""

    def __init__(self) -> None:
        self.draining = False
        self.inside = 0
        self.empty = asyncio.Event()
        self.empty.set()

    def enter(self) -> None:
        """Count a request in."""
        self.inside += 1
        self.empty.clear()

    def leave(self) -> None:
        """Count a request out."""
        self.inside -= 1
        if self.inside == 0:
            self.empty.set()


class Admit:
    """See the module's docstring."""

    gate = Gate()  # one per process: a replica has one engine

    def __init__(self, app: ASGIApp, stack: Stack, model: Model):
        self.app = app
        self.limits = stack.limits
        self.largest = stack.limits.body_bytes if stack.limits else None
        self.patience = stack.limits.body_timeout_s if stack.limits else None
        self.retry_after = (stack.limits or Limits()).retry_after_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].endswith(PROBES):
            await self.app(scope, receive, send)
            return
        gate = self.gate
        if gate.draining:
            raise self._refused("The server is stopping.", "draining")
        if self.limits is not None and gate.inside >= self.limits.concurrent:
            raise self._refused(f"{gate.inside} requests are running, the limit.", "overloaded")
        gate.enter()
        try:
            if scope["method"] in ("POST", "PUT", "PATCH"):
                exchange = exchange_of(scope)
                exchange.body = await self._read(scope, receive)
                receive = exchange.replay(receive)
            await self.app(scope, receive, send)
        finally:
            gate.leave()

    def _refused(self, why: str, kind: str) -> ApiError:
        return ApiError(503, f"{why} Try again in {self.retry_after} s.", kind=kind, retry_after=self.retry_after)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """Return the whole body.

        Raises:
            ApiError: 413, too large; 408, too slow; 499, the client left.
        """
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit():
                self._check(int(value))
        message = await self._next(receive)
        body = message.get("body", b"")
        self._check(len(body))
        if not message.get("more_body"):
            return body
        chunks, size = [body], len(body)
        while message.get("more_body"):
            message = await self._next(receive)
            chunk = message.get("body", b"")
            size += len(chunk)
            self._check(size)
            chunks.append(chunk)
        return b"".join(chunks)

    async def _next(self, receive: Receive) -> dict:
        try:
            async with asyncio.timeout(self.patience):
                message = await receive()
        except TimeoutError as error:
            raise ApiError(408, f"The body did not arrive within {self.patience:g} s.", kind="slow_body") from error
        if message["type"] == "http.disconnect":
            raise ApiError(499, "The client closed the connection.", kind="client_left")
        return dict(message)

    def _check(self, size: int) -> None:
        if self.largest is not None and size > self.largest:
            raise ApiError(413, f"The body has {size} bytes or more; the limit is {self.largest}.", kind="body_too_large")
