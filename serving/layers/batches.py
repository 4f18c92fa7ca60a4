"""`/v1/files` and `/v1/batches`, OpenAI's: uploads, states, cancelling, results.  Everything else goes by.

Behind `identify`: a tenant sees its own files and batches only.  In front of `admit`: an upload is written to disk as
it comes, it is never a body in memory.
"""

from __future__ import annotations

import re
import time
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import orjson

from models.support.errors import UsageError
from serving.batches.runner import Runner
from serving.batches.store import DAY_S, Batch, File, Store, new_id
from serving.errors import ApiError
from serving.exchange import Exchange, api_path, exchange_of
from serving.layers.admit import Admit
from serving.layers.identify import Identity

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from serving.stack import Model, Stack

ROUTE = re.compile(r"/v1/(files|batches)(?:/([A-Za-z0-9_-]{1,80})(?:/(content|cancel))?)?")
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
CHUNK = 2**18
SHORTEST_S, LONGEST_S = 3600, 2_592_000
"""Life of a file that a client may ask for: OpenAI's bounds."""


class BatchesApi:
    """See the module's docstring."""

    def __init__(self, app: ASGIApp, stack: Stack, model: Model):
        assert stack.batches is not None
        self.app, self.section, self.model, self.names = app, stack.batches, model.name, model.names
        self.tenants = {tenant.name: tenant for tenant in stack.identify.tenants} if stack.identify else None
        self.runner = Runner(app, stack.batches, model.name, self._identity)

    async def start(self) -> None:
        """Open the folder and take up what is to be run.

        Raises:
            UsageError: the folder cannot be used.
        """
        try:
            await self.runner.start()
        except Exception as error:  # OSError, sqlite3.Error
            raise UsageError(
                f"cannot use the folder: {error}",
                field="batches.folder",
                fix="name a folder that this user may write to",
            ) from error

    async def stop(self) -> None:
        """End the running lines; another replica or the next start goes on."""
        await self.runner.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match = ROUTE.fullmatch(api_path(scope)) if scope["type"] == "http" else None
        if match is None:
            await self.app(scope, receive, send)
            return
        kind, name, action = match.groups()
        method, exchange = scope["method"], exchange_of(scope)
        if method == "POST" and Admit.gate.draining:
            raise ApiError(503, "The server is stopping. Try again in 1 s.", kind="draining", retry_after=1)
        work = ROUTES.get((method, kind, bool(name), action))
        if work is None:
            raise ApiError(404, f"There is no {method} here.", kind="not_found")
        value = await work(self, scope, receive, send, exchange, name)
        if value is not None:
            await _json(send, value)

    def _identity(self, batch: Batch) -> Identity | None:
        if self.tenants is None:
            return None
        tenant = self.tenants.get(batch.tenant)
        if tenant is None or (tenant.models is not None and not set(self.names) & set(tenant.models)):
            raise LookupError(f"tenant {batch.tenant!r} may not use this model any more")
        return Identity(tenant, batch.key_id, batch.role, "batch")

    @property
    def store(self) -> Store:
        """The open store."""
        assert self.runner.store is not None
        return self.runner.store

    # files

    async def upload(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange, name: None) -> Any:
        """POST /v1/files."""
        from starlette.exceptions import HTTPException
        from starlette.formparsers import MultiPartException
        from starlette.requests import Request

        if await self.runner.call(lambda: self.store.used(exchange.tenant)) >= self.section.tenant_bytes:
            text = f"The files have {self.section.tenant_bytes} bytes or more, the limit. Delete some."
            raise ApiError(413, text, kind="too_many_files")
        request = Request(scope, self._bounded(receive))
        try:
            async with request.form(max_files=1, max_fields=8) as form:
                upload, purpose = form.get("file"), form.get("purpose")
                if upload is None or isinstance(upload, str):
                    raise ApiError(400, "Send the file as the form's part `file`.", kind="bad_form", param="file")
                if purpose != "batch":
                    raise ApiError(400, "Only files of purpose `batch` are kept.", kind="bad_form", param="purpose")
                after = {"anchor": form.get("expires_after[anchor]"), "seconds": form.get("expires_after[seconds]")}
                life, now = self._life(after if any(after.values()) else None, "expires_after"), time.time()
                ends = None if life is None else now + life
                file = File(new_id("file-"), exchange.tenant, (upload.filename or "")[:200], "batch", 0, now, ends)
                path = self.store.path(file.id)
                try:
                    target = await self.runner.call(lambda: path.open("wb"))
                    try:
                        while chunk := await upload.read(CHUNK):
                            file.bytes += await self.runner.call(partial(target.write, chunk))
                    finally:
                        await self.runner.call(target.close)
                    await self.runner.call(lambda: self.store.add_file(file))
                except BaseException:
                    path.unlink(missing_ok=True)
                    raise
        except (HTTPException, MultiPartException) as error:
            why = getattr(error, "detail", None) or getattr(error, "message", "")
            raise ApiError(400, f"The form is wrong: {why}", kind="bad_form") from error
        except OSError as error:
            raise ApiError(503, f"The file cannot be kept: {error.strerror}.", kind="storage_full") from error
        return file.public()

    def _life(self, asked: Any, param: str) -> float | None:
        """Return how long a file is kept, seconds, None for ever.

        Raises:
            ApiError: 400, what the client wrote is not understood.
        """
        if asked is None:
            return None if self.section.file_days is None else self.section.file_days * 86_400
        seconds = asked.get("seconds") if isinstance(asked, dict) else None
        if isinstance(seconds, str) and seconds.isascii() and seconds.isdigit():
            seconds = int(seconds[:12])
        whole = seconds if isinstance(seconds, int) and not isinstance(seconds, bool) else 0
        if SHORTEST_S <= whole <= LONGEST_S and asked.get("anchor") == "created_at":
            return float(whole)
        text = f'{param} must be {{"anchor": "created_at", "seconds": {SHORTEST_S} to {LONGEST_S}}}.'
        raise ApiError(400, text, kind="bad_field", param=param)

    def _bounded(self, receive: Receive) -> Receive:
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.section.file_bytes + 4096:
                raise ApiError(
                    413, f"The file has more than {self.section.file_bytes} bytes, the limit.", kind="file_too_large"
                )
            return message

        return counted

    async def list_files(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange, name: None) -> Any:
        """GET /v1/files."""
        after, limit = page_of(scope, 10_000)
        found = await self.runner.call(lambda: self.store.files(exchange.tenant, after, limit + 1))
        return _page([file.public() for file in found], limit)

    async def get_file(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange, name: str) -> Any:
        """GET /v1/files/ID."""
        return (await self._file(name, exchange)).public()

    async def delete_file(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange, name: str) -> Any:
        """DELETE /v1/files/ID."""
        file = await self._file(name, exchange)
        await self.runner.call(lambda: self.store.drop_file(file.id))
        return {"id": file.id, "object": "file", "deleted": True}

    async def content(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange, name: str) -> None:
        """GET /v1/files/ID/content, in pieces."""
        file = await self._file(name, exchange)
        try:
            source = await self.runner.call(self.store.path(file.id).open("rb").__enter__)
        except OSError as error:
            raise ApiError(404, f"There is no file {name!r}.", kind="not_found") from error
        try:
            headers = [(b"content-type", b"application/jsonl"), (b"content-length", str(file.bytes).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while piece := await self.runner.call(lambda: source.read(CHUNK)):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            source.close()

    async def _file(self, name: str, exchange: Exchange) -> File:
        file = await self.runner.call(lambda: self.store.file(name, exchange.tenant))
        if file is None:
            raise ApiError(404, f"There is no file {name!r}.", kind="not_found")
        return file

    # batches

    async def create(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange, name: None) -> Any:
        """POST /v1/batches."""
        exchange.body = await _body(receive)
        asked = exchange.json()
        endpoint, window, metadata = asked.get("endpoint"), asked.get("completion_window"), asked.get("metadata") or {}
        if endpoint not in ENDPOINTS:
            raise ApiError(400, f"endpoint must be one of {', '.join(ENDPOINTS)}.", kind="bad_field", param="endpoint")
        if window != "24h":
            raise ApiError(400, "completion_window must be `24h`.", kind="bad_field", param="completion_window")
        if (
            not isinstance(metadata, dict)
            or len(metadata) > 16
            or not all(isinstance(v, str) for v in metadata.values())
        ):
            raise ApiError(400, "metadata must be at most 16 texts.", kind="bad_field", param="metadata")
        life = self._life(asked.get("output_expires_after"), "output_expires_after")
        file = await self._file(str(asked.get("input_file_id")), exchange)
        total = await self.runner.call(lambda: count_lines(self.store, file))
        if not 0 < total <= self.section.lines:
            text = f"The file has {total} lines; a batch has 1 to {self.section.lines}."
            raise ApiError(400, text, kind="bad_field", param="input_file_id")
        now, identity = time.time(), exchange.identity
        role, key_id = (identity.role, identity.key_id) if identity else ("", "")
        batch = Batch(
            new_id("batch_"), exchange.tenant, self.model, endpoint, file.id, "in_progress", now, now + DAY_S, role,
            key_id, metadata, total, {"in_progress": now}, output_s=life,
        )  # fmt: skip
        await self.runner.call(lambda: self.store.add(batch))
        return batch.public(0, 0)

    async def list_batches(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange, name: None) -> Any:
        """GET /v1/batches."""
        after, limit = page_of(scope, 100)
        found = await self.runner.call(lambda: self.store.batches(exchange.tenant, after, limit + 1))
        return _page([await self._public(batch) for batch in found], limit)

    async def get_batch(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange, name: str) -> Any:
        """GET /v1/batches/ID."""
        return await self._public(await self._batch(name, exchange))

    async def cancel(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange, name: str) -> Any:
        """POST /v1/batches/ID/cancel."""
        batch = await self._batch(name, exchange)
        if batch.status not in ("in_progress", "cancelling"):
            raise ApiError(409, f"The batch is {batch.status}; it cannot be cancelled.", kind="not_cancellable")
        await self.runner.call(lambda: self.store.cancel(batch.id))
        return await self._public(await self._batch(name, exchange))

    async def _batch(self, name: str, exchange: Exchange) -> Batch:
        batch = await self.runner.call(lambda: self.store.batch(name, exchange.tenant))
        if batch is None:
            raise ApiError(404, f"There is no batch {name!r}.", kind="not_found")
        return batch

    async def _public(self, batch: Batch) -> dict[str, Any]:
        return batch.public(*await self.runner.call(lambda: self.store.counts(batch.id)))


ROUTES: dict[tuple[str, str, bool, str | None], Any] = {
    ("POST", "files", False, None): BatchesApi.upload,
    ("GET", "files", False, None): BatchesApi.list_files,
    ("GET", "files", True, None): BatchesApi.get_file,
    ("DELETE", "files", True, None): BatchesApi.delete_file,
    ("GET", "files", True, "content"): BatchesApi.content,
    ("POST", "batches", False, None): BatchesApi.create,
    ("GET", "batches", False, None): BatchesApi.list_batches,
    ("GET", "batches", True, None): BatchesApi.get_batch,
    ("POST", "batches", True, "cancel"): BatchesApi.cancel,
}


def count_lines(store: Store, file: File) -> int:
    """Return the lines of a file that are not empty."""
    count, filled = 0, False
    with store.path(file.id).open("rb") as source:
        while piece := source.read(CHUNK):
            first, *rest = piece.split(b"\n")
            filled = filled or bool(first.strip())
            for part in rest:
                count, filled = count + filled, bool(part.strip())
    return count + filled


def page_of(scope: Scope, most: int) -> tuple[str | None, int]:
    """Return (after, limit) of a list's query."""
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    limit = query.get("limit", ["20"])[0]
    if not limit.isdigit() or not 1 <= int(limit[:9]) <= most:
        raise ApiError(400, f"limit must be 1 to {most}.", kind="bad_field", param="limit")
    return query.get("after", [None])[0], int(limit)


def _page(data: list[Any], limit: int) -> dict[str, Any]:
    shown = data[:limit]
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
    return {"object": "list", "data": shown, "has_more": len(data) > limit, **ends}


async def _body(receive: Receive) -> bytes:
    pieces, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(499, "The client closed the connection.", kind="client_left")
        pieces.append(message.get("body", b""))
        size, more = size + len(pieces[-1]), message.get("more_body", False)
        if size > 2**20:
            raise ApiError(413, "The body has more than 1048576 bytes, the limit.", kind="body_too_large")
    return b"".join(pieces)


async def _json(send: Send, value: object) -> None:
    body = orjson.dumps(value)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
