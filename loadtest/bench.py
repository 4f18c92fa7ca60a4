"""How fast is the load generator itself?  `python -m loadtest.bench`, or `make bench-loadtest`.

The servers answer at once and always the same, so what is measured is the generator: requests per second with
everything recorded, 32 users in a closed loop, whole replies (HAProxy) and streams of 20 pieces; slip at half that
rate; memory over many requests. `vllm bench serve` and AIPerf run against the same server when they are installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from loadtest.config import make_config
from loadtest.fixed_server import haproxy, streamer
from models.support.errors import CheckFailed, FoveaError, UsageError

USERS = 32
VLLM_BENCH = (
    "import argparse; from vllm.benchmarks.serve import add_cli_args, main; "
    "p = argparse.ArgumentParser(); add_cli_args(p); main(p.parse_args())"
)
TOKENIZER = Path(__file__).resolve().parent.parent / "models" / "embedded" / "qwen2_5_vl"  # any will do
TARGETS = {"whole": 4000.0, "stream": 1500.0}  # requests/s of one process
SLIP_MS = 2.0  # P99 at half of that rate
GROWTH_MIB = 5.0  # of memory over the whole of a long run
PROMPTS = 500


def measure(url: str, workload: str, stream: bool, seconds: float, processes: int = 1, **load: Any) -> dict[str, Any]:
    """Run our own generator once; return its figures."""
    from loadtest.run import run_load

    traffic = {"name": "bench", "workload": workload, **load}
    report = run_load(
        make_config(
            url=url,
            model="fixed",
            stream=stream,
            processes=processes,
            duration_s=seconds,
            warmup_s=1,
            classes=[traffic],
        ),
        progress=False,
    )
    data = report.data
    cpu = sum(data["generator"]["cpu_cores"])
    rps = data["throughput_rps"]["value"]
    return {
        "tool": "fovea loadtest",
        "mode": "stream" if stream else "whole",
        "processes": processes,
        "load": "closed loop, 32 users" if "concurrency" in load else f"open loop, {load['rate']:g} req/s",
        "rps": rps,
        "rps_per_cpu_second": round(rps / cpu) if rps and cpu else None,
        "errors": data["errors"],
        "slip_p99_ms": data["generator"]["slip_ms"]["p99"],
        "loop_lag_p99_ms": data["generator"]["loop_lag_ms"].get("p99"),
    }


def memory(url: str, workload: str, requests: int) -> dict[str, Any]:
    """Return the growth of this process's memory over many requests, in MiB (measured between 10 % and the end).

    Raises:
        UsageError: so few that the run is over before memory has been looked at twice.
    """
    import psutil

    from loadtest import worker
    from loadtest.config import RunConfig
    from loadtest.plan import Plan, load_workloads, make_plan

    seen: list[tuple[int, int]] = []
    process = psutil.Process()
    traffic = {"name": "bench", "workload": workload, "concurrency": USERS}
    config: RunConfig = make_config(url=url, model="fixed", stream=False, requests=requests, classes=[traffic])
    plan: Plan = make_plan(config, load_workloads(config))

    def tell(message: dict[str, Any]) -> None:
        seen.append((message["progress"], process.memory_info().rss))

    with tempfile.TemporaryDirectory() as folder:
        done = worker.run_here(config, plan, Path(folder) / "records", tell, lambda begin: None)
    if len(seen) < 2:
        raise UsageError("too few to see memory grow", field="--memory-requests", value=requests, fix="give 1000000")
    early = next((rss for count, rss in seen if count >= requests / 10), seen[0][1])
    return {"requests": done["count"], "growth_mib": round((seen[-1][1] - early) / 2**20, 1)}


def vllm_bench(url: str, seconds: float) -> dict[str, Any] | None:
    """Run `vllm bench serve` against the fixed server; None when vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        return None
    base = url.removesuffix("/v1")
    with tempfile.TemporaryDirectory() as folder:
        # Not through vLLM's own command: it asks for a distribution called vllm, which its CPU build is not.
        command = [sys.executable, "-c", VLLM_BENCH, "--backend", "openai-chat", "--base-url", base]
        command += ["--endpoint", "/v1/chat/completions", "--model", "fixed", "--tokenizer", str(TOKENIZER)]
        command += ["--dataset-name", "random", "--random-input-len", "10", "--random-output-len", "2"]
        command += ["--num-prompts", str(int(seconds * 800)), "--max-concurrency", str(USERS), "--disable-tqdm"]
        command += ["--save-result", "--result-dir", folder, "--result-filename", "result.json"]
        done = _other(command)
        path = Path(folder) / "result.json"
        if not path.exists():
            return {"tool": "vllm bench serve", "mode": "stream", "note": done}
        data = json.loads(path.read_text(encoding="utf-8"))
    return {
        "tool": "vllm bench serve",
        "mode": "stream",
        "rps": data["request_throughput"],
        "errors": data.get("failed"),
    }


