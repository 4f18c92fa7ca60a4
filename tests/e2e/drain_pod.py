"""What clients see of a worker pod that Kubernetes deletes: its preStop hook runs, then comes SIGTERM.

    sudo .venv/bin/python -m tests.e2e.drain_pod [--hook sleep]

Every pod (a head, two workers with a replica each) is a network namespace with an address of its own; in it runs Ray
with the parameters and the environment that the chart renders, and HAProxy on the pods' port.  Users ask through both
workers.  When the one is deleted its users ask no more (Kubernetes takes it out of the Service at once), the others go
on through the other worker, and streams that began before run on through both.  `--hook sleep` is what the chart did
before: ten seconds of waiting.  Prints JSON; exit code 1 when anything was lost.  Linux, root, 10 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from serving.steady import Load, body_of, under
from tests.e2e.chart_cluster import BINARIES, environment
from tests.helm.chart import CHART, one, render, serve_config

PREFIX = "10.77.0."
HEAD = PREFIX + "2"
GCS, DASHBOARD, SERVE = 6379, 8265, 8000
HOOKS = ("drain", "sleep")


def shell(*words: str, check: bool = True) -> None:
    """Run a command; its message when it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr.strip()}")


@contextmanager
def network(names: list[str]) -> Iterator[dict[str, str]]:
    """Make a namespace per name on one bridge; yields the addresses."""
    bridge = "fovea-br"
    addresses = {name: f"{PREFIX}{number}" for number, name in enumerate(names, 2)}
    with ExitStack() as undo:
        shell("ip", "link", "add", bridge, "type", "bridge")
        undo.callback(shell, "ip", "link", "del", bridge, check=False)
        shell("ip", "addr", "add", f"{PREFIX}1/24", "dev", bridge)
        shell("ip", "link", "set", bridge, "up")
        for name, address in addresses.items():
            shell("ip", "netns", "add", name)
            undo.callback(shell, "ip", "netns", "del", name, check=False)
            shell("ip", "link", "add", f"{name}-l", "type", "veth", "peer", "name", "eth0", "netns", name)
            # a namespace lives until its last process is gone, and the name of its link with it
            undo.callback(shell, "ip", "link", "del", f"{name}-l", check=False)
            shell("ip", "link", "set", f"{name}-l", "master", bridge, "up")
            inside = ("ip", "netns", "exec", name, "ip")
            shell(*inside, "link", "set", "lo", "up")
            shell(*inside, "addr", "add", f"{address}/24", "dev", "eth0")
            shell(*inside, "link", "set", "eth0", "up")
            shell(*inside, "route", "add", "default", "via", f"{PREFIX}1")
        yield addresses


