"""`python -m serving.bench_layers`: what each layer costs by itself, without an engine.

One process, one request at a time, an app that answers a fixed body: the difference between a stack with one more
section and one without is that layer's own processor time on the event loop.  Printed is JSON: microseconds per
request, p50 and p99 of `--requests`, for text, an image of 64 x 64 and one of a megapixel; and of recall's hits.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BODY = json.dumps(
    {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 30, "completion_tokens": 2},
    }
).encode()


async def engine(scope: Any, receive: Any, send: Any) -> None:
    """Answer at once."""
    await receive()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


def image(width: int, height: int) -> str:
    """Return a photograph-like JPEG as a data URI."""
    from PIL import Image

    picture = Image.effect_noise((64, 64), 90).resize((width, height), Image.Resampling.BICUBIC).convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def request(url: str | None, number: int, polite: str = "") -> bytes:
    """Return a chat body."""
    content: Any = [{"type": "text", "text": f"{polite}question {number}: what is it?"}]
    if url:
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": content}], "temperature": 0}).encode()


async def timed(app: Any, bodies: list[bytes], headers: list[tuple[bytes, bytes]]) -> dict[str, float]:
    """Return p50 and p99, microseconds."""

    async def one(body: bytes) -> float:
        given = False

        async def receive() -> Any:
            nonlocal given
            if given:
                await asyncio.Event().wait()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        status = 0

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)

        scope = {
            "type": "http", "method": "POST", "path": "/v1/chat/completions", "root_path": "", "query_string": b"",
            "headers": [(b"content-type", b"application/json"), *headers],
        }  # fmt: skip
        began = time.perf_counter()
        await app(scope, receive, send)
        seconds = time.perf_counter() - began
        assert status == 200, status
        return seconds * 1e6

    for body in bodies[:20]:
        await one(body)
    cuts = statistics.quantiles([await one(body) for body in bodies], n=100, method="inclusive")
    return {"p50": round(cuts[49], 1), "p99": round(cuts[98], 1)}


async def measure(count: int, valkey: str | None, folder: Path) -> dict[str, Any]:
    """Return all figures."""
    from serving.facts import FACTS
    from serving.keys import make_key, open_keys
    from serving.layers import build_layers, start_layers, stop_layers
    from serving.stack import Stack

    FACTS.image_tokens = lambda width, height: width * height // 784
    (folder / "config.json").write_text("{}")
    text, key = make_key("acme")
    await open_keys(str(folder / "keys.db")).put(key)
    quota = {"default": {"requests_per_minute": 10**8, "tokens_per_minute": 10**9, "concurrent": 100}}
    identify = {"keys": str(folder / "keys.db"), "tenants": [{"name": "acme"}]}
    stores = {"memory": "memory", "file": str(folder / "s.db"), **({"valkey": valkey} if valkey else {})}
    stacks: dict[str, Any] = {"none of them": {}, "identify": {"identify": identify}, "lane": {"lane": {}}}
    stacks |= {f"admit, {name}": {"admit": {**quota, "store": where}} for name, where in stores.items()}
    stacks |= {f"recall (a miss), {name}": {"recall": {"store": where}} for name, where in stores.items()}
    stacks["recall, semantic (a miss), memory"] = {"recall": {"semantic": {}}}
    stacks["all, memory"] = {"identify": identify, "admit": quota, "recall": {"semantic": {}}, "lane": {}}
    images = {"text": None, "64x64": image(64, 64), "1 MP": image(1000, 1000)}
    found: dict[str, Any] = {}
    for name, sections in stacks.items():
        stack = Stack.model_validate({"models": [{"name": "m", "source": str(folder)}], **sections})
        app = build_layers(engine, stack, stack.models[0])
        await start_layers(app)
        headers = [(b"authorization", f"Bearer {text}".encode())] if "identify" in sections else []
        row: dict[str, Any] = {}
        for kind, url in images.items():
            number = count if kind != "1 MP" else max(50, count // 10)
            row[kind] = await timed(app, [request(url, n) for n in range(number)], headers)
        if name.startswith("recall"):
            for kind, url in images.items():
                await asyncio.sleep(0.2)  # what was kept is written
                row[f"hit, {kind}"] = await timed(app, [request(url, 1)] * (count // 2), headers)
        if "semantic" in name:
            again = [request(images["64x64"], n, "please ") for n in range(count // 4)]
            row["in other words, 64x64"] = await timed(app, again, headers)
        found[name] = row
        await stop_layers(app)
    return found


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--valkey", help="URL of a server to measure as well")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(args.requests, args.valkey, Path(folder)))
    print(json.dumps({"requests": args.requests, "us": found}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