def aiperf(url: str, seconds: float) -> dict[str, Any] | None:
    """Run AIPerf against the fixed server; None when it is neither installed nor named by the variable AIPERF."""
    binary = (
        os.environ.get("AIPERF")
        or shutil.which("aiperf")
        or shutil.which("aiperf", path=str(Path(sys.executable).parent))
    )
    if binary is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        command = [binary, "profile", "--model", "fixed", "--url", url.removesuffix("/v1"), "--endpoint-type", "chat"]
        command += [
            "--concurrency",
            str(USERS),
            "--request-count",
            str(int(seconds * 400)),
            "--tokenizer",
            str(TOKENIZER),
        ]
        command += ["--artifact-dir", folder, "--ui", "none"]
        done = _other(command)
        for path in Path(folder).rglob("profile_export_aiperf.json"):
            data = json.loads(path.read_text(encoding="utf-8"))
            return {"tool": "aiperf", "mode": "whole", "rps": data["request_throughput"]["avg"]}
    return {"tool": "aiperf", "mode": "whole", "note": done}


def _other(command: list[str]) -> str:
    """Run another tool; return the end of what it said."""
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}
    environment.pop("HF_HUB_OFFLINE", None)  # AIPerf then takes a tokenizer's folder for a name on the hub
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return "did not end within 300 s"
    lines = [line for line in re.split(r"[\r\n]+", done.stdout + done.stderr) if line.strip()]
    return f"exit code {done.returncode}: {lines[-1][-200:] if lines else 'no output'}"


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and check against the targets."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="per measurement (default: 10)")
    parser.add_argument("--memory-requests", type=int, default=0, metavar="N", help="also check memory over N requests")
    parser.add_argument("--no-others", action="store_true", help="do not run vllm bench serve and AIPerf")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", metavar="FILE", help="write the rows as JSON")
    args = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        workload = Path(folder) / "prompts.jsonl"
        lines = [json.dumps({"prompt": f"What shape is picture {i}?"}) for i in range(PROMPTS)]
        workload.write_text("\n".join(lines), encoding="utf-8")
        path = str(workload)
        try:
            fixed = stack.enter_context(haproxy())
            streams = stack.enter_context(streamer())
            for url, stream in ((fixed, False), (streams, True)):
                rows.append(measure(url, path, stream, args.seconds, concurrency=USERS))
                rows.append(measure(url, path, stream, args.seconds, rate=TARGETS[rows[-1]["mode"]] / 2))
            rows.append(measure(fixed, path, False, args.seconds, processes=2, concurrency=USERS))
            if args.memory_requests:
                rows.append({"tool": "fovea loadtest", "mode": "memory", **memory(fixed, path, args.memory_requests)})
            others: list[Callable[[str, float], dict[str, Any] | None]] = [vllm_bench, aiperf]
            for other, url in zip(others, (streams, fixed), strict=True):
                row = None if args.no_others else other(url, args.seconds)
                rows.append(
                    row or {"tool": other.__name__, "note": "not asked for" if args.no_others else "not installed"}
                )
        except FoveaError as error:
            print(f"bench: {error}", file=sys.stderr)
            return error.exit_code
    data = {"kind": "bench-loadtest", "cores": os.cpu_count(), "load_average": os.getloadavg()[0], "rows": rows}
    if args.out:
        from models.support.files import write_json

        write_json(args.out, data)
    if args.json:
        print(json.dumps(data, indent=2))
    else:
        _print(rows)
    try:
        check(rows)
    except CheckFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _print(rows: list[dict[str, Any]]) -> None:
    from loadtest.text_report import columns, number

    cells = []
    for row in rows:
        note = row.get("note", "")
        if "growth_mib" in row:
            note = f"{row['growth_mib']:+.1f} MiB over {row['requests']:,} requests"
        figures = [number(row.get(k)) for k in ("rps", "rps_per_cpu_second", "slip_p99_ms", "loop_lag_p99_ms")]
        cells.append(
            [row["tool"], row.get("mode", ""), row.get("load", ""), str(row.get("processes", "")), *figures, note]
        )
    print(columns(["tool", "mode", "load", "processes", "req/s", "req per CPU s", "slip p99", "lag p99", ""], cells))


def check(rows: list[dict[str, Any]]) -> None:
    """Compare our own rows with the targets.

    Raises:
        CheckFailed: a rate per process is below its target, the slip at half of it above, or memory grows.
    """
    for row in rows:
        target = TARGETS.get(row.get("mode", ""))
        if target and row.get("processes") == 1:
            rate, slip = row["rps"] or 0.0, row["slip_p99_ms"]
            busy = "is the machine busy? compare req per CPU s"
            if slip is None and rate < target:
                message = f"{rate:.0f} req/s per process, the target is {target:.0f}"
                raise CheckFailed(message, field=row["mode"], fix=busy)
            if slip is not None and slip > SLIP_MS:
                message = f"slip P99 {slip:.3g} ms at half of the target rate, the bound is {SLIP_MS:g} ms"
                raise CheckFailed(message, field=row["mode"], fix=busy)
        if row.get("growth_mib", 0.0) > GROWTH_MIB:
            message = f"memory grew by {row['growth_mib']:.1f} MiB over {row['requests']:,} requests"
            raise CheckFailed(
                message, field="memory", fix="run it alone on the machine; else the generator became slower"
            )


if __name__ == "__main__":
    sys.exit(main())
