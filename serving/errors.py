"""Errors as the OpenAI API sends them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from starlette.types import Send

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


class StoreDown(Exception):
    """A store (keys, counters, cache) cannot be reached or read."""


class ApiError(Exception):
    """An error that the client is told about.

    Args:
        status: HTTP status.
        message: one or two sentences for the client.
        kind: a word for metrics and the `code` field; from a fixed set, never from the client's input.
        param: the path of the part at fault, for example `messages[0].content[1].image_url.url`.
        retry_after: seconds for the Retry-After header.
        headers: more headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str,
        param: str | None = None,
        retry_after: int | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ):
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.retry_after = status, message, kind, param, retry_after
        self.headers = headers

    def body(self) -> bytes:
        """Return the OpenAI-style error object as JSON."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return orjson.dumps({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.kind}})

    async def send(self, send: Send) -> None:
        """Send the error as a whole response."""
        body = self.body()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *self.headers]
        if self.retry_after is not None:
            headers.append((b"retry-after", str(self.retry_after).encode()))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
