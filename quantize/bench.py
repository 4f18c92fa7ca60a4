"""`make bench-quantize`: size, decode speed and accuracy of each scheme on this machine, in one table each.

Speed and size come from a checkpoint of SmolLM2-135M's shape with random weights (`quantize/speed_model.py`), a picture
in every prompt, 64 output tokens; bf16 and each scheme are served one after the other, in rounds of alternating order.
Accuracy comes from the embedded checkpoints through the gate; each is then served by the whole stack and load-tested.
Everything is kept in the output folder: an interrupted benchmark continues.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from models.evaluation.context import command, hardware, versions
from models.support.errors import FoveaError
from models.support.files import write_json
from quantize import artifact
from quantize.bench_families import families, print_families
from quantize.bench_kernels import kernels, print_kernels
from quantize.bench_make import known_rows, make, say
from quantize.bench_shape import ARMS, arms_here, print_shape, shape_speed
from quantize.bench_speed import speed
from quantize.bench_stack import NAME, stack
from quantize.cli import interruptible
from quantize.engine import ROOT, Held
from quantize.gate import GateSettings, run_gate
from quantize.hardware import find_machine
from quantize.recovery import shown
from quantize.run import checkpoint_folder
from quantize.speed_model import SHAPES
from quantize.under_load import load

PARTS = {
    "kernels": "kernels",
    "speed": "speed",
    "accuracy": "accuracy",
    "broken": "broken",
    "stack": "load",
    "families": "families",
}
# not among `all`: billions of parameters
SHAPE = "shape"
FAMILIES = ("qwen2_5_vl", "paligemma")
# scheme, method, the tower too
ACCURACY = (("w8a8", "gptq", False), ("w4a16", "gptq", False), ("w4a16", "awq", False), ("nf4", "rtn", False))
# what the gate is there for: a tower quantized by force, as mildly and as badly as can be, and 2 bits
BROKEN = (("w8a8", "rtn", True), ("w4a16", "rtn", True), ("w2-trial", "rtn", False), ("w2-trial", "rtn", True))
# AWQ's checkpoint has GPTQ's format and kernels: one of them is load-tested
LOADED = (None, ("w8a8", "gptq"), ("w4a16", "gptq"), ("nf4", "rtn"))
LOAD = {"concurrency": 8, "seconds": 20, "slo_ms": 500}


def accuracy(
    out: Path, limit: int | None, families: list[str], tried: tuple[tuple[str, str, bool], ...], kept: Path
) -> list[dict[str, Any]]:
    """Return the gate's figures of every try on the embedded checkpoints; `kept` holds those of earlier calls."""
    rows = known_rows(kept)
    for family in families:
        for scheme, method, vision in tried:
            name = f"{scheme}-{method}{'-tower' if vision else ''}"
            folder, gate = out / family / name, out / family / f"{name}-gate"
            with Held(gate / "candidate.log") as held:
                manifest = make(folder, f"embedded:{family}", scheme, method, held, vision=vision)
                settings = GateSettings(
                    parent=f"embedded:{family}",
                    candidate=folder,
                    golden="easy-vqa",
                    out=gate,
                    limit=limit,
                )
                report = run_gate(settings, say, held)
            rows = [r for r in rows if (r["family"], r["scheme"]) != (family, name)]
            rows.append(_row(family, name, manifest, report))
            write_json(kept, {"versions": versions(), "rows": rows})
            say(f"{family} {name}: {report['verdict']['sentence']}")
    return rows


