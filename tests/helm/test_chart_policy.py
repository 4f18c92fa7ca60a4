"""Security policies over every pod that the chart can render."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.helm.chart import EVERYTHING, PROFILES, one, pods, render

CASES: dict[str, tuple[str | None, dict[str, Any]]] = {
    **{profile: (profile, {}) for profile in PROFILES},
    "everything": (None, EVERYTHING),
}


def containers(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield all containers of a pod."""
    yield from spec.get("initContainers", [])
    yield from spec["containers"]


POD: dict[str, Callable[[dict[str, Any]], bool]] = {
    "shares nothing with its host": lambda spec: not any(spec.get(k) for k in ("hostIPC", "hostPID", "hostNetwork")),
    "mounts no token by itself": lambda spec: spec["automountServiceAccountToken"] is False,
    "does not run as root": lambda spec: (
        spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
    ),
    "has seccomp": lambda spec: spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"},
    "mounts nothing of its host": lambda spec: not any("hostPath" in volume for volume in spec.get("volumes", [])),
    "has no service links": lambda spec: spec["enableServiceLinks"] is False,
}
CONTAINER: dict[str, Callable[[dict[str, Any]], bool]] = {
    "cannot gain privileges": lambda c: c["securityContext"]["allowPrivilegeEscalation"] is False,
    "is not privileged": lambda c: not c["securityContext"].get("privileged"),
    "has a read-only root": lambda c: c["securityContext"]["readOnlyRootFilesystem"] is True,
    "drops all capabilities": lambda c: c["securityContext"]["capabilities"] == {"drop": ["ALL"]},
    "has a memory limit and requests": lambda c: bool(
        c["resources"]["limits"]["memory"] and set(c["resources"]) >= {"limits"}
    ),
    "has a pinned image": lambda c: ":latest" not in c["image"] and (":" in c["image"] or "@" in c["image"]),
    "has others' images by digest": lambda c: (
        "fovea:" in c["image"] or bool(re.search(r"@sha256:[0-9a-f]{64}$", c["image"]))
    ),
    "says when it pulls": lambda c: c["imagePullPolicy"] in ("Always", "IfNotPresent", "Never"),
    "has no secret in its environment": lambda c: (
        not any(re.search(r"(?i)password|token|secret|api_?key", e["name"]) and "value" in e for e in c.get("env", []))
    ),
}
SERVING: dict[str, Callable[[dict[str, Any]], bool]] = {
    "has all probes": lambda c: {"readinessProbe", "livenessProbe", "startupProbe"} <= set(c),
    "gives the load its time": lambda c: (
        c["startupProbe"]["periodSeconds"] * c["startupProbe"]["failureThreshold"] >= 600
    ),
}


def violations(found: dict[str, dict[str, Any]]) -> list[str]:
    """Return what pods do that they must not."""
    wrong = []
    for name, pod in found.items():
        spec = pod["spec"]
        wrong += [f"{name}: not: {rule}" for rule, holds in POD.items() if not holds(spec)]
        for container in containers(spec):
            rules = dict(CONTAINER)
            if name.startswith("RayService/") and container in spec["containers"]:
                rules |= SERVING
            wrong += [
                f"{name}/{container['name']}: not: {rule}" for rule, holds in rules.items() if not holds(container)
            ]
    return wrong


@pytest.mark.parametrize("case", CASES)
def test_every_pod_keeps_every_policy(case: str) -> None:
    profile, values = CASES[case]
    found = pods(render(values, profile))
    assert len(found) >= 3
    assert violations(found) == []


def test_the_policies_can_fail() -> None:
    found = pods(render({}, "cpu"))
    name = next(iter(found))
    for key in ("automountServiceAccountToken", "enableServiceLinks"):
        spec = {**found[name]["spec"], key: True}
        assert len(violations({name: {"spec": spec}})) == 1
    (container,) = found[name]["spec"]["containers"]
    for change, count in (
        ({"image": "fovea:latest"}, 1),
        ({"image": "valkey/valkey:9.1.2"}, 1),
        ({"securityContext": {**container["securityContext"], "privileged": True}}, 1),
    ):
        spec = {**found[name]["spec"], "containers": [{**container, **change}]}
        assert len(violations({name: {"spec": spec}})) == count


def test_only_the_autoscaler_and_the_gate_get_a_token() -> None:
    manifests = render(EVERYTHING)
    cluster = one(manifests, "RayService")["spec"]["rayClusterConfig"]
    assert any(m["name"] == "kube-token" for m in cluster["autoscalerOptions"]["volumeMounts"])
    mounting = {
        f"{name}/{container['name']}"
        for name, pod in pods(manifests).items()
        for container in containers(pod["spec"])
        for mount in container.get("volumeMounts", [])
        if mount["name"] == "kube-token"
    }
    assert mounting == {"Job/x-fovea-loadtest-after/loadtest"}


def test_the_gates_token_may_read_one_object_and_nothing_else() -> None:
    (rule,) = one(render(EVERYTHING), "Role")["rules"]
    assert rule == {
        "apiGroups": ["ray.io"], "resources": ["rayservices"], "resourceNames": ["x-fovea"], "verbs": ["get"],
    }  # fmt: skip


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a LabelSelector takes a pod with these labels."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for term in selector.get("matchExpressions", []):
        assert term["operator"] == "In"
        if labels.get(term["key"]) not in term["values"]:
            return False
    return True


@pytest.mark.parametrize("case", CASES)
def test_every_pod_is_denied_by_default_and_let_through_where_it_must(case: str) -> None:
    profile, values = CASES[case]
    manifests = render(values, profile)
    policies = [m for m in manifests if m["kind"] == "NetworkPolicy"]
    deny = one(policies, "NetworkPolicy", "-deny")["spec"]
    assert sorted(deny["policyTypes"]) == ["Egress", "Ingress"] and "ingress" not in deny and "egress" not in deny
    for name, pod in pods(manifests).items():
        labels = pod["metadata"]["labels"]
        assert matches(deny["podSelector"], labels), name
        opened = [p for p in policies if p["spec"] is not deny and matches(p["spec"]["podSelector"], labels)]
        assert opened, f"{name} could talk to nobody"
        ports = [rule.get("ports", []) for p in opened for rule in p["spec"].get("ingress", [])]
        assert all(ports) or labels["fovea/role"] in ("head", "worker", "rayjob"), (
            "only Ray's own pods are open on all ports"
        )
        for policy in opened:
            for rule in policy["spec"].get("ingress", []):
                assert rule.get("from"), f"{policy['metadata']['name']} is open to everybody"


def test_metrics_are_not_open_to_the_outside() -> None:
    manifests = render(EVERYTHING)
    paths = [path["path"] for rule in one(manifests, "Ingress")["spec"]["rules"] for path in rule["http"]["paths"]]
    routes = [m["path"]["value"] for rule in one(manifests, "HTTPRoute")["spec"]["rules"] for m in rule["matches"]]
    assert paths == routes == ["/v1", "/ready", "/one/v1", "/two/v1"]
