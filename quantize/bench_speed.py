"""Decode speed and size of each scheme, from a checkpoint of SmolLM2-135M's shape with random weights."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from models.evaluation.context import versions
from models.golden import GoldenItem
from models.support.files import write_json
from quantize.bench_make import known_rows, make, say
from quantize.bench_stack import stack
from quantize.decode import tokens_per_second
from quantize.engine import EngineSettings, served
from quantize.gate import distinct_pictures
from quantize.scope import read_headers

SPEED = (("w8a8", "rtn"), ("w4a16", "rtn"))


def speed(out: Path, rounds: int, batches: list[int], with_stack: bool) -> dict[str, Any]:
    """Return sizes and decode speeds of bf16 and every scheme of `SPEED`."""
    from models.golden import load_golden
    from quantize.speed_model import build

    parent = out / "speed" / "bf16"
    if not (parent / "model.safetensors").exists():
        say("building the checkpoint with random weights")
        build(parent)
    folders, sizes = {"bf16": parent}, {"bf16": {"bytes": sum(t.size for t in read_headers(parent).values())}}
    for scheme, method in SPEED:
        folder = out / "speed" / scheme
        manifest = make(folder, str(parent), scheme, method)
        folders[scheme], sizes[scheme] = folder, manifest["size"] | {"seconds": manifest["seconds"]["total"]}
    items = distinct_pictures(load_golden("easy-vqa").items, 64)
    kept = out / "speed" / "runs.json"
    runs = known_rows(kept, "runs")
    for number in range(rounds):
        names = list(folders) if number % 2 == 0 else list(reversed(folders))
        for name in names:
            wanted = {(path, batch) for path in ("vllm", "stack")[: 1 + with_stack] for batch in batches}
            if wanted <= {(r["path"], r["batch"]) for r in runs if (r["name"], r["round"]) == (name, number)}:
                continue
            runs = [r for r in runs if (r["name"], r["round"]) != (name, number)]
            runs += _measure(name, number, folders[name], out, items, batches, with_stack)
            write_json(kept, {"versions": versions(), "runs": runs})
    return {"sizes": sizes, "runs": runs, "table": summarize(runs)}


def _measure(
    name: str, number: int, folder: Path, out: Path, items: list[GoldenItem], batches: list[int], with_stack: bool
) -> list[dict[str, Any]]:
    found = []
    with served(folder, "candidate", out / "speed" / f"{name}.log", EngineSettings()) as engine:
        for batch in batches:
            measured = tokens_per_second(engine.url, "candidate", items, batch=batch, rounds=3)
            found.append({"name": name, "round": number, "path": "vllm", "kernels": engine.kernels, **measured})
            say(f"round {number}: {name} alone, batch {batch}: {measured['tokens_per_s']:.1f} tokens/s")
    if with_stack:
        with stack(folder, out / "speed" / f"{name}-stack.log") as url:
            for batch in batches:
                measured = tokens_per_second(url, "candidate", items, batch=batch, rounds=3)
                found.append({"name": name, "round": number, "path": "stack", "kernels": {}, **measured})
                say(f"round {number}: {name} in the stack, batch {batch}: {measured['tokens_per_s']:.1f} tokens/s")
    return found


def summarize(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per path, checkpoint and batch: median tokens/s, and the ratio to bf16 of the same round."""
    rows = []
    for path, batch in sorted({(r["path"], r["batch"]) for r in runs}, reverse=True):
        base = {
            r["round"]: r["tokens_per_s"] for r in runs if (r["path"], r["batch"], r["name"]) == (path, batch, "bf16")
        }
        for name in dict.fromkeys(r["name"] for r in runs):
            mine = [r for r in runs if (r["path"], r["batch"], r["name"]) == (path, batch, name)]
            ratios = [r["tokens_per_s"] / base[r["round"]] for r in mine if r["round"] in base]
            rows.append(
                {
                    "path": path,
                    "batch": batch,
                    "name": name,
                    "rounds": len(mine),
                    "tokens_per_s": statistics.median(r["tokens_per_s"] for r in mine),
                    "ratio": statistics.median(ratios) if ratios else None,
                    "ratio_range": [min(ratios), max(ratios)] if ratios else None,
                }
            )
    return rows
