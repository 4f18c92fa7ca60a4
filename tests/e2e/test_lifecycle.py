"""Clients that leave: their generation ends in the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import HTTP, Running

pytestmark = pytest.mark.e2e
LONG: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1900, "ignore_eos": True, "temperature": 0.9,
}  # fmt: skip


def vllm_says(base: str, name: str, headers: dict[str, str] | None = None) -> float:
    """Return one of vLLM's own metrics, summed over its labels and all replicas."""
    text = HTTP.get(f"{base}/metrics", headers=headers, timeout=30).text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples if s.name == name]
    assert samples, name
    return sum(sample.value for sample in samples)


TOKENS = "vllm:generation_tokens_total"


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.02)


def wait_for_tokens(base: str, count: float, headers: dict[str, str] | None = None) -> None:
    """Wait until vLLM has made so many tokens: a probe alone does not make that many."""
    wait_until(lambda: vllm_says(base, TOKENS, headers) >= count)


def wait_until_idle(base: str) -> None:
    """Wait until vLLM runs no request."""
    wait_until(lambda: vllm_says(base, "vllm:num_requests_running") == 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_ends_its_generation(qwen: Running, stream: bool) -> None:
    await asyncio.to_thread(wait_until_idle, qwen.base)
    before = vllm_says(qwen.base, TOKENS)
    async with aiohttp.ClientSession() as session:
        asked = asyncio.create_task(
            session.post(f"{qwen.url}/chat/completions", json={**LONG, "model": "fovea-qwen", "stream": stream})
        )
        await asyncio.to_thread(wait_for_tokens, qwen.base, before + 20)
        if stream:
            answer = await asked
            await answer.content.readany()
            answer.close()
        else:
            asked.cancel()
        await asyncio.to_thread(wait_until_idle, qwen.base)
    assert 20 <= vllm_says(qwen.base, TOKENS) - before < LONG["max_tokens"]  # it did not end by itself
