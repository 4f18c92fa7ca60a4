"""The chart's CPU profile, started for real: `serve deploy` on local Ray, in the environment of its containers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from scripts import observe
from serving.runtime import free_port, haproxy_binary
from tests.e2e.pictures import draw, encode
from tests.helm.chart import ROOT, one, render, serve_config, tool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
BINARIES = Path(sys.executable).parent
ASK = ROOT / "helm" / "fovea" / "files" / "ask.py"


class Cluster:
    """Ray on this machine with the parameters and the environment of the rendered worker pod."""

    def __init__(self, manifests: list[dict[str, Any]], folder: Path):
        cluster = one(manifests, "RayService")["spec"]["rayClusterConfig"]
        group = cluster["workerGroupSpecs"][0]
        (container,) = group["template"]["spec"]["containers"]
        self.folder, self.params = folder, group["rayStartParams"]
        self.port, self.dashboard, self.agent = free_port(), free_port(), free_port()
        given = {entry["name"]: entry["value"] for entry in container["env"]}
        moved = {
            key: value.replace("/tmp", str(folder)).replace("/opt/fovea/serving", str(ROOT / "serving"))
            for key, value in given.items()
        }
        moved |= {key: str(folder / key) for key, value in given.items() if value.startswith(("/models", "/compiled"))}
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

    def start(self) -> None:
        """Start Ray as KubeRay would, on loopback."""
        self.run(
            "ray", "start", "--head", "--node-ip-address=127.0.0.1", "--port=0", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard}", f"--dashboard-agent-listen-port={self.agent}",
            f"--temp-dir={self.folder}", "--disable-usage-stats", f"--ray-client-server-port={free_port()}",
            f"--num-cpus={self.params['num-cpus']}", f"--num-gpus={self.params['num-gpus']}",
            f"--resources={self.params['resources'].strip(chr(34)).replace(chr(92), '')}",
            f"--object-store-memory={self.params['object-store-memory']}",
        )  # fmt: skip

    def deploy(self, config: dict[str, Any]) -> None:
        """Run `serve deploy`; only the address is this machine's."""
        config["http_options"] |= {"host": "127.0.0.1", "port": self.port}
        path = self.folder / "serve.yaml"
        path.write_text(yaml.safe_dump(config))
        self.run("serve", "deploy", str(path), "-a", f"http://127.0.0.1:{self.dashboard}")

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

    def __init__(self, base: str, threads: int = 3):
        self.base, self.answered, self.wrong = base, 0, list[str]()
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
        with httpx.Client(timeout=120) as client:
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
                time.sleep(0.05)

    def __enter__(self) -> Clients:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(130)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The CPU profile on local Ray; its folder's name is short, for Ray's sockets."""
    tool("helm4")
    with tempfile.TemporaryDirectory(prefix="fv-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        found = Cluster(render({}, "cpu"), folder)
        try:
            found.start()
            yield found
        finally:
            found.stop()


def test_the_cpu_profile_answers_and_survives_updates_without_a_failed_request(cluster: Cluster) -> None:
    config = serve_config(render({}, "cpu"))
    deployment = config["applications"][0]["deployments"][0]
    assert deployment["num_replicas"] == 2
    deployment["num_replicas"] = 1
    cluster.deploy(config)
    first = cluster.wait(1)

    # the probes of the pods, against what really answers there
    observe.wait_for(f"{cluster.base}/-/healthz", 60)
    assert httpx.get(f"http://127.0.0.1:{cluster.dashboard}/api/gcs_healthz", timeout=10).status_code == 200
    assert httpx.get(f"http://127.0.0.1:{cluster.agent}/api/local_raylet_healthz", timeout=10).status_code == 200
    observe.wait_for(f"{cluster.base}/ready", 60)

    # `helm test`
    command = [sys.executable, str(ASK), cluster.base, "fovea-qwen"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and re.search(r"fovea-qwen answers: '\w+'", done.stdout), done.stdout + done.stderr

    with Clients(cluster.base) as clients:
        # as many replicas as the profile has: the first one stays
        deployment["num_replicas"] = 2
        cluster.deploy(config)
        both = cluster.wait(2)
        assert first < both

        # what the PodMonitor scrapes: every replica, at one address
        metrics = httpx.get(f"{cluster.base}/metrics", timeout=30).text
        assert len(set(re.findall(r'process_start_time_seconds\{replica="([^"]+)"\}', metrics))) == 2

        # another limit in the stack: both are replaced, one after the other
        changed = serve_config(render({"stack": {"limits": {"concurrent": 200}}}, "cpu"))
        cluster.deploy(changed)
        others = cluster.wait(2, old=both)
        # fewer again: one goes, the other is the same one as before
        changed["applications"][0]["deployments"][0]["num_replicas"] = 1
        cluster.deploy(changed)
        assert cluster.wait(1) < others
        time.sleep(3)
    assert clients.wrong == [] and clients.answered > 20, (clients.answered, len(clients.wrong), clients.wrong[:5])
    print(f"{clients.answered} answers during three updates, none wrong")


def test_every_dashboard_query_has_an_answer_from_a_real_run(capfd: pytest.CaptureFixture[str]) -> None:
    """`make observe --check`: the stack, real traffic, the chart's rules in a real Prometheus, no empty panel."""
    for name in ("helm4", "prometheus", "pushgateway"):
        tool(name)
    code = observe.main(["--check", "--questions", "160", "--seconds", "15", "--rate", "2"])
    printed = capfd.readouterr()
    assert code == 0, printed.out[-6000:] + printed.err[-2000:]
    assert ", 0 without an answer" in printed.out or " 0 without an answer" in printed.out
