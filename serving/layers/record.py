"""Outermost layer: request id, timing, metrics, and the last line of defence for errors.

Every answer carries `x-request-id`, and `x-model-version` (NAME@NUMBER) when the model comes from the registry.
Streams are passed through chunk by chunk.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from models.registry import read_mark
from serving.errors import ApiError
from serving.exchange import KEY, Exchange
from serving.metrics import METRICS, route_label

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from serving.stack import Model, Stack

logger = logging.getLogger("fovea.serving")
_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Record:
    """See the module's docstring."""

    def __init__(self, app: ASGIApp, stack: Stack, model: Model):
        self.app = app
        self.metrics = {name: METRICS.for_model(name) for name in model.names} if stack.metrics else None
        self.model = model.name
        mark = read_mark(Path(model.source).expanduser())  # runtime.py has put the version's folder there
        self.version = [(b"x-model-version", f"{mark['name']}@{mark['version']}".encode())] if mark else []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # nothing to time; the layer behind decides
            await self.app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = given.decode() if _ID.fullmatch(given) else uuid.uuid4().hex
        exchange = scope[KEY] = Exchange(request_id)
        status = 0
        first = 0.0

        async def timed(message: Message) -> None:
            nonlocal status, first
            if message["type"] == "http.response.start":
                status = message["status"]
                kept = [header for header in message.get("headers", ()) if header[0] != b"x-request-id"]
                message["headers"] = [*kept, (b"x-request-id", request_id.encode()), *self.version]
            elif not first and message.get("body"):
                first = time.perf_counter()
            await send(message)

        try:
            await self.app(scope, receive, timed)
        except ApiError as error:
            exchange.error_kind = error.kind
            if status:
                raise
            await error.send(timed)
        except Exception:
            exchange.error_kind = "internal"
            logger.exception("request %s failed", request_id)
            if status:
                raise
            await ApiError(500, f"Internal error; quote request {request_id}.", kind="internal").send(timed)
        finally:
            if self.metrics is not None:
                self.metrics[exchange.adapter or self.model].observe(
                    exchange, route_label(scope["path"]), status, first
                )
