"""`python -m serving.bench_lane`: what the batch lane's window is worth, on the same traffic, by the real engine.

Three stacks are served in turn: without a lane, with the window off, and with it on.  Each gets, in the same order:

    batch        a closed loop of batch requests that share images and long prefixes; requests/s
    tight        8 questions about each of many images (256 x 256 pixels, 256 tokens) and texts (500 tokens), more than
                 the engine's caches hold, by 240 users; requests/s
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
"""Blocks of the KV cache, of 128 tokens on a CPU: 64 requests of `tight` run, and little is kept besides."""
PIXELS = 256 * 256
"""The embedded model was taught with 64 x 64 and scales larger pictures down; here it takes them as they are.  Its
answers are then worth nothing, which does not matter to how long they take."""


def requests_of(kind: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Return shuffled chat bodies: `batch` shares 16 images and 8 prefixes, `tight` many of both, `plain` nothing."""
    from PIL import Image

    rng = random.Random(seed)

    side = 256 if kind == "tight" else 64

    def picture() -> str:
        buffer = io.BytesIO()
        Image.frombytes("RGB", (8, 8), rng.randbytes(8 * 8 * 3)).resize((side, side), 0).save(buffer, "PNG")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

    shared, words = {"batch": ((16, 8), 40), "tight": ((count // 16, count // 16), 50)}.get(kind, ((count, 0), 0))
    images = [picture() for _ in range(shared[0])]
    prefixes = [" ".join(f"rule {rng.randrange(10**6)}" for _ in range(words)) for _ in range(shared[1])]
    bodies = []
    for number in range(count):
        text = f"question {number}: is there a circle?"
        if prefixes and number % 2:
            content: Any = f"{prefixes[number // 2 % len(prefixes)]} {text}"
        else:
            each = number // 2 if prefixes else number
            part = {"type": "image_url", "image_url": {"url": images[each % len(images)]}}
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


async def measure(url: str, seed: int, count: int, throughput: bool) -> dict[str, float]:
    """Return the figures of one stack in one round; without `throughput` those of the interactive load alone."""
    row: dict[str, float] = {}
    never = asyncio.Event()
    await load(url, requests_of("plain", 60, seed + 1), 8, False, never)  # warm
    for kind, users in (("batch", 64), ("tight", 240), ("plain", 64)) if throughput else ():
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
        # what ran when the first one came is still in the engine: `settled` leaves out the first tenth
        for name, part in ((kind, seconds), (f"{kind}_settled", seconds[len(seconds) // 10 :])):
            cuts = statistics.quantiles(part, n=100, method="inclusive")
            row[f"{name}_p50_ms"], row[f"{name}_p99_ms"] = cuts[49] * 1000, cuts[98] * 1000
    return row


def stack_of(lane: Any) -> dict[str, Any]:
    """Return the embedded Qwen2.5-VL with this lane and caches that hold less than what the load `tight` shares."""
    model = {"name": "fovea-qwen", "source": "embedded:qwen2_5_vl", "max_model_len": 2048}
    engine = {"num_gpu_blocks_override": BLOCKS, "mm_processor_kwargs": {"max_pixels": PIXELS}}
    return {"models": [model | {"engine_args": engine}], "limits": {"concurrent": 4096}, "lane": lane}


def main() -> int:
    """Run the rounds and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--requests", type=int, default=800, help="per load (default: %(default)s)")
    parser.add_argument("--lanes", nargs="+", choices=LANES, default=list(LANES), help="of these stacks alone")
    parser.add_argument("--latency-only", action="store_true", help="only the interactive load, alone and beside batch")
    args = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in args.lanes}
    for number in range(args.rounds):
        for name in args.lanes if number % 2 == 0 else reversed(args.lanes):
            with tempfile.TemporaryDirectory() as folder, served(stack_of(LANES[name]), Path(folder)) as stack:
                rows[name].append(asyncio.run(measure(stack.url, 100 * number, args.requests, not args.latency_only)))
                print(name, rows[name][-1], file=sys.stderr, flush=True)
    medians = {
        name: {field: round(statistics.median(row[field] for row in found), 2) for field in found[0]}
        for name, found in rows.items()
    }
    ratios = {
        f"p99_{part}_vs_{part.replace('busy', 'quiet')}_{name}": row[f"{part}_p99_ms"]
        / row[f"{part.replace('busy', 'quiet')}_p99_ms"]
        for name, row in medians.items()
        for part in ("busy", "busy_settled")
    }
    for kind in ("batch", "tight", "plain"):
        if {"on", "off"} <= set(medians) and not args.latency_only:
            ratios[f"{kind}_on_vs_off"] = medians["on"][f"{kind}_rps"] / medians["off"][f"{kind}_rps"]
    result = {"rounds": args.rounds, "requests": args.requests, "medians": medians}
    print(json.dumps({**result, "ratios": {name: round(value, 3) for name, value in ratios.items()}}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
