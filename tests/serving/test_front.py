"""The front of a stack with several models: forwards by `model`, streams, passes a leaving client on."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from serving.front import Forward, Front
from serving.layers.admit import Admit
from serving.layers.record import Record
from serving.parts import front_part
from serving.stack import Model, Stack
from tests.serving.asgi import JSON, Answer, call, scope_of

ROUTES = {"a": "/a", "b": "/b"}
OWN = Model(name="front", source="front")


class Upstream:
    """Two models' applications behind one port, as HAProxy shows them."""

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.left = asyncio.Event()
        self.arrived = asyncio.Event()
        self.ready = 200
        self.knows: dict[str, str] = {}
        self.closed_to: tuple[str, ...] = ()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.bodies.append(await request.read())
        self.arrived.set()
        _, model, *rest = request.path.split("/")
        path = "/" + "/".join(rest)
        if path == "/v1/models" and model in self.closed_to and request.headers.get("authorization") != "Bearer k":
            return web.json_response({"error": {"code": "no_key"}}, status=401)
        if path == "/v1/models":
            return web.json_response({"object": "list", "data": [{"id": model}]})
        if path in ("/health", "/ready"):
            if self.ready == 502:
                return web.Response(status=503, text="<html>No server is available</html>")
            return web.json_response({"status": "ok" if self.ready == 200 else "not ready"}, status=self.ready)
        if path.startswith("/v1/responses/") and self.knows.get(path.split("/")[3]) != model:
            return web.json_response({"error": f"of {model}"}, status=404)
        if path == "/metrics":
            return web.Response(text="m 1\n")
        if path == "/v1/stream":
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            for piece in (b"data: 1\n\n", b"data: 2\n\n"):
                await response.write(piece)
                await asyncio.sleep(0.02)
            return response
        if path == "/v1/cut":
            response = web.StreamResponse(headers={"content-length": "100"})
            await response.prepare(request)
            await response.write(b"half")
            await asyncio.sleep(0.02)
            assert request.transport is not None
            request.transport.abort()
            return response
        if path == "/v1/slow":
            try:
                await asyncio.sleep(20)
            except asyncio.CancelledError:
                self.left.set()
                raise
        if path == "/v1/refuse":
            return web.json_response(
                {"error": "x"}, status=503, headers={"retry-after": "2", "x-request-id": "of the replica"}
            )
        return web.json_response({"model": model, "path": path})


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    upstream = Upstream()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", upstream.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    upstream.port = runner.addresses[0][1]
    yield upstream
    await runner.cleanup()


def stack(port: int) -> Stack:
    models = [{"name": name, "source": "x"} for name in ("a", "b")]
    return Stack.model_validate({"models": models, "listen": {"port": port}, "metrics": False})


@pytest.fixture
async def front(upstream: Upstream) -> AsyncIterator[Any]:
    forward = Forward(stack(upstream.port), ROUTES)
    yield Record(Admit(forward, forward.stack, OWN), forward.stack, OWN)
    if forward.session is not None:
        await forward.session.close()


async def ask(front: Any, body: Any, path: str = "/v1/chat/completions", **more: Any) -> Answer:
    return await call(front, scope_of("POST", path, JSON, (b"x-request-id", b"mine"), **more), body)


async def test_requests_go_to_their_model(front: Any, upstream: Upstream) -> None:
    for name in ("a", "b"):
        body: dict[str, Any] = {"model": name, "messages": [], "ä": "ö"}
        answer = await ask(front, body)
        assert json.loads(answer.body) == {"model": name, "path": "/v1/chat/completions"}
        assert json.loads(upstream.bodies[-1]) == body
    request = upstream.requests[-1]
    assert request.headers["content-type"] == "application/json" and request.headers["x-request-id"] == "mine"
    assert (
        answer.header(b"x-request-id") == b"mine" and answer.header(b"content-length") == str(len(answer.body)).encode()
    )


async def test_one_request_id_on_the_whole_way(front: Any, upstream: Upstream) -> None:
    answer = await call(front, scope_of("POST", "/v1/refuse", JSON), {"model": "a"})
    assert answer.header(b"x-request-id") == upstream.requests[-1].headers["x-request-id"].encode()


async def test_errors_of_the_replica_come_through(front: Any) -> None:
    answer = await ask(front, {"model": "a"}, "/v1/refuse")
    assert answer.status == 503 and answer.header(b"retry-after") == b"2" and answer.header(b"x-request-id") == b"mine"


async def test_hop_by_hop_headers_stay_here(front: Any, upstream: Upstream) -> None:
    headers = [
        (b"connection", b"close"),
        (b"te", b"trailers"),
        (b"expect", b"100-continue"),
        (b"host", b"evil"),
        (b"content-length", b"9999"),
    ]
    scope = scope_of("POST", "/v1/x", JSON, *headers, (b"accept", b"x/y"))
    assert (await call(front, scope, {"model": "a"})).status == 200
    found = upstream.requests[-1].headers
    assert "expect" not in found and "te" not in found and found["host"] != "evil" and found["accept"] == "x/y"
    assert "user-agent" not in found and "accept-encoding" not in found


