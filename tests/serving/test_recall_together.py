"""The layer recall: requests at the same time, retries by their key, purges."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from serving.errors import ApiError
from serving.layers import build_layers, stop_layers
from serving.layers.screen import Screen
from serving.stack import Stack
from tests.serving.asgi import JSON, Answer, call, scope_of
from tests.serving.pictures import encode, scene
from tests.serving.test_recall import CHAT, Engine, House, about, chat, delta, sse

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
