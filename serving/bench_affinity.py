"""`python -m serving.bench_affinity`: what it is worth that requests with the same image go to the same replica.

Two replicas of the embedded Qwen2.5-VL, the same load three times: requests in turn (`round robin`, which is what the
proxy does for requests without the header), to the replica with the fewest connections (the default), and with the
section `affinity` and a header made from the image.  The load asks several questions about each of many images in a
shuffled order, 16 at once.  Counted over both replicas by vLLM's own metrics: how many images were in its multi-modal
cache (`mm_cache`; an image that is not is prepared and encoded), how many prompt tokens were in the prefix cache.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import io
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from serving.bench_stack import served

MODEL = "fovea-qwen"
SYSTEMS: dict[str, tuple[dict[str, Any], bool]] = {
    "round robin": ({"affinity": {}}, False),
    "affinity": ({"affinity": {}}, True),
    "least connections": ({}, False),
}
COUNTERS = ("mm_cache_queries", "mm_cache_hits", "prefix_cache_queries", "prefix_cache_hits")


def requests_of(images: int, each: int, side: int, seed: int) -> list[tuple[str, dict[str, Any]]]:
    """Return shuffled (mark of the image, chat body) pairs."""
    from PIL import Image

    rng = random.Random(seed)
    found = []
    for _ in range(images):
        buffer = io.BytesIO()
        Image.frombytes("RGB", (8, 8), rng.randbytes(192)).resize((side, side), 0).save(buffer, "PNG")
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        mark = hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
        for number in range(each):
            parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": f"question {number}?"}]
            found.append((mark, {"messages": [{"role": "user", "content": parts}]}))
    rng.shuffle(found)
    return found


async def load(url: str, requests: list[tuple[str, dict[str, Any]]], users: int, marked: bool) -> float:
    """Send all requests in a closed loop; return requests/s."""
    import aiohttp

    queue = iter(requests)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def user() -> None:
            for mark, body in queue:
                whole = {"model": MODEL, "max_tokens": 4, "temperature": 0, "ignore_eos": True, **body}
                headers = {"x-fovea-image": mark} if marked else {}
                async with session.post(f"{url}/v1/chat/completions", json=whole, headers=headers) as answer:
                    await answer.read()
                    assert answer.status == 200, await answer.text()

        began = time.perf_counter()
        await asyncio.gather(*(user() for _ in range(users)))
        return len(requests) / (time.perf_counter() - began)


async def counters(url: str) -> dict[str, dict[str, float]]:
    """Return vLLM's counters by replica."""
    import aiohttp
    from prometheus_client.parser import text_string_to_metric_families

    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as answer:
        text = await answer.text()
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix("vllm:").removesuffix("_total")
            if name in (*COUNTERS, "request_success"):
                row = found.setdefault(sample.labels["replica"], {})
                row[name] = row.get(name, 0) + sample.value
    return found


async def measure(url: str, marked: bool, args: argparse.Namespace) -> dict[str, float]:
    """Return the figures of one system."""
    await load(url, requests_of(8, 4, args.side, 1), 8, False)  # warm; these images do not come again
    before = await counters(url)
    rps = await load(url, requests_of(args.images, args.each, args.side, 2), args.users, marked)
    after = await counters(url)
    gained = {name: {key: row[key] - before.get(name, {}).get(key, 0) for key in row} for name, row in after.items()}
    total = {key: sum(row.get(key, 0) for row in gained.values()) for key in (*COUNTERS, "request_success")}
    shares = [row.get("request_success", 0) / total["request_success"] for row in gained.values()]
    return {
        "rps": rps,
        "mm_cache_hit_rate": total["mm_cache_hits"] / total["mm_cache_queries"],
        "prefix_cache_hit_rate": total["prefix_cache_hits"] / total["prefix_cache_queries"],
        "busiest_replicas_share": max(shares),
    }


def main() -> int:
    """Run the rounds and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--each", type=int, default=4, help="questions about each image (default: %(default)s)")
    parser.add_argument("--side", type=int, default=256, help="pixels of an image's side (default: %(default)s)")
    parser.add_argument("--users", type=int, default=16)
    args = parser.parse_args()
    model = {"name": MODEL, "source": "embedded:qwen2_5_vl", "max_model_len": 2048, "replicas": 2}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in SYSTEMS}
    for number in range(args.rounds):
        for name in SYSTEMS if number % 2 == 0 else reversed(SYSTEMS):
            section, marked = SYSTEMS[name]
            with tempfile.TemporaryDirectory() as folder, served({"models": [model], **section}, Path(folder)) as stack:
                rows[name].append(asyncio.run(measure(stack.url, marked, args)))
            print(name, rows[name][-1], file=sys.stderr, flush=True)
    print(json.dumps({"settings": vars(args), "rows": rows}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