@dataclass
class Pod:
    """A namespace with Ray in it."""

    name: str
    address: str
    environment: dict[str, str]
    process: subprocess.Popen[str] | None = None

    def command(self, *words: str) -> list[str]:
        """Return the command that runs `words` in this pod."""
        return ["ip", "netns", "exec", self.name, *words]

    def start(self, *arguments: str) -> None:
        """Start Ray as KubeRay does: in the foreground, as the process that gets SIGTERM."""
        words = ["ray", "start", "--block", f"--node-ip-address={self.address}", "--disable-usage-stats", *arguments]
        command = self.command(str(BINARIES / words[0]), *words[1:])
        self.process = subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL, text=True)

    def kill(self) -> None:
        """End every process of this pod, as the kubelet does when the grace period is over."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        for word in listed.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(word), 9)


@dataclass
class Streams:
    """Long answers that begin before the pod goes.

    Attributes:
        whole: ended as they should; broken: what happened to the others.
    """

    whole: int = 0
    broken: list[str] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def begin(self, base: str, tokens: int) -> None:
        """Start one in a thread of its own."""
        self.threads.append(threading.Thread(target=self._read, args=(base, tokens), daemon=True))
        self.threads[-1].start()

    def _read(self, base: str, tokens: int) -> None:
        body = {**body_of("red", 1), "max_tokens": tokens, "ignore_eos": True, "stream": True}
        try:
            with httpx.stream("POST", f"{base}/v1/chat/completions", json=body, timeout=120) as answer:
                lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
            if answer.status_code == 200 and lines[-1] == "data: [DONE]" and '"length"' in lines[-2]:
                self.whole += 1
            else:
                self.broken.append(f"{answer.status_code}, {len(lines)} pieces")
        except (httpx.HTTPError, IndexError) as error:
            self.broken.append(repr(error))


def sockets(folder: Path) -> int:
    """Return how many raylets of a session listen."""
    return sum(path.name.startswith("raylet") for path in (folder / "session_latest" / "sockets").glob("*"))


def applications() -> dict[str, Any]:
    """Return what Ray Serve says."""
    return dict(httpx.get(f"http://{HEAD}:{DASHBOARD}/api/serve/applications/", timeout=30).json())


def running() -> list[str]:
    """Return the addresses of the replicas that run, [] while the dashboard does not answer."""
    try:
        found = applications()["applications"].values()
    except (httpx.HTTPError, ValueError, KeyError):
        return []
    deployments = [deployment for application in found for deployment in application["deployments"].values()]
    replicas = [replica for deployment in deployments for replica in deployment["replicas"]]
    return sorted(replica["node_ip"] for replica in replicas if replica["state"] == "RUNNING")


def until(what: Any, timeout_s: float, text: Any) -> None:
    """Wait until `what()` holds; `text`, or what it returns, says what is missing."""
    deadline = time.monotonic() + timeout_s
    while not what():
        if time.monotonic() > deadline:
            raise SystemExit(f"not after {timeout_s:g} s: {text() if callable(text) else text}")
        time.sleep(0.5)


def failing(address: str, container: dict[str, Any]) -> list[str]:
    """Return the container's probes that fail, asked at the pod's address as the kubelet asks."""
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    wrong = []
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[kind]["httpGet"]
        url = f"http://{address}:{ports.get(probe['port'], probe['port'])}{probe['path']}"
        try:
            answer = httpx.get(url, timeout=5)
            said = "" if answer.status_code == 200 else f"{answer.status_code} {answer.text[:200]}"
        except httpx.HTTPError as error:
            said = repr(error)
        if said:
            wrong.append(f"{kind} {url}: {said}")
    return wrong


def delete(pod: Pod, hook: str, words: list[str], grace_s: float) -> dict[str, Any]:
    """Do what the kubelet does with a pod that is deleted; return the hook's words and how long it took."""
    begin = time.monotonic()
    program = ["sleep", "10"] if hook == "sleep" else [sys.executable, str(CHART / "files" / "drain.py"), *words]
    environment = {**pod.environment, "FQ_RAY_IP": HEAD, "RAY_PORT": str(GCS), "LOG": "/dev/null"}
    environment["PATH"] = f"{BINARIES}:{environment['PATH']}"
    done = subprocess.run(
        pod.command(*program), env=environment, capture_output=True, text=True, check=False, timeout=grace_s
    )
    hooked = time.monotonic() - begin
    assert pod.process is not None
    alone = pod.process.poll() is not None  # Ray ends a node that is empty
    pod.process.terminate()
    with suppress(subprocess.TimeoutExpired):  # then the grace period is over
        pod.process.wait(max(1.0, grace_s - hooked))
    pod.kill()
    return {
        "hook": done.stdout.splitlines() + done.stderr.splitlines(),
        "hook_s": round(hooked, 1),
        "ended_by_itself": alone,
        "all_s": round(time.monotonic() - begin, 1),
    }


def deploy(config: dict[str, Any]) -> None:
    """Send the Serve config as KubeRay does."""
    answer = httpx.put(f"http://{HEAD}:{DASHBOARD}/api/serve/applications/", json=config, timeout=120)
    if answer.status_code != 200:
        raise SystemExit(answer.text)


