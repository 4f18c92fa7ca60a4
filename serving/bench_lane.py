"""`python -m serving.bench_lane`: what the batch lane's window is worth, on the same traffic, by the real engine.

Three stacks are served in turn: without a lane, with the window off, and with it on.  Each gets, in the same order:

    batch        a closed loop of batch requests that share images and long prefixes; requests/s
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
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LANES: dict[str, Any] = {"none": None, "off": {"window": "off"}, "on": {"window": "on"}}


def requests_of(kind: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Return shuffled chat bodies: `batch` shares 16 images and 8 long prefixes, `plain` shares nothing."""
    from PIL import Image

    rng = random.Random(seed)

    def picture() -> str:
        buffer = io.BytesIO()
        Image.frombytes("RGB", (64, 64), rng.randbytes(64 * 64 * 3)).save(buffer, "PNG")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

    images = [picture() for _ in range(16 if kind == "batch" else count)]
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
    for kind in ("batch", "plain"):
        bodies = requests_of(kind, count, seed + 2)
        began = time.perf_counter()
        await load(url, bodies, 64, True, never)
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


@contextmanager
def served(lane: Any, folder: Path) -> Iterator[str]:
    """Serve the embedded Qwen2.5-VL with this lane and yield its address."""
    from models.support.errors import CheckFailed
    from serving.runtime import free_port

    port = free_port()
    model = {"name": "fovea-qwen", "source": "embedded:qwen2_5_vl", "max_model_len": 2048}
    stack = {"listen": {"port": port}, "models": [model], "lane": lane}
    path = folder / "stack.yaml"
    path.write_text(json.dumps(stack))
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "fovea.py"), "serve", str(path), "--json"],
            stdout=subprocess.PIPE, stderr=log, start_new_session=True, text=True,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("ready"):
                break
        else:
            raise CheckFailed("the stack did not start", field=str(path), fix=f"read {folder / 'serve.log'}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def main() -> int:
    """Run the rounds and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--requests", type=int, default=800, help="per load (default: %(default)s)")
    args = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in LANES}
    for number in range(args.rounds):
        for name in LANES if number % 2 == 0 else reversed(LANES):
            with tempfile.TemporaryDirectory() as folder, served(LANES[name], Path(folder)) as url:
                rows[name].append(asyncio.run(measure(url, 100 * number, args.requests)))
    medians = {
        name: {field: round(statistics.median(row[field] for row in found), 2) for field in found[0]}
        for name, found in rows.items()
    }
    ratios = {
        "batch_on_vs_off": medians["on"]["batch_rps"] / medians["off"]["batch_rps"],
        "plain_on_vs_off": medians["on"]["plain_rps"] / medians["off"]["plain_rps"],
        **{f"p99_busy_vs_quiet_{name}": m["busy_p99_ms"] / m["quiet_p99_ms"] for name, m in medians.items()},
    }
    result = {"rounds": args.rounds, "requests": args.requests, "medians": medians}
    print(json.dumps({**result, "ratios": {name: round(value, 3) for name, value in ratios.items()}}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
