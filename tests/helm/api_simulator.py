"""A simulator of the Kubernetes API: stores objects, knows no controllers.  For helm's own work on a cluster in tests.

Implements discovery, GET, LIST, POST, PUT, DELETE, and PATCH (server-side apply and merge patch) for the kinds that the
chart and helm use.  Objects come back as they were written, with what a server adds (uid, resourceVersion).
"""

from __future__ import annotations

import base64
import json
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

KINDS: dict[str, list[tuple[str, str, bool]]] = {
    "v1": [
        ("namespaces", "Namespace", False), ("nodes", "Node", False), ("secrets", "Secret", True),
        ("configmaps", "ConfigMap", True), ("services", "Service", True), ("pods", "Pod", True),
        ("serviceaccounts", "ServiceAccount", True), ("persistentvolumeclaims", "PersistentVolumeClaim", True),
    ],
    "apps/v1": [("statefulsets", "StatefulSet", True)],
    "batch/v1": [("jobs", "Job", True), ("cronjobs", "CronJob", True)],
    "policy/v1": [("poddisruptionbudgets", "PodDisruptionBudget", True)],
    "networking.k8s.io/v1": [("networkpolicies", "NetworkPolicy", True), ("ingresses", "Ingress", True)],
    "rbac.authorization.k8s.io/v1": [("roles", "Role", True), ("rolebindings", "RoleBinding", True)],
    "ray.io/v1": [("rayservices", "RayService", True), ("rayjobs", "RayJob", True)],
    "monitoring.coreos.com/v1": [("podmonitors", "PodMonitor", True), ("prometheusrules", "PrometheusRule", True)],
    "gateway.networking.k8s.io/v1": [("httproutes", "HTTPRoute", True)],
}  # fmt: skip
VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]
Key = tuple[str, str, str, str]
"""(group/version, plural, namespace, name)"""


