"""`make bench-quantize`: size, decode speed and accuracy of each scheme on this machine, in one table each.

Speed and size come from a checkpoint of SmolLM2-135M's shape with random weights (`quantize/speed_model.py`), a picture
in every prompt, 64 output tokens; bf16 and each scheme are served one after the other, in rounds of alternating order.
Accuracy comes from the embedded checkpoints through the gate.  Everything is kept in the output folder: an interrupted
benchmark continues.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from models.evaluation.context import command, hardware, versions
from models.golden import GoldenItem
from models.support.errors import CheckFailed, FoveaError
from models.support.files import write_json
from quantize import artifact
from quantize.cli import interruptible
from quantize.decode import tokens_per_second
from quantize.engine import EngineSettings, end_with_parent, free_port, served
from quantize.gate import GateSettings, distinct_pictures, run_gate
from quantize.hardware import find_machine
from quantize.run import RunSettings, quantize
from quantize.schemes import find_scheme
from quantize.scope import read_headers

ROOT = Path(__file__).resolve().parent.parent
SPEED = (("w8a8", "rtn"), ("w4a16", "rtn"))
ACCURACY = (("w8a8", "gptq"), ("w4a16", "gptq"), ("w4a16", "awq"))
Say = Callable[[str], None]


def say(text: str) -> None:
    """Print a line on stderr."""
    print(f"bench-quantize: {text}", file=sys.stderr, flush=True)


def make(out: Path, model: str, scheme: str, method: str) -> dict[str, Any]:
    """Return the manifest of a quantized checkpoint, made unless it is there."""
    if artifact.is_artifact(out):
        return artifact.read_manifest(out)
    say(f"{scheme} by {method} of {model}")
    data = "easy-vqa-train" if find_scheme(scheme).needs_calibration(method) else None
    return quantize(RunSettings(model=model, out=out, scheme=scheme, method=method, calibration=data), say)


@contextmanager
def stack(folder: Path, log: Path) -> Iterator[str]:
    """Serve a checkpoint with the whole stack (`fovea serve`); yields the API's address.

    Raises:
        CheckFailed: it did not become ready within 300 s.
    """
    port = free_port()
    file = log.with_suffix(".yaml")
    model = {"name": "candidate", "source": str(folder), "max_model_len": 2048}
    file.write_text(yaml.safe_dump({"models": [model], "listen": {"port": port}}))
    words = [sys.executable, str(ROOT / "fovea.py"), "serve", str(file), "--json"]
    with log.open("w") as errors:
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"}, preexec_fn=end_with_parent,
        )  # fmt: skip
        ready = threading.Event()

        def read() -> None:
            for line in process.stdout or ():
                if line.startswith("{") and json.loads(line).get("ready"):
                    ready.set()

        threading.Thread(target=read, daemon=True).start()
        try:
            if not ready.wait(300):
                raise CheckFailed("fovea serve did not become ready", field="stack", value=str(log))
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(90)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


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
    runs = read_runs(kept)
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


def read_runs(path: Path) -> list[dict[str, Any]]:
    """Return what an earlier, interrupted benchmark with the same versions measured."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return []
    return list(found["runs"]) if isinstance(found, dict) and found.get("versions") == versions() else []


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


def accuracy(out: Path, limit: int | None) -> list[dict[str, Any]]:
    """Return the gate's figures of every scheme of `ACCURACY` on both embedded checkpoints."""
    rows = []
    for family in ("qwen2_5_vl", "paligemma"):
        for scheme, method in ACCURACY:
            name = f"{scheme}-{method}"
            folder = out / family / name
            manifest = make(folder, f"embedded:{family}", scheme, method)
            report = run_gate(
                GateSettings(
                    parent=f"embedded:{family}",
                    candidate=folder,
                    golden="easy-vqa",
                    out=out / family / f"{name}-gate",
                    limit=limit,
                    parent_out=out / family / "parent",
                ),
                say,
            )
            rows.append(_row(family, name, manifest, report))
            write_json(out / "accuracy.json", rows)
            say(f"{family} {name}: {report['verdict']['outcome']}")
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
        "recovery": report["recovery"],
        "divergence": report["divergence_nats"],
        "lost": len(report["flips"]["lost"]),
        "won": len(report["flips"]["won"]),
        "requests_per_s": {s: sides[s]["requests_per_s"] for s in sides},
        "p95_ms": {s: sides[s]["latency_ms"]["p95"]["value"] for s in sides},
        "picture": {s: sides[s]["picture"] for s in sides},
    }


def print_tables(result: dict[str, Any]) -> None:
    """Print both tables as Markdown."""
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
    if "accuracy" in result:
        print("\n| model | scheme | verdict | recovery (95 % interval) | n | lost/won | quantized part | made in |")
        print("|---|---|---|---|---|---|---|---|")
        for r in result["accuracy"]:
            f = r["recovery"]
            value = f"{f['value']:.4f} ({f['low']:.4f} to {f['high']:.4f})"
            print(
                f"| {r['family']} | {r['scheme']} | {r['outcome']} | {value} | {f['n']} | {r['lost']}/{r['won']} "
                f"| {r['quantized_ratio']:.3f} | {r['seconds']:.0f} s |"
            )


def main() -> int:
    """Parse the command line, measure, print and keep the result."""
    parser = argparse.ArgumentParser(prog="make bench-quantize", description=__doc__)
    parser.add_argument("--part", choices=("speed", "accuracy", "all"), default="all")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--stack", action="store_true", help="measure with the whole stack in front, too")
    parser.add_argument("--limit", type=int, help="golden items of the accuracy part (all 9,673)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench" / "quantize")
    args = parser.parse_args()
    result: dict[str, Any] = {
        "kind": "quantization-benchmark",
        "versions": versions(),
        "hardware": hardware() | {"kind": find_machine("here")},
        "command": command(),
    }
    if args.part in ("speed", "all"):
        result["speed"] = speed(args.out, args.rounds, args.batch, args.stack)
    if args.part in ("accuracy", "all"):
        result["accuracy"] = accuracy(args.out, args.limit)
    write_json(args.out / f"report-{args.part}.json", result)
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
