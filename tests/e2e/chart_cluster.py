"""Ray on this machine as the chart's pods have it: their parameters, their environment, their Serve config."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serving.runtime import free_port, haproxy_binary
from tests.helm.chart import ROOT, one

BINARIES = Path(sys.executable).parent
PASSWORD = "p@ss/word%"


def environment(container: dict[str, Any], folder: Path) -> dict[str, str]:
    """Return a pod's environment with this machine's places; what comes from a Secret is PASSWORD."""
    given = {entry["name"]: entry.get("value", PASSWORD) for entry in container["env"]}
    moved = {
        key: value.replace("/tmp", str(folder)).replace("/opt/fovea/serving", str(ROOT / "serving"))
        for key, value in given.items()
    }
    moved |= {key: str(folder / key) for key, value in given.items() if value.startswith("/models")}
    # kernels are not compiled once more: they lie where the other tests' stacks have them
    moved = {key: value for key, value in moved.items() if not given.get(key, "").startswith("/compiled")}
    # two stacks on one machine must not meet; a pod has these places for itself
    own = {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg", "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "", "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
    }  # fmt: skip
    moved |= {key: str(folder / name) for key, name in own.items()}
    return moved | {"FOVEA_HAPROXY": haproxy_binary(), "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}


class Cluster:
    """Ray on this machine with the parameters and the environment of the rendered worker pod."""

    def __init__(self, manifests: list[dict[str, Any]], folder: Path):
        cluster = one(manifests, "RayService")["spec"]["rayClusterConfig"]
        group = cluster["workerGroupSpecs"][0]
        (container,) = group["template"]["spec"]["containers"]
        self.folder, self.params = folder, group["rayStartParams"]
        self.port, self.dashboard, self.agent = free_port(), free_port(), free_port()
        ports = {name: str(free_port()) for name in ("RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT")}
        self.environment = environment(container, folder) | ports

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
