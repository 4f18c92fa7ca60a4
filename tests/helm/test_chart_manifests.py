"""Every manifest of every case against the strict schemas of Kubernetes, KubeRay, and the Prometheus operator."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from referencing import Registry, Resource

from tests.helm.cases import CASES, manifests
from tests.helm.chart import one, pods, tool

OWN_SCHEMAS = Path(__file__).parent / "schemas"
KUBERNETES = ("v1.35.0", "v1.36.0", "v1.37.0")


def closed(required: str = "", **properties: Any) -> dict[str, Any]:
    """Return the JSON Schema of an object that has these properties and no others."""
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": required.split()} if required else schema


TEXT = {"type": "string", "minLength": 1}
DURATION = {"type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
HTTP_ROUTE = closed(
    "apiVersion kind metadata spec",
    apiVersion={"const": "gateway.networking.k8s.io/v1"},
    kind={"const": "HTTPRoute"},
    metadata={"type": "object"},
    spec=closed(
        "parentRefs rules",
        parentRefs={"type": "array", "items": closed("name", name=TEXT, namespace=TEXT, sectionName=TEXT)},
        hostnames={"type": "array", "items": TEXT},
        rules={
            "type": "array",
            "items": closed(
                "matches backendRefs",
                matches={"type": "array", "maxItems": 64, "items": closed(
                    "path", path=closed("type value", type={"enum": ["PathPrefix"]}, value={"pattern": "^/"})
                )},
                timeouts=closed(request=DURATION, backendRequest=DURATION),
                backendRefs={"type": "array", "items": closed("name port", name=TEXT, port={"type": "integer"})},
            ),
        },
    ),
)  # fmt: skip
"""What the chart uses of the Gateway API's HTTPRoute; no package brings that one."""


@lru_cache(maxsize=256)
def validator(version: str, kind: str, api: str) -> Any:
    """Return the strict validator of a built-in kind, None for a kind that Kubernetes does not know."""
    folder = Path(tool("schemas")) / "kubernetes-json-schema" / f"{version}-local-strict"
    group, _, level = api.rpartition("/")
    name = "-".join(filter(None, (kind.lower(), group.split(".")[0], level)))
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    definitions = _definitions(folder / "_definitions.json")
    schema = json.loads(path.read_text())
    registry: Registry[Any] = Resource.from_contents(schema) @ Registry()
    return jsonschema.Draft202012Validator(schema, registry=definitions @ registry)


@lru_cache
def _definitions(path: Path) -> Any:
    return Resource.from_contents(json.loads(path.read_text()))


def problems(manifest: dict[str, Any], version: str) -> list[str]:
    """Return what a strict schema says about a manifest."""
    check = validator(version, manifest["kind"], manifest["apiVersion"])
    if manifest["kind"] == "HTTPRoute":
        check = jsonschema.Draft202012Validator(HTTP_ROUTE)
    if check is None:
        path = OWN_SCHEMAS / f"{manifest['kind'].lower()}_{manifest['apiVersion'].split('/')[-1]}.json"
        if not path.exists():
            return ["no schema"]
        check = jsonschema.Draft7Validator(json.loads(path.read_text()))
    name = f"{manifest['kind']}/{manifest['metadata']['name']}"
    return [f"{name} {error.json_path}: {error.message[:200]}" for error in check.iter_errors(manifest)]


@pytest.mark.parametrize("version", KUBERNETES)
def test_strict_schemas_find_planted_mistakes(version: str) -> None:
    """The check itself can fail."""
    account = one(manifests("defaults"), "ServiceAccount")
    assert problems(account, version) == []
    assert problems({**account, "automountToken": True}, version)
    route = one(manifests("everything"), "HTTPRoute")
    assert problems(route, version) == []
    assert problems({**route, "spec": {**route["spec"], "timeout": "1s"}}, version)
    policy = one(manifests("defaults"), "NetworkPolicy", "deny")
    assert problems({**policy, "spec": {**policy["spec"], "podSelectr": {}}}, version)


@pytest.mark.parametrize("case", CASES)
def test_manifests_pass_strict_schemas(case: str) -> None:
    found = [problem for version in KUBERNETES for one in manifests(case) for problem in problems(one, version)]
    templates = {"apiVersion": "v1", "kind": "Pod"}
    for name, pod in pods(manifests(case)).items():
        whole = {**templates, "metadata": {**pod["metadata"], "name": "x"}, "spec": pod["spec"]}
        found += [f"{name}: {problem}" for problem in problems(whole, KUBERNETES[-1])]
    assert found == []


def test_custom_resources_are_checked_too() -> None:
    for kind in ("RayService", "RayJob", "PodMonitor", "PrometheusRule"):
        found = next(one for one in manifests("everything") if one["kind"] == kind)
        assert problems(found, KUBERNETES[-1]) == []
        assert problems({**found, "spec": {**found["spec"], "planted": ""}}, KUBERNETES[-1])