@pytest.mark.parametrize(
    ("raw", "query", "seen"),
    [
        (b"/v1/x%2Fy", b"", "/a/v1/x%2Fy"),
        (b"/v1/x%3Fy", b"q=1", "/a/v1/x%3Fy?q=1"),
        (b"/v1/..%2f..%2fb/v1/x", b"", "/a/v1/..%2f..%2fb/v1/x"),
        (b"/v1/x", b"a=%20&b=%C3%A4", "/a/v1/x?a=%20&b=%C3%A4"),
        (b"/v1/../../b/v1/x", b"", "/a/v1/../../b/v1/x"),
        (b"//v1/x", b"", "/a//v1/x"),
    ],
)
async def test_paths_go_on_as_they_came(front: Any, upstream: Upstream, raw: bytes, query: bytes, seen: str) -> None:
    await ask(front, {"model": "a"}, "/v1/x", raw_path=raw, query_string=query)
    assert upstream.requests[-1].raw_path == seen


async def test_without_a_raw_path_the_path_is_quoted(front: Any, upstream: Upstream) -> None:
    await ask(front, {"model": "a"}, "/v1/ä ?", raw_path=None)
    assert upstream.requests[-1].raw_path == "/a/v1/%C3%A4%20%3F"


async def test_streams_come_piece_by_piece(front: Any) -> None:
    answer = await ask(front, {"model": "a"}, "/v1/stream")
    assert answer.body == b"data: 1\n\ndata: 2\n\n" and len([chunk for chunk in answer.chunks if chunk]) == 2
    assert answer.header(b"content-type") == b"text/event-stream" and answer.ended


async def test_a_client_that_leaves_ends_the_request_behind(front: Any, upstream: Upstream) -> None:
    leave = asyncio.Event()
    task = asyncio.create_task(call(front, scope_of("POST", "/v1/slow", JSON), {"model": "a"}, leave=leave))
    await upstream.arrived.wait()
    leave.set()
    assert (await task).status == 0
    async with asyncio.timeout(5):
        await upstream.left.wait()


async def test_a_replica_that_dies_in_the_middle_is_not_a_whole_answer(front: Any) -> None:
    with pytest.raises(Exception, match=r"payload|reset|closed|Connection"):
        await ask(front, {"model": "a"}, "/v1/cut")


@pytest.mark.parametrize("body", [{}, {"model": None}, {"model": 5}, {"model": ["a"]}, b""])
async def test_no_model(front: Any, upstream: Upstream, body: Any) -> None:
    answer = await ask(front, body)
    assert answer.status == 400 and answer.error["param"] == "model" and "a, b" in answer.error["message"]
    assert not upstream.requests


async def test_an_unknown_model(front: Any, upstream: Upstream) -> None:
    answer = await ask(front, {"model": "c" * 1000})
    assert answer.status == 404 and answer.error["code"] == "unknown_model" and len(answer.body) < 400
    assert not upstream.requests


async def test_what_is_no_json(front: Any) -> None:
    assert (await ask(front, b"\xff")).status == 400
    assert (await call(front, scope_of("GET", "/v1/other/x"))).status == 400


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/responses/resp_b"), ("POST", "/v1/responses/resp_b/cancel"), ("DELETE", "/v1/responses/resp_b")],
)
async def test_a_stored_response_is_found_at_whichever_model_has_it(
    front: Any, upstream: Upstream, method: str, path: str
) -> None:
    upstream.knows = {"resp_b": "b"}
    answer = await call(front, scope_of(method, path))
    assert answer.status == 200 and json.loads(answer.body) == {"model": "b", "path": path}
    assert [request.path for request in upstream.requests] == [f"/a{path}", f"/b{path}"]
    upstream.knows = {"resp_b": "nobody"}
    answer = await call(front, scope_of(method, path))
    assert answer.status == 404 and json.loads(answer.body) == {"error": "of b"}


async def test_a_model_is_asked_about_by_its_path(front: Any, upstream: Upstream) -> None:
    assert json.loads((await call(front, scope_of("GET", "/v1/models/b"))).body)["model"] == "b"
    assert (await call(front, scope_of("GET", "/v1/models/c"))).status == 404


async def test_models_come_and_go(upstream: Upstream) -> None:
    one = Front(front_part(stack(upstream.port)).model_dump(mode="json"))
    one.reconfigure({"models": {"a": "/a"}})
    app = await one.__serve_build_asgi_app__()
    assert (await ask(app, {"model": "b"})).status == 404
    one.reconfigure({"models": ROUTES})
    assert json.loads((await ask(app, {"model": "b"})).body)["model"] == "b"
    one.reconfigure({})
    assert (await ask(app, {"model": "a"})).error["code"] == "unknown_model"
    assert (await call(app, scope_of("GET", "/metrics"))).status == 400
    await one.stop()


