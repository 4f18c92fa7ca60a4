"""Call an ASGI app as a server would, without a server."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Scope

JSON = (b"content-type", b"application/json")


@dataclass
class Answer:
    """What an app sent."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    ended: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def error(self) -> dict[str, Any]:
        """The OpenAI-style error object."""
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    def header(self, name: bytes) -> bytes | None:
        found = [value for key, value in self.headers if key == name]
        assert len(found) <= 1
        return found[0] if found else None


def scope_of(
    method: str = "POST", path: str = "/v1/chat/completions", *headers: tuple[bytes, bytes], **more: Any
) -> Scope:
    """A scope as uvicorn makes one."""
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": list(headers),
        **more,
    }


async def call(
    app: ASGIApp,
    scope: Scope | None = None,
    body: bytes | list[Any] | dict[str, Any] = b"",
    leave: asyncio.Event | None = None,
) -> Answer:
    """Run one request.

    Args:
        app: what to call.
        scope: by default a POST of JSON to chat completions.
        body: bytes, a JSON object, or a list of chunks: bytes, seconds to wait, or None for a client that leaves.
        leave: set when the client leaves after its body was sent.
    """
    answer = Answer()
    pieces: list[Any] = (
        [json.dumps(body).encode()] if isinstance(body, dict) else [body] if isinstance(body, bytes) else list(body)
    )

    async def receive() -> Message:
        if pieces and isinstance(pieces[0], float):
            await asyncio.sleep(pieces.pop(0))
        if pieces:
            piece = pieces.pop(0)
            if piece is None:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": piece, "more_body": bool(pieces)}
        await (leave or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            assert not answer.status, "two answers"
            answer.status, answer.headers = message["status"], list(message["headers"])
        else:
            assert message["type"] == "http.response.body" and answer.status and not answer.ended
            answer.chunks.append(message.get("body", b""))
            answer.ended = not message.get("more_body", False)

    async with asyncio.timeout(20):
        await app(scope if scope is not None else scope_of("POST", "/v1/chat/completions", JSON), receive, send)
    return answer
