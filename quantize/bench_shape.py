"""`--part shape`: what each scheme is worth on a GPU, at a catalog model's size, with no weights to download.

vLLM fills the weights at random (`--load-format dummy`).  All engines are started at once, each with a KV cache of its
own size; then one after the other is measured while the others idle, in rounds of alternating order.  A picture of 256
tokens is in every prompt.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from models.evaluation.context import versions
from models.golden import GoldenItem, load_golden
from models.support.files import write_json
from quantize.bench_make import say
from quantize.bench_speed import summarize
from quantize.decode import tokens_per_second
from quantize.engine import EngineSettings, Served, served
from quantize.gate import distinct_pictures
from quantize.speed_model import describe
from quantize.under_load import load

ARMS: dict[str, tuple[str | None, str]] = {
    "bf16": (None, "auto"),
    "bf16, FP8 KV cache": (None, "fp8"),
    "fp8": ("fp8", "auto"),
    "w8a8": ("w8a8", "auto"),
    "w4a16": ("w4a16", "auto"),
}
"""Name -> scheme of the weights, type of the KV cache."""
KV_BYTES = 3 * 2**30
LOAD = {"concurrency": 64, "seconds": 8, "slo_ms": 1000}


def shape_speed(
    out: Path, shape: str, rounds: int, batches: list[int], arms: dict[str, tuple[str | None, str]] | None = None
) -> dict[str, Any]:
    """Return sizes, decode speeds and requests/s under load of a catalog model's shape in each scheme.

    Args:
        shape: a Qwen2.5-VL of the catalog, such as `qwen2.5-vl-7b`.
        batches: requests at a time of the decode measure.
        arms: what to compare, `ARMS` by default.

    Raises:
        UsageError: no such shape.
        CheckFailed: an engine did not start, or a load test failed.
    """
    place = out / "shape" / shape
    items = distinct_pictures(load_golden("easy-vqa").items, 2 * max(batches))
    runs: list[dict[str, Any]] = []
    loads: list[dict[str, Any]] = []
    with ExitStack() as running:
        engines = running.enter_context(_all(place, shape, arms or ARMS))
        sizes = {n: {"weights_gib": e.weights_gib, "kv_tokens": e.kv_tokens} for n, e in engines.items()}
        for number in range(rounds):
            for name in list(engines) if number % 2 == 0 else reversed(engines):
                runs += _decode(name, number, engines[name], items, batches)
                found = load(engines[name].url, engines[name].name, place / f"{_file(name)}-load-{number}", **LOAD)
                loads.append({"name": name, "round": number, **found})
                write_json(place / "runs.json", {"versions": versions(), "sizes": sizes, "runs": runs, "loads": loads})
    return {"shape": shape, "sizes": sizes, "runs": runs, "loads": loads, "table": summarize(runs)}


def _decode(
    name: str, number: int, engine: Served, items: list[GoldenItem], batches: list[int]
) -> list[dict[str, Any]]:
    found = []
    for batch in batches:
        measured = tokens_per_second(engine.url, engine.name, items, batch=batch, rounds=3)
        found.append({"name": name, "round": number, "path": "vllm", "kernels": engine.kernels, **measured})
        say(f"round {number}: {name}, batch {batch}: {measured['tokens_per_s']:.1f} tokens/s")
    return found


@contextmanager
def _all(place: Path, shape: str, arms: dict[str, tuple[str | None, str]]) -> Iterator[dict[str, Served]]:
    """Start an engine for each arm, all at once; yield them by name."""
    over = threading.Event()
    begun: dict[str, threading.Event] = {name: threading.Event() for name in arms}
    engines: dict[str, Served] = {}

    def hold(name: str) -> None:
        # the engine ends with the thread that started it, so the thread stays
        scheme, kv = arms[name]
        folder = place / _file(name)
        describe(folder, shape, scheme)
        arguments = ("--load-format", "dummy", "--kv-cache-memory-bytes", str(KV_BYTES))
        settings = EngineSettings(kv_dtype=kv, arguments=arguments)
        try:
            with served(folder, "candidate", place / f"{_file(name)}.log", settings) as engine:
                engines[name] = engine
                say(f"{name} is ready after {engine.start_s:.0f} s")
                begun[name].set()
                over.wait()
        finally:
            begun[name].set()

    with ThreadPoolExecutor(len(arms)) as pool:
        holding = [pool.submit(hold, name) for name in arms]
        try:
            for event in begun.values():
                event.wait()
            if len(engines) == len(arms):
                yield {name: engines[name] for name in arms}
        finally:
            over.set()
        for one in holding:
            one.result()


def _file(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-").lower()


def print_shape(result: dict[str, Any]) -> None:
    """Print the tables as Markdown."""
    batches = sorted({r["batch"] for r in result["table"]})
    columns = [f"decode at {b}, tokens/s (of bf16)" for b in batches]
    print(f"\n{result['shape']}, random weights:\n")
    print(f"| scheme | weights, GiB | {' | '.join(columns)} | requests/s at {LOAD['concurrency']} | P50, P95, ms |")
    print("|---" * (len(batches) + 4) + "|")
    for name, size in result["sizes"].items():
        cells = []
        for batch in batches:
            row = next(r for r in result["table"] if (r["name"], r["batch"]) == (name, batch))
            low, high = row["ratio_range"] or (1.0, 1.0)
            cells.append(f"{row['tokens_per_s']:.0f} ({row['ratio'] or 1:.2f}, {low:.2f}-{high:.2f})")
        mine = [one for one in result["loads"] if one["name"] == name]
        middle = sorted(mine, key=lambda one: one["requests_per_s"]["value"])[len(mine) // 2]
        times = ", ".join(f"{middle['latency_ms'][p]['value']:.0f}" for p in ("p50", "p95"))
        weights = "" if size["weights_gib"] is None else f"{size['weights_gib']:.2f}"
        print(f"| {name} | {weights} | {' | '.join(cells)} | {middle['requests_per_s']['value']:.1f} | {times} |")
