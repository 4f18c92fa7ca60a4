"""`python -m serving.bench_lane`: what the batch lane's window is worth, on the same traffic, by the real engine.

Four stacks are served in turn: without a lane, with the window off, with a wide one on (1 s, 512 requests), and with
the lane's own defaults (`auto`, 100 ms, 64 requests).  Each gets, in the same order:

    batch        a closed loop of batch requests that share images and long prefixes; requests/s
    tight        8 questions about each of many images (256 x 256 pixels, 256 tokens) and texts (500 tokens), more than
                 the engine's caches hold, by 240 users; requests/s
    plain        the same with nothing shared; requests/s
    quiet        interactive requests alone; p50 and p99
    busy         the same interactive requests while the batch load runs; p50 and p99

All stacks are started, and all but one are stopped (SIGSTOP); each load goes to one after the other, in an order that
turns round with every round, so that a machine of changing speed meets them alike.  Printed is one JSON object; a ratio
is the median over the rounds of the ratios within one, with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from serving.bench_stack import Served, awake, served, signal_all

LANES: dict[str, Any] = {
    "none": None,
    "off": {"window": "off"},
    "on": {"window": "on", "window_ms": 1000, "requests": 512},
    "auto": {},
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


async def throughput(url: str, kind: str, seed: int, count: int) -> dict[str, float]:
    """Return the requests/s of one kind of batch load."""
    bodies = requests_of(kind, 2 * count if kind == "tight" else 4 * count, seed)
    began = time.perf_counter()
    await load(url, bodies, 240 if kind == "tight" else 64, True, asyncio.Event())
    return {f"{kind}_rps": len(bodies) / (time.perf_counter() - began)}


async def latency(url: str, kind: str, seed: int, count: int) -> dict[str, float]:
    """Return percentiles of interactive requests, `quiet` or `busy`."""
    row, stop = {}, asyncio.Event()
    background = asyncio.create_task(load(url, requests_of("batch", 100_000 // 8, seed), 64, True, stop))
    if kind == "quiet":
        stop.set()
    await asyncio.sleep(1)
    seconds = await load(url, requests_of("plain", count, seed + 1), 2, False, asyncio.Event())
    stop.set()
    await background
    # what ran when the first one came is still in the engine: `settled` leaves out the first tenth
    for name, part in ((kind, seconds), (f"{kind}_settled", seconds[len(seconds) // 10 :])):
        cuts = statistics.quantiles(part, n=100, method="inclusive")
        row[f"{name}_p50_ms"], row[f"{name}_p99_ms"] = cuts[49] * 1000, cuts[98] * 1000
    return row


LOADS = {"batch": throughput, "tight": throughput, "plain": throughput, "quiet": latency, "busy": latency}


def stack_of(lane: Any) -> dict[str, Any]:
    """Return the embedded Qwen2.5-VL with this lane and caches that hold less than what the load `tight` shares."""
    model = {"name": "fovea-qwen", "source": "embedded:qwen2_5_vl", "max_model_len": 2048}
    engine = {"num_gpu_blocks_override": BLOCKS, "mm_processor_kwargs": {"max_pixels": PIXELS}}
    return {"models": [model | {"engine_args": engine}], "limits": {"concurrent": 4096}, "lane": lane}


def main() -> int:
    """Run the rounds and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=800, help="per load (default: %(default)s)")
    parser.add_argument("--lanes", nargs="+", choices=LANES, default=list(LANES), help="of these stacks alone")
    parser.add_argument("--latency-only", action="store_true", help="only the interactive load, alone and beside batch")
    args = parser.parse_args()
    loads = {kind: give for kind, give in LOADS.items() if give is latency or not args.latency_only}
    rows: dict[str, list[dict[str, float]]] = {name: [{} for _ in range(args.rounds)] for name in args.lanes}
    with ExitStack() as started:
        stacks: dict[str, Served] = {}
        for name in args.lanes:
            folder = Path(started.enter_context(tempfile.TemporaryDirectory()))
            stacks[name] = started.enter_context(served(stack_of(LANES[name]), folder))
            started.callback(signal_all, stacks[name], signal.SIGCONT)  # a stopped process cannot end
            asyncio.run(load(stacks[name].url, requests_of("plain", 60, 1), 8, False, asyncio.Event()))  # warm
            signal_all(stacks[name], signal.SIGSTOP)
        for number in range(args.rounds):
            for seed, (kind, give) in enumerate(loads.items(), 100 * number):
                for name in args.lanes if number % 2 == 0 else reversed(args.lanes):
                    with awake(stacks[name], "/ready"):
                        found = asyncio.run(give(stacks[name].url, kind, seed, args.requests))
                    rows[name][number] |= found
                    shown = " ".join(f"{field} {value:.1f}" for field, value in found.items())
                    print(f"round {number}: {name:5s} {shown}", file=sys.stderr, flush=True)
    medians = {
        name: {field: round(statistics.median(row[field] for row in found), 2) for field in found[0]}
        for name, found in rows.items()
    }
    ratios: dict[str, list[float]] = {}
    for name, mine in rows.items():
        for part in ("busy", "busy_settled"):
            alone = part.replace("busy", "quiet")
            ratios[f"p99_{part}_vs_{alone}_{name}"] = [r[f"{part}_p99_ms"] / r[f"{alone}_p99_ms"] for r in mine]
        for kind in ("batch", "tight", "plain") if name != "off" and "off" in rows and not args.latency_only else ():
            pairs = zip(mine, rows["off"], strict=True)
            ratios[f"{kind}_{name}_vs_off"] = [one[f"{kind}_rps"] / off[f"{kind}_rps"] for one, off in pairs]
    result = {"rounds": args.rounds, "requests": args.requests, "medians": medians}
    spread = {
        name: [round(value, 3) for value in (statistics.median(several), min(several), max(several))]
        for name, several in ratios.items()
    }
    print(json.dumps({**result, "ratios": spread}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
