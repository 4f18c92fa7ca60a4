"""Decode speed of a served checkpoint: tokens a second at a number of requests at a time, a picture in each prompt."""

from __future__ import annotations

import asyncio
import base64
import statistics
import time
from typing import Any

import aiohttp
import orjson

from models.golden import GoldenItem
from models.support.errors import CheckFailed


async def _one(session: aiohttp.ClientSession, url: str, body: bytes) -> tuple[float, float, int]:
    """Stream one answer; return (time of the first token, time of the last, tokens by the engine's own count)."""
    first = last = 0.0
    tokens = 0
    async with session.post(f"{url}/chat/completions", data=body) as reply:
        if reply.status != 200:
            raise CheckFailed(f"the engine answers {reply.status}", field="engine", value=(await reply.text())[:200])
        async for line in reply.content:
            if not line.startswith(b"data: {"):
                continue
            event = orjson.loads(line[6:])
            if event.get("usage"):
                tokens = int(event["usage"]["completion_tokens"])
            if event.get("choices"):
                last = time.perf_counter()
                # the first event may only name the role
                if not first and _has_token(event):
                    first = last
    return first, last, tokens


def _has_token(event: dict[str, Any]) -> bool:
    delta = event["choices"][0].get("delta") or {}
    return delta.get("role") is None or bool(delta.get("content"))


def _body(model: str, item: GoldenItem, tokens: int) -> bytes:
    source = f"data:{item.media_type};base64,{base64.b64encode(item.image_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": source}}, {"type": "text", "text": item.question}]
    return orjson.dumps(
        {
            "model": model,
            "temperature": 0,
            "max_tokens": tokens,
            "min_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "messages": [{"role": "user", "content": content}],
        }
    )


async def _round(url: str, model: str, items: list[GoldenItem], tokens: int) -> float:
    headers = {"Content-Type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        found = await asyncio.gather(*(_one(session, url, _body(model, i, tokens)) for i in items))
    per_token = [(last - first) / (n - 1) for first, last, n in found]
    return len(items) / statistics.mean(per_token)


def tokens_per_second(
    url: str, model: str, items: list[GoldenItem], *, batch: int, rounds: int, tokens: int = 64
) -> dict[str, Any]:
    """Return the decode speed at `batch` requests at a time: median, lowest and highest of `rounds`, after one more.

    Speed is batch over the mean time per output token, first token excluded.  Every request has a picture of its own.
    """
    values = []
    for number in range(rounds + 1):
        start = number * batch % max(1, len(items) - batch)
        values.append(asyncio.run(_round(url, model, items[start : start + batch], tokens)))
    kept = values[1:]
    return {
        "batch": batch,
        "tokens_per_s": statistics.median(kept),
        "lowest": min(kept),
        "highest": max(kept),
        "rounds": rounds,
        "output_tokens": tokens,
    }
