"""One generation that any number of identical requests listen to.

It runs in a task of its own, so that the client that came first may leave: the generation ends when the last one has
left.  Each listener gets every message, streams piece by piece, from the start, however late it came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from serving.errors import ApiError
from serving.exchange import Exchange

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Flight:
    """See the module's docstring.

    Args:
        exchange: of the request that came first.
        ended: called when the generation is over, however it ended.
        request: as in `serving.recall.store.Entry`.

    Attributes:
        messages: the ASGI messages so far.
        pieces: of them, the body's.
        complete: the answer's last message was sent.
        error: what the app raised.
    """

    def __init__(self, exchange: Exchange, ended: Callable[[Flight], None], request: str = ""):
        self.exchange, self._ended, self.request = exchange, ended, request
        self.messages: list[Message] = []
        self.pieces: list[bytes] = []
        self.status, self.content_type, self.complete, self.done = 0, b"", False, False
        self.error: Exception | None = None
        self.listeners = 0
        self.abandoned = asyncio.Event()
        self._news: set[asyncio.Event] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def open(self) -> bool:
        """Whether a request may still join."""
        return not (self.done or self.abandoned.is_set())

    async def begin(self, app: ASGIApp, scope: Scope) -> None:
        """Decode what is not decoded yet, for the request that came first, and start the generation.

        Raises:
            ApiError: an image of the request cannot be decoded; whoever listens is told the same.
        """
        try:
            await self.exchange.decode()
        except BaseException as error:
            gone = ApiError(503, "The request was given up. Try again in 1 s.", kind="given_up", retry_after=1)
            self.error = error if isinstance(error, Exception) else gone
            self._end()
            raise
        self._task = asyncio.create_task(self._run(app, scope))

    async def pass_on(self, send: Send, exchange: Exchange, left: asyncio.Task[None]) -> None:
        """Send everything to one client, until the end or until it has left; raise what the app raised."""
        self.listeners += 1
        sent = 0
        news = asyncio.Event()
        self._news.add(news)
        left.add_done_callback(lambda _: news.set())
        try:
            while True:
                news.clear()
                while sent < len(self.messages):
                    message = self.messages[sent]
                    sent += 1
                    await send(message)
                if self.done:
                    break
                if left.done():
                    exchange.error_kind = "client_left"
                    return
                await news.wait()
            if exchange is not self.exchange:
                exchange.error_kind, exchange.image_tokens = self.exchange.error_kind, self.exchange.image_tokens
            if self.error is not None:
                raise self.error
        finally:
            self._news.discard(news)
            self.listeners -= 1
            if not self.listeners and not self.done:
                self.abandoned.set()

    async def _run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self._receive(), self._take)
        except Exception as error:  # the listeners raise it
            self.error = error
        finally:
            self._end()

    def _end(self) -> None:
        self.done = True
        self._tell()
        self._ended(self)

    def _receive(self) -> Receive:
        given = False

        async def receive() -> Any:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": self.exchange.body or b"", "more_body": False}
            await self.abandoned.wait()
            return {"type": "http.disconnect"}

        return receive

    async def _take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = message.get("headers", ())
            self.content_type = next((value for name, value in headers if name.lower() == b"content-type"), b"")
        else:
            self.pieces.append(message.get("body", b""))
            self.complete = not message.get("more_body", False)
        self.messages.append(message)
        self._tell()

    def _tell(self) -> None:
        for news in self._news:
            news.set()


async def left(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
