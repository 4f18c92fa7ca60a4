"""The benchmarks of layers and of affinity: that they measure what they say; the figures are in docs/serving.md."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from serving import bench_affinity, bench_layers


def test_every_layer_has_its_row(tmp_path: Path, valkey_url: str) -> None:
    found = asyncio.run(bench_layers.measure(12, valkey_url, tmp_path))
    assert set(found) == {
        "none of them", "identify", "lane", "all, memory", "recall, semantic (a miss), memory",
        *(f"{layer}, {store}" for layer in ("admit", "recall (a miss)") for store in ("memory", "file", "valkey")),
    }  # fmt: skip
    for name, row in found.items():
        assert {"text", "64x64", "1 MP"} <= set(row), name
        assert all(0 < cell["p50"] <= cell["p99"] for cell in row.values()), (name, row)
        assert ("hit, text" in row) is name.startswith("recall") and ("in other words, 64x64" in row) is (
            "semantic" in name
        )


def test_the_questions_about_an_image_carry_its_mark() -> None:
    made = bench_affinity.requests_of(5, 3, 32, 1)
    assert made == bench_affinity.requests_of(5, 3, 32, 1) != bench_affinity.requests_of(5, 3, 32, 2)
    urls: dict[str, set[str]] = {}
    for mark, body in made:
        url = body["messages"][0]["content"][0]["image_url"]["url"]
        assert base64.b64decode(url.partition(",")[2])[:4] == b"\x89PNG"
        urls.setdefault(mark, set()).add(url)
    assert len(made) == 15 and len(urls) == 5 and all(len(found) == 1 for found in urls.values())


METRICS = """# TYPE vllm:mm_cache_queries counter
vllm:mm_cache_queries_total{{replica="a"}} {queries}
vllm:mm_cache_queries_total{{replica="b"}} 10.0
# TYPE vllm:mm_cache_hits counter
vllm:mm_cache_hits_total{{replica="a"}} {hits}
# TYPE vllm:prefix_cache_queries counter
vllm:prefix_cache_queries_total{{replica="a"}} {queries}
# TYPE vllm:prefix_cache_hits counter
vllm:prefix_cache_hits_total{{replica="a"}} 0.0
# TYPE vllm:request_success counter
vllm:request_success_total{{replica="a"}} {queries}
vllm:request_success_total{{replica="b"}} {others}
"""


@pytest.mark.parametrize("marked", [True, False])
async def test_what_is_counted_is_what_was_gained(marked: bool) -> None:
    """A server that answers everything and counts as two replicas would."""
    asked: list[tuple[str | None, dict[str, Any]]] = []

    async def chat(request: web.Request) -> web.Response:
        asked.append((request.headers.get("x-fovea-image"), json.loads(await request.read())))
        return web.json_response({})

    async def metrics(request: web.Request) -> web.Response:
        count = len(asked)
        text = METRICS.format(queries=100.0 + count, hits=50.0 + count / 2, others=7.0 + count / 3)
        return web.Response(text=text)

    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", chat), web.get("/metrics", metrics)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    settings = bench_affinity.argparse.Namespace(images=6, each=3, side=16, users=4)
    found = await bench_affinity.measure(url, marked, settings)
    await runner.cleanup()
    assert found["mm_cache_hit_rate"] == pytest.approx(0.5) and found["prefix_cache_hit_rate"] == 0
    assert found["busiest_replicas_share"] == pytest.approx(0.75) and found["rps"] > 0
    counted = asked[8 * 4 :]  # behind those that warm it up, which carry no mark
    assert len(counted) == 18 and not any(mark for mark, _ in asked[: 8 * 4])
    assert all((mark is not None) is marked for mark, _ in counted)
