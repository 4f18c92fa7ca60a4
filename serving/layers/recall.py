"""Was it answered before: an exact cache and, for requests that run at the same time, one generation for all.

`x-fovea-cache` of an answer says `hit` (with `age`, seconds), `semantic` (a hit in other words, with
`x-fovea-similarity`), `coalesced`, `miss` or `bypass`.  A hit needs no pixel to be decoded when the same file was seen
before.  Clients steer with `Cache-Control` (no-store, no-cache, max-age, only-if-cached), `x-fovea-cache: sampled` or
`exact`, and `x-fovea-cache-tags: a,b`.  An `Idempotency-Key` makes a retry safe: it gets the first
answer, whatever it was, or joins the generation that runs.  Operators purge with `POST /fovea/cache/purge
{"all": true}` or `{"tenant" | "model" | "version" | "tag": NAME}`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from models.support.errors import UsageError
from serving.errors import ApiError, StoreDown
from serving.exchange import FORMS, Exchange, api_path, content_type, exchange_of
from serving.facts import FACTS
from serving.metrics import METRICS
from serving.recall.flight import Flight, left
from serving.recall.key import KEPT, Control, control_of, is_whole, key_of, may_be_kept, retry_key
from serving.recall.semantic import POINTER, Question, Semantic
from serving.recall.store import Answers, Entry
from serving.recall.version import version_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from serving.stack import Model, Stack

logger = logging.getLogger("fovea.serving")
PURGE = "/fovea/cache/purge"
SCOPES = ("tenant", "model", "version", "tag")


class Recall:
    """See the module's docstring."""

    def __init__(self, app: ASGIApp, stack: Stack, model: Model):
        assert stack.recall is not None
        self.app, self.section, self.model = app, stack.recall, model
        self.local = stack.listen.local
        self.answers = Answers(stack.recall)
        self.flights: dict[bytes, Flight] = {}
        self.versions: dict[str, str] = {}
        """By adapter; the model's own at the empty name."""
        self.semantic: Semantic | None = None
        self.writes: set[asyncio.Task[None]] = set()
        self.count = METRICS.recalled if stack.metrics else None

    async def start(self) -> None:
        """Find out which model it is, load the embedding model if there is one, and reach the store once.

        Raises:
            UsageError: the store cannot be reached, and `on_failure` is `refuse`; there is no such embedding model.
        """
        self.versions[""] = await asyncio.to_thread(version_of, self.model)
        for adapter in self.model.adapters:
            self.versions[adapter.name] = await asyncio.to_thread(version_of, self.model, adapter)
        if self.section.semantic is not None:
            self.semantic = await asyncio.to_thread(Semantic, self.section.semantic)
        try:
            await self.answers.refresh()
        except StoreDown as error:
            if self.section.on_failure == "refuse":
                fix = "start the store, or set `on_failure: open`"
                raise UsageError(f"cannot reach the kept answers: {error}", field="recall.store", fix=fix) from error
            self.answers.down(error)

    async def stop(self) -> None:
        """Write what is not written yet and close the store."""
        await asyncio.gather(*self.writes, return_exceptions=True)
        if self.semantic is not None:
            self.semantic.close()
        await self.answers.shelf.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or "fovea.canary" in scope:
            await self._pass(scope, receive, send)
            return
        path = api_path(scope)
        if path == PURGE:
            await self._purge(exchange_of(scope), send)
            return
        exchange = exchange_of(scope)
        if path not in KEPT or not exchange.body or content_type(scope) in FORMS:
            await self._pass(scope, receive, send)
            return
        control = control_of(scope)
        sampled = self.section.sampled or control.sampled or bool(control.retry)
        if control.no_store or not may_be_kept(exchange.json(), path, sampled, FACTS.temperature):
            self._counted("bypass")
            await self._pass(scope, receive, _marked(send, b"bypass"))
            return
        name, version = exchange.adapter or self.model.name, self.versions[exchange.adapter]
        key, request = key_of(exchange, path, name, version), ""
        if control.retry:
            key, request = retry_key(exchange, path, self.model.name, control.retry), key.hex()
        if not control.no_cache and await self._recall(key, request, control, exchange, send):
            return
        question = None
        if self.semantic is not None and not control.retry and not control.exact:
            question = self.semantic.question(exchange, path, name, version)
            if (
                question is not None
                and not control.no_cache
                and await self._in_other_words(question, control, exchange, send)
            ):
                return
        if control.only_cached:
            raise ApiError(504, "There is no kept answer, and the request allows no other.", kind="not_cached")
        await self._generate(key, request, control, path, question, scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            await exchange_of(scope).decode()
        await self.app(scope, receive, send)

    async def _recall(self, key: bytes, request: str, control: Control, exchange: Exchange, send: Send) -> bool:
        entry = await self.answers.get(key)
        if entry is None:
            return False
        _same(entry.request, request)
        return await self._give(entry, control, exchange, send, [(b"x-fovea-cache", b"hit")])

    async def _in_other_words(self, question: Question, control: Control, exchange: Exchange, send: Send) -> bool:
        assert self.semantic is not None
        found = await self.semantic.find(question, self.answers)
        if found is None:
            return False
        entry, near = found
        headers = [(b"x-fovea-cache", b"semantic"), (b"x-fovea-similarity", f"{near:.3f}".encode())]
        return await self._give(entry, control, exchange, send, headers)

    async def _give(
        self, entry: Entry, control: Control, exchange: Exchange, send: Send, headers: list[tuple[bytes, bytes]]
    ) -> bool:
        """Send a kept answer, unless it is older than the request allows."""
        age = max(0, int(time.time() - entry.created))
        if control.max_age is not None and age > control.max_age:
            return False
        exchange.notes["recalled"] = True
        exchange.image_tokens = entry.image_tokens
        self._counted("semantic" if headers[0][1] == b"semantic" else "hit")
        headers = [(b"content-type", entry.content_type), *headers, (b"age", str(age).encode())]
        if entry.content_type.startswith(b"text/event-stream"):
            headers.append((b"cache-control", b"no-cache"))
        else:
            headers.append((b"content-length", str(len(entry.body)).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": entry.body})
        return True

    async def _generate(
        self,
        key: bytes,
        request: str,
        control: Control,
        path: str,
        question: Question | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        exchange = exchange_of(scope)
        join = (self.section.coalesce or request) and not control.no_cache
        flight = self.flights.get(key) if join else None
        if flight is not None and flight.open:
            _same(flight.request, request)
            exchange.notes["recalled"] = True
            state = b"coalesced"
        else:
            names = ["all", f"tenant:{exchange.tenant}", f"version:{self.versions[exchange.adapter]}"]
            # to forget a model is to forget its adapters' answers too
            names += [f"model:{name}" for name in dict.fromkeys((self.model.name, exchange.adapter or self.model.name))]
            scopes = self.answers.scopes((*names, *(f"tag:{tag}" for tag in control.tags)))
            flight = self.flights[key] = Flight(
                exchange, lambda done: self._ended(key, path, question, scopes, done), request
            )
            await flight.begin(self.app, scope)
            state = b"miss"
        self._counted(state.decode())
        await receive()  # the body, which the exchange has
        watch = asyncio.create_task(left(receive))
        try:
            await flight.pass_on(_marked(send, state), exchange, watch)
        finally:
            watch.cancel()

    def _ended(self, key: bytes, path: str, question: Question | None, scopes: dict[str, int], flight: Flight) -> None:
        """Keep what a generation said, if it is one to keep."""
        if self.flights.get(key) is flight:
            del self.flights[key]
        body = b"".join(flight.pieces)
        if flight.status != 200 or flight.error or flight.exchange.error_kind or len(body) > self.section.entry_bytes:
            return
        if flight.complete and (is_whole(path, flight.content_type, body) or (flight.request and _no_error(body))):
            tokens = flight.exchange.image_tokens
            entry = Entry(flight.content_type, body, time.time(), scopes, tokens, flight.request)
            self._write(key, entry)
            if question is not None:
                self._write(question.key, replace(entry, content_type=POINTER, body=question.pointer(key)))

    def _write(self, key: bytes, entry: Entry) -> None:
        task = asyncio.create_task(self.answers.put(key, entry))
        self.writes.add(task)
        task.add_done_callback(self.writes.discard)

    async def _purge(self, exchange: Exchange, send: Send) -> None:
        if exchange.identity is None and not self.local:
            raise ApiError(403, "This needs a key of a role that may operate.", kind="role_not_allowed")
        if self.section.store == "memory" and max(FACTS.replicas, self.model.replicas) > 1:
            text = (
                "Each replica keeps its own answers here; name a file or a server as `recall.store` to purge them all."
            )
            raise ApiError(409, text, kind="not_shared")
        asked = exchange.json()
        scopes = [f"{name}:{asked[name]}" for name in SCOPES if isinstance(asked.get(name), str)]
        if asked.get("all") is True:
            scopes.append("all")
        if not scopes or len(scopes) != len(asked):
            text = 'Write {"all": true}, or names: {"tenant" | "model" | "version" | "tag": NAME}.'
            raise ApiError(400, text, kind="bad_field")
        try:
            for name in scopes:
                await self.answers.purge(name)
        except StoreDown as error:
            raise ApiError(503, "The kept answers cannot be reached.", kind="store_down", retry_after=1) from error
        body = orjson.dumps({"purged": scopes})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _counted(self, result: str) -> None:
        if self.count is not None:
            self.count.labels(self.model.name, result).inc()


def _no_error(body: bytes) -> bool:
    """Whether a stream ended without an error in it: that is to be tried again."""
    return b'data: {"error"' not in body and b"event: error" not in body


def _same(known: str, request: str) -> None:
    """Refuse an `Idempotency-Key` that was another request's.

    Raises:
        ApiError: 422.
    """
    if known != request:
        text = "This Idempotency-Key was sent with another request. Take a new one for each."
        raise ApiError(422, text, kind="idempotency_key_reused")


def _marked(send: Send, state: bytes) -> Send:
    """Return a `send` that adds the header that says where the answer is from."""

    async def marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: list[Any] = [*message.get("headers", ()), (b"x-fovea-cache", state)]
            message = {**message, "headers": headers}
        await send(message)

    return marked
