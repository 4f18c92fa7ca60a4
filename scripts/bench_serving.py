"""`make bench`: the stack against bare vLLM, side by side in one run.

Bare vLLM (its own API server, same checkpoint, same engine arguments) and the stack (HAProxy, Ray Serve, the layers of
its file; with `--all-layers` also all of them) are started, and from then on all but one are stopped (SIGSTOP): an idle
engine still takes processor time.  Each kind of load at each concurrency is given to one after the other for a few
seconds, over and over, the order turned round each time: what else the machine does, and how fast it is at the
moment, meets all of them alike.  Halfway all are started anew.  Printed are ratios within a round with their spread,
the start-up times, and the processor time that each process spent per request.
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
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from models.evaluation.context import versions  # noqa: E402
from models.support.errors import CheckFailed  # noqa: E402
from models.support.files import write_json  # noqa: E402
from serving.bench_stack import Served, awake, family_of, running, signal_all  # noqa: E402
from serving.keys import Key, make_key, open_keys  # noqa: E402
from serving.runtime import free_port  # noqa: E402
from serving.stack import Model, load_stack  # noqa: E402

PROBES = ("/ready", "/health")
"""Of a stack, of bare vLLM."""
WARM_S = 1.0


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


def processor_seconds(server: Served) -> dict[str, float]:
    """Return the processor time, user and system, of each kind of process of a server."""
    import psutil

    found: dict[str, float] = defaultdict(float)
    for process in (psutil.Process(server.process.pid), *family_of(server.process.pid)):
        try:
            times = process.cpu_times()
            found[kind_of(" ".join(process.cmdline()))] += times.user + times.system
        except psutil.Error:
            continue  # it ended while we looked
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


def load(url: str, model: str, workload: str, concurrency: int, seconds: float, out: Path) -> dict[str, Any]:
    """Run the load tester and return its report."""
    command = [sys.executable, str(ROOT / "fovea.py"), "loadtest", "run", "--url", f"{url}/v1"]
    command += ["--model", model, "--workload", workload, "--concurrency", str(concurrency), "--duration", str(seconds)]
    command += ["--warmup", str(WARM_S), "--max-tokens", "8", "--body", "ignore_eos=true", "--no-stream"]
    command += ["--no-cache-bust", "--no-check", "--quiet", "--json", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise CheckFailed("the load test failed", value=done.stderr.strip()[-400:])
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
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


def forget(url: str, key: str) -> None:
    """Let a stack with `recall` forget its answers: a load must not be answered from memory by the one before."""
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    asked = urllib.request.Request(f"{url}/fovea/cache/purge", b'{"all": true}', headers)
    with urllib.request.urlopen(asked, timeout=30) as answer:
        answer.read()
    time.sleep(1.1)  # known to the replica after `purge_s` at the latest


@contextmanager
def all_of(stacks: dict[str, str], model: Model, folder: Path, number: int) -> Iterator[dict[str, Served]]:
    """Start bare vLLM and the stacks, each while the others are stopped; yield them, all stopped."""
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(model.cpu_kv_cache_gib),
        "VLLM_NO_USAGE_STATS": "1",
    }
    servers: dict[str, Served] = {}
    systems = ["bare", *stacks]
    with ExitStack() as started:
        for system in systems if number % 2 == 0 else reversed(systems):
            port = free_port()
            command = [sys.executable, str(ROOT / "fovea.py"), "serve", stacks.get(system, ""), "--port", str(port)]
            if system == "bare":
                command = bare_command(model, port)
            log = folder / f"{system.replace(' ', '-')}-{number}.log"
            servers[system] = started.enter_context(running(command, port, PROBES[system == "bare"], log, environment))
            started.callback(signal_all, servers[system], signal.SIGCONT)  # a stopped process cannot end
            signal_all(servers[system], signal.SIGSTOP)
        yield servers


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run all rounds and return the rows."""
    model = load_stack(args.stack).models[0]
    stacks = {"stack": str(args.stack), **dict(entry.split("=", 1) for entry in args.also)}
    if args.all_layers:
        path, os.environ["OPENAI_API_KEY"] = all_layers(args.stack, folder)
        stacks["all layers"] = str(path)
    texts = folder / "text.jsonl"
    texts.write_text(
        "".join(json.dumps({"prompt": f"Note {i}: is there a blue shape in the image?"}) + "\n" for i in range(4000))
    )
    rows: list[dict[str, Any]] = []
    starts: dict[str, list[float]] = defaultdict(list)
    for start in range(args.starts):
        with all_of(stacks, model, folder, start) as servers:
            for system, server in servers.items():
                starts[system].append(server.start_s)
            loads = [
                (kind, asked) for kind in (("text", str(texts)), ("image", "easy-vqa")) for asked in args.concurrency
            ]
            for (kind, workload), concurrency in loads:
                for number in range(start, args.rounds, args.starts):
                    for system in servers if number // args.starts % 2 == 0 else reversed(servers):
                        row = one(args, servers[system], system, (workload, concurrency), model.name, folder)
                        rows.append({"round": number, "system": system, "kind": kind, **row})
                        print(
                            f"round {number} {system:12s} {kind:5s} c={concurrency:<3d} "
                            f"{row['rps']:7.1f} req/s, p50 {row['p50_ms']:6.1f} ms",
                            file=sys.stderr,
                            flush=True,
                        )
    return {"rows": rows, "starts_s": dict(starts)}


def one(
    args: argparse.Namespace, server: Served, system: str, asked: tuple[str, int], model: str, folder: Path
) -> dict[str, Any]:
    """Give one server one load, (workload, concurrency), while the others are stopped; return what it did."""
    with awake(server, PROBES[system == "bare"]):
        if system == "all layers":
            forget(server.url, os.environ["OPENAI_API_KEY"])
        before = processor_seconds(server)
        report = load(server.url, model, *asked, args.seconds, folder / "run")
        after = processor_seconds(server)
    requests = report["requests"] * (args.seconds + WARM_S) / args.seconds  # the warm-up is in the account too
    spent = {k: round(1000 * (v - before.get(k, 0)) / requests, 3) for k, v in after.items() if v > before.get(k, 0)}
    rps, p50 = report["throughput_rps"], report["latency_ms"]["p50"]["value"]
    return {
        "concurrency": asked[1], "rps": rps["value"] if isinstance(rps, dict) else rps, "p50_ms": p50, "cpu_ms": spent,
    }  # fmt: skip


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
    parser.add_argument("--rounds", type=int, default=6, help="of each load")
    parser.add_argument("--starts", type=int, default=2, help="how often the servers are started for them")
    parser.add_argument("--seconds", type=float, default=4, help="of each load in each round")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench" / "serving.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fovea-bench-") as folder:
        result = measure(args, Path(folder))
    result |= {
        "ratios": ratios(result["rows"]),
        "cpu_ms_per_request": account(result["rows"]),
        "versions": versions(),
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
