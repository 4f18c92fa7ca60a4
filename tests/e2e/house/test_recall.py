"""Kept answers in front of the real engine: pixels, streams, two replicas, unmodified clients."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections import Counter
from functools import partial
from typing import Any

import anthropic
import httpx
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import HTTP, Running, command
from tests.e2e.house.conftest import QWEN, House, engines, until, until_kept
from tests.e2e.pictures import ask, draw, encode, image_part

pytestmark = pytest.mark.e2e
COLOR = "what color is the shape?"


@pytest.fixture
def running(house: House) -> Running:
    return house.qwen


def shape(name: str, color: str) -> Image.Image:
    """A picture that no other test asks about."""
    return draw(name, color, size=(80, 80))


def post(running: Running, messages: list[Any], path: str = "/chat/completions", **more: Any) -> httpx.Response:
    # a new connection, so that the replicas take turns
    headers = {"authorization": f"Bearer {running.key}", "connection": "close", **more.pop("headers", {})}
    body = {"model": QWEN, "messages": messages, "max_tokens": 8, "temperature": 0, **more}
    answer = HTTP.post(running.url + path, json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer


def said(answer: httpx.Response) -> str:
    return str(answer.json()["choices"][0]["message"]["content"])


@pytest.mark.timeout(900)
def test_every_replica_gives_the_one_answer_and_each_picture_its_own(house: House) -> None:
    running = house.qwen
    for color in ("red", "blue", "green", "yellow"):
        picture = shape("rectangle", color)
        answers = [post(running, ask(COLOR, encode(picture)))]
        until_kept(house, answers[0].json()["id"])
        answers += [post(running, ask(COLOR, encode(picture))) for _ in range(3)]
        assert [said(answer) for answer in answers] == [color] * 4
        states = [answer.headers["x-fovea-cache"] for answer in answers]
        assert states == ["miss", "hit", "hit", "hit"], color
        assert len({answer.content for answer in answers}) == 1
        again = post(running, ask(COLOR, encode(picture, "BMP")))
        assert (said(again), again.headers["x-fovea-cache"]) == (color, "hit")


def test_a_stream_is_replayed_to_an_unmodified_client(house: House) -> None:
    running = house.qwen
    picture = encode(shape("triangle", "red"))

    def ask_once() -> tuple[list[Any], str]:
        raw = running.client.chat.completions.with_raw_response.create(
            model=QWEN, messages=ask(COLOR, picture), max_tokens=8, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        return list(raw.parse()), raw.headers["x-fovea-cache"]

    first = ask_once()
    until_kept(house, first[0][0].id)
    second = ask_once()
    assert (first[1], second[1]) == ("miss", "hit") and first[0] == second[0]
    assert "".join(c.choices[0].delta.content or "" for c in second[0] if c.choices) == "red"
    assert second[0][-1].usage.completion_tokens >= 1
    claude = anthropic.Anthropic(base_url=running.base, api_key=running.key, max_retries=0)
    texts = []
    for _ in range(2):
        with claude.messages.stream(
            model=QWEN,
            max_tokens=8,
            messages=[{"role": "user", "content": "is a circle there?"}],
            extra_body={"temperature": 0},
        ) as stream:
            texts.append(stream.get_final_message())
        until_kept(house, texts[0].id)
    assert texts[0].id == texts[1].id and texts[0].content == texts[1].content


def test_what_is_truncated_or_sampled_is_not_kept(running: Running) -> None:
    messages = ask("caption en", encode(shape("circle", "blue")))
    cut = [post(running, messages, max_tokens=1) for _ in range(2)]
    assert [answer.json()["choices"][0]["finish_reason"] for answer in cut] == ["length", "length"]
    assert [answer.headers["x-fovea-cache"] for answer in cut] == ["miss", "miss"]
    sampled = [post(running, messages, temperature=0.9) for _ in range(2)]
    assert [answer.headers["x-fovea-cache"] for answer in sampled] == ["bypass", "bypass"]


def test_identical_requests_at_once_are_one_generation(house: House) -> None:
    """The engines stand still until all requests are in, so that none comes too late, however fast they are."""
    headers = {"authorization": f"Bearer {house.keys['operator']}"}

    def counted() -> Counter[tuple[str, str]]:
        text = HTTP.get(f"{house.qwen.base}/metrics", headers=headers, timeout=30).text
        samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
        return Counter({(one.labels["replica"], one.labels["result"]): int(one.value) for one in samples
                        if one.name == "fovea_recall_total" and one.labels["model"] == QWEN})  # fmt: skip

    async def scenario() -> list[httpx.Response]:
        body = {"model": QWEN, "messages": [{"role": "user", "content": f"at once {time.time()}"}], "temperature": 0}
        async with httpx.AsyncClient(timeout=120, headers={"authorization": f"Bearer {house.qwen.key}"}) as client:
            post = partial(client.post, f"{house.qwen.url}/chat/completions", json={**body, "max_tokens": 8})
            asked = [asyncio.create_task(post()) for _ in range(12)]
            await asyncio.to_thread(until, lambda: any(a.done() for a in asked) or (counted() - before).total() == 12)
            for engine in stopped:
                engine.resume()
            return await asyncio.gather(*asked)

    before, stopped = counted(), [engine for engine, _ in engines(house)]
    assert len(stopped) == 2
    try:
        for engine in stopped:
            engine.suspend()
        answers = asyncio.run(scenario())
    finally:
        for engine in stopped:
            engine.resume()
    assert [answer.status_code for answer in answers] == [200] * 12, [answer.text for answer in answers]
    made = counted() - before
    replicas = {replica for replica, _ in made}
    assert all(made[replica, "miss"] == 1 for replica in replicas)
    states = Counter(answer.headers["x-fovea-cache"] for answer in answers)
    assert states == {"miss": len(replicas), "coalesced": 12 - len(replicas)}
    assert len({answer.json()["id"] for answer in answers}) == len(replicas)


def test_a_purge_from_the_command_line(house: House) -> None:
    running = house.qwen
    picture = encode(shape("circle", "yellow"))
    tagged = {"x-fovea-cache-tags": "shelf-7"}
    first = post(running, ask(COLOR, picture), headers=tagged)
    until_kept(house, first.json()["id"])
    second = post(running, ask(COLOR, picture), headers=tagged)
    assert [one.headers["x-fovea-cache"] for one in (first, second)] == ["miss", "hit"]
    assert command("cache", "purge", "--tag", "shelf-7", "--stack", str(house.file)) == {"purged": ["tag:shelf-7"]}
    until(lambda: post(running, ask(COLOR, picture), headers=tagged).headers["x-fovea-cache"] == "miss")


def test_what_a_hit_takes(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """A photograph-like picture of a megapixel; printed, and compared with the engine on the same requests."""
    noise = Image.effect_noise((64, 64), 90).resize((1000, 1000), Image.Resampling.BICUBIC).convert("RGB")
    photo = encode(noise, "JPEG", quality=90)
    found: dict[str, list[float]] = {"hit": [], "engine": []}
    kinds = ["engine", *["hit"] * 5] * 60  # in turns: whatever else the machine does, both have their share of it
    with httpx.Client(timeout=60, headers={"authorization": f"Bearer {running.key}"}) as client:
        for number, kind in enumerate(kinds):
            text = f"{COLOR} {number}" if kind == "engine" else f"{COLOR} 0"
            body = {"model": QWEN, "messages": ask(text, photo), "max_tokens": 8, "temperature": 0}
            data = json.dumps(body).encode()
            began = time.perf_counter()
            answer = client.post(f"{running.url}/chat/completions", content=data,
                                 headers={"content-type": "application/json"})  # fmt: skip
            spent = time.perf_counter() - began
            if (answer.headers["x-fovea-cache"] == "hit") is (kind == "hit"):
                found[kind].append(spent * 1000)
    rows = {kind: statistics.quantiles(values, n=100, method="inclusive") for kind, values in found.items()}
    with capsys.disabled():
        for kind, row in rows.items():
            print(f"\n{kind}: n {len(found[kind])}, p50 {row[49]:.2f} ms, p99 {row[98]:.2f} ms ({len(photo)} bytes)")
    assert len(found["hit"]) >= 290 and len(found["engine"]) >= 55 and rows["hit"][49] < rows["engine"][49]


def test_unknown_parts_of_a_request_are_other_requests(running: Running) -> None:
    one, two = (image_part(encode(shape("circle", color))) for color in ("red", "blue"))
    question = {"type": "text", "text": COLOR}
    answers = [
        post(running, [{"role": "user", "content": [*parts, question]}]).headers["x-fovea-cache"]
        for parts in ((one, two), (two, one), (one, two), (one,), (two,))
    ]
    assert answers[:2] == ["miss", "miss"]