def main() -> int:
    """Start it, delete a pod, count."""
    parser = argparse.ArgumentParser(description="Delete a worker pod under load; what do clients see?")
    parser.add_argument("--hook", choices=HOOKS, default="drain", help="the chart's, or ten seconds of waiting")
    parser.add_argument("--settle", type=float, default=10, help="seconds of load before and after")
    parser.add_argument("--tokens", type=int, default=1000, help="length of the streams")
    args = parser.parse_args()
    if os.geteuid():
        raise SystemExit("network namespaces need root")
    manifests = render({"preStopSeconds": 120}, "cpu")
    cluster = one(manifests, "RayService")["spec"]["rayClusterConfig"]
    group = cluster["workerGroupSpecs"][0]
    spec = group["template"]["spec"]
    (container,) = spec["containers"]
    hook = container["lifecycle"]["preStop"]["exec"]["command"][2:]
    params = group["rayStartParams"]
    resources = params["resources"].strip('"').replace("\\", "")
    with (
        tempfile.TemporaryDirectory(prefix="fv-", dir="/tmp", ignore_cleanup_errors=True) as name,
        network(["fovea-head", "fovea-a", "fovea-b"]) as addresses,
        ExitStack() as undo,
    ):
        pods = []
        for pod_name, address in addresses.items():
            folder = Path(name) / pod_name
            folder.mkdir()
            pods.append(Pod(pod_name, address, environment(container, folder) | {"RAY_TMPDIR": name}))
            undo.callback(pods[-1].kill)
        head, first, second = pods
        head.start(
            "--head", f"--port={GCS}", f"--dashboard-host={HEAD}", f"--dashboard-port={DASHBOARD}", "--num-cpus=0",
            "--num-gpus=0", f"--temp-dir={name}", "--object-store-memory=268435456",
        )  # fmt: skip
        # one after the other: nodes of one file system choose the names of their sockets by what is there
        until(lambda: sockets(Path(name)) == 1, 60, "the head's raylet")
        for number, pod in enumerate((first, second), 2):
            pod.start(
                f"--address={HEAD}:{GCS}", f"--num-cpus={params['num-cpus']}", f"--num-gpus={params['num-gpus']}",
                f"--resources={resources}", f"--object-store-memory={params['object-store-memory']}",
            )  # fmt: skip
            until(lambda n=number: sockets(Path(name)) == n, 60, f"{number} raylets")
        until(lambda: running() == [] and dashboard_answers(), 120, "the dashboard")
        deploy(serve_config(manifests))
        until(lambda: running() == sorted([first.address, second.address]), 400, "a replica in each")
        for pod in (first, second):
            until(lambda p=pod: not failing(p.address, container), 60, lambda p=pod: str(failing(p.address, container)))
        bases = [f"http://{pod.address}:{SERVE}" for pod in (first, second)]
        through = [Load(base, 2, pictures=4, pause_s=0.1) for base in bases]
        streams = Streams()
        with under(through[1]), under(through[0]):
            time.sleep(args.settle)
            for base in bases * 2:
                streams.begin(base, args.tokens)
            time.sleep(1)
            through[0].stop.set()
            went = time.monotonic()
            print(f"deleting {first.name}", file=sys.stderr, flush=True)
            what = delete(first, args.hook, hook, spec["terminationGracePeriodSeconds"])
            print(json.dumps(what), file=sys.stderr, flush=True)
            time.sleep(args.settle)
        for thread in streams.threads:
            thread.join(130)
        accounts = {pod.name: load.account for pod, load in zip((first, second), through, strict=True)}
        report = {
            **what,
            "through": {
                name: {
                    "answers": account.answers,
                    "failed": account.failed,
                    "wrong": len(account.wrong),
                    "given_up": len(account.given_up),
                    "after_the_deletion": account.between(went, time.monotonic()),
                    "examples": account.examples[:3],
                }
                for name, account in accounts.items()
            },
            "streams": {"whole": streams.whole, "broken": streams.broken},
            "replicas_afterwards": running(),
        }
    print(json.dumps(report, indent=1))
    lost = sum(account.failed + len(account.wrong) for account in accounts.values()) + len(streams.broken)
    return 1 if lost or streams.whole != len(streams.threads) else 0


def dashboard_answers() -> bool:
    """Tell whether the head's API is there."""
    try:
        return httpx.get(f"http://{HEAD}:{DASHBOARD}/api/version", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    sys.exit(main())
