"""The batch lane: who is in it, groups and their order, places in the engine, age, leaving, `auto`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from serving.exchange import exchange_of
from serving.lane import START, Lane, Places, Waiter, Window, text_of
from serving.layers import build_layers, layers_of, stop_layers
from serving.layers.lane import InLane
from serving.stack import Stack
from tests.serving.asgi import JSON, Answer, call, scope_of
from tests.serving.pictures import encode
from tests.serving.test_recall import about

CHAT = "/v1/chat/completions"
BATCH = (b"x-fovea-lane", b"batch")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


class House:
    """One replica whose engine notes the order in which requests come, and holds them when told."""

    def __init__(self, **section: Any):
        self.bodies: list[dict[str, Any]] = []
        self.hold: asyncio.Event | None = None
        data = {"models": [{"name": "m", "source": "x"}], "metrics": False, "lane": {"window": "on", **section}}
        self.stack = Stack.model_validate(data)
        self.app = build_layers(self.engine, self.stack, self.stack.models[0])
        self.layer = next(layer for layer in layers_of(self.app) if isinstance(layer, InLane))

    async def engine(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        assert message["type"] == "http.request"
        self.bodies.append(dict(exchange_of(scope).json()))
        if self.hold is not None:
            await self.hold.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def ask(self, *headers: tuple[bytes, bytes], path: str = CHAT, **body: Any) -> Answer:
        return await call(self.app, scope_of("POST", path, JSON, *headers), {"messages": [], **body})

    def texts(self) -> list[str]:
        return [text_of(body) for body in self.bodies]


def say(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


async def test_who_is_in_the_lane() -> None:
    house = House(window_ms=1)
    for headers, body, batch in (
        ((), {}, False),
        ((BATCH,), {}, True),
        ((), {"service_tier": "flex"}, True),
        ((), {"service_tier": "default"}, False),
        (((b"x-fovea-lane", b"interactive"),), {"service_tier": "flex"}, False),
        (((b"x-fovea-lane", b"nonsense"),), {}, False),
    ):
        answer = await house.ask(*headers, **body)
        assert answer.status == 200
        assert answer.header(b"x-fovea-lane") == (b"batch" if batch else None), (headers, body)
        assert (answer.header(b"x-fovea-window-ms") is not None) is batch
    await stop_layers(house.app)


async def test_interactive_requests_wait_for_nothing() -> None:
    house = House(window_ms=60_000)
    waiting = asyncio.create_task(house.ask(BATCH))
    await until(lambda: len(house.layer.window.waiting) == 1)
    assert (await house.ask()).status == 200
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert not house.layer.window.waiting
    await stop_layers(house.app)


async def test_due_times_order_the_engine() -> None:
    """Batch after interactive, unless it has waited long enough; a client's own priority does not count."""
    house = House(window_ms=1, age_s=30)
    await house.ask(BATCH, priority=-5)
    await house.ask(priority=10**9)
    house.layer.began -= 31  # half a minute later
    await house.ask()
    old, interactive, later = (body["priority"] for body in house.bodies)
    assert interactive < old < later and old - interactive > 29_000
    await stop_layers(house.app)


async def test_completions_carry_their_priority_and_other_routes_go_by() -> None:
    house = House(window_ms=1)
    await house.ask(BATCH, path="/v1/completions", prompt="x")
    await house.ask(BATCH, path="/v1/embeddings", input="x")
    assert house.bodies[0]["priority"] >= 30_000 and "priority" not in house.bodies[1]
    await stop_layers(house.app)


async def test_a_group_leaves_by_image_and_then_by_text() -> None:
    house = House(requests=6, window_ms=60_000)
    one, two = (encode(Image.new("RGB", (9, 9), color)) for color in ("red", "blue"))
    asked = [about(one, text="b"), say("zebra"), about(two, text="x"), about(one, text="a"), say("zeal"), about(two)]
    answers = await asyncio.gather(*(house.ask(BATCH, messages=messages) for messages in asked))
    assert {answer.status for answer in answers} == {200}
    texts = house.texts()
    assert texts[:2] == ["zeal", "zebra"]
    assert sorted(texts[2:]) == ["?", "a", "b", "x"] and [{"a", "b"}, {"?", "x"}] in (
        [set(texts[2:4]), set(texts[4:])],
        [set(texts[4:]), set(texts[2:4])],
    )
    await stop_layers(house.app)


