"""`/v1` of a stack with several models: forwards each request to its model's own application by the `model` field.

CPU only.  Bodies and streams are passed on as they come; a client that leaves ends the forwarded request, which aborts
the generation.  `GET /v1/models` lists all models; `/health`, `/ready` and `/metrics` speak for the whole stack.  A
request for a stored response (`/v1/responses/ID`) names no model: it goes to one after the other until one knows it.
Models come and go while it runs (`reconfigure`).
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson

from serving.affinity import HEADER, image_of
from serving.autoscale import stats
from serving.errors import ApiError
from serving.exchange import FORMS, content_type, exchange_of
from serving.layers.admit import Admit
from serving.layers.identify import KEY_HEADERS
from serving.layers.record import Record
from serving.middleware import Straight
from serving.parts import FRONT, front_part, version_of
from serving.stack import Stack
from serving.tracing import Tracing

if TYPE_CHECKING:
    import aiohttp
    from starlette.types import ASGIApp, Receive, Scope, Send

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"host",
        b"content-length",
        b"expect",
        b"proxy-authorization",
        b"proxy-connection",
    )
)

STORED = re.compile(r"/v1/responses/[^/]+(/cancel|/input_items)?")
MODEL = re.compile(r"/v1/models/(.+)")
NOT_HERE = (401, 403, 404)
AUTOMATIC = ("accept", "accept-encoding", "content-type", "user-agent")
"""Headers that aiohttp would add where the client sent none."""


class Front:
    """The front's deployment.

    Args:
        stack: the stack file as plain data.
    """

    def __init__(self, stack: dict[str, Any]):
        self.stack = Stack.model_validate(stack)
        self.forward = Forward(self.stack, {})
        self.tracing: Tracing | None = None

    def reconfigure(self, told: dict[str, Any]) -> None:
        """Learn which models and adapters there are (called by Ray Serve at the start and when that changes)."""
        self.forward.prefixes = dict(told.get("models", {}))
        self.forward.adapters = dict(told.get("adapters", {}))

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        own = self.stack.models[0]
        traces = self.stack.traces
        self.tracing = Tracing(traces, FRONT) if traces else None
        forward = self.tracing.layer(self.forward, "forward") if self.tracing else self.forward
        app: ASGIApp = Record(Admit(forward, self.stack, own), self.stack, own)
        Straight.target = self.tracing.entry(app) if self.tracing else app
        return Straight.target

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what Ray Serve scales by (called by it where the number of replicas is not fixed)."""
        return stats()

    async def drain(self) -> int:
        """Refuse new requests from now on and return how many are still running."""
        Admit.gate.draining = True
        return Admit.gate.inside

    async def stop(self) -> None:
        """Close what is open."""
        if self.forward.session is not None:
            await self.forward.session.close()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.provider.shutdown)


class Deployed(Front):
    """What Ray Serve is given: it stops an object by awaiting its `__del__`, which Python itself calls and forgets."""

    async def __del__(self) -> None:
        await self.stop()


