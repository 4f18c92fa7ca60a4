"""`make observe`: the demo stack under Prometheus (and Grafana, where there is one), with the chart's rules.

Starts the embedded model, puts some traffic and a golden set through it, and runs every query of every dashboard
against what was really measured.  Prometheus, the Pushgateway and helm come as `scripts/chart_tools.py` fetches them.
`--check` ends there, with exit code 1 when a query has no answer; otherwise everything runs until Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from models.support.errors import CheckFailed  # noqa: E402
from scripts.chart_dashboards import dashboards, queries  # noqa: E402
from scripts.chart_tools import tool  # noqa: E402
from scripts.observe_grafana import grafana  # noqa: E402
from serving.runtime import free_port  # noqa: E402

FILES = ROOT / "helm" / "fovea" / "files"
FOVEA = [sys.executable, str(ROOT / "fovea.py")]
NAME = "fovea-qwen"
MODELS = [{"name": NAME, "source": "embedded:qwen2_5_vl", "max_model_len": 2048}]
TARIFF = {
    "usd_per_hour": "0.10", "capacity_rps": 8, "utilization": 0.4, "against": ["gpt-4o-mini", "claude-haiku-4-5"],
}  # fmt: skip
INTERVAL_S = 1


class Processes:
    """What was started, in groups of their own, so that all of it ends with this process."""

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[str]] = []

    def start(self, command: list[str], log: Path, **options: Any) -> subprocess.Popen[str]:
        """Start a process that writes to `log`."""
        with log.open("w") as file:
            options.setdefault("stdout", file)
            process = subprocess.Popen(command, stderr=file, text=True, start_new_session=True, **options)
        self.running.append(process)
        return process

    def stop(self) -> None:
        """SIGTERM, newest first; SIGKILL for the whole group of what does not end."""
        for process in reversed(self.running):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in reversed(self.running):
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def stack_file(folder: Path) -> tuple[Path, dict[str, str]]:
    """Write a stack with all of its sections that are measured; return it, and a key for each of its two tenants."""
    tenants: list[dict[str, Any]] = [{"name": "demo"}, {"name": "small", "limits": {"requests_per_minute": 1}}]
    stack = {
        "models": MODELS,
        "identify": {"keys": str(folder / "keys.db"), "tenants": tenants, "open_metrics": True},
        "admit": {},
        "recall": {},
        "batches": {"folder": str(folder / "batches")},
        "money": {**TARIFF, "journal": str(folder / "journal")},
    }
    path = folder / "stack.yaml"
    path.write_text(yaml.safe_dump(stack))
    keys = {}
    for tenant in tenants:
        made = _run(
            [*FOVEA, "keys", "create", "--tenant", tenant["name"], "--expires", "30d", "--stack", str(path), "--json"]
        )
        keys[tenant["name"]] = json.loads(made)["key"]
    return path, keys


def serve(processes: Processes, folder: Path, path: Path) -> str:
    """Start the stack and return its base URL when it is ready.

    Raises:
        CheckFailed: it ended before that.
    """
    port = free_port()
    command = [*FOVEA, "serve", str(path), "--port", str(port), "--json"]
    process = processes.start(command, folder / "serve.log", stdout=subprocess.PIPE)
    for line in process.stdout or ():
        if line.startswith("{") and json.loads(line).get("ready"):
            threading.Thread(target=lambda: [None for _ in process.stdout or ()], daemon=True).start()
            return f"http://127.0.0.1:{port}"
    raise CheckFailed("fovea serve ended", value=(folder / "serve.log").read_text()[-300:])


def rules(folder: Path) -> Path:
    """Write the chart's rules for a stack called `demo` and return the file."""
    values = {
        "fullnameOverride": "demo",
        "stack": {"models": MODELS, "money": {**TARIFF, "journal": "/data/journal"}, "recall": {}},
        "dataVolume": {"enabled": True},
        "workerGroups": [{"name": "cpu", "models": [NAME], "resources": {"limits": {"memory": "8Gi"}}}],
        "observability": {"rules": {"enabled": True}, "pushgateway": "http://127.0.0.1:9091"},
        "evaluation": {"enabled": True},
    }
    command = [str(tool("helm4")), "template", "demo", str(ROOT / "helm/fovea"), "-f", "-", "-s", "templates/eyes.yaml"]
    done = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckFailed(f"helm: {done.stderr.strip()}")
    (found,) = [one for one in yaml.safe_load_all(done.stdout) if one and one["kind"] == "PrometheusRule"]
    path = folder / "rules.yaml"
    path.write_text(yaml.safe_dump(found["spec"]))
    return path


