"""Render the chart with the real helm and look into what comes out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.support.errors import CheckFailed
from scripts import chart_tools

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "fovea"
PROFILES = ("cpu", "gpu-small", "gpu-prod", "airgapped")
HELMS = ("helm4", "helm3")

EVERYTHING: dict[str, Any] = {
    "stack": {
        "listen": {"host": "0.0.0.0", "public": False},
        "identify": {"keys": "valkey://:$(PASSWORD)@x-fovea-valkey:6379/0", "tenants": [{"name": "shop"}]},
        "models": [
            {"name": "one", "source": "embedded:qwen2_5_vl"},
            {"name": "two", "source": "Qwen/Qwen2.5-VL-3B-Instruct", "gpus": 1, "replicas": 2},
        ],
        "money": {"usd_per_hour": "0.5", "capacity_rps": 4, "journal": "/data/journal"},
        "recall": {},
        "batches": {"folder": "/data/batches"},
        "traces": {"endpoint": "http://collector.tracing:4318/v1/traces"},
    },
    "autoscaling": [{"model": "two", "maxReplicas": 3}, {"model": "front", "minReplicas": 2, "maxReplicas": 3}],
    "dataVolume": {"enabled": True},
    "registry": "/data/registry",
    "jobs": {
        "quantize": [
            {
                "name": "two-int4",
                "model": "/models/two",
                "golden": "easy-vqa",
                "register": "two",
                "gpus": 1,
                "args": ["--group", "64", "--calibration", "easy-vqa-train"],
                "tolerations": [{"key": "pool", "operator": "Exists"}],
                "resources": {"requests": {"cpu": "4", "memory": "64Gi"}, "limits": {"cpu": "8", "memory": "64Gi"}},
            }
        ],
        "distill": [
            {
                "name": "totals",
                "recipe": {"name": "totals", "seed": 0},
                "gpus": 1,
                "args": ["--json"],
                "tolerations": [{"key": "pool", "operator": "Exists"}],
                "resources": {"requests": {"cpu": "4", "memory": "16Gi"}, "limits": {"cpu": "8", "memory": "16Gi"}},
            }
        ],
    },
    "workerGroups": [
        {
            "name": "cpu",
            "models": ["one"],
            "resources": {"requests": {"memory": "4Gi", "cpu": "1"}, "limits": {"memory": "4Gi", "cpu": "1"}},
        },
        {
            "name": "gpu",
            "models": ["two"],
            "replicas": 2,
            "minReplicas": 1,
            "maxReplicas": 3,
            "gpus": 1,
            "gpuType": "L4",
            "gpuProducts": ["NVIDIA-L4"],
            "priorityClassName": "high",
            "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"key": "pool", "operator": "Exists"}],
            "resources": {"requests": {"cpu": "1", "memory": "16Gi"}, "limits": {"memory": "16Gi", "cpu": "4"}},
        },
    ],
    "image": {"pullSecrets": ["registry"]},
    "nodeAutoscaling": {"enabled": True},
    "upgrade": {"strategy": "NewClusterWithIncrementalUpgrade", "gatewayClassName": "istio"},
    "gcsFaultTolerance": {"enabled": True, "redisAddress": "x-fovea-valkey:6379", "password": {"name": "valkey"}},
    "valkey": {"enabled": True, "password": {"name": "valkey"}, "storageClass": "fast"},
    "modelCache": {
        "enabled": True,
        "download": {
            "enabled": True,
            "tokenSecret": {"name": "hub"},
            "credentials": "bucket",
            "sources": [
                {"from": "s3://weights/two?region=eu-west-1", "name": "two"},
                {"from": "pvc://old.claim/models/three", "name": "three"},
            ],
        },
    },
    "compileCache": {"enabled": True},
    "secretEnv": [{"env": "PASSWORD", "secret": "valkey", "key": "password"}],
    "secretMounts": [{"secret": "prices", "path": "/etc/prices"}],
    "ingress": {"enabled": True, "host": "vision.example.com", "className": "nginx", "tlsSecret": "tls"},
    "gateway": {
        "enabled": True,
        "parents": [{"name": "public", "namespace": "gateways"}],
        "hostnames": ["v.example.com"],
    },
    "networkPolicy": {
        "monitoring": [{"namespaceSelector": {}}],
        "egress": [{"ports": [{"protocol": "TCP", "port": 443}]}],
    },
    "podAnnotations": {"note": "x"},
    "observability": {
        "podMonitor": {"enabled": True, "keySecret": {"name": "metrics"}},
        "rules": {"enabled": True, "certificate": "vision"},
        "dashboards": {"enabled": True},
        "pushgateway": "http://pushgateway:9091",
    },
    "evaluation": {"enabled": True, "reports": {"enabled": True}},
    "loadTestGate": {"enabled": True, "reports": {"enabled": True}},
    "clients": {"keySecret": {"name": "client"}},
}
"""Values that switch every part on."""


@lru_cache
def tool(name: str) -> str:
    """Return a client's path; the test is skipped, and says why, where it cannot be had."""
    try:
        return str(chart_tools.tool(name))
    except CheckFailed as error:
        pytest.skip(f"{name} cannot be had here: {error}")


def helm(*arguments: str, version: str = "helm4", stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run helm, without any cluster."""
    command = [tool(version), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, env={"HOME": "/nowhere"})


def template(
    values: dict[str, Any] | None = None,
    profile: str | None = None,
    version: str = "helm4",
    chart: Path = CHART,
    arguments: Iterable[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run `helm template x` with a profile and values."""
    command = ["template", "x", str(chart), "--namespace", "vision", *arguments]
    if profile:
        command += ["-f", str(CHART / f"values-{profile}.yaml")]
    if values is not None:
        command += ["-f", "-"]
    return helm(*command, version=version, stdin=None if values is None else json.dumps(values))


def render(
    values: dict[str, Any] | None = None, profile: str | None = None, version: str = "helm4", chart: Path = CHART
) -> list[dict[str, Any]]:
    """Return the manifests that helm renders."""
    done = template(values, profile, version, chart)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.load_all(done.stdout, yaml.CSafeLoader) if one]


def one(manifests: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    """Return the only manifest of a kind (whose name ends so)."""
    (found,) = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"].endswith(name)]
    return found


def pods(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return every pod specification in the manifests: name -> {metadata, spec}."""
    found: dict[str, dict[str, Any]] = {}
    for manifest in manifests:
        kind, name, spec = manifest["kind"], manifest["metadata"]["name"], manifest.get("spec", {})
        if kind == "Pod":
            found[f"Pod/{name}"] = manifest
        elif kind in ("Job", "StatefulSet", "Deployment"):
            found[f"{kind}/{name}"] = spec["template"]
        elif kind == "CronJob":
            found[f"CronJob/{name}"] = spec["jobTemplate"]["spec"]["template"]
        elif kind == "RayService":
            cluster = spec["rayClusterConfig"]
            found[f"RayService/{name}/head"] = cluster["headGroupSpec"]["template"]
            for group in cluster["workerGroupSpecs"]:
                found[f"RayService/{name}/{group['groupName']}"] = group["template"]
        elif kind == "RayJob":
            found[f"RayJob/{name}/submitter"] = spec["submitterPodTemplate"]
            found[f"RayJob/{name}/head"] = spec["rayClusterSpec"]["headGroupSpec"]["template"]
    return found


def serve_config(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the Serve config of the rendered RayService."""
    config: dict[str, Any] = yaml.safe_load(one(manifests, "RayService")["spec"]["serveConfigV2"])
    return config


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Return two values files as Helm merges them: maps by key, lists replaced."""
    out = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if both else value
    return out
