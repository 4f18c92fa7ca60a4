"""Ray Serve's own hook in front of every replica: requests go straight to the replica's app.

Ray's listener wraps each request in bookkeeping of its own (a task that reads ahead, a queue, context variables,
metrics, an access log).  Our layers do what of that is needed: ids, timing, limits, disconnects, draining.  Ray's
probes (`/-/...`) still go Ray's way.  docs/benchmarks.md has what this saves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.middleware import Middleware

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Straight:
    """Outermost ASGI layer of a replica's listener."""

    target: ASGIApp | None = None
    """The app of this process's replica; None where Ray's own way is to be taken."""
    prefix = ""
    """The model's own route prefix, where the stack has a front; requests below it and others are both served."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        target = Straight.target
        if target is None or scope["type"] != "http" or scope["path"].startswith("/-/"):
            await self.app(scope, receive, _one_id(send))
            return
        if Straight.prefix and scope["path"].startswith(f"{Straight.prefix}/"):
            scope["root_path"] = Straight.prefix
        await target(scope, receive, send)


def _one_id(send: Send) -> Send:
    """Return a `send` that leaves one `x-request-id`: on its own way Ray adds a copy to an answer that has it."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            seen, kept = False, []
            for header in message.get("headers", ()):
                is_id = bytes(header[0]).lower() == b"x-request-id"
                if not (is_id and seen):
                    kept.append(header)
                seen |= is_id
            message = {**message, "headers": kept}
        await send(message)

    return sending


def straight() -> list[Middleware]:
    """Return the middleware for Ray's `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`."""
    return [Middleware(Straight)]