async def test_a_group_leaves_when_it_is_full_or_has_waited() -> None:
    house = House(window_ms=60_000, requests=3)
    assert len(await asyncio.gather(*(house.ask(BATCH) for _ in range(3)))) == 3
    house = House(window_ms=60_000, tokens=100)
    assert len(await asyncio.gather(*(house.ask(BATCH, messages=say("x" * 200)) for _ in range(2)))) == 2
    house = House(window_ms=30)
    answer = await house.ask(BATCH)
    assert int(answer.header(b"x-fovea-window-ms") or 0) >= 29
    await stop_layers(house.app)


async def test_only_so_many_are_in_the_engine() -> None:
    house = House(window_ms=1, inside=2)
    house.hold = asyncio.Event()
    tasks = [asyncio.create_task(house.ask(BATCH, number=n)) for n in range(5)]
    await until(lambda: len(house.bodies) == 2)
    await asyncio.sleep(0.02)
    assert len(house.bodies) == 2
    assert (await asyncio.wait_for(asyncio.shield(released(house, tasks)), 10)) == [200] * 5
    assert house.layer.window.places.used == 0
    await stop_layers(house.app)


async def released(house: House, tasks: list[asyncio.Task[Answer]]) -> list[int]:
    assert house.hold is not None
    house.hold.set()
    return [answer.status for answer in await asyncio.gather(*tasks)]


@pytest.mark.parametrize("when", ["in the window", "on its way", "in the engine"])
async def test_a_client_that_leaves_gives_its_place_back(when: str) -> None:
    house = House(window_ms=60_000 if when == "in the window" else 1, inside=1)
    house.hold = asyncio.Event()
    if when == "on its way":
        first = asyncio.create_task(house.ask(BATCH))
        await until(lambda: len(house.bodies) == 1)
    leave = asyncio.Event()
    scope = scope_of("POST", CHAT, JSON, BATCH)
    task = asyncio.create_task(call(house.app, scope, {"messages": say("gone")}, leave=leave))
    if when == "in the window":
        await until(lambda: len(house.layer.window.waiting) == 1)
    elif when == "on its way":
        await until(lambda: not house.layer.window.waiting and len(house.layer.window.places.queue) == 1)
        await asyncio.sleep(0.02)
    else:
        await until(lambda: len(house.bodies) == 1)
        house.hold.set()
    leave.set()
    assert (await task).status == (200 if when == "in the engine" else 0)
    house.hold.set()
    if when == "on its way":
        assert (await first).status == 200
        await until(lambda: house.layer.window.places.used == 0)
    assert house.layer.window.places.used == 0 and not house.layer.window.waiting
    assert "gone" not in house.texts() or when == "in the engine"
    await stop_layers(house.app)


# batch yields


async def test_batch_requests_wait_for_the_last_interactive_one() -> None:
    house = House(window_ms=1, quiet_ms=30)
    house.hold = asyncio.Event()
    tasks = [asyncio.create_task(house.ask(messages=say("interactive")))]
    await until(lambda: len(house.bodies) == 1)
    tasks += [asyncio.create_task(house.ask(BATCH, messages=say(f"batch {n}"))) for n in range(3)]
    tasks += [asyncio.create_task(house.ask(messages=say("another"), path="/v1/completions"))]
    tasks += [asyncio.create_task(house.ask(path="/v1/responses"))]  # what has no lane is interactive too
    await until(lambda: len(house.bodies) == 3)
    await until(lambda: len(house.layer.window.places.queue) == 1)  # the others wait in the group behind the first
    assert house.layer.window.places.interactive == 3 and house.layer.window.places.used == 0
    began = asyncio.get_running_loop().time()
    assert await released(house, tasks) == [200] * 6
    assert asyncio.get_running_loop().time() - began >= 0.03
    assert all(text.startswith("batch") for text in house.texts()[3:]) and len(house.bodies) == 6
    await stop_layers(house.app)


