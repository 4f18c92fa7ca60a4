"""Disconnects, draining, two families, two replicas."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator

import aiohttp
import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import Running, model, served
from tests.e2e.pictures import ask, draw, encode

pytestmark = pytest.mark.e2e
LONG = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1900, "ignore_eos": True}


def running_requests(base: str) -> float:
    """Return vLLM's own count of running requests, over all replicas."""
    text = httpx.get(f"{base}/metrics").text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return sum(s.value for s in samples if s.name == "vllm:num_requests_running")


def wait_for(base: str, count: float, seconds: float = 20) -> bool:
    """Wait until vLLM runs `count` requests."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if running_requests(base) == count:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_ends_its_generation(qwen: Running, stream: bool) -> None:
    assert await asyncio.to_thread(wait_for, qwen.base, 0)
    async with aiohttp.ClientSession() as session:
        asked = asyncio.create_task(
            session.post(f"{qwen.url}/chat/completions", json={**LONG, "model": "fovea-qwen", "stream": stream})
        )
        assert await asyncio.to_thread(wait_for, qwen.base, 1)
        if stream:
            answer = await asked
            await answer.content.readany()
            answer.close()
        else:
            asked.cancel()
        # a generation of 1,900 tokens takes longer than this; the one that nobody waits for must not
        assert await asyncio.to_thread(wait_for, qwen.base, 0, 2.0)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Both embedded families, one of them twice, behind the front."""
    stack: dict[str, object] = {"models": [model("qwen2_5_vl", replicas=2), model("paligemma", images_per_prompt=1)]}
    with served(stack, tmp_path_factory.mktemp("families")) as running:
        yield running


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["fovea-qwen", "fovea-paligemma"])
def test_both_families_answer_by_name(families: Running, name: str) -> None:
    for shape, color in (("circle", "red"), ("rectangle", "blue")):
        messages = ask("what color is the shape?", encode(draw(shape, color)))
        for base in (families.url, f"{families.base}/{name}/v1"):
            body = {"model": name, "messages": messages, "max_tokens": 8, "temperature": 0}
            answer = httpx.post(f"{base}/chat/completions", json=body, timeout=60)
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["message"]["content"] == color


def test_the_front_streams_lists_and_refuses(families: Running) -> None:
    stream = families.client.chat.completions.create(
        model="fovea-paligemma",
        messages=ask("caption en", encode(draw("triangle", "green"))),
        max_tokens=12,
        temperature=0,
        stream=True,
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == "a green triangle"
    assert {entry.id for entry in families.client.models.list()} == {"fovea-qwen", "fovea-paligemma"}
    unknown = httpx.post(f"{families.url}/chat/completions", json={"model": "other", "messages": []})
    assert unknown.status_code == 404 and "fovea-paligemma" in unknown.json()["error"]["message"]
    bad = httpx.post(
        f"{families.url}/chat/completions", json={"model": "fovea-qwen", "messages": ask("?", b"no image")}
    )
    assert bad.status_code == 400 and bad.json()["error"]["param"].startswith("messages[0]")


def test_metrics_add_up_over_replicas(families: Running) -> None:
    def answered() -> dict[str, float]:
        text = httpx.get(f"{families.base}/metrics").text
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for s in family.samples:
                if s.name == "vllm:request_success_total" and s.labels["model_name"] == "fovea-qwen":
                    found[s.labels["replica"]] = found.get(s.labels["replica"], 0) + s.value
        return found

    before = answered()
    for number in range(12):
        body = {"model": "fovea-qwen", "messages": [{"role": "user", "content": f"question {number}"}], "max_tokens": 1}
        assert httpx.post(f"{families.base}/fovea-qwen/v1/chat/completions", json=body, timeout=60).status_code == 200
    after = answered()
    assert len(before) == len(after) == 2
    gained = [after[replica] - before[replica] for replica in after]
    assert sum(gained) >= 12 and min(gained) >= 1  # both replicas took part; canaries may add to it


def test_two_stacks_on_a_machine_share_no_port(qwen: Running, families: Running) -> None:
    """Ray's listeners allow sharing, and a request then goes to either stack, past the other's keys."""
    ports = []
    for stack in (qwen, families):
        processes = psutil.Process(stack.process.pid).children(recursive=True)
        found = {c.laddr.port for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
        assert int(stack.base.rpartition(":")[2]) in found and len(found) > 5
        ports.append(found)
    assert not ports[0] & ports[1]


def test_sigterm_lets_running_requests_finish_and_refuses_new_ones(families: Running) -> None:
    """Last in this file: it stops the stack."""

    async def scenario() -> tuple[int, int, str | None, int]:
        async with aiohttp.ClientSession() as session:
            url = f"{families.base}/fovea-paligemma/v1/chat/completions"
            body = {**LONG, "model": "fovea-paligemma"}
            asked = asyncio.create_task(session.post(url, json=body))
            assert await asyncio.to_thread(wait_for, families.base, 1)
            families.process.send_signal(signal.SIGTERM)
            status, retry = 200, None
            for _ in range(100):  # until the drain has reached the replica
                try:
                    async with session.post(url, json={**body, "max_tokens": 1}) as refused:
                        status, retry = refused.status, refused.headers.get("retry-after")
                except aiohttp.ClientError:
                    break
                if status == 503:
                    break
                await asyncio.sleep(0.05)
            answer = await asked
            tokens = (await answer.json())["usage"]["completion_tokens"]
            return answer.status, status, retry, tokens

    finished, refused, retry, tokens = asyncio.run(scenario())
    assert (finished, tokens) == (200, 1900)
    assert refused == 503 and retry is not None
    assert families.process.wait(90) == 0
