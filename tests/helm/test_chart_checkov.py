"""checkov finds nothing in what the chart renders but what helm/checkov.yaml says stays, and why."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.helm.chart import EVERYTHING, PROFILES, ROOT, merged, pods, render, tool

EXCEPTIONS = yaml.safe_load((ROOT / "helm" / "checkov.yaml").read_text())
DIGEST = "sha256:" + "0" * 64
PINNED = {
    "image": {"digest": DIGEST},
    "jobs": {"image": {"digest": DIGEST}},
    "valkey": {"image": f"valkey/valkey@{DIGEST}"},
}
"""Images by digest, as an installation that has its own registry gives them; the profiles cannot know them."""


def manifests(case: str, values: dict[str, Any], profile: str | None = None) -> list[dict[str, Any]]:
    """Return what is rendered, each case in a namespace of its own, and the pods of Ray's resources as pods."""
    rendered = render(merged(values, PINNED), profile)
    found = [one for one in rendered if not one["kind"].startswith("Ray")]
    for name, pod in pods(rendered).items():
        if name.startswith("Ray"):
            found.append({**pod, "apiVersion": "v1", "kind": "Pod", "metadata": {**pod["metadata"], "name": name}})
            found[-1]["metadata"]["name"] = name.replace("/", "-").lower()
    return [{**one, "metadata": {**one["metadata"], "namespace": case}} for one in found]


def findings(found: list[dict[str, Any]], folder: Path) -> list[tuple[str, str]]:
    """Return (check, resource) of everything that checkov does not like."""
    path = folder / "manifests.yaml"
    path.write_text(yaml.safe_dump_all(found))
    command = [tool("checkov"), "-f", str(path), "--framework", "kubernetes", "--output", "json", "--compact"]
    done = subprocess.run(
        [*command, "--quiet", "--skip-download"], capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode in (0, 1), done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0 and report["summary"]["resource_count"] >= len(found)
    return [(one["check_id"], one["resource"]) for one in report["results"]["failed_checks"]]


def test_checkov_finds_nothing_that_is_not_excepted(tmp_path: Path) -> None:
    every = [
        *manifests("everything", EVERYTHING),
        *(one for profile in PROFILES for one in manifests(profile, {}, profile)),
    ]
    planted = {**every[-1], "kind": "Pod", "apiVersion": "v1", "metadata": {"name": "planted", "namespace": "x"}}
    planted["spec"] = {"containers": [{"name": "a", "image": "x:latest", "securityContext": {"privileged": True}}]}
    found = findings([*every, planted], tmp_path)
    caught = {check for check, resource in found if resource == "Pod.x.planted"}
    assert {"CKV_K8S_16", "CKV_K8S_14", "CKV_K8S_20", "CKV_K8S_13"} <= caught, "a bad pod has to be seen"
    used: set[int] = set()
    left = []
    for check, resource in found:
        if resource == "Pod.x.planted":
            continue
        fits = {n for n, e in enumerate(EXCEPTIONS) if e["check"] == check and re.search(e["where"], resource)}
        used |= fits
        if not fits:
            left.append((check, resource))
    assert left == []
    assert used == set(range(len(EXCEPTIONS))), "an exception that nothing needs any more"


def test_every_exception_says_why() -> None:
    for one in EXCEPTIONS:
        assert set(one) == {"check", "name", "where", "why"} and len(one["why"]) > 20
