"""The layers record and admit, as pure ASGI: ids, limits, disconnects, errors, and labels that stay few."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY, generate_latest

from models.registry import open_registry
from serving.errors import ApiError
from serving.exchange import api_path, content_type, exchange_of
from serving.layers import build_layers
from serving.layers.admit import Admit
from serving.metrics import ROUTES, route_label
from serving.stack import Model, Stack
from tests.models.registry.conftest import checkpoint
from tests.serving.asgi import JSON, Answer, call, scope_of

MODEL = Model(name="layers-test", source="x")


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the body."""
    body = (await receive())["body"] if scope["method"] == "POST" else b"hello"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"of the app")]})
    await send({"type": "http.response.body", "body": body})


def app(inner: Any = echo, metrics: bool = False, **limits: Any) -> Any:
    data = {"models": [{"name": "layers-test", "source": "x"}], "limits": limits, "media": None, "metrics": metrics}
    return build_layers(inner, Stack.model_validate(data), MODEL)


def post(*headers: tuple[bytes, bytes], path: str = "/v1/chat/completions") -> Any:
    return scope_of("POST", path, JSON, *headers)


def count(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, {"model": "layers-test", **labels}) or 0.0


# record


async def test_an_answer_names_the_version_that_gave_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = open_registry(tmp_path / "store")
    registry.register(checkpoint(tmp_path / "weights"), "m", by="ada")
    monkeypatch.setenv("FOVEA_REGISTRY", str(tmp_path / "store"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = Model(name="m", source=Model(name="m", source="registry:m@1").path)
    stack = Stack.model_validate({"models": [model.model_dump()], "media": None, "metrics": False})
    answer = await call(build_layers(echo, stack, model), post(), {})
    assert answer.header(b"x-model-version") == b"m@1"
    assert (await call(app(), post(), {})).header(b"x-model-version") is None


async def test_the_clients_request_id_comes_back_once() -> None:
    answer = await call(app(), post((b"x-request-id", b"mine-1")), {})
    assert answer.header(b"x-request-id") == b"mine-1"


@pytest.mark.parametrize("given", [b"", b"two words", b"a" * 129, b"new\nline", b"\xc3\xa4", b"a\x00b"])
async def test_an_id_that_could_harm_a_log_is_replaced(given: bytes) -> None:
    found = (await call(app(), post((b"x-request-id", given)), {})).header(b"x-request-id")
    assert found and found != given and len(found) == 32
    assert found != (await call(app(), post(), {})).header(b"x-request-id")


async def test_a_crash_is_a_500_with_the_request_id_and_nothing_else() -> None:
    async def crash(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("the secret is 1234")

    answer = await call(app(crash), post((b"x-request-id", b"mine-2")), {})
    assert answer.status == 500 and answer.header(b"x-request-id") == b"mine-2"
    assert "mine-2" in answer.error["message"] and b"1234" not in answer.body
    assert answer.error["type"] == "server_error"


@pytest.mark.parametrize("error", [RuntimeError("x"), ApiError(400, "x", kind="y")])
async def test_a_crash_in_the_middle_of_an_answer_is_not_a_second_answer(error: Exception) -> None:
    async def half(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise error

    with pytest.raises(type(error)):  # the server then cuts the connection: the client sees that it is not whole
        await call(app(half), post(), {})


async def test_an_api_error_is_sent_with_its_headers() -> None:
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        raise ApiError(503, "Busy.", kind="overloaded", retry_after=7)

    answer = await call(app(refuse), post(), {})
    assert (answer.status, answer.header(b"retry-after")) == (503, b"7")
    assert answer.error == {"message": "Busy.", "type": "server_error", "param": None, "code": "overloaded"}
    assert answer.header(b"content-length") == str(len(answer.body)).encode()


async def test_streams_are_passed_on_piece_by_piece() -> None:
    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in (b"a", b"b", b"c"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    assert (await call(app(stream), post(), {})).chunks == [b"a", b"b", b"c", b""]


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_what_is_not_http_goes_by(kind: str) -> None:
    seen: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    await app(inner, metrics=True)({"type": kind}, None, None)
    assert seen == [kind]


async def test_labels_stay_few_whatever_clients_send() -> None:
    whole = app(metrics=True)
    methods = ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "BREW", "x" * 500]
    for number in range(300):
        path = f"/hostile/{number}/v1/models" if number % 3 else f'/v1/{number}"}} 1\nfake_metric 1'
        scope = scope_of(methods[number % len(methods)], path, JSON)
        await call(whole, scope, {"model": f"model-{number}", "n": 1})
    lines = [line for line in generate_latest(REGISTRY).decode().splitlines() if "layers-test" in line]
    requests = [line for line in lines if line.startswith("fovea_requests_total")]
    assert 1 <= len(requests) <= 2 * len(ROUTES)
    assert not any("hostile" in line or "model-" in line or line.startswith("fake") for line in lines)
    routes = {line.split('route="')[1].split('"')[0] for line in requests}
    assert routes <= {*ROUTES, "other"}


def test_route_labels() -> None:
    assert route_label("/v1/chat/completions") == route_label("/model/v1/chat/completions") == "/v1/chat/completions"
    assert route_label("/v1/chat/completionsx") == route_label("") == route_label("/") == "other"


async def test_errors_are_counted_by_kind() -> None:
    route = "/v1/chat/completions"
    before = (
        count("fovea_errors_total", route=route, kind="body_too_large"),
        count("fovea_requests_total", route=route, status="4xx"),
    )
    await call(app(metrics=True, body_bytes=1024), post(), b"x" * 2000)
    assert count("fovea_errors_total", route=route, kind="body_too_large") == before[0] + 1
    assert count("fovea_requests_total", route=route, status="4xx") == before[1] + 1


# admit


@pytest.mark.parametrize("length", [b"1025", b"9" * 18, b"9" * 5000])
async def test_a_body_that_is_declared_too_large_is_not_read(length: bytes) -> None:
    async def receive() -> Any:
        raise AssertionError("the body was asked for")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await app(body_bytes=1024)(post((b"content-length", length)), receive, send)
    assert sent[0]["status"] == 413


async def test_a_body_that_turns_out_too_large_is_not_read_to_the_end() -> None:
    pieces: list[Any] = [b"x" * 600] * 10
    waiting = list(pieces)

    async def receive() -> Any:
        return {"type": "http.request", "body": waiting.pop(0), "more_body": True}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await app(body_bytes=1024)(post(), receive, send)
    assert sent[0]["status"] == 413 and len(waiting) == 8


async def test_a_body_at_the_limit_passes() -> None:
    body = json.dumps({"x": "a" * (1024 - 8)}).replace(": ", ":").encode()
    assert len(body) == 1024
    answer = await call(app(body_bytes=1024), post((b"content-length", b"1024")), [body[:10], b"", body[10:]])
    assert answer.status == 200 and answer.body == body


@pytest.mark.parametrize("length", [b"", b"-5", b"abc", b"+1", b"\xb2"])
async def test_a_length_that_is_no_number_is_not_believed(length: bytes) -> None:
    assert (await call(app(body_bytes=1024), post((b"content-length", length)), b"x" * 2000)).status == 413


async def test_a_slow_body_has_one_time_limit_however_it_trickles() -> None:
    dripping: list[Any] = [piece for _ in range(100) for piece in (0.02, b"x")]
    answer = await call(app(body_timeout_s=0.1), post(), dripping)
    assert answer.status == 408 and answer.error["code"] == "slow_body"
    assert len(dripping) == 200  # `call` reads a copy; the client had much more to send


async def test_a_client_that_leaves_while_it_sends() -> None:
    seen: list[Any] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    answer = await call(app(inner), post(), [b'{"a":', None])
    assert answer.status == 499 and not seen


async def running(whole: Any, number: int) -> list[asyncio.Task[Answer]]:
    """Start requests that are let in and then wait."""
    tasks = [asyncio.create_task(call(whole, post(), {})) for _ in range(number)]
    for _ in range(20):  # a task needs a few turns of the loop to come to where it waits
        await asyncio.sleep(0)
    assert Admit.gate.inside == number
    return tasks


def waiting(release: asyncio.Event) -> Any:
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "POST":
            await release.wait()
        await echo(scope, receive, send)

    return inner


async def test_more_than_the_limit_get_503_and_no_queue() -> None:
    release = asyncio.Event()
    whole = app(waiting(release), concurrent=2, retry_after_s=3)
    tasks = await running(whole, 2)
    answer = await call(whole, post(), {})
    assert answer.status == 503 and answer.header(b"retry-after") == b"3" and answer.error["code"] == "overloaded"
    assert (await call(whole, scope_of("GET", "/health"))).status == 200  # probes are always let in
    assert (await call(whole, scope_of("GET", "/model/metrics"))).status == 200
    canary = asyncio.create_task(call(whole, post() | {"fovea.canary": True}, {}))
    release.set()
    assert (await canary).status == 200  # a replica that is full is well
    assert [answer.status for answer in await asyncio.gather(*tasks)] == [200, 200]
    assert (await call(whole, post(), {})).status == 200


async def test_draining_lets_running_requests_finish_and_no_new_ones_in() -> None:
    release = asyncio.Event()
    whole = app(waiting(release))
    tasks = await running(whole, 3)
    Admit.gate.draining = True
    answer = await call(whole, post(), {})
    assert answer.status == 503 and answer.header(b"retry-after") == b"1" and answer.error["code"] == "draining"
    assert (await call(whole, scope_of("GET", "/v1/models"))).status == 503
    assert not Admit.gate.empty.is_set()
    release.set()
    assert {answer.status for answer in await asyncio.gather(*tasks)} == {200}
    assert Admit.gate.empty.is_set()


async def test_a_cancelled_request_leaves_its_place() -> None:
    whole = app(waiting(asyncio.Event()))
    (task,) = await running(whole, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert Admit.gate.inside == 0


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE"])
async def test_methods_without_a_body_do_not_wait_for_one(method: str) -> None:
    bodies: list[Any] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        bodies.append(exchange_of(scope).body)
        await echo(scope, receive, send)

    assert (await call(app(inner), scope_of(method, "/v1/models"))).status == 200
    assert bodies == [None]


async def test_what_follows_the_body_is_the_clients_leaving() -> None:
    messages: list[Any] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        messages.extend([await receive(), await receive()])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    left = asyncio.Event()
    left.set()
    await call(app(inner), post(), [b'{"a"', b":1}"], leave=left)
    assert messages == [{"type": "http.request", "body": b'{"a":1}', "more_body": False}, {"type": "http.disconnect"}]


@pytest.mark.parametrize("value", [9, 9.0, "9", 10**40, True, None, "x", [9], {"a": 1}, -1, 8, "nan", float("1e308")])
@pytest.mark.parametrize("key", ["n", "best_of"])
async def test_the_number_of_answers_is_limited_as_validation_would_read_it(key: str, value: Any) -> None:
    try:
        too_many = not isinstance(value, list | dict) and float(value or 0) > 8
    except ValueError:
        too_many = False
    answer = await call(app(), post(path="/v1/completions"), {key: value})
    assert answer.status == (400 if too_many else 200)
    if too_many:
        assert answer.error["param"] == key


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"prompt": ["a"] * 5}, 400),
        ({"prompt": [[1]] * 5}, 400),
        ({"prompt": [1] * 5000}, 200),  # one prompt of token ids
        ({"prompt": ["a"] * 4}, 200),
        ({"messages": [[{"role": "user"}]] * 5}, 400),
        ({"messages": [{"role": "user", "content": "x"}] * 500}, 200),  # one long conversation
        ({"input": [{"role": "user", "content": "x"}] * 500}, 200),
        ({"input": ["a"] * 5}, 400),
        ({"documents": ["a"] * 5}, 400),
        ({"prompt": []}, 200),
    ],
)
async def test_the_number_of_prompts_is_limited(body: dict[str, Any], status: int) -> None:
    assert (await call(app(prompts=4), post(path="/v1/completions"), body)).status == status


async def test_without_limits_everything_enters() -> None:
    stack = Stack.model_validate(
        {"models": [{"name": "m", "source": "x"}], "limits": None, "media": None, "metrics": False}
    )
    whole = build_layers(echo, stack, MODEL)
    assert (await call(whole, post(), b"not json" * 10_000)).status == 200
    Admit.gate.draining = True
    assert (await call(whole, post(), b"x")).status == 503


# what all layers share


@pytest.mark.parametrize(
    ("path", "prefix", "expected"),
    [
        ("/v1/x", "", "/v1/x"),
        ("/m/v1/x", "/m", "/v1/x"),
        ("/mm/v1/x", "/m", "/mm/v1/x"),
        ("/m", "/m", "/m"),
        ("/m/m/v1/x", "/m", "/m/v1/x"),
        ("/v1/x", "/m", "/v1/x"),
    ],
)
def test_api_path(path: str, prefix: str, expected: str) -> None:
    assert api_path(scope_of("GET", path, root_path=prefix)) == expected


def test_content_type_is_the_first_one_without_parameters() -> None:
    scope = scope_of("POST", "/", (b"content-type", b" Application/JSON ; charset=x"), (b"content-type", b"text/plain"))
    assert content_type(scope) == "application/json"
    assert content_type(scope_of("POST", "/")) == ""
