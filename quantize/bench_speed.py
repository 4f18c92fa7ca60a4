"""Decode speed and size of each scheme, from checkpoints with random weights (`quantize/speed_model.py`)."""

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
from quantize.hardware import find_machine
from quantize.scope import read_headers

SPEED = (("w8a8", "rtn"), ("w4a16", "rtn"))
# what serving/cpu_kernels.py puts before vLLM's own, on the CPUs that it is for: named, not imported (vLLM loads it)
OURS = ("VnniInt8LinearKernel", "VnniInt4LinearKernel")
OWN = ", vLLM's own kernel"


def speed(out: Path, shape: str, rounds: int, batches: list[int], with_stack: bool) -> dict[str, Any]:
    """Return sizes and decode speeds of bf16 and every scheme of `SPEED`, for a shape of `speed_model.SHAPES`.

    On a CPU where the stack brings other kernels than vLLM chooses, each scheme is served with vLLM's choice, too.
    """
    from models.golden import load_golden
    from quantize.speed_model import build

    place = out / ("speed" if shape == "smollm2" else f"speed-{shape}")
    parent = place / "bf16"
    if not (parent / "model.safetensors").exists():
        say("building the checkpoint with random weights")
        build(parent, shape)
    folders, sizes = {"bf16": parent}, {"bf16": {"bytes": sum(t.size for t in read_headers(parent).values())}}
    for scheme, method in SPEED:
        folder = place / scheme
        manifest = make(folder, str(parent), scheme, method)
        folders[scheme], sizes[scheme] = folder, manifest["size"] | {"seconds": manifest["seconds"]["total"]}
    if find_machine("here") == "cpu-bf16":
        folders |= {f"{scheme}{OWN}": folders[scheme] for scheme, _ in SPEED}
    items = distinct_pictures(load_golden("easy-vqa").items, 64)
    kept = place / "runs.json"
    runs = known_rows(kept, "runs")
    for number in range(rounds):
        names = list(folders) if number % 2 == 0 else list(reversed(folders))
        for name in names:
            both = with_stack and not name.endswith(OWN)
            wanted = {(path, batch) for path in ("vllm", "stack")[: 1 + both] for batch in batches}
            if wanted <= {(r["path"], r["batch"]) for r in runs if (r["name"], r["round"]) == (name, number)}:
                continue
            runs = [r for r in runs if (r["name"], r["round"]) != (name, number)]
            runs += _measure(name, number, folders[name], place, items, batches, both)
            write_json(kept, {"versions": versions(), "runs": runs})
    return {"sizes": sizes, "runs": runs, "table": summarize(runs)}


def _measure(
    name: str, number: int, folder: Path, place: Path, items: list[GoldenItem], batches: list[int], with_stack: bool
) -> list[dict[str, Any]]:
    found = []
    settings = EngineSettings(without=OURS if name.endswith(OWN) else ())
    with served(folder, "candidate", place / f"{name}.log", settings) as engine:
        for batch in batches:
            measured = tokens_per_second(engine.url, "candidate", items, batch=batch, rounds=3)
            found.append({"name": name, "round": number, "path": "vllm", "kernels": engine.kernels, **measured})
            say(f"round {number}: {name} alone, batch {batch}: {measured['tokens_per_s']:.1f} tokens/s")
    if with_stack:
        with stack(folder, place / f"{name}-stack.log") as url:
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
        here = [r for r in runs if (r["path"], r["batch"]) == (path, batch)]
        for name in dict.fromkeys(r["name"] for r in here):
            mine = [r for r in here if r["name"] == name]
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