def prometheus(processes: Processes, folder: Path, stack: str) -> tuple[str, str]:
    """Start Prometheus and a Pushgateway; return their URLs."""
    port, push = free_port(), free_port()

    def scrape(job: str, address: str) -> dict[str, Any]:
        return {
            "job_name": job,
            "honor_labels": True,
            "static_configs": [{"targets": [address], "labels": {"stack": "demo"}}],
        }

    config = {
        "global": {"scrape_interval": f"{INTERVAL_S}s", "evaluation_interval": f"{INTERVAL_S}s"},
        "rule_files": [str(rules(folder))],
        "scrape_configs": [scrape("fovea", stack.removeprefix("http://")), scrape("push", f"127.0.0.1:{push}")],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    processes.start([str(tool("pushgateway")), f"--web.listen-address=127.0.0.1:{push}"], folder / "pushgateway.log")
    command = [str(tool("prometheus")), f"--config.file={folder / 'prometheus.yaml'}"]
    command += [f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address=127.0.0.1:{port}"]
    processes.start(command, folder / "prometheus.log")
    for url in (f"http://127.0.0.1:{port}/-/ready", f"http://127.0.0.1:{push}/-/ready"):
        wait_for(url)
    return f"http://127.0.0.1:{port}", f"http://127.0.0.1:{push}"


def wait_for(url: str, timeout_s: float = 60) -> None:
    """Wait until a URL answers 200.

    Raises:
        CheckFailed: it did not.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if httpx.get(url, timeout=2).status_code == 200:
                return
        time.sleep(0.2)
    raise CheckFailed(f"does not answer after {timeout_s:g} s", field=url)


def traffic(stack: str, push: str, folder: Path, keys: dict[str, str], args: argparse.Namespace) -> None:
    """A golden set with its figures pushed, beside a load test and requests that are wrong, too many or the same."""
    environment = {**os.environ, "OPENAI_API_KEY": keys["demo"]}
    told = [sys.executable, str(FILES / "job.py"), push, "demo", "evaluation", "easy-vqa"]
    run = [*told, *FOVEA, "models", "evaluate", f"{stack}/v1", "--model", NAME, "--golden", "easy-vqa"]
    run += ["--concurrency", "4", "--limit", str(args.questions), "--out", str(folder / "evaluation")]
    load = [*FOVEA, "loadtest", "run", "--url", f"{stack}/v1", "--model", NAME, "--rate", str(args.rate), "--quiet"]
    load += ["--max-tokens", "8", "--duration", str(args.seconds), "--no-cache-bust", "--max-slip-ms", "20000"]
    load += ["--api-key-env", "OPENAI_API_KEY", "--out", str(folder / "load")]
    with ThreadPoolExecutor() as pool:
        others: list[Future[Any]] = [pool.submit(_run, load, environment), pool.submit(odd_requests, stack, keys)]
        _run(run, environment)
        report = folder / "evaluation" / "report.json"
        _run([sys.executable, str(FILES / "push.py"), str(report), push, "demo", NAME, "easy-vqa"])
        for other in others:
            other.result()


def odd_requests(stack: str, keys: dict[str, str]) -> None:
    """Broken pictures, the same question again and again, and a tenant that asks too often; over several scrapes."""
    broken = [{"type": "image_url", "image_url": {"url": "data:,x"}}]
    for _ in range(5):
        for tenant, content in (("demo", broken), ("demo", "the same"), ("small", "too often")):
            message = {"role": "user", "content": content}
            body = {"model": NAME, "messages": [message], "max_tokens": 4, "temperature": 0}
            headers = {"authorization": f"Bearer {keys[tenant]}"}
            httpx.post(f"{stack}/v1/chat/completions", json=body, headers=headers, timeout=60)
        time.sleep(INTERVAL_S)


def _run(command: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise CheckFailed(f"`{' '.join(command[1:5])} ...` failed: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


def ask(url: str, query: str) -> list[dict[str, Any]]:
    """Return the samples of an instant query; NaN is no sample.

    Raises:
        CheckFailed: Prometheus refuses the query.
    """
    answer = httpx.get(f"{url}/api/v1/query", params={"query": query}, timeout=30).json()
    if answer["status"] != "success":
        raise CheckFailed(answer["error"], field="query", value=query)
    return [one for one in answer["data"]["result"] if one["value"][1] != "NaN"]


def check(url: str) -> list[tuple[str, str, str, int]]:
    """Return (dashboard, panel, query, samples) of every query of every dashboard."""
    found = []
    for name, board in dashboards().items():
        for panel, query in queries(board, "1m"):
            found.append((name, panel, query, len(ask(url, query))))
    return found


def alerts(url: str) -> list[dict[str, Any]]:
    """Return the rules that Prometheus has loaded.

    Raises:
        CheckFailed: one could not be evaluated.
    """
    groups = httpx.get(f"{url}/api/v1/rules", timeout=30).json()["data"]["groups"]
    found = [rule for group in groups for rule in group["rules"]]
    bad = [rule for rule in found if rule["health"] == "err"]
    if bad:
        raise CheckFailed(bad[0]["lastError"], field=bad[0]["name"])
    return found


def verdict(url: str) -> int:
    """Print what every query of every dashboard finds, and the rules; return how many queries find nothing.

    Raises:
        CheckFailed: a query or a rule is not one that Prometheus takes.
    """
    found = check(url)
    empty = [row for row in found if not row[3]]
    for board, panel, query, samples in found:
        print(f"{board:8s} {panel:34s} {samples:3d} series" + ("" if samples else f"   NOTHING: {query}"))
    loaded = alerts(url)
    firing = sorted({rule["name"] for rule in loaded if rule.get("state") == "firing"})
    print(f"{len(found)} queries, {len(empty)} without an answer")
    print(f"{len(loaded)} rules, firing: {', '.join(firing) or 'none'}")
    return len(empty)


def observe(args: argparse.Namespace, folder: Path, processes: Processes) -> int:
    """Run it all; return the exit code."""
    print("starting the stack, Prometheus and a Pushgateway", flush=True)
    path, keys = stack_file(folder)
    stack = serve(processes, folder, path)
    url, push = prometheus(processes, folder, stack)
    print(f"traffic: {args.questions} golden questions, {args.rate:g} requests/s for {args.seconds:g} s", flush=True)
    traffic(stack, push, folder, keys, args)
    time.sleep(2 * INTERVAL_S)
    empty = verdict(url)
    if args.check:
        return 1 if empty else 0
    print(f"\nstack      {stack}/v1, with the key {keys['demo']}\nPrometheus {url}")
    shown = grafana(processes.start, folder, url)
    print(f"Grafana    {shown}/dashboards" if shown else "Grafana    is not installed here: no dashboards to look at")
    print("Ctrl-C ends it all", flush=True)
    while processes.running[0].poll() is None:
        time.sleep(1)
    return 1


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, run, and leave nothing behind."""
    parser = argparse.ArgumentParser(prog="make observe", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="end after the queries; exit code 1 when one has no answer"
    )
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rate", type=float, default=3)
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    processes = Processes()
    with tempfile.TemporaryDirectory(prefix="fovea-observe-") as folder:
        try:
            return observe(args, Path(folder), processes)
        except CheckFailed as error:
            print(f"observe: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
        finally:
            processes.stop()


if __name__ == "__main__":
    sys.exit(main())
