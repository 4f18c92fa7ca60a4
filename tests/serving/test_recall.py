"""The layer recall: what hits, what never does, what is kept, streams, coalescing, purges, stores."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from models.support.errors import UsageError
from serving.errors import ApiError, StoreDown
from serving.exchange import exchange_of
from serving.facts import FACTS
from serving.layers import build_layers, layers_of, start_layers, stop_layers
from serving.layers.recall import Recall
from serving.layers.screen import Screen
from serving.runtime import free_port
from serving.stack import Stack
from tests.serving.asgi import JSON, Answer, call, scope_of
from tests.serving.pictures import encode, scene

CHAT = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def facts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(FACTS, "degraded", {})
    monkeypatch.setattr(FACTS, "temperature", 1.0)
    yield


def chat(**more: Any) -> dict[str, Any]:
    """A chat answer that ended by itself, or as told."""
    message = {"role": "assistant", "content": more.pop("text", "yes"), **more.pop("message", {})}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop", **more}], "usage": {}}


def sse(*events: Any, done: bool = True) -> list[bytes]:
    """A stream's pieces."""
    pieces = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    return [*pieces, b"data: [DONE]\n\n"] if done else pieces


def delta(text: str = "", reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text, **more}, "finish_reason": reason}]}


class Engine:
    """Answers what it is told, numbered, and counts."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answer: Any = None
        self.status = 200
        self.hold: asyncio.Event | None = None
        self.error: Exception | None = None
        self.left = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        exchange = exchange_of(scope)
        await receive()
        self.asked.append(json.loads(json.dumps(exchange.json())))
        number = len(self.asked)
        for picture in exchange.pictures:
            picture.image.load()
            assert picture.image.mode == "RGB"
        if self.hold is not None:
            leave = asyncio.create_task(receive())
            hold = asyncio.create_task(self.hold.wait())
            await asyncio.wait((leave, hold), return_when=asyncio.FIRST_COMPLETED)
            self.left += leave.done()
            leave.cancel()
            hold.cancel()
            if leave.done() and not leave.cancelled() and not self.hold.is_set():
                return
        if self.error is not None:
            raise self.error
        answer = chat(text=f"answer {number}") if self.answer is None else self.answer
        stream = isinstance(answer, list)
        kind = b"text/event-stream; charset=utf-8" if stream else b"application/json"
        await send({"type": "http.response.start", "status": self.status, "headers": [(b"content-type", kind)]})
        for piece in answer if stream else [json.dumps(answer).encode()]:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class House:
    """One replica."""

    def __init__(self, model: dict[str, Any] | None = None, **section: Any):
        self.engine = Engine()
        data = {"models": [{"name": "recall-test", "source": "/nowhere", **(model or {})}], "recall": section}
        self.stack = Stack.model_validate(data)
        self.app = build_layers(self.engine, self.stack, self.stack.models[0])
        self.layer = next(layer for layer in layers_of(self.app) if isinstance(layer, Recall))
        self.layer.versions = {"": "v1"}

    async def ask(self, *headers: tuple[bytes, bytes], path: str = CHAT, **body: Any) -> Answer:
        whole = {"model": "recall-test", "messages": [{"role": "user", "content": "?"}], "temperature": 0, **body}
        answer = await call(self.app, scope_of("POST", path, JSON, *headers), whole)
        await self.settle()
        return answer

    async def settle(self) -> None:
        """Wait until what is to be kept is kept."""
        while self.layer.writes:
            await asyncio.gather(*self.layer.writes)

    async def state(self, *headers: tuple[bytes, bytes], **body: Any) -> str:
        return (await self.ask(*headers, **body)).header(b"x-fovea-cache").decode()  # type: ignore[union-attr]

    async def close(self) -> None:
        await stop_layers(self.app)


@pytest.fixture(params=["memory", "sqlite", "valkey"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """`memory`, a file, a server."""
    if request.param == "memory":
        return "memory"
    return str(tmp_path / "r.db") if request.param == "sqlite" else str(request.getfixturevalue("valkey_url"))


def part(data: bytes, **more: Any) -> dict[str, Any]:
    return {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(data).decode(), **more},
    }


def about(*images: bytes, text: str = "?") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*(part(data) for data in images), {"type": "text", "text": text}]}]


# hits


async def test_the_same_request_is_answered_once(store: str) -> None:
    house = House(store=store)
    first, second = await house.ask(), await house.ask()
    assert first.body == second.body and len(house.engine.asked) == 1
    assert (first.header(b"x-fovea-cache"), second.header(b"x-fovea-cache")) == (b"miss", b"hit")
    assert second.header(b"age") == b"0" and second.header(b"content-type") == b"application/json"
    assert second.header(b"content-length") == str(len(second.body)).encode()
    await house.close()


async def test_another_replica_knows_what_one_has_answered(location: str) -> None:
    one, two = House(store=location), House(store=location)
    first = await one.ask(messages=about(encode(scene())))
    second = await two.ask(messages=about(encode(scene())))
    assert second.header(b"x-fovea-cache") == b"hit" and first.body == second.body and not two.engine.asked
    for house in (one, two):
        await house.close()
    three = House(store=location)  # after a restart
    assert await three.state(messages=about(encode(scene()))) == "hit"
    await three.close()


async def test_a_known_file_is_not_decoded_for_a_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House()
    assert await house.state(messages=about(encode(scene()))) == "miss"

    def never(*args: Any) -> None:
        raise AssertionError("a pixel was decoded")

    with monkeypatch.context() as patch:
        patch.setattr("serving.layers.screen.decode", never)
        assert await house.state(messages=about(encode(scene()))) == "hit"
    assert Screen.held == 0
    assert await house.state(messages=about(encode(scene()), text="another question")) == "miss"  # now it is decoded
    await house.close()


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/embeddings", "/v1/completions", "/v1/responses"])
async def test_what_goes_on_to_the_engine_has_its_pictures(path: str) -> None:
    """On a miss, on a bypass, with a file that was seen before and with one that was not."""
    house = House()
    for control in ((b"cache-control", b"no-cache"), (b"cache-control", b"no-store"), (b"cache-control", b"no-cache")):
        for text in ("one", "two"):
            assert (await house.ask(control, path=path, messages=about(encode(scene()), text=text))).status == 200
    for asked in house.engine.asked:
        url = asked["messages"][0]["content"][0]["image_url"]["url"]
        if path != CHAT:  # chat takes the pictures from the exchange
            assert url.startswith("data:image/png;base64,") and len(url) > 100
    assert len(house.engine.asked) == 6
    await house.close()


async def test_fields_without_effect_do_not_matter() -> None:
    house = House()
    assert await house.state(user="a", metadata={"x": "1"}) == "miss"
    assert await house.state(user="b", service_tier="default") == "hit"
    assert await house.state(something_new=1) == "miss"
    await house.close()


# what is never given again


NOT_KEPT: dict[str, Any] = {
    "truncated": chat(finish_reason="length"),
    "refused": chat(finish_reason="content_filter"),
    "refusal": chat(message={"refusal": "no"}),
    "calls a tool": chat(finish_reason="tool_calls"),
    "calls a tool and stops": chat(message={"tool_calls": [{"id": "1"}]}),
    "unended": chat(finish_reason=None),
    "error": {"error": {"message": "x"}},
    "no choices": {"choices": []},
    "no object": [],
    "one of two truncated": {"choices": [*chat()["choices"], *chat(finish_reason="length")["choices"]]},
    "choices of another shape": {"choices": ["x"]},
    "message of another shape": {"choices": [{"message": "x", "finish_reason": "stop"}]},
    "stream of another shape": sse({"choices": [1]}, delta("a", "stop")),
    "stream truncated": sse(delta("a"), delta(reason="length")),
    "stream without end": sse(delta("a"), delta(reason="stop"), done=False),
    "stream with an error": sse(delta("a"), {"error": {"message": "x"}}, delta(reason="stop")),
    "stream with a tool": sse(delta("a"), delta(tool_calls=[{"index": 0}]), delta(reason="stop")),
    "stream without reason": sse(delta("a")),
    "stream of nothing": sse(),
    "stream cut in an event": [b'data: {"choices": [{"ind', b"\n\ndata: [DONE]\n\n"],
}


@pytest.mark.parametrize("name", NOT_KEPT)
async def test_answers_that_are_not_kept(name: str, store: str) -> None:
    house = House(store=store)
    house.engine.answer = NOT_KEPT[name]
    body = {"stream": True} if name.startswith("stream") else {}
    assert [await house.state(**body) for _ in range(2)] == ["miss", "miss"]
    house.engine.answer = sse(delta("a"), delta(reason="stop")) if body else chat()
    assert [await house.state(**body) for _ in range(2)] == ["miss", "hit"]
    await house.close()


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
async def test_errors_are_not_kept(status: int) -> None:
    house = House()
    house.engine.status = status
    assert [(await house.ask()).status for _ in range(2)] == [status, status]
    house.engine.status = 200
    house.engine.error = ApiError(400, "No.", kind="bad_field")
    assert [(await house.ask()).error["code"] for _ in range(2)] == ["bad_field"] * 2
    house.engine.error = RuntimeError("x")
    assert (await house.ask()).status == 500
    house.engine.error = None
    assert await house.state() == "miss" and not house.layer.flights
    await house.close()


MESSAGE = {"type": "message", "content": [{"type": "text", "text": "hi"}], "stop_reason": "end_turn"}


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (MESSAGE, True),
        ({**MESSAGE, "stop_reason": "max_tokens"}, False),
        ({**MESSAGE, "stop_reason": "tool_use"}, False),
        ({**MESSAGE, "stop_reason": "refusal"}, False),
        ({**MESSAGE, "content": [{"type": "tool_use"}]}, False),
    ],
)
async def test_messages(answer: dict[str, Any], kept: bool) -> None:
    house = House()
    house.engine.answer = answer
    assert [await house.state(path="/v1/messages") for _ in range(2)] == ["miss", "hit" if kept else "miss"]
    events = [
        {"type": "message_start", "message": {}},
        *({"type": "content_block_start", "content_block": block} for block in answer["content"]),
        {"type": "message_delta", "delta": {"stop_reason": answer["stop_reason"]}},
        {"type": "message_stop"},
    ]
    house.engine.answer = [f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in events]
    body = {"path": "/v1/messages", "stream": True}
    assert [await house.state(**body) for _ in range(2)] == ["miss", "hit" if kept else "miss"]
    await house.close()


async def test_embeddings_are_kept() -> None:
    house = House()
    house.engine.answer = {"data": [{"embedding": [0.5]}]}
    body: dict[str, Any] = {"path": "/v1/embeddings", "input": "a", "temperature": None}
    assert [await house.state(**body) for _ in range(2)] == ["miss", "hit"]
    await house.close()


async def test_responses_are_not_and_other_routes_go_by() -> None:
    house = House()
    for path in ("/v1/responses", "/tokenize", "/pooling"):
        answers = [await house.ask(path=path) for _ in range(2)]
        assert [answer.header(b"x-fovea-cache") for answer in answers] == [None, None]
    assert len(house.engine.asked) == 6
    await house.close()


# sampling


async def test_sampled_answers_are_kept_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House()
    for temperature in (0.7, 1, None, "0", True, [0]):
        assert await house.state(temperature=temperature) == "bypass"
    sampled = (b"x-fovea-cache", b"sampled")
    assert [await house.state(sampled, temperature=0.7) for _ in range(2)] == ["miss", "hit"]
    assert await house.state(temperature=0.7) == "bypass"
    assert await house.state(sampled, temperature=0.8) == "miss"
    monkeypatch.setattr(FACTS, "temperature", 0.0)  # a checkpoint that says so itself
    assert [await house.state(temperature=None) for _ in range(2)] == ["miss", "hit"]
    everything = House(sampled=True)
    assert [await everything.state(temperature=0.7) for _ in range(2)] == ["miss", "hit"]
    await house.close()
    await everything.close()


# HTTP's own words


async def test_cache_control(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House()

    def said(text: str) -> tuple[bytes, bytes]:
        return (b"cache-control", text.encode())

    assert (await house.ask(said("only-if-cached"))).status == 504
    assert [await house.state(said("no-store")) for _ in range(2)] == ["bypass", "bypass"]
    assert await house.state() == "miss"  # the ones before were not kept
    first = (await house.ask()).body
    assert await house.state(said("no-cache")) == "miss"
    assert (second := (await house.ask()).body) != first  # and the newer one is kept
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 100)
    assert await house.state(said("max-age=99")) == "miss" and await house.state(said("max-age=99")) == "hit"
    monkeypatch.setattr(time, "time", lambda: now + 150)
    answer = await house.ask(said('private, max-age="51", x=y'))
    assert answer.header(b"x-fovea-cache") == b"hit" and answer.header(b"age") in (b"49", b"50")
    assert answer.body != second and await house.state(said("max-age=nonsense")) == "hit"
    await house.close()


async def test_life_time_and_a_clock_that_jumps(monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    house = House(store=location, ttl_s=100)
    now = time.time()
    clock = [now]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    assert await house.state() == "miss"
    clock[0] = now + 99
    assert await house.state() == "hit"
    clock[0] = now + 100
    assert await house.state() == "miss"
    clock[0] = now - 3600  # what was kept an hour from now is not to be trusted
    assert await house.state() == "miss"
    await house.close()


# streams


async def test_a_stream_is_replayed_as_the_stream_it_was(store: str) -> None:
    house = House(store=store)
    house.engine.answer = sse(delta("Grü"), delta("ße"), delta(reason="stop"), {"choices": [], "usage": {"x": 1}})
    first, second = await house.ask(stream=True), await house.ask(stream=True)
    assert second.header(b"x-fovea-cache") == b"hit" and second.body == first.body == b"".join(house.engine.answer)
    assert second.header(b"content-type") == first.header(b"content-type") == b"text/event-stream; charset=utf-8"
    assert second.header(b"content-length") is None
    house.engine.answer = None
    assert await house.state() == "miss"  # not a stream: another answer
    await house.close()


async def test_a_stream_passes_piece_by_piece() -> None:
    house = House()
    house.engine.answer = sse(delta("a"), delta("b"), delta(reason="stop"))
    assert (await house.ask(stream=True)).chunks == [*house.engine.answer, b""]
    await house.close()


# coalescing


async def running(house: House, number: int, **body: Any) -> list[asyncio.Task[Answer]]:
    """Start identical requests and wait until they all listen."""
    house.engine.hold = asyncio.Event()
    tasks = [asyncio.create_task(house.ask(**body)) for _ in range(number)]
    await until(lambda: sum(flight.listeners for flight in house.layer.flights.values()) == number)
    return tasks


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("stream", [True, False])
async def test_identical_requests_at_once_are_one_generation(stream: bool) -> None:
    house = House()
    house.engine.answer = sse(delta("a"), delta(reason="stop")) if stream else None
    tasks = await running(house, 5, stream=stream, messages=about(encode(scene())))
    assert len(house.engine.asked) == 1 and house.engine.hold
    house.engine.hold.set()
    answers = await asyncio.gather(*tasks)
    assert len({answer.body for answer in answers}) == 1 and {answer.status for answer in answers} == {200}
    assert sorted(str(answer.header(b"x-fovea-cache")) for answer in answers) == ["b'coalesced'"] * 4 + ["b'miss'"]
    assert not house.layer.flights and Screen.held == 0
    await house.close()


async def test_what_is_not_the_same_is_not_joined() -> None:
    house = House()
    house.engine.hold = asyncio.Event()
    sampled = {"temperature": 0.5}
    tasks = [asyncio.create_task(house.ask(**body)) for body in (sampled, sampled, {}, {"seed": 1})]
    await until(lambda: len(house.engine.asked) == 4)
    house.engine.hold.set()
    assert len({answer.body for answer in await asyncio.gather(*tasks)}) == 4
    off = House(coalesce=False)
    off.engine.hold = asyncio.Event()
    tasks = [asyncio.create_task(off.ask()) for _ in range(2)]
    await until(lambda: len(off.engine.asked) == 2)
    off.engine.hold.set()
    await asyncio.gather(*tasks)
    await house.close()
    await off.close()


async def test_the_first_client_may_leave_and_the_last_one_ends_it() -> None:
    house = House()
    house.engine.hold = asyncio.Event()
    leave = [asyncio.Event(), asyncio.Event()]
    whole = {"model": "recall-test", "messages": [], "temperature": 0}
    scopes = [scope_of("POST", CHAT, JSON) for _ in range(2)]
    tasks = [asyncio.create_task(call(house.app, scopes[n], whole, leave=leave[n])) for n in range(2)]
    await until(lambda: sum(flight.listeners for flight in house.layer.flights.values()) == 2)
    leave[0].set()
    assert (await tasks[0]).status == 0 and not house.engine.left
    leave[1].set()
    assert (await tasks[1]).status == 0
    await until(lambda: house.engine.left == 1 and not house.layer.flights)
    house.engine.hold = None
    assert await house.state(messages=[]) == "miss"
    await house.close()


async def test_all_who_wait_are_told_the_same_error() -> None:
    house = House()
    house.engine.error = ApiError(400, "No.", kind="bad_field")
    tasks = await running(house, 3)
    assert house.engine.hold
    house.engine.hold.set()
    assert [answer.error["code"] for answer in await asyncio.gather(*tasks)] == ["bad_field"] * 3
    await house.close()


# retries


async def test_a_retry_by_its_key_gets_the_first_answer(store: str) -> None:
    house = House(store=store)
    mine = (b"idempotency-key", b"order-1")
    house.engine.answer = chat(text="cut", finish_reason="length")  # whatever it was
    sampled: dict[str, Any] = {"temperature": 0.9, "messages": about(encode(scene()))}
    first = await house.ask(mine, **sampled)
    house.engine.answer = None
    again = await house.ask(mine, **sampled)
    assert again.body == first.body and again.header(b"x-fovea-cache") == b"hit" and len(house.engine.asked) == 1
    assert (await house.ask((b"idempotency-key", b"order-2"), **sampled)).body != first.body
    assert await house.state(**sampled) == "bypass"  # without a key it is sampled anew
    other = await house.ask(mine, **{**sampled, "max_tokens": 3})
    assert other.status == 422 and other.error["code"] == "idempotency_key_reused"
    await house.close()


async def test_a_retry_of_what_runs_joins_it_and_of_what_failed_runs_again() -> None:
    house = House(coalesce=False)
    mine = (b"idempotency-key", b"k")
    body: dict[str, Any] = {"temperature": 0.9}
    house.engine.hold = asyncio.Event()
    tasks = [asyncio.create_task(house.ask(mine, **body)) for _ in range(3)]
    await until(lambda: sum(flight.listeners for flight in house.layer.flights.values()) == 3)
    assert (await house.ask(mine, temperature=0.8)).status == 422
    house.engine.hold.set()
    assert len({answer.body for answer in await asyncio.gather(*tasks)}) == 1 == len(house.engine.asked)
    house.engine.error = ApiError(503, "Busy.", kind="overloaded", retry_after=1)
    assert (await house.ask((b"idempotency-key", b"l"), **body)).status == 503
    house.engine.error = None
    for answer in (sse(delta("a"), {"error": {"message": "x"}}), sse(delta("a"), delta("b", "length"))):
        house.engine.answer = answer
        retried = await house.ask((b"idempotency-key", b"l"), stream=True, **body)
        assert retried.status == 200 and retried.body == b"".join(answer)
    assert (await house.ask((b"idempotency-key", b"l"), stream=True, **body)).header(b"x-fovea-cache") == b"hit"
    await house.close()


# purges


async def test_purges_by_scope(store: str) -> None:
    house = House(store=store, purge_s=1e-6)

    async def fill() -> None:
        await house.ask((b"x-fovea-cache-tags", b"catalog, sku-1"), messages=[])
        await house.ask(messages=[{"role": "user", "content": "untagged"}])

    async def states() -> list[str]:
        only = (b"cache-control", b"only-if-cached")
        asked = [await house.ask(only, messages=m) for m in ([], [{"role": "user", "content": "untagged"}])]
        return ["hit" if answer.status == 200 else "gone" for answer in asked]

    for body, expected in (
        ({"tag": "sku-1"}, ["gone", "hit"]),
        ({"tag": "other"}, ["hit", "hit"]),
        ({"tenant": "default"}, ["gone", "gone"]),
        ({"tenant": "acme"}, ["hit", "hit"]),
        ({"model": "recall-test"}, ["gone", "gone"]),
        ({"version": "v1"}, ["gone", "gone"]),
        ({"all": True}, ["gone", "gone"]),
    ):
        await fill()
        answer = await call(house.app, scope_of("POST", "/fovea/cache/purge", JSON), body)
        assert answer.status == 200, answer.body
        assert await states() == expected, body
    for bad in ({}, {"all": 1}, {"tag": 1}, {"what": "x"}, {"tag": "a", "what": "x"}):
        assert (await call(house.app, scope_of("POST", "/fovea/cache/purge", JSON), bad)).status == 400
    await house.close()


async def test_a_purge_reaches_other_replicas_and_what_is_still_being_made(location: str) -> None:
    one, two = House(store=location, purge_s=1e-6), House(store=location, purge_s=1e-6)
    assert [await one.state(), await two.state()] == ["miss", "hit"]
    (task,) = await running(two, 1, messages=[])
    assert (await call(one.app, scope_of("POST", "/fovea/cache/purge", JSON), {"all": True})).status == 200
    assert two.engine.hold
    two.engine.hold.set()
    assert (await task).status == 200
    two.engine.hold = None
    assert [await two.state(), await two.state(messages=[])] == ["miss", "miss"]
    for house in (one, two):
        await house.close()


async def test_another_model_version_is_another_answer(location: str) -> None:
    one, two = House(store=location), House(store=location)
    two.layer.versions = {"": "v2"}
    assert [await one.state(), await two.state(), await one.state()] == ["miss", "miss", "hit"]
    for house in (one, two):
        await house.close()


def test_purging_needs_to_be_allowed() -> None:
    async def scenario() -> None:
        data = {"models": [{"name": "m", "source": "x"}], "recall": {}, "listen": {"host": "0.0.0.0", "public": True}}
        stack = Stack.model_validate(data)
        app = build_layers(Engine(), stack, stack.models[0])
        answer = await call(app, scope_of("POST", "/fovea/cache/purge", JSON), {"all": True})
        assert answer.status == 403
        await stop_layers(app)

    asyncio.run(scenario())


async def test_a_purge_that_would_miss_other_replicas_is_refused() -> None:
    house = House({"replicas": 2})
    answer = await call(house.app, scope_of("POST", "/fovea/cache/purge", JSON), {"all": True})
    assert answer.status == 409 and answer.error["code"] == "not_shared"
    await house.close()


# bounds and failures


async def test_memory_is_bounded_by_bytes() -> None:
    house = House(memory_bytes=100_000)
    house.engine.answer = chat(text="x" * 9000)
    for number in range(40):
        await house.ask(seed=number)
    assert 80_000 < house.layer.answers.memory.bytes <= 100_000
    assert await house.state(seed=39) == "hit" and await house.state(seed=0) == "miss"
    house.engine.answer = chat(text="x" * 200_000)
    assert [await house.state(seed=100) for _ in range(2)] == ["miss", "miss"]  # larger than all there is
    await house.close()


async def test_the_file_is_bounded_by_bytes(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    house = House(store=str(path), memory_bytes=0, file_bytes=2**20)
    house.engine.answer = chat(text="x" * 20_000)
    for number in range(120):
        await house.ask(seed=number)
    entries, size = await house.layer.answers.shelf.count()
    assert 20 < entries < 60 and size < 2**20 and path.stat().st_size < 2 * 2**20
    assert await house.state(seed=119) == "hit" and await house.state(seed=0) == "miss"
    await house.close()


async def test_large_answers_are_not_kept() -> None:
    house = House(entry_bytes=2000)
    house.engine.answer = chat(text="x" * 3000)
    assert [await house.state() for _ in range(2)] == ["miss", "miss"]
    await house.close()


async def test_a_damaged_entry_is_a_miss(location: str, request: pytest.FixtureRequest) -> None:
    house = House(store=location)
    assert await house.state() == "miss"
    house.layer.answers.memory.entries.clear()
    if location.startswith("valkey"):
        client = request.getfixturevalue("valkey_server").client()
        (key,) = client.keys(b"fovea:recall:*")
        client.set(key, client.get(key).replace(b"answer 1", b"answer 7"))
    else:
        with sqlite3.connect(location) as database:
            database.execute("UPDATE answers SET blob = replace(blob, 'answer 1', 'answer 7')")
            database.execute("UPDATE answers SET blob = cast(blob AS BLOB)")
    answer = await house.ask()
    assert answer.header(b"x-fovea-cache") == b"miss" and b"answer 7" not in answer.body
    await house.close()


async def test_a_store_that_goes_away_is_a_miss_and_is_told(monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    house = House(store=location, memory_bytes=0)

    async def down(*args: Any) -> Any:
        raise StoreDown("gone")

    for name in ("get", "put", "generations"):
        monkeypatch.setattr(house.layer.answers.shelf, name, down)
    assert [await house.state() for _ in range(3)] == ["miss"] * 3
    assert "memory only" in FACTS.degraded["recall"]
    monkeypatch.undo()
    house.layer.answers.closed_until = 0.0
    assert [await house.state() for _ in range(2)] == ["miss", "hit"] and "recall" not in FACTS.degraded
    await house.close()


async def test_a_full_disk_costs_an_answer_nothing(tmp_path: Path) -> None:
    house = House(store=str(tmp_path / "r.db"), memory_bytes=0)
    await house.ask(seed=0)
    shelf: Any = house.layer.answers.shelf
    pages = shelf.writer.execute("PRAGMA page_count").fetchone()[0]
    shelf.writer.execute(f"PRAGMA max_page_count = {pages}")  # as SQLite reports ENOSPC: "database or disk is full"
    house.engine.answer = chat(text="x" * 50_000)
    answers = [await house.ask(seed=1) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200] and "full" in FACTS.degraded["recall"]
    house.layer.answers.closed_until = 0.0
    assert await house.state(seed=0) == "hit"
    await house.close()


async def test_a_replica_without_its_store_does_not_start_unless_told(tmp_path: Path) -> None:
    model = {"source": str(tmp_path)}
    (tmp_path / "config.json").write_text("{}")
    url = f"valkey://127.0.0.1:{free_port()}/0"
    house = House(model, store=url)
    with pytest.raises(UsageError) as caught:
        await start_layers(house.app)
    assert caught.value.field == "recall.store"
    relaxed = House(model, store=url, on_failure="open")
    await start_layers(relaxed.app)
    assert "memory only" in FACTS.degraded["recall"]
    assert [await relaxed.state() for _ in range(2)] == ["miss", "hit"]  # from the replica's own memory
    for one in (house, relaxed):
        await one.close()


def test_recall_needs_media() -> None:
    with pytest.raises(ValueError, match="needs the section `media`"):
        Stack.model_validate({"models": [{"name": "m", "source": "x"}], "recall": {}, "media": None})


async def test_the_canary_always_asks_the_engine() -> None:
    house = House()
    for _ in range(3):
        scope = scope_of("POST", CHAT, JSON, **{"fovea.canary": True})
        picture = Image.new("RGB", (8, 8))
        assert (await call(house.app, scope, {"messages": about(encode(picture)), "temperature": 0})).status == 200
    assert len(house.engine.asked) == 3
    await house.close()
