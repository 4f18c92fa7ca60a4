"""The layer quota: every limit by name, the vendors' headers, settling, the queue, two replicas, a store that dies."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from serving.errors import ApiError
from serving.exchange import exchange_of
from serving.facts import FACTS
from serving.layers import build_layers, layers_of, stop_layers
from serving.layers.quota import Quota, prompts_in
from serving.stack import Stack
from tests.serving.asgi import JSON, Answer, call, scope_of
from tests.serving.pictures import encode

CHAT = "/v1/chat/completions"
MONEY = {"usd_per_hour": "3.6", "capacity_rps": "1"}  # a tenth of a cent per answer


class Engine:
    """Answers with a usage, at once or when told; or fails."""

    def __init__(self) -> None:
        self.usage = {"prompt_tokens": 6, "completion_tokens": 4}
        self.asked: list[dict[str, Any]] = []
        self.hold: asyncio.Event | None = None
        self.error: Exception | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        exchange = exchange_of(scope)
        body = exchange.json()
        self.asked.append(body)
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        kind = b"text/event-stream" if body.get("stream") else b"application/json"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        if body.get("stream"):
            events = [{"choices": [{"delta": {"content": "hi"}}]}, {"choices": [], "usage": self.usage}]
            for event in events:
                piece = b"data: " + json.dumps(event).encode() + b"\n\n"
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        else:
            await send({"type": "http.response.body", "body": json.dumps({"usage": self.usage}).encode()})


class House:
    """One replica."""

    def __init__(self, limits: dict[str, Any], **section: Any):
        self.engine = Engine()
        FACTS.image_tokens = lambda width, height: width * height // 784  # one token per 28 x 28 pixels
        data: dict[str, Any] = {"models": [{"name": "quota-test", "source": "x"}], "money": MONEY}
        data["admit"] = {"default": limits, "queue_s": 0, **section}
        self.stack = Stack.model_validate(data)
        self.app = build_layers(self.engine, self.stack, self.stack.models[0])
        self.layer = next(layer for layer in layers_of(self.app) if isinstance(layer, Quota))

    async def ask(self, *headers: tuple[bytes, bytes], path: str = CHAT, **body: Any) -> Answer:
        answer = await call(self.app, scope_of("POST", path, JSON, *headers), {"max_tokens": 4, **body})
        await asyncio.gather(*self.layer.tasks)
        return answer

    async def close(self) -> None:
        await stop_layers(self.app)


def picture(width: int, height: int) -> dict[str, Any]:
    uri = "data:image/png;base64," + base64.b64encode(encode(Image.new("RGB", (width, height)))).decode()
    return {"type": "image_url", "image_url": {"url": uri}}


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def refused(answer: Answer, limit: str) -> None:
    """Check a 429."""
    assert answer.status == 429, answer.body
    assert answer.error["code"] == limit and answer.error["type"] == "rate_limit_error"
    assert answer.header(b"x-fovea-limit") == limit.encode()
    assert int(answer.header(b"retry-after") or 0) >= 1 and limit in answer.error["message"]


async def test_requests_per_minute(store: str) -> None:
    house = House({"requests_per_minute": 2}, store=store)
    answers = [await house.ask() for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    refused(answers[2], "requests_per_minute")
    assert [answer.header(b"x-ratelimit-limit-requests") for answer in answers] == [b"2"] * 3
    assert [answer.header(b"x-ratelimit-remaining-requests") for answer in answers] == [b"1", b"0", b"0"]
    assert answers[1].header(b"x-ratelimit-reset-requests") in (b"1m0s", b"60s", b"59s")
    assert answers[0].header(b"x-ratelimit-limit-tokens") is None
    assert len(house.engine.asked) == 2
    await house.close()


async def test_tokens_are_reserved_and_then_settled(store: str) -> None:
    house = House({"tokens_per_minute": 1000}, store=store)
    house.engine.usage = {"prompt_tokens": 100, "completion_tokens": 50}
    first = await house.ask(max_tokens=500)
    reserved = 1000 - int(first.header(b"x-ratelimit-remaining-tokens") or 0)
    assert 500 < reserved < 520  # the answer's most, and the text by its length
    second = await house.ask(max_tokens=500)
    left = int(second.header(b"x-ratelimit-remaining-tokens") or 0)
    assert 1000 - 150 - reserved - 2 <= left <= 1000 - 150 - reserved + 10  # the first one took 150 in the end
    answer = await house.ask(max_tokens=900)
    refused(answer, "tokens_per_minute")
    await house.close()


async def test_an_answer_longer_than_reserved_is_charged_too(store: str) -> None:
    house = House({"tokens_per_minute": 1000}, store=store, reserve_tokens=10)
    house.engine.usage = {"prompt_tokens": 5, "completion_tokens": 995}
    assert (await house.ask(max_tokens=None)).status == 200
    refused(await house.ask(max_tokens=100), "tokens_per_minute")
    await house.close()


async def test_image_tokens_by_the_size_in_the_header(store: str) -> None:
    house = House({"image_tokens_per_minute": 100}, store=store)
    content = [{"role": "user", "content": [picture(280, 140), {"type": "text", "text": "?"}]}]  # 50 tokens
    answers = [await house.ask(messages=content) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert answers[0].header(b"x-ratelimit-remaining-image-tokens") == b"50"
    refused(answers[2], "image_tokens_per_minute")
    assert (await house.ask(messages=[{"role": "user", "content": "no image"}])).status == 200
    await house.close()


async def test_base64_is_no_text(store: str) -> None:
    house = House({"tokens_per_minute": 2000}, store=store)
    noise = Image.effect_noise((700, 700), 100).convert("RGB")  # about half a megabyte; 625 tokens
    uri = "data:image/png;base64," + base64.b64encode(encode(noise)).decode()
    content = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": uri}}]}]
    answer = await house.ask(messages=content)
    assert answer.status == 200 and 1300 < int(answer.header(b"x-ratelimit-remaining-tokens") or 0) < 1375
    await house.close()


async def test_a_refusal_comes_before_any_pixel_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House({"image_tokens_per_minute": 100})
    content = [{"role": "user", "content": [picture(280, 280)]}]
    assert (await house.ask(messages=content)).status == 200

    def never(*args: Any) -> None:
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr("serving.layers.screen.decode", never)
    refused(await house.ask(messages=content), "image_tokens_per_minute")
    await house.close()


async def test_concurrent(store: str) -> None:
    house = House({"concurrent": 2}, store=store)
    house.engine.hold = asyncio.Event()
    running = [asyncio.create_task(house.ask()) for _ in range(2)]
    await until(lambda: len(house.engine.asked) >= 2)
    refused(await asyncio.wait_for(call(house.app, scope_of("POST", CHAT, JSON), {}), 5), "concurrent")
    house.engine.hold.set()
    assert [answer.status for answer in await asyncio.gather(*running)] == [200, 200]
    assert (await house.ask()).status == 200
    await house.close()


async def test_a_monthly_budget(store: str) -> None:
    house = House({"usd_per_month": "0.0025"}, store=store)
    assert [(await house.ask()).status for _ in range(3)] == [200, 200, 429]
    answer = await house.ask()
    refused(answer, "usd_per_month")
    assert int(answer.header(b"retry-after") or 0) <= 31 * 86_400
    assert (await house.ask(path="/tokenize")).status == 200  # costs nothing
    await house.close()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": ["a", "b", "c"]}),
        ("/v1/completions", {"prompt": [[1, 2], [3], [4]]}),
        ("/v1/chat/completions/batch", {"messages": [[{"role": "user", "content": "a"}]] * 3}),
    ],
)
async def test_several_prompts_in_one_request_are_no_way_around(path: str, body: dict[str, Any]) -> None:
    house = House({"tokens_per_minute": 1000, "usd_per_month": "0.0065"})
    house.engine.usage = {}
    answer = await house.ask(path=path, max_tokens=100, **body)
    assert answer.status == 200 and 650 < int(answer.header(b"x-ratelimit-remaining-tokens") or 0) < 700
    assert [(await house.ask(path=path, max_tokens=1, **body)).status for _ in range(2)] == [
        200,
        429,
    ]  # three tenths of a cent each
    for tokens in ([1, 2, 3], "abc", [], None):
        assert prompts_in({"prompt": tokens}) == 1
    await house.close()


async def test_what_fails_is_given_back_but_counts_as_a_request(store: str) -> None:
    house = House({"requests_per_minute": 5, "tokens_per_minute": 100, "usd_per_month": "0.0015"}, store=store)
    house.engine.error = ApiError(400, "No.", kind="bad_field")
    for _ in range(3):
        assert (await house.ask(max_tokens=80)).status == 400
    house.engine.error = None
    answer = await house.ask(max_tokens=80)
    assert answer.status == 200 and answer.header(b"x-ratelimit-remaining-requests") == b"1"
    refused(await house.ask(max_tokens=1), "usd_per_month")
    await house.close()


async def test_a_recalled_answer_costs_a_request_and_no_more(store: str) -> None:
    house = House({"tokens_per_minute": 100, "usd_per_month": "0.001"}, store=store)
    inner = house.layer.app

    async def recalling(scope: Any, receive: Any, send: Any) -> None:
        exchange_of(scope).notes["recalled"] = True
        await inner(scope, receive, send)

    house.layer.app = recalling
    for _ in range(3):
        assert (await house.ask(max_tokens=80)).status == 200
    await house.close()


async def test_streams_are_settled_by_a_usage_that_the_client_does_not_see(store: str) -> None:
    house = House({"tokens_per_minute": 1000}, store=store)
    answer = await house.ask(stream=True, max_tokens=900)
    assert answer.status == 200 and b"usage" not in answer.body and b"[DONE]" in answer.body
    assert house.engine.asked[0]["stream_options"] == {"include_usage": True}
    assert (await house.ask(stream=True, max_tokens=900)).status == 200
    told = await house.ask(stream=True, max_tokens=10, stream_options={"include_usage": True})
    assert b"usage" in told.body
    await house.close()


async def test_a_client_that_leaves_pays_what_was_reserved(store: str) -> None:
    house = House({"tokens_per_minute": 100, "concurrent": 1}, store=store)
    house.engine.hold = asyncio.Event()
    task = asyncio.create_task(house.ask(max_tokens=90))
    await until(lambda: bool(house.engine.asked))
    exchange_marks_left(house)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.gather(*house.layer.tasks)
    house.engine.hold = None
    answer = await house.ask(max_tokens=50)  # refused by the tokens, not by a place that was never freed
    refused(answer, "tokens_per_minute")
    await house.close()


def exchange_marks_left(house: House) -> None:
    """Do what the chat endpoint does when its client leaves."""
    settle = house.layer._settle

    def left(ask: Any, exchange: Any, watch: Any, failed: bool) -> None:
        settle(ask, exchange, watch, failed=False)

    house.layer._settle = left  # type: ignore[method-assign]


async def test_a_request_without_a_body_is_a_request(store: str) -> None:
    """Cancelling a stored response has none."""
    house = House({"requests_per_minute": 2, "tokens_per_minute": 1000}, store=store)
    house.engine.usage = {}
    cancel = "/v1/responses/resp_1/cancel"

    async def ask() -> Answer:
        return await call(house.app, scope_of("POST", cancel), b"")

    async def engine(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    layers_of(house.app)[-1].app = engine
    assert [(await ask()).status for _ in range(2)] == [404, 404]
    refused(await ask(), "requests_per_minute")
    await house.close()
