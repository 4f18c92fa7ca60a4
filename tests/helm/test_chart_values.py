"""Every value of the chart does something: with it changed, something else is rendered, or refused."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest

from scripts.chart import rows
from scripts.chart_values import Values
from serving.stack import Stack
from tests.helm.chart import EVERYTHING, render, serve_config, template

STORE = {"name": "other", "key": "other"}
VOLUME = {
    "enabled": False,
    "existingClaim": "mine",
    "size": "7Gi",
    "storageClass": "slow",
    "accessMode": "ReadOnlyMany",
}
RESOURCES = {"resources.requests": {"cpu": "111m"}, "resources.limits": {"memory": "99Gi"}}
OTHER: dict[str, dict[str, Any]] = {
    "": {
        "nameOverride": "eyes", "fullnameOverride": "eyes", "offline": False, "preStopSeconds": 33,
        "frontReplicas": 3, "registry": "/models/registry",
    },
    "jobs": {"image.repository": "other", "image.tag": "other", "image.digest": "sha256:" + "1" * 64},
    "image": {
        "repository": "x/y", "tag": "z", "digest": "sha256:" + "0" * 64, "pullPolicy": "Always",
        "pullSecrets": ["other"],
    },
    "head": {
        **RESOURCES, "shmSize": "9Gi", "nodeSelector": {"a": "b"}, "priorityClassName": "top",
        "tolerations": [{"key": "a"}],
    },
    "nodeAutoscaling": {"enabled": False, "idleTimeoutSeconds": 77, **RESOURCES},
    "proxy": {"maxConnections": 999, "bufferBytes": 8192, "threads": 3, "memoryShare": 0.0001},
    "probes": {"loadSeconds": 1234, "periodSeconds": 9, "failureThreshold": 7},
    "upgrade": {
        "strategy": "None", "gatewayClassName": "other", "stepSizePercent": 50, "intervalSeconds": 5,
        "maxSurgePercent": 10, "deletionDelaySeconds": 1,
    },
    "gcsFaultTolerance": {"enabled": False, "redisAddress": "other:1", "password.name": "n", "password.key": "k"},
    "valkey": {
        "enabled": False, "image": "other", "password.name": "n", "password.key": "k", "size": "9Gi",
        "storageClass": "slow", **RESOURCES,
    },
    "modelCache": {
        **VOLUME, "download.enabled": False, "download.tokenSecret.name": "n", "download.tokenSecret.key": "k",
        "download.endpoint": "https://mirror", "download.credentials": "other",
        **{f"download.{key}": value for key, value in RESOURCES.items()},
    },
    "compileCache": VOLUME,
    "dataVolume": VOLUME,
    "ingress": {
        "enabled": False, "className": "other", "host": "other.example.com", "tlsSecret": "other",
        "controller": "other", "annotations": {"a": "b"}, "timeoutSeconds": 7,
    },
    "gateway": {"enabled": False, "hostnames": ["other.example.com"], "timeoutSeconds": 7},
    "networkPolicy": {
        "enabled": False, "operatorNamespace": "other", "egress": [{"ports": [{"port": 1, "protocol": "TCP"}]}],
    },
    "serviceAccount": {"create": False, "name": "other", "annotations": {"a": "b"}},
    "security": {"runAsUser": 4242, "fsGroup": 4343},
    "podDisruptionBudget": {"enabled": False},
    "podAnnotations": {"": {"a": "b"}},
    "observability": {
        "podMonitor.enabled": False, "podMonitor.interval": "7s", "podMonitor.labels": {"a": "b"},
        "podMonitor.keySecret.name": "n", "podMonitor.keySecret.key": "k", "rules.enabled": False,
        "rules.labels": {"a": "b"}, "rules.runbooks": "https://runbooks", "rules.slo.availability": 0.9,
        "rules.slo.p95Seconds": 77, "rules.slo.queuePerReplica": 77, "rules.slo.kvUsage": 0.77,
        "rules.slo.accuracyDrop": 0.77, "rules.slo.latencyJump": 0.77, "rules.slo.spendJump": 0.77,
        "rules.slo.expiryDays": 77, "rules.slo.batchHours": 77,
        "rules.certificate": "other",
        "dashboards.enabled": False, "dashboards.labels": {"a": "b"}, "dashboards.folder": "Other",
        "pushgateway": "https://other",
    },
    "evaluation": {
        "enabled": False, "schedule": "1 1 * * *", "model": "two", "golden": "receipts", "limit": 77, "maxTokens": 77,
        **RESOURCES, **{f"reports.{key}": value for key, value in VOLUME.items()},
    },
    "loadTestGate": {
        "enabled": False, "model": "two", "rate": 7.5, "durationSeconds": 77, "maxTokens": 77, "workload": "text",
        "waitSeconds": 77, "limits": {"ttft_p99": {"max_increase": "5ms"}}, **RESOURCES,
        **{f"reports.{key}": value for key, value in VOLUME.items()},
    },
    "clients": {"keySecret.name": "n", "keySecret.key": "k"},
}  # fmt: skip
"""Section -> path below it -> another value than the one in the everything-on values."""

TOLERATION = {
    "tolerations[].key": "z", "tolerations[].operator": "Equal", "tolerations[].value": "z",
    "tolerations[].effect": "NoExecute", "tolerations[].tolerationSeconds": 7,
}  # fmt: skip
RAY_JOB = {
    **RESOURCES, **TOLERATION, "name": "other", "shmSize": "9Gi", "nodeSelector": {"a": "b"},
    "priorityClassName": "top", "gpus": 2, "gpuResource": "amd.com/gpu", "gpuProducts": ["other"],
    "args": ["--other"], "timeoutSeconds": 77, "keepSeconds": 77,
}  # fmt: skip
IN_LISTS: dict[str, dict[str, Any]] = {
    "autoscaling": {
        "model": "one", "minReplicas": 1, "maxReplicas": 2, "ongoingRequests": 77, "upSeconds": 77, "downSeconds": 77,
        "zeroSeconds": 77,
    },
    "modelCache.download.sources": {"from": "gs://other/one", "name": "other"},
    "jobs.quantize": {**RAY_JOB, "model": "/models/one", "scheme": "fp8", "golden": "receipts", "register": "other"},
    "jobs.distill": {**RAY_JOB, "recipe": {"name": "other"}},
    "workerGroups": {
        "name": "other", "models": ["one"], "replicas": 3, "minReplicas": 2, "maxReplicas": 4, "cpusForReplicas": 5,
        "gpus": 2, "gpuType": "L5", "gpuMemoryGiB": 3, "gpuResource": "amd.com/gpu", "gpuProducts": ["other"],
        "spread": False, "shmSize": "9Gi", "nodeSelector": {"a": "b"}, "priorityClassName": "top", **RESOURCES,
        **TOLERATION,
    },
    "secretEnv": {"env": "OTHER", "secret": "other", "key": "other"},
    "secretMounts": {"secret": "other", "path": "/other"},
    "gateway.parents": {"name": "other", "namespace": "other", "sectionName": "other"},
    "networkPolicy.clients": {
        "namespaceSelector": {"matchLabels": {"a": "b"}}, "podSelector": {"matchLabels": {"a": "b"}},
        "ipBlock": {"cidr": "10.0.0.0/8"},
    },
    "networkPolicy.monitoring": {
        "namespaceSelector": {"matchLabels": {"a": "b"}}, "podSelector": {"matchLabels": {"a": "b"}},
        "ipBlock": {"cidr": "10.0.0.0/8"},
    },
    "head.tolerations": {"key": "z", "operator": "Exists", "value": "z", "effect": "NoExecute", "tolerationSeconds": 7},
}  # fmt: skip
"""List -> path in its last entry -> another value."""

NOT_RENDERED = {
    "global": "Helm's own",
    "preflight": "works with a cluster: tests/helm/test_chart_cluster.py",
}

PATHS = [path for path, kind, _, _ in rows(Values) if kind not in ("list",)]


def below(data: Any, path: str, value: Any) -> Any:
    """Return data with the value at a dotted path; `x[]` is the last entry of list x."""
    if not path:
        return value
    head, _, rest = path.partition(".")
    if head.endswith("[]"):
        entries = [*(data.get(head[:-2]) or [{}])]
        entries[-1] = below(entries[-1], rest, value)
        return {**data, head[:-2]: entries}
    return {**(data or {}), head: below((data or {}).get(head, {}), rest, value)}


def other(path: str) -> Any:
    """Return another value for a path of the values."""
    for name, entries in IN_LISTS.items():
        if path.startswith(f"{name}[]."):
            return entries[path.removeprefix(f"{name}[].")]
    section, _, rest = path.partition(".")
    return OTHER[""][section] if section in OTHER[""] else OTHER[section][rest]


@lru_cache
def standard() -> str:
    """Return what the everything-on values render."""
    done = template(EVERYTHING)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_table_has_every_value() -> None:
    missing = []
    for path in PATHS:
        if path in NOT_RENDERED or path == "stack":
            continue
        try:
            other(path)
        except KeyError:
            missing.append(path)
    assert missing == [], "a new value needs a line here"
    assert len(PATHS) > 160


@pytest.mark.parametrize("path", [path for path in PATHS if path not in NOT_RENDERED and path != "stack"])
def test_each_value_changes_something(path: str) -> None:
    done = template(below(EVERYTHING, path, other(path)))
    if done.returncode:
        assert "execution error" in done.stderr, (
            done.stderr
        )  # refused by a check of the chart, not by a broken template
    else:
        assert done.stdout != standard()


def test_the_stack_reaches_ray_serve_as_it_is() -> None:
    """Whatever `fovea serve` reads in a stack is read there too; only the number of replicas goes another way."""
    whole = Stack.model_validate(
        {
            "listen": {"host": "0.0.0.0", "public": True},
            "models": [{"name": "fovea-qwen", "source": "embedded:qwen2_5_vl", "replicas": 2}],
            "money": {"usd_per_hour": "0.5", "capacity_rps": "4"},
            "traces": {"endpoint": "http://collector:4318/v1/traces"},
        }
    ).model_dump(mode="json")
    assert len(whole) == len(Stack.model_fields)
    (application,) = serve_config(render({"stack": whole}))["applications"]
    assert whole["models"][0].pop("replicas") == 2
    bounds = application["deployments"][0]["autoscaling_config"]
    assert bounds["min_replicas"] == bounds["initial_replicas"] == bounds["max_replicas"] == 2
    assert application["args"]["stack"] == whole
