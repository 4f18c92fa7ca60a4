"""Adds `boxes` to chat answers of a model that writes `<loc>` tokens (PaliGemma); the text stays as it is.

In a whole answer they stand beside `content` in the message, in a stream in the `delta` that ends the choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from serving.boxes import boxes_in
from serving.exchange import api_path, exchange_of
from serving.layers.screen import CHAT

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from serving.stack import Model, Stack


class Boxes:
    """See the module's docstring."""

    def __init__(self, app: ASGIApp, stack: Stack, model: Model):
        self.app, self.wanted = app, model.boxes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.wanted or scope["type"] != "http" or scope["method"] != "POST" or api_path(scope) != CHAT:
            await self.app(scope, receive, send)
            return
        pictures = exchange_of(scope).pictures
        size = (pictures[0].width, pictures[0].height) if len(pictures) == 1 else None
        await self.app(scope, receive, Adding(send, size).send)


class Adding:
    """Passes an answer on and adds the boxes."""

    def __init__(self, send: Send, size: tuple[int, int] | None):
        self.out, self.size = send, size
        self.start: Message | None = None
        self.stream = False
        self.pieces: list[bytes] = []
        self.texts: dict[int, str] = {}

    async def send(self, message: Message) -> None:
        """Take one ASGI message."""
        if message["type"] == "http.response.start":
            kind = next((v for k, v in message.get("headers", ()) if k.lower() == b"content-type"), b"")
            self.stream = kind.startswith(b"text/event-stream")
            if self.stream or message["status"] != 200:
                await self.out(message)
            else:
                self.start = message  # its length is not known yet
            return
        body = message.get("body", b"")
        if self.stream:
            await self.out({**message, "body": self._event(body)} if body else message)
        elif self.start is None:
            await self.out(message)
        else:
            self.pieces.append(body)
            if not message.get("more_body", False):
                await self._whole(b"".join(self.pieces))

    async def _whole(self, body: bytes) -> None:
        assert self.start is not None
        answer = orjson.loads(body)
        for choice in answer.get("choices") or ():
            found = boxes_in(choice["message"].get("content") or "", self.size)
            if found:
                choice["message"]["boxes"] = found
        body = orjson.dumps(answer)
        kept = [pair for pair in self.start["headers"] if pair[0].lower() != b"content-length"]
        await self.out({**self.start, "headers": [*kept, (b"content-length", str(len(body)).encode())]})
        await self.out({"type": "http.response.body", "body": body})

    def _event(self, body: bytes) -> bytes:
        """Return events with the boxes in the delta that ends a choice; vLLM sends whole events."""
        events = []
        for event in body.split(b"\n\n"):
            head, mark, data = event.partition(b"data: ")
            if mark and data.startswith(b"{"):
                event = head + mark + self._added(data)
            events.append(event)
        return b"\n\n".join(events)

    def _added(self, data: bytes) -> bytes:
        parsed: dict[str, Any] = orjson.loads(data)
        changed = False
        for choice in parsed.get("choices") or ():
            index = choice.get("index", 0)
            delta = choice.get("delta") or {}
            self.texts[index] = self.texts.get(index, "") + (delta.get("content") or "")
            if choice.get("finish_reason") and (found := boxes_in(self.texts[index], self.size)):
                choice["delta"] = {**delta, "boxes": found}
                changed = True
        return orjson.dumps(parsed) if changed else data
