"""The layer recall: what hits, what never does, what is kept, streams, coalescing, purges, stores."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import pytest

from serving.errors import ApiError
from serving.exchange import exchange_of
from serving.facts import FACTS
from serving.layers import build_layers, layers_of, stop_layers
from serving.layers.recall import Recall
from serving.layers.screen import Screen
from serving.stack import Stack
from tests.serving.asgi import JSON, Answer, call, scope_of
from tests.serving.pictures import encode, scene

CHAT = "/v1/chat/completions"


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
