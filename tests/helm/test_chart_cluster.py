"""The real helm on a simulated cluster: install, upgrade, rollback, uninstall, and what it looks up before."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.api_simulator import Simulator
from tests.helm.chart import CHART, EVERYTHING, HELMS, merged, tool

SECRETS = ("bucket", "registry", "valkey", "hub", "prices", "tls", "metrics", "client")
VALUES = merged(
    EVERYTHING, {"loadTestGate": {"enabled": False}, "nodeAutoscaling": {"enabled": False}, "autoscaling": []}
)
NODE = {"metadata": {"name": "n1", "labels": {"nvidia.com/gpu.product": "NVIDIA-L4"}}}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Simulator]:
    """An empty cluster with the Secrets and a node."""
    found = Simulator(tmp_path)
    for name in SECRETS:
        found.store.add("v1", "secrets", "vision", {"metadata": {"name": name}, "type": "Opaque"})
    found.store.add("v1", "nodes", "", NODE)
    yield found
    found.stop()


def helm(
    cluster: Simulator, version: str, *arguments: str, values: dict[str, Any] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run helm on the simulated cluster."""
    command = [tool(version), "--kubeconfig", str(cluster.config), "-n", "vision", *arguments]
    if arguments[0] in ("install", "upgrade"):
        command.append("--disable-openapi-validation")
    if values is not None:
        command += ["-f", "-"]
    environment = {"HOME": str(cluster.config.parent)}
    text = None if values is None else json.dumps(values)
    return subprocess.run(
        command, input=text, capture_output=True, text=True, check=False, env=environment, timeout=120
    )


def done(result: subprocess.CompletedProcess[str]) -> str:
    """Return what helm printed; it must have succeeded."""
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("version", HELMS)
def test_install_upgrade_rollback_uninstall(cluster: Simulator, version: str) -> None:
    empty = cluster.store.shown()
    printed = done(helm(cluster, version, "install", "x", str(CHART), values=VALUES))
    assert "x-fovea serves one, two soon" in printed
    first = cluster.store.shown()
    assert len(first) > len(empty) + 15
    changed = merged(
        VALUES, {"probes": {"loadSeconds": 900}, "head": {"shmSize": "2Gi"}, "ingress": {"enabled": False}}
    )
    done(helm(cluster, version, "upgrade", "x", str(CHART), values=changed))
    second = cluster.store.shown()
    assert second != first and not any(" ingresses " in key for key in second)
    done(helm(cluster, version, "rollback", "x", "1"))
    assert cluster.store.shown() == first, "a rollback brings back what was there, to the letter"
    status = yaml.safe_load(done(helm(cluster, version, "history", "x", "-o", "yaml")))
    assert [entry["status"] for entry in status] == ["superseded", "superseded", "deployed"]
    done(helm(cluster, version, "uninstall", "x", "--no-hooks"))
    left = set(cluster.store.shown()) - set(empty)
    assert left and all("persistentvolumeclaims" in key for key in left), "volumes outlive the release, nothing else"


@pytest.mark.parametrize("version", HELMS)
@pytest.mark.parametrize(
    ("missing", "field"), [("client", "clients.keySecret.name"), ("prices", "secretMounts[0].secret")]
)
def test_a_missing_secret_is_refused_before_anything_is_made(
    cluster: Simulator, version: str, missing: str, field: str
) -> None:
    del cluster.store.objects[("v1", "secrets", "vision", missing)]
    before = cluster.store.shown()
    result = helm(cluster, version, "install", "x", str(CHART), values=VALUES)
    assert result.returncode != 0 and f'{field}: there is no Secret "{missing}" in namespace vision' in result.stderr
    assert cluster.store.shown() == before
    later = merged(VALUES, {"preflight": False})
    done(helm(cluster, version, "install", "x", str(CHART), values=later))


@pytest.mark.parametrize("version", HELMS)
def test_a_gpu_that_no_node_has_is_refused(cluster: Simulator, version: str) -> None:
    cluster.store.add("v1", "nodes", "", {"metadata": {"name": "n1", "labels": {"nvidia.com/gpu.product": "Tesla-T4"}}})
    result = helm(cluster, version, "install", "x", str(CHART), values=VALUES)
    assert result.returncode != 0
    assert "workerGroups[1].gpuProducts: no node has NVIDIA-L4; the nodes have Tesla-T4" in result.stderr


def test_kubectl_finds_what_helm_made(cluster: Simulator) -> None:
    done(helm(cluster, "helm4", "install", "x", str(CHART), values=VALUES))
    command = [tool("kubectl"), "--kubeconfig", str(cluster.config), "get", "rayservice", "x-fovea", "-o", "json"]
    printed = subprocess.run(
        command, capture_output=True, text=True, check=True, env={"HOME": str(cluster.config.parent)}
    )
    assert json.loads(printed.stdout)["spec"]["rayClusterConfig"]["rayVersion"] == "2.60.0"
