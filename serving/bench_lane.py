"""`python -m serving.bench_lane`: what the batch lane's window is worth, on the same traffic, by the real engine.

Three stacks are served in turn: without a lane, with the window off, and with it on.  Each gets, in the same order:

    batch        a closed loop of batch requests that share images and long prefixes; requests/s
    tight        8 questions about each of many images of 256 x 256 pixels, more than the engine's caches hold, by 512
                 users; requests/s
    plain        the same with nothing shared; requests/s
    quiet        interactive requests alone; p50 and p99
    busy         the same interactive requests while the batch load runs; p50 and p99

Rounds alternate the order of the stacks.  Printed is one JSON object; ratios are of medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from serving.bench_stack import served

LANES: dict[str, Any] = {
    "none": None,
    "off": {"window": "off"},
    "on": {"window": "on", "window_ms": 1000, "requests": 512},
}
BLOCKS = 256
"""Blocks of the KV cache, of 128 tokens on a CPU: 64 requests of `tight` run, and some 20 images are kept."""


def requests_of(kind: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Return shuffled chat bodies: `batch` shares 16 images and 8 long prefixes, `tight` images, `plain` nothing."""
    from PIL import Image

    rng = random.Random(seed)

    side = 256 if kind == "tight" else 64

    def picture() -> str:
        buffer = io.BytesIO()
        Image.frombytes("RGB", (8, 8), rng.randbytes(8 * 8 * 3)).resize((side, side), 0).save(buffer, "PNG")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

    images = [picture() for _ in range({"batch": 16, "tight": count // 8}.get(kind, count))]
    prefixes = [" ".join(f"rule {rng.randrange(10**6)}" for _ in range(40)) for _ in range(8)]
    bodies = []
    for number in range(count):
        text = f"question {number}: is there a circle?"
        if kind == "batch" and number % 2:
            content: Any = f"{prefixes[number // 2 % 8]} {text}"
        else:
            part = {"type": "image_url", "image_url": {"url": images[number % len(images)]}}
            content = [part, {"type": "text", "text": text}]
        bodies.append({"messages": [{"role": "user", "content": content}]})
    rng.shuffle(bodies)
    return bodies


async def load(url: str, bodies: list[dict[str, Any]], users: int, batch: bool, stop: asyncio.Event) -> list[float]:
    """Send the bodies in a closed loop, over and over until `stop` if it is set later; return seconds per request."""
    import aiohttp

    headers = {"x-fovea-lane": "batch"} if batch else {}
    queue, seconds = iter(bodies), []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def user() -> None:
            for body in queue:
                if stop.is_set():
                    return
                whole = {"model": "fovea-qwen", "max_tokens": 4, "temperature": 0, "ignore_eos": True, **body}
                began = time.perf_counter()
                async with session.post(f"{url}/v1/chat/completions", json=whole, headers=headers) as answer:
                    await answer.read()
                    assert answer.status == 200, await answer.text()
                seconds.append(time.perf_counter() - began)

        await asyncio.gather(*(user() for _ in range(users)))
    return seconds


async def measure(url: str, seed: int, count: int) -> dict[str, float]:
    """Return the figures of one stack in one round."""
    row: dict[str, float] = {}
    never = asyncio.Event()
    await load(url, requests_of("plain", 60, seed + 1), 8, False, never)  # warm
    for kind, users in (("batch", 64), ("tight", 512), ("plain", 64)):
        bodies = requests_of(kind, 2 * count if kind == "tight" else count, seed + 2)
        began = time.perf_counter()
        await load(url, bodies, users, True, never)
        row[f"{kind}_rps"] = len(bodies) / (time.perf_counter() - began)
    for kind in ("quiet", "busy"):
        stop = asyncio.Event()
        background = asyncio.create_task(load(url, requests_of("batch", 100_000 // 8, seed + 3), 64, True, stop))
        if kind == "quiet":
            stop.set()
        await asyncio.sleep(1)
        seconds = await load(url, requests_of("plain", count // 2, seed + 4), 2, False, never)
        stop.set()
        await background
        cuts = statistics.quantiles(seconds, n=100, method="inclusive")
        row[f"{kind}_p50_ms"], row[f"{kind}_p99_ms"] = cuts[49] * 1000, cuts[98] * 1000
    return row


def stack_of(lane: Any) -> dict[str, Any]:
    """Return the embedded Qwen2.5-VL with this lane and caches smaller than what the load `tight` shares."""
    model = {"name": "fovea-qwen", "source": "embedded:qwen2_5_vl", "max_model_len": 2048}
    return {"models": [model | {"engine_args": {"num_gpu_blocks_override": BLOCKS}}], "lane": lane}


def main() -> int:
    """Run the rounds and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--requests", type=int, default=800, help="per load (default: %(default)s)")
    args = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in LANES}
    for number in range(args.rounds):
        for name in LANES if number % 2 == 0 else reversed(LANES):
            with tempfile.TemporaryDirectory() as folder, served(stack_of(LANES[name]), Path(folder)) as stack:
                rows[name].append(asyncio.run(measure(stack.url, 100 * number, args.requests)))
                print(name, rows[name][-1], file=sys.stderr, flush=True)
    medians = {
        name: {field: round(statistics.median(row[field] for row in found), 2) for field in found[0]}
        for name, found in rows.items()
    }
    ratios = {
        "batch_on_vs_off": medians["on"]["batch_rps"] / medians["off"]["batch_rps"],
        "tight_on_vs_off": medians["on"]["tight_rps"] / medians["off"]["tight_rps"],
        "plain_on_vs_off": medians["on"]["plain_rps"] / medians["off"]["plain_rps"],
        **{f"p99_busy_vs_quiet_{name}": m["busy_p99_ms"] / m["quiet_p99_ms"] for name, m in medians.items()},
    }
    result = {"rounds": args.rounds, "requests": args.requests, "medians": medians}
    print(json.dumps({**result, "ratios": {name: round(value, 3) for name, value in ratios.items()}}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
