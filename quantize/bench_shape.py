"""`--part shape`: what each scheme is worth at a catalog model's size, with no weights to download.

vLLM fills the weights at random (`--load-format dummy`).  Each scheme is served after the other, in rounds of
alternating order, with a picture of 256 tokens in every prompt.  A GPU takes a model of 7 billion parameters; a CPU
with some gigabytes to spare times one of 3 billion.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.evaluation.context import versions
from models.golden import load_golden
from models.support.files import write_json
from quantize.bench_make import known_rows, say
from quantize.bench_speed import summarize
from quantize.decode import tokens_per_second
from quantize.engine import EngineSettings, served
from quantize.gate import distinct_pictures
from quantize.hardware import find_machine, load_table
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


def arms_here(machine: str = "here") -> list[str]:
    """Return the arms that the engine runs on a machine, this one by default (`quantize.hardware.find_machine`)."""
    table, name_of = load_table(), find_machine(machine)
    found = []
    for name, (scheme, kv) in ARMS.items():
        needed = [n for n in (scheme, "kv-fp8" if kv == "fp8" else None) if n is not None]
        if any(table.row(one, name_of).verdict == "refused" for one in needed):
            say(f"{name} is left out: the engine refuses it on {name_of}")
        else:
            found.append(name)
    return found


def shape_speed(
    out: Path, shape: str, rounds: int, batches: list[int], arms: list[str], *, under_load: bool
) -> dict[str, Any]:
    """Return sizes, decode speeds and, with `under_load`, requests/s of a catalog model's shape in each scheme.

    Args:
        shape: a Qwen2.5-VL of the catalog, such as `qwen2.5-vl-7b`.
        batches: requests at a time of the decode measure.
        arms: names of `ARMS`; the first is what the others are compared with, and should be `bf16`.

    Raises:
        UsageError: no such shape.
        CheckFailed: an engine did not start, or a load test failed.
    """
    place = out / "shape" / shape
    items = distinct_pictures(load_golden("easy-vqa").items, 2 * max(batches))
    kept = place / "runs.json"
    runs = known_rows(kept, "runs")
    for number in range(rounds):
        for name in arms if number % 2 == 0 else list(reversed(arms)):
            if {(name, number, b) for b in batches} <= {(r["name"], r["round"], r["batch"]) for r in runs}:
                continue
            runs = [r for r in runs if (r["name"], r["round"]) != (name, number)]
            scheme, kv = ARMS[name]
            folder = place / name.replace(", ", "-").replace(" ", "-").lower()
            describe(folder, shape, scheme)
            arguments = ("--load-format", "dummy", "--kv-cache-memory-bytes", str(KV_BYTES))
            settings = EngineSettings(kv_gib=KV_BYTES >> 30, kv_dtype=kv, arguments=arguments)
            with served(folder, "candidate", folder.with_suffix(".log"), settings) as engine:
                about = {"name": name, "round": number, "path": "vllm", "kernels": engine.kernels}
                about |= {"weights_gib": engine.weights_gib, "start_s": round(engine.start_s, 1)}
                if under_load:
                    about["load"] = load(engine.url, "candidate", folder.with_suffix(".load"), **LOAD)
                for batch in batches:
                    measured = tokens_per_second(engine.url, "candidate", items, batch=batch, rounds=3)
                    runs.append({**about, **measured})
                    say(f"round {number}: {name}, batch {batch}: {measured['tokens_per_s']:.1f} tokens/s")
            write_json(kept, {"versions": versions(), "runs": runs})
    return {"shape": shape, "runs": runs, "table": summarize(runs)}


def print_shape(result: dict[str, Any]) -> None:
    """Print the table as Markdown."""
    batches = sorted({r["batch"] for r in result["table"]})
    columns = [f"decode at {b}, tokens/s (of bf16, range)" for b in batches]
    print(f"\n{result['shape']}, random weights:\n")
    print(f"| scheme | weights, GiB | {' | '.join(columns)} | requests/s at {LOAD['concurrency']} | P50, P95, ms |")
    print("|---" * (len(batches) + 4) + "|")
    for name in dict.fromkeys(r["name"] for r in result["runs"]):
        cells = []
        for batch in batches:
            row = next(r for r in result["table"] if (r["name"], r["batch"]) == (name, batch))
            low, high = row["ratio_range"] or (1.0, 1.0)
            cells.append(f"{row['tokens_per_s']:.1f} ({row['ratio'] or 1:.2f}, {low:.2f}-{high:.2f})")
        mine = [r for r in result["runs"] if r["name"] == name]
        weights = f"{mine[0]['weights_gib']:.2f}" if mine[0]["weights_gib"] else ""
        loads = sorted((r["load"] for r in mine if "load" in r), key=lambda one: one["requests_per_s"]["value"])
        rate, times = "", ""
        if loads:
            middle = loads[len(loads) // 2]
            rate = f"{middle['requests_per_s']['value']:.1f}"
            times = ", ".join(f"{middle['latency_ms'][p]['value']:.0f}" for p in ("p50", "p95"))
        print(f"| {name} | {weights} | {' | '.join(cells)} | {rate} | {times} |")
