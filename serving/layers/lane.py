"""When a request goes in: interactive ones at once, batch ones through the window (`serving.lane`) and behind them.

The header `x-fovea-lane` (`interactive`, `batch`) decides, else `service_tier: flex`, else the key's own lane.  The
order in the engine is that of vLLM's priority scheduler, by a due time: an interactive request is due when it comes, a
batch request `age_s` later.  Before that, batch requests wait until no interactive one is inside (`serving.lane`).  So
batch work yields to interactive work, but not for ever: nothing starves.  A client's own `priority` is replaced.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from serving.exchange import FORMS, Exchange, api_path, content_type, exchange_of
from serving.lane import Waiter, Window, text_of
from serving.layers.screen import CHAT
from serving.recall.flight import left

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from serving.stack import Model, Stack

WITH_PRIORITY = (CHAT, "/v1/completions")
LANES = (b"interactive", b"batch")


class InLane:
    """See the module's docstring."""

    def __init__(self, app: ASGIApp, stack: Stack, model: Model):
        assert stack.lane is not None
        self.app, self.section = app, stack.lane
        self.window = Window(stack.lane)
        self.began = time.monotonic()

    async def stop(self) -> None:
        """End the window's task."""
        self.window.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = api_path(scope) if scope["type"] == "http" else ""
        if scope["type"] != "http" or scope["method"] != "POST" or "fovea.canary" in scope:
            await self.app(scope, receive, send)
            return
        exchange = exchange_of(scope)
        if path not in WITH_PRIORITY or content_type(scope) in FORMS or not exchange.body:
            with self.window.places.interactively():
                await self.app(scope, receive, send)
            return
        body = exchange.json()
        batch = lane_of(scope, exchange, body) == "batch"
        now = time.monotonic()
        due = now - self.began + (self.section.age_s if batch else 0.0)
        body["priority"] = int(due * 1000)
        if path != CHAT:  # chat is answered from the parsed body
            exchange.replace_body(body)
        if not batch:
            with self.window.places.interactively():
                await self.app(scope, receive, send)
            return
        image = exchange.pictures[0].digest if exchange.pictures else ""
        text = text_of(body)
        # an image's pixels are the same for every adapter, what the engine keeps of a prompt's start is not
        start = f"{exchange.adapter}\0{text}" if exchange.adapter else text
        waiter = Waiter(image, start, len(text) // 4 + exchange.image_tokens)
        await receive()  # the body, which the exchange has
        if not await self._enter(waiter, exchange, receive):
            return
        try:
            await self.app(scope, exchange.replay(receive), _told(send, time.monotonic() - now))
        finally:
            self.window.leave()

    async def _enter(self, waiter: Waiter, exchange: Exchange, receive: Receive) -> bool:
        """Wait for the request's turn; return False when its client has left before."""
        turn = asyncio.create_task(self.window.enter(waiter))
        gone = asyncio.create_task(left(receive))
        entered = False
        try:
            await asyncio.wait((turn, gone), return_when=asyncio.FIRST_COMPLETED)
            entered = turn.done()
            if not entered:
                exchange.error_kind = "client_left"
            return entered
        finally:
            gone.cancel()
            if not entered:
                turn.cancel()
                (result,) = await asyncio.gather(turn, return_exceptions=True)
                if result is None:  # its turn came in the same moment
                    self.window.leave()


def lane_of(scope: Scope, exchange: Exchange, body: dict[str, Any]) -> str:
    """Return `interactive` or `batch`."""
    for name, value in scope["headers"]:
        if name == b"x-fovea-lane" and value in LANES:
            return str(value.decode())
    if body.get("service_tier") == "flex":
        return "batch"
    return exchange.identity.lane if exchange.identity else "interactive"


def _told(send: Send, waited: float) -> Send:
    async def telling(message: Message) -> None:
        if message["type"] == "http.response.start":
            more = [(b"x-fovea-lane", b"batch"), (b"x-fovea-window-ms", str(round(waited * 1000)).encode())]
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await send(message)

    return telling