async def test_a_batch_request_that_has_waited_long_goes_in_beside() -> None:
    house = House(window_ms=1, age_s=0.05, beside=2, inside=8)
    house.hold = asyncio.Event()
    with house.layer.window.places.interactively():
        tasks = [asyncio.create_task(house.ask(BATCH, messages=say(f"batch {n}"))) for n in range(5)]
        await until(lambda: len(house.bodies) == 2)
        await asyncio.sleep(0.05)
        assert len(house.bodies) == 2  # no more than that at once
        house.hold.set()
        assert {answer.status for answer in await asyncio.gather(*tasks)} == {200}
    assert house.layer.window.places.used == 0
    await stop_layers(house.app)


@pytest.mark.parametrize(("section", "seen"), [({"yields": False}, 1), ({}, 0)])
async def test_yielding_can_be_switched_off(section: Any, seen: int) -> None:
    house = House(window="off", **section)
    with house.layer.window.places.interactively():
        task = asyncio.create_task(house.ask(BATCH))
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(house.bodies) == seen
    assert (await task).status == 200
    await stop_layers(house.app)


@given(st.lists(st.sampled_from(["take", "give", "cancel", "in", "out"]), max_size=40), st.integers(1, 3))
async def test_places_are_never_lost(steps: list[str], inside: int) -> None:
    places = Places(Lane(inside=inside, quiet_ms=0, age_s=1000))
    tasks: list[asyncio.Task[None]] = []
    held: list[Any] = []
    for step in steps:
        if step == "take":
            tasks.append(asyncio.create_task(places.take(0.0 if len(tasks) % 2 else time.monotonic())))
        elif step == "cancel" and tasks:
            tasks[len(tasks) // 2].cancel()
        elif step == "in":
            held.append(places.interactively())
            held[-1].__enter__()
        elif step == "out" and held:
            held.pop().__exit__(None, None, None)
        elif step == "give" and (done := [task for task in tasks if task.done() and not task.cancelled()]):
            tasks.remove(done[0])
            places.give()
        for _ in range(3):
            await asyncio.sleep(0)
        assert places.used == sum(task.done() and not task.cancelled() for task in tasks) <= inside
    for one in held:
        one.__exit__(None, None, None)
    while tasks:  # whoever waits comes in when the others leave
        await asyncio.sleep(0.001)
        for task in [task for task in tasks if task.done()]:
            tasks.remove(task)
            if not task.cancelled():
                places.give()
    assert places.used == 0 and not places.queue


# auto


def waiter(image: str = "", text: str = "") -> Waiter:
    return Waiter(image, text, 1)


@pytest.mark.parametrize(
    ("requests", "grouping"),
    [
        ([("", f"question {n}") for n in range(60)], False),  # short texts: nothing to share
        ([(f"image {n}", "what is it?") for n in range(60)], False),
        ([(f"image {n // 4}", f"question {n}") for n in range(60)], True),
        ([("", "x" * START + str(n)) for n in range(60)], True),
        ([("", f"{n} " + "x" * START) for n in range(60)], False),
    ],
)
def test_auto_goes_by_what_is_sent(requests: list[tuple[str, str]], grouping: bool) -> None:
    window = Window(Lane(window="auto"))
    for image, text in requests:
        window._learn(waiter(image, text))
    assert window.grouping is grouping


def test_auto_forgets() -> None:
    window = Window(Lane(window="auto"))
    for _ in range(60):
        window._learn(waiter("same"))
    assert window.grouping
    for number in range(100):
        window._learn(waiter(f"image {number}"))
    assert not window.grouping and len(window.recent) <= 102
    assert not Window(Lane(window="off")).grouping and Window(Lane(window="on")).grouping


async def test_off_still_bounds_and_orders() -> None:
    house = House(window="off", window_ms=60_000)
    assert (await house.ask(BATCH)).header(b"x-fovea-window-ms") in (b"0", b"1", b"2", b"3")
    assert house.bodies[0]["priority"] >= 30_000
    await stop_layers(house.app)


def test_texts() -> None:
    assert text_of({"prompt": "a"}) == "a" and text_of({"messages": "x", "prompt": [1]}) == ""
    assert text_of({"messages": [*say("a"), 1, {"content": [1, {"text": 2}, {"text": "b"}]}]}) == "a\nb"
    assert json.dumps(text_of({})) == '""'