async def test_nobody_behind() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        forward = Forward(stack(probe.getsockname()[1]), ROUTES)
        front = Record(Admit(forward, forward.stack, OWN), forward.stack, OWN)
        answer = await ask(front, {"model": "a"})
        assert (
            answer.status == 503
            and answer.header(b"retry-after") == b"1"
            and answer.error["code"] == "model_unreachable"
        )
        answer = await call(front, scope_of("GET", "/health"))
        assert answer.status == 503 and json.loads(answer.body)["models"]["a"] == {"status": "no answer"}
        assert json.loads((await call(front, scope_of("GET", "/v1/models"))).body) == {"object": "list", "data": []}
    assert forward.session is not None
    await forward.session.close()


async def test_the_front_lists_all_models_and_speaks_for_all(front: Any, upstream: Upstream) -> None:
    listed = json.loads((await call(front, scope_of("GET", "/v1/models"))).body)
    assert [entry["id"] for entry in listed["data"]] == ["a", "b"]
    for probe in ("/health", "/ready"):
        answer = await call(front, scope_of("GET", probe))
        assert answer.status == 200 and set(json.loads(answer.body)["models"]) == {"a", "b"}
    assert (await call(front, scope_of("GET", "/metrics"))).body == b"m 1\n"
    for status in (503, 502):
        upstream.ready = status
        answer = await call(front, scope_of("GET", "/ready"))
        assert answer.status == 503 and json.loads(answer.body)["status"] == "not ready"
    upstream.ready = 200
    Admit.gate.draining = True
    assert (await call(front, scope_of("GET", "/ready"))).status == 503


async def test_websockets_are_closed_and_lifespan_is_answered(front: Any) -> None:
    sent: list[Any] = []
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def receive() -> Any:
        return messages.pop(0)

    await front({"type": "websocket", "path": "/v1/realtime"}, receive, send)
    assert sent == ["websocket.close"]
    await front({"type": "lifespan"}, receive, send)
    assert sent[1:] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


@pytest.mark.parametrize(
    ("host", "base"),
    [("127.0.0.1", "http://127.0.0.1:1"), ("::1", "http://[::1]:1"), ("0.0.0.0", "http://127.0.0.1:1")],
)
def test_where_the_models_are(host: str, base: str) -> None:
    listen = {"host": host, "port": 1, "public": True}
    whole = Stack.model_validate({"models": [{"name": "a", "source": "x"}], "listen": listen})
    assert Forward(whole, {}).base == base


async def test_a_key_reaches_the_models_and_only_the_allowed_are_listed(front: Any, upstream: Upstream) -> None:
    async def listed(*headers: tuple[bytes, bytes]) -> tuple[int, Any]:
        answer = await call(front, scope_of("GET", "/v1/models", *headers))
        return answer.status, json.loads(answer.body)

    key = (b"authorization", b"Bearer k")
    upstream.closed_to = ("b",)
    assert [entry["id"] for entry in (await listed())[1]["data"]] == ["a"]
    assert [entry["id"] for entry in (await listed(key))[1]["data"]] == ["a", "b"]
    upstream.closed_to = ("a", "b")
    assert await listed() == (401, {"error": {"code": "no_key"}})
    await call(front, scope_of("POST", "/v1/x", JSON, (b"x-api-key", b"k2")), {"model": "a"})
    assert upstream.requests[-1].headers["x-api-key"] == "k2"


async def test_an_adapters_requests_go_to_the_model_that_it_stands_beside(upstream: Upstream) -> None:
    one = Front(front_part(stack(upstream.port)).model_dump(mode="json"))
    one.reconfigure({"models": ROUTES, "adapters": {"colours": "/b"}})
    app = await one.__serve_build_asgi_app__()
    answer = await ask(app, {"model": "colours", "messages": []})
    assert json.loads(answer.body)["model"] == "b" and json.loads(upstream.bodies[-1])["model"] == "colours"
    assert json.loads((await call(app, scope_of("GET", "/v1/models/colours"))).body)["model"] == "b"
    unknown = (await ask(app, {"model": "c"})).error
    assert unknown["message"].endswith("it serves a, b, colours.")
    # what is asked of every model is asked once of each
    before = len(upstream.requests)
    assert len(json.loads((await call(app, scope_of("GET", "/v1/models"))).body)["data"]) == 2
    health = json.loads((await call(app, scope_of("GET", "/health"))).body)
    assert set(health["models"]) == {"a", "b"} and health["adapters"] == ["colours"]
    assert len(upstream.requests) == before + 4
    one.reconfigure({"models": ROUTES})
    assert (await ask(app, {"model": "colours"})).error["code"] == "unknown_model"
    await one.stop()