class Store:
    """What the simulated cluster holds."""

    def __init__(self) -> None:
        self.objects: dict[Key, dict[str, Any]] = {}
        self.version = 0
        self.lock = threading.Lock()
        self.add("v1", "namespaces", "", {"metadata": {"name": "vision"}})

    def add(self, api: str, plural: str, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        """Store an object, new or changed, and return it as a server would."""
        kind = next(kind for name, kind, _ in KINDS[api] if name == plural)
        with self.lock:
            self.version += 1
            key = (api, plural, namespace, body["metadata"]["name"])
            old = self.objects.get(key)
            meta = {**body["metadata"], "resourceVersion": str(self.version)}
            meta["uid"] = old["metadata"]["uid"] if old else str(uuid.uuid4())
            meta["creationTimestamp"] = "2026-01-01T00:00:00Z"
            if namespace:
                meta["namespace"] = namespace
            self.objects[key] = {**body, "apiVersion": api, "kind": kind, "metadata": meta}
            return self.objects[key]

    def shown(self) -> dict[str, Any]:
        """Return what a release put there: everything but helm's own Secrets, without what the server adds."""
        out = {}
        for (api, plural, namespace, name), one in self.objects.items():
            if one.get("type") == "helm.sh/release.v1" or plural == "namespaces":
                continue
            meta = {
                k: v
                for k, v in one["metadata"].items()
                if k not in ("uid", "resourceVersion", "creationTimestamp", "managedFields")
            }
            out[f"{api} {plural} {namespace}/{name}"] = {**one, "metadata": meta}
        return out


def merge(old: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    out = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merge(out.get(key), value)
    return out


def fields(data: bytes) -> dict[int, list[bytes]]:
    """Return the length-delimited fields of a protobuf message by number; numbers and flags are passed over."""
    found: dict[int, list[bytes]] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = number()
        size = number()
        if tag & 7 == 2:
            found.setdefault(tag >> 3, []).append(data[at : at + size])
            at += size
    return found


def secret_of(data: bytes) -> dict[str, Any]:
    """Return a Secret from Kubernetes' protobuf encoding, in which helm sends those that keep its releases."""
    secret = fields(fields(data[4:])[2][0])  # runtime.Unknown.raw
    meta = fields(secret[1][0])

    def pairs(entries: list[bytes]) -> dict[str, bytes]:
        return {one[1][0].decode(): one.get(2, [b""])[0] for one in map(fields, entries)}

    return {
        "metadata": {
            "name": meta[1][0].decode(),
            "labels": {key: value.decode() for key, value in pairs(meta.get(11, [])).items()},
        },
        "data": {key: base64.b64encode(value).decode() for key, value in pairs(secret.get(2, [])).items()},
        "type": secret[3][0].decode(),
    }


class Handler(BaseHTTPRequestHandler):
    """One request."""

    store: Store
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer is two writes: without it each would wait 40 ms for the client's ACK

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def answer(self, status: int, body: dict[str, Any]) -> None:
        """Send JSON."""
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def problem(self, status: int, reason: str) -> None:
        """Send a Status."""
        self.answer(
            status,
            {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "reason": reason,
                "code": status,
                "message": reason,
            },
        )

    def discovery(self, parts: list[str]) -> dict[str, Any] | None:
        """Return a discovery document, None for a path that is none."""
        path = "/".join(parts)
        groups = sorted({api.split("/")[0] for api in KINDS if "/" in api})
        if path == "version":
            return {"major": "1", "minor": "37", "gitVersion": "v1.37.1"}
        if path == "api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "apis":
            found = [
                {
                    "name": g,
                    "versions": [{"groupVersion": f"{g}/v1", "version": "v1"}],
                    "preferredVersion": {"groupVersion": f"{g}/v1", "version": "v1"},
                }
                for g in groups
            ]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": found}
        api = "v1" if path == "api/v1" else path.removeprefix("apis/")
        if api not in KINDS:
            return None
        resources = [
            {"name": plural, "singularName": kind.lower(), "namespaced": namespaced, "kind": kind, "verbs": VERBS}
            for plural, kind, namespaced in KINDS[api]
        ]
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api, "resources": resources}

    def place(self) -> tuple[str, str, str, str] | None:
        """Return (api, plural, namespace, name) of the path."""
        parts = urlsplit(self.path).path.strip("/").split("/")
        api, rest = ("v1", parts[2:]) if parts[0] == "api" else ("/".join(parts[1:3]), parts[3:])
        if api not in KINDS or not rest:
            return None
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        if rest[0] not in {plural for plural, _, _ in KINDS[api]}:
            return None
        return api, rest[0], namespace, rest[1] if len(rest) > 1 else ""

    def body(self) -> Any:
        """Return the request's body; server-side apply sends YAML."""
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        if data.startswith(b"k8s\0"):
            return secret_of(data)
        try:
            return json.loads(data)
        except ValueError:
            return yaml.safe_load(data)

    def do_GET(self) -> None:
        """Discovery, one object, or a list."""
        found = self.discovery(urlsplit(self.path).path.strip("/").split("/"))
        place = self.place()
        if found is not None:
            self.answer(200, found)
        elif place is None:
            self.problem(404, "NotFound")
        elif place[3]:
            one = self.store.objects.get(place)
            self.answer(200, one) if one else self.problem(404, "NotFound")
        else:
            self.list(place)

    def list(self, place: Key) -> None:
        """Send a list, by label selector."""
        wanted = parse_qs(urlsplit(self.path).query).get("labelSelector", [""])[0]
        terms = [term.split("=", 1) for term in wanted.split(",") if "=" in term]
        items = [
            one
            for key, one in self.store.objects.items()
            if key[:2] == place[:2]
            and place[2] in ("", key[2])
            and all(one["metadata"].get("labels", {}).get(k) == v.lstrip("=") for k, v in terms)
        ]
        kind = next(kind for name, kind, _ in KINDS[place[0]] if name == place[1])
        self.answer(
            200, {"kind": f"{kind}List", "apiVersion": place[0], "metadata": {"resourceVersion": "1"}, "items": items}
        )

    def do_POST(self) -> None:
        """Create."""
        place, body = self.place(), self.body()
        if place is None:
            self.problem(404, "NotFound")
            return
        key = (*place[:3], body["metadata"]["name"])
        if key in self.store.objects:
            self.problem(409, "AlreadyExists")
            return
        self.answer(201, self.store.add(*place[:3], body))

    def do_PUT(self) -> None:
        """Replace."""
        place, body = self.place(), self.body()
        if place is None or place not in self.store.objects:
            self.problem(404, "NotFound")
            return
        self.answer(200, self.store.add(*place[:3], body))

    def do_PATCH(self) -> None:
        """Server-side apply by one manager replaces what it wrote; other patches are merged."""
        place, patch = self.place(), self.body()
        if place is None:
            self.problem(404, "NotFound")
            return
        old = self.store.objects.get(place)
        if "apply-patch" in self.headers.get("content-type", ""):
            new = patch
        elif old is None:
            self.problem(404, "NotFound")
            return
        else:
            new = merge(old, patch)
        new["metadata"]["name"] = place[3]
        self.answer(200 if old else 201, self.store.add(*place[:3], new))

    def do_DELETE(self) -> None:
        """Delete, whatever the options say."""
        self.rfile.read(int(self.headers.get("content-length") or 0))
        place = self.place()
        if place is None or self.store.objects.pop(place, None) is None:
            self.problem(404, "NotFound")
            return
        self.answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})


class Simulator:
    """A running simulator and the kubeconfig for it."""

    def __init__(self, folder: Path):
        self.store = Store()
        handler = type("Bound", (Handler,), {"store": self.store})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.config = folder / "kubeconfig"
        context = {"name": "s", "context": {"cluster": "s", "user": "s", "namespace": "vision"}}
        self.config.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1", "kind": "Config", "current-context": "s", "contexts": [context],
                    "clusters": [{"name": "s", "cluster": {"server": self.url}}], "users": [{"name": "s", "user": {}}],
                }
            )
        )  # fmt: skip

    def stop(self) -> None:
        """End it."""
        self.server.shutdown()
        self.server.server_close()
