"""What may enter: not while draining, not beyond the concurrency limit, not too large, not too slowly.

Reads the body, once, into the exchange.  A request that is not let in gets 503 with Retry-After, 413 or 408; nothing
waits in a queue that the client cannot see.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from serving.errors import ApiError
from serving.exchange import FORMS, content_type, exchange_of
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
        full = self.limits is not None and gate.inside >= self.limits.concurrent
        if full and "fovea.canary" not in scope:  # a full replica is well: its own probe must not say otherwise
            raise self._refused(f"{gate.inside} requests are running, the limit.", "overloaded")
        gate.enter()
        try:
            if scope["method"] in ("POST", "PUT", "PATCH"):
                exchange = exchange_of(scope)
                exchange.body = await self._read(scope, receive)
                receive = exchange.replay(receive)
                if self.limits is not None and exchange.body and content_type(scope) not in FORMS:
                    check_answers(exchange.json(), self.limits)
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
                self._check(int(value[:18]))
        try:
            async with asyncio.timeout(self.patience):
                return await self._chunks(receive)
        except TimeoutError as error:
            raise ApiError(408, f"The body did not arrive within {self.patience:g} s.", kind="slow_body") from error

    async def _chunks(self, receive: Receive) -> bytes:
        chunks, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ApiError(499, "The client closed the connection.", kind="client_left")
            chunk, more = message.get("body", b""), message.get("more_body", False)
            size += len(chunk)
            self._check(size)
            chunks.append(chunk)
        return b"".join(chunks)

    def _check(self, size: int) -> None:
        if self.largest is not None and size > self.largest:
            raise ApiError(
                413, f"The body has {size} bytes or more; the limit is {self.largest}.", kind="body_too_large"
            )


def check_answers(body: dict[str, Any], limits: Limits) -> None:
    """Refuse a request for too many answers: `n`, or prompts (completions) and conversations (batch) at once.

    Raises:
        ApiError: 400.
    """
    for key in ("n", "best_of"):
        try:
            count = float(body.get(key) or 0)  # validation takes "9" and 9.0 for 9
        except (TypeError, ValueError, OverflowError):
            continue  # no number: validation says so
        if count > limits.choices:
            raise ApiError(400, f"{key} is {count:g}; the limit is {limits.choices}.", kind="n_too_large", param=key)
    for key in ("prompt", "messages", "input", "inputs", "documents", "queries"):
        value = body.get(key)
        if not isinstance(value, list) or len(value) <= limits.prompts:
            continue
        batch = not isinstance(value[0], int) and not (isinstance(value[0], dict) and key in ("messages", "input"))
        if batch:  # one prompt of many token ids, or one long conversation, is not
            text = f"{key} has {len(value)} entries; the limit is {limits.prompts}."
            raise ApiError(400, text, kind="too_many_prompts", param=key)