class Forward:
    """The ASGI app that forwards.

    Args:
        stack: address of the whole stack.
        prefixes: model -> its route prefix.
        adapters: adapter -> the route prefix of its model.
    """

    def __init__(self, stack: Stack, prefixes: dict[str, str], adapters: dict[str, str] | None = None):
        self.stack, self.prefixes, self.adapters = stack, prefixes, adapters or {}
        host = f"[{stack.listen.host}]" if ":" in stack.listen.host else stack.listen.host
        self.base = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{stack.listen.port}"
        self.session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008, "reason": "Only HTTP is served here."})
            return
        if self.session is None:
            import aiohttp

            self.session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None, connect=10),
                auto_decompress=False,
            )
        path = scope["path"]
        if path in ("/health", "/ready"):
            await self._probe(path, send)
        elif path == "/metrics" and self.prefixes:
            await self._pipe("GET", [next(iter(self.prefixes.values())) + path], scope, None, receive, send)
        elif path == "/v1/models":
            await self._models(scope, send)
        else:
            prefixes = self._prefixes_of(scope)
            # as the client wrote it: decoding and encoding again could make another path of it
            raw = scope.get("raw_path") or quote(path).encode()
            query = b"?" + scope["query_string"] if scope["query_string"] else b""
            rest = (raw.partition(b"?")[0] + query).decode("latin-1")
            body = exchange_of(scope).body
            await self._pipe(scope["method"], [prefix + rest for prefix in prefixes], scope, body, receive, send)

    def _prefixes_of(self, scope: Scope) -> list[str]:
        """Return where a request is to be sent: to its model, or to all of them in turn.

        Raises:
            ApiError: 400, no `model`; 404, an unknown one.
        """
        exchange = exchange_of(scope)
        named = MODEL.fullmatch(scope["path"])
        if STORED.fullmatch(scope["path"]) and self.prefixes:
            return list(self.prefixes.values())
        name = named[1] if named else exchange.json().get("model") if exchange.body else None
        served = self.prefixes | self.adapters
        known = ", ".join(served)
        if not isinstance(name, str):
            raise ApiError(
                400, f"Say which model the request is for; this stack serves {known}.", kind="no_model", param="model"
            )
        if name not in served:
            raise ApiError(
                404, f"This stack does not serve {name[:80]!r}; it serves {known}.", kind="unknown_model", param="model"
            )
        return [served[name]]

    async def _pipe(
        self, method: str, paths: list[str], scope: Scope, body: bytes | None, receive: Receive, send: Send
    ) -> None:
        assert self.session is not None
        drop = HOP_BY_HOP | {b"x-request-id"}
        headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in scope["headers"] if n not in drop]
        headers.append(("x-request-id", exchange_of(scope).request_id))  # one id on the whole way
        if self.stack.affinity and body and not any(name == HEADER for name, _ in scope["headers"]):
            image = image_of(exchange_of(scope).json()) if content_type(scope) not in FORMS else None
            if image is not None:
                headers.append((HEADER.decode(), image.decode()))
        if body is not None:
            await receive()  # the body, which the exchange has
        work = asyncio.create_task(self._forward(method, paths, headers, body, send))
        leave = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait((work, leave), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            else:
                exchange_of(scope).error_kind = "client_left"
        finally:
            leave.cancel()
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)

    async def _forward(
        self, method: str, paths: list[str], headers: list[tuple[str, str]], body: bytes | None, send: Send
    ) -> None:
        """Pass on the first answer that is no refusal, or the last one."""
        import aiohttp
        from yarl import URL

        assert self.session is not None
        started = False
        try:
            for number, path in enumerate(paths, 1):
                async with self.session.request(
                    method, URL(self.base + path, encoded=True), headers=headers, data=body, allow_redirects=False,
                    skip_auto_headers=AUTOMATIC,
                ) as answer:  # fmt: skip
                    if answer.status in NOT_HERE and number < len(paths):
                        continue
                    started = True
                    await _pass_on(answer, send)
                    return
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            if started:
                raise
            raise ApiError(
                503, "The model's application does not answer.", kind="model_unreachable", retry_after=1
            ) from error

    async def _models(self, scope: Scope, send: Send) -> None:
        """Answer with every model that the client may use; with the first refusal when it may use none."""
        headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in scope["headers"] if n in KEY_HEADERS]
        found = [await self._get(f"{prefix}/v1/models", headers) for prefix in self.prefixes.values()]
        data = [entry for status, body in found if status == 200 for entry in orjson.loads(body)["data"]]
        refusal = next(((status, body) for status, body in found if status in (401, 403)), None)
        if not data and refusal:
            await _json(send, refusal[0], _state(*refusal))
        else:
            await _json(send, 200, {"object": "list", "data": data})

    async def _probe(self, path: str, send: Send) -> None:
        found = await asyncio.gather(*(self._get(prefix + path) for prefix in self.prefixes.values()))
        answers = dict(zip(self.prefixes, found, strict=True))
        ok = all(status == 200 for status, _ in answers.values()) and not Admit.gate.draining
        states = {name: _state(status, body) for name, (status, body) in answers.items()}
        adapters = {"adapters": list(self.adapters)} if self.adapters else {}
        await _json(send, 200 if ok else 503, {"status": "ok" if ok else "not ready", "models": states, **adapters})

    async def _get(self, path: str, headers: list[tuple[str, str]] | None = None) -> tuple[int, bytes]:
        import aiohttp

        assert self.session is not None
        try:
            timeout = aiohttp.ClientTimeout(total=5)
            async with self.session.get(self.base + path, headers=headers, timeout=timeout) as answer:
                return answer.status, await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            return 0, type(error).__name__.encode()


def bind_front(stack: Stack, routes: dict[str, dict[str, str]]) -> Any:
    """Return the front's Ray Serve application; `routes` (`routes_of`) may change while it runs."""
    from ray import serve

    part = front_part(stack).model_dump(mode="json")
    options = {"num_cpus": 1}
    deployment: Any = serve.deployment(serve.ingress()(Deployed))
    return deployment.options(
        name=FRONT,
        version=version_of(part, options),
        user_config=routes,
        max_ongoing_requests=100_000,
        ray_actor_options=options,
        graceful_shutdown_timeout_s=stack.drain_s,
        _internal=True,
    ).bind(part)


async def _pass_on(answer: aiohttp.ClientResponse, send: Send) -> None:
    """Send an answer on, piece by piece."""
    drop = HOP_BY_HOP | {b"x-request-id"}
    kept = [(name.lower(), value) for name, value in answer.raw_headers if name.lower() not in drop]
    if answer.content_length is not None:
        kept.append((b"content-length", str(answer.content_length).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": kept})
    async for chunk in answer.content.iter_any():
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _state(status: int, body: bytes) -> object:
    """Return what a probe of a model said; HAProxy answers in HTML when there is no replica."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return {"status": f"no answer ({status})" if status else "no answer"}


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _json(send: Send, status: int, value: object) -> None:
    body = orjson.dumps(value)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
