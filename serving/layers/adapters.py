"""Which adapter a request is for, and whether its tenant may use it: the first layer that knows the body's `model`.

`identify` has let a tenant in that may use the model or any of its adapters; here it is told which.  What names no
adapter is the model's own.  A form (an upload of audio) is not read here: who sends one must be allowed all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from serving.errors import ApiError
from serving.exchange import FORMS, Exchange, api_path, content_type, exchange_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from serving.stack import Model, Stack

LIST = "/v1/models"


class Choose:
    """See the module's docstring."""

    def __init__(self, app: ASGIApp, stack: Stack, model: Model):
        self.app, self.names = app, model.names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "fovea.canary" not in scope:
            exchange, path = exchange_of(scope), api_path(scope)
            if exchange.body and not path.startswith("/fovea/"):  # a purge may name a model too
                self._choose(exchange, form=content_type(scope) in FORMS)
            elif path.startswith(f"{LIST}/"):
                self._allow(exchange, path.removeprefix(f"{LIST}/"))
            elif path == LIST and (allowed := allowed_to(exchange)) is not None:
                send = _only(send, allowed)
        await self.app(scope, receive, send)

    def _choose(self, exchange: Exchange, form: bool) -> None:
        """Note the adapter.

        Raises:
            ApiError: 403.
        """
        named = None if form else exchange.json().get("model")
        if isinstance(named, str) and named in self.names[1:]:
            exchange.adapter = named
        for name in self.names if form else [exchange.adapter or self.names[0]]:
            self._allow(exchange, name)

    def _allow(self, exchange: Exchange, name: str) -> None:
        allowed = allowed_to(exchange)
        if allowed is not None and name not in allowed:
            tenant = exchange.tenant
            raise ApiError(
                403, f"Tenant {tenant!r} may not use model {name[:80]!r}.", kind="model_not_allowed", param="model"
            )


def allowed_to(exchange: Exchange) -> list[str] | None:
    """Return the models that the tenant of a request may use; None: all."""
    return exchange.identity.tenant.models if exchange.identity else None


def _only(send: Send, allowed: list[str]) -> Send:
    """Return a `send` that leaves out of a list of models what is not in `allowed`."""
    start: Message = {}
    pieces: list[bytes] = []

    async def sending(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start":
            start = message
            return
        pieces.append(message.get("body", b""))
        if message.get("more_body"):
            return
        body = b"".join(pieces)
        if start["status"] == 200:
            found = orjson.loads(body)
            body = orjson.dumps(found | {"data": [one for one in found["data"] if one["id"] in allowed]})
            kept = [header for header in start["headers"] if header[0] != b"content-length"]
            start = {**start, "headers": [*kept, (b"content-length", str(len(body)).encode())]}
        await send(start)
        await send({"type": "http.response.body", "body": body})

    return sending