def _row(family: str, name: str, manifest: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    sides = report["sides"]
    return {
        "family": family,
        "scheme": name,
        "group": manifest["group"],
        "seconds": manifest["seconds"]["total"],
        "quantized_ratio": manifest["size"]["quantized_ratio"],
        "size_ratio": manifest["size"]["ratio"],
        "outcome": report["verdict"]["outcome"],
        "failed_categories": report["verdict"]["failed_categories"],
        "recovery": report["recovery"],
        "by_category": {n: g["recovery"] for n, g in report["by_category"].items()},
        "divergence": report["divergence_nats"],
        "lost": len(report["flips"]["lost"]),
        "won": len(report["flips"]["won"]),
        "accuracy": {s: sides[s]["accuracy"] for s in sides},
        "requests_per_s": {s: sides[s]["requests_per_s"] for s in sides},
        "p95_ms": {s: sides[s]["latency_ms"]["p95"]["value"] for s in sides},
        "memory_bytes": {s: sides[s]["memory_bytes"] for s in sides},
        "picture": {s: sides[s]["picture"] for s in sides},
    }


def load_tested(out: Path, families: list[str]) -> list[dict[str, Any]]:
    """Return the load test of the whole stack on each embedded checkpoint and its parent, one served at a time.

    The checkpoints of `accuracy` are made unless they are there.
    """
    kept = out / "load.json"
    rows = known_rows(kept)
    for family in families:
        parent = checkpoint_folder(f"embedded:{family}")
        for chosen in LOADED:
            name = "bf16" if chosen is None else "-".join(chosen)
            if any((r["family"], r["scheme"]) == (family, name) for r in rows):
                continue
            folder = parent if chosen is None else out / family / name
            if chosen is not None:
                make(folder, f"embedded:{family}", *chosen)
            say(f"{family} {name} in the stack")
            place = out / family / f"{name}-load"
            with stack(folder, place / "serve.log", chosen[0] if chosen else None) as url:
                found = load(url, NAME, place, **LOAD)
            rows.append({"family": family, "scheme": name, "files": artifact.files_of(folder), **found})
            write_json(kept, {"versions": versions(), "rows": rows})
    return rows


def print_tables(result: dict[str, Any]) -> None:
    """Print all tables as Markdown."""
    if "kernels" in result:
        print_kernels(result["kernels"])
    if "speed" in result:
        sizes = result["speed"]["sizes"]
        print("| path | batch | checkpoint | tokens/s | of bf16 (range over rounds) |\n|---|---|---|---|---|")
        for r in result["speed"]["table"]:
            low, high = r["ratio_range"] or (1.0, 1.0)
            ratio = f"{r['ratio'] or 1:.2f} ({low:.2f}-{high:.2f})"
            print(f"| {r['path']} | {r['batch']} | {r['name']} | {r['tokens_per_s']:.1f} | {ratio} |")
        print("\n| checkpoint | MB | of bf16 | quantized part of bf16 | seconds to make |\n|---|---|---|---|---|")
        for name, s in sizes.items():
            more = f"{s['ratio']:.3f} | {s['quantized_ratio']:.3f} | {s['seconds']:.0f}" if "ratio" in s else "1 | 1 | "
            print(f"| {name} | {s['bytes'] / 1e6:.1f} | {more} |")
    if SHAPE in result:
        print_shape(result[SHAPE])
    for part in ("accuracy", "broken"):
        if part in result:
            _print_gated(result[part])
    if "families" in result:
        print_families(result["families"])
    if "load" in result:
        print(f"\n| model | checkpoint | requests/s | p50, ms | p95, ms | within {LOAD['slo_ms']:g} ms, /s | right |")
        print("|---|---|---|---|---|---|---|")
        for r in result["load"]:
            figures = [r["requests_per_s"], r["latency_ms"]["p50"], r["latency_ms"]["p95"], r["goodput"]]
            right = _figure(r["accuracy"], 3)
            print(f"| {r['family']} | {r['scheme']} | {' | '.join(_figure(f, 1) for f in figures)} | {right} |")


def _print_gated(rows: list[dict[str, Any]]) -> None:
    head = "model | scheme | parent, candidate right | recovery (95 % interval) | lost / won | KL, nats"
    print(f"\n| {head} | quantized part, whole | verdict | made in |")
    print("|---" * 9 + "|")
    for r in rows:
        right = ", ".join(f"{r['accuracy'][s]['value']:.4f}" for s in ("parent", "candidate"))
        failed = f": {', '.join(r['failed_categories'])}" if r["failed_categories"] else ""
        size = f"{r['quantized_ratio']:.3f}, {r['size_ratio']:.3f}"
        kl = "" if r["divergence"]["value"] is None else f"{r['divergence']['value']:.2g}"
        told = [r["family"], r["scheme"], right, shown(r["recovery"]), f"{r['lost']} / {r['won']}", kl, size]
        print(f"| {' | '.join(told)} | {r['outcome']}{failed} | {r['seconds']:.0f} s |")


def _figure(found: dict[str, Any], digits: int) -> str:
    """Return `12.3 (11.9-12.8)`, or why there is no value."""
    if found["value"] is None:
        return str(found.get("note") or "n too small")
    low, high = found.get("low"), found.get("high")
    inside = "" if low is None or high is None else f" ({low:.{digits}f}-{high:.{digits}f})"
    return f"{found['value']:.{digits}f}{inside}"


def main() -> int:
    """Parse the command line, measure, print and keep the result."""
    parser = argparse.ArgumentParser(prog="make bench-quantize", description=__doc__)
    parser.add_argument("--part", choices=(*PARTS, SHAPE, "all"), default="all")
    parser.add_argument("--shape", default="qwen2.5-vl-7b", help="catalog model that `--part shape` has the sizes of")
    parser.add_argument("--sizes", choices=SHAPES, default="smollm2", help="checkpoint of `--part speed`")
    parser.add_argument("--arm", choices=ARMS, nargs="+", help="schemes of `--part shape` (those that run here)")
    parser.add_argument("--load", action="store_true", help="put a load test on each scheme of `--part shape`, too")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--stack", action="store_true", help="measure decode speed with the whole stack in front, too")
    parser.add_argument("--limit", type=int, help="golden items of the accuracy part (all 9,673)")
    parser.add_argument("--family", choices=FAMILIES, nargs="+", default=list(FAMILIES), help="embedded models to do")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench" / "quantize")
    args = parser.parse_args()
    result: dict[str, Any] = {
        "kind": "quantization-benchmark",
        "versions": versions(),
        "hardware": hardware() | {"kind": find_machine("here")},
        "command": command(),
    }
    measures = {
        "kernels": kernels,
        "speed": lambda: speed(args.out, args.sizes, args.rounds, args.batch, args.stack),
        "accuracy": lambda: accuracy(args.out, args.limit, args.family, ACCURACY, args.out / "accuracy.json"),
        "broken": lambda: accuracy(args.out, args.limit, args.family, BROKEN, args.out / "broken.json"),
        "stack": lambda: load_tested(args.out, args.family),
        "families": lambda: families(args.out),
        SHAPE: lambda: shape_speed(
            args.out, args.shape, args.rounds, args.batch, args.arm or arms_here(), under_load=args.load
        ),
    }
    for part in PARTS if args.part == "all" else [args.part]:
        result[PARTS.get(part, part)] = measures[part]()
    name = f"speed-{args.sizes}" if args.part == "speed" and args.sizes != "smollm2" else args.part
    write_json(args.out / f"report-{name}.json", result)
    print_tables(result)
    say(f"kept in {args.out}")
    return 0


if __name__ == "__main__":
    interruptible()
    try:
        sys.exit(main())
    except FoveaError as error:
        print(f"make bench-quantize: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("make bench-quantize: interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)
