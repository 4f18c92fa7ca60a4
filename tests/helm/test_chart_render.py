"""What the chart renders: the same with both majors of helm, as recorded, with notes and documents that are right."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.affinity import BALANCE
from serving.affinity import environment as affinity_environment
from serving.runtime import HARD_DAYS, fast_path_environment
from serving.stack import parse_stack
from tests.helm.cases import CASES, manifests
from tests.helm.chart import (
    CHART,
    EVERYTHING,
    HELMS,
    PROFILES,
    ROOT,
    helm,
    merged,
    one,
    pods,
    render,
    serve_config,
    template,
)


@pytest.mark.parametrize("version", HELMS)
@pytest.mark.parametrize("profile", [None, *PROFILES])
def test_lint_strict(version: str, profile: str | None) -> None:
    done = helm(
        "lint",
        "--strict",
        str(CHART),
        *(["-f", str(CHART / f"values-{profile}.yaml")] if profile else []),
        version=version,
    )
    assert done.returncode == 0 and "0 chart(s) failed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("case", ["defaults", *PROFILES, "everything"])
def test_both_majors_of_helm_render_the_same(case: str) -> None:
    def sort(found: list[dict[str, Any]]) -> list[str]:
        return sorted(json.dumps(one, sort_keys=True) for one in found)

    assert sort(manifests(case)) == sort(manifests(case, "helm3"))


@pytest.mark.parametrize("case", [*PROFILES, "everything"])
def test_golden_snapshot(case: str) -> None:
    """A change of what is rendered is seen in review.  FOVEA_GOLDEN=write writes the snapshots anew."""
    path = Path(__file__).parent / "golden" / f"{case}.yaml"
    shown = [one for one in manifests(case) if one["kind"] != "ConfigMap"]
    text = yaml.safe_dump_all(sorted(shown, key=lambda m: (m["kind"], m["metadata"]["name"])), width=140)
    if os.environ.get("FOVEA_GOLDEN") == "write":
        path.write_text(text)
    assert path.read_text() == text, "if it is meant: FOVEA_GOLDEN=write pytest tests/helm/test_chart_render.py"


LEFT_OUT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "keeps a single machine's Ray on loopback; a cluster's pods must meet",
    **dict.fromkeys(
        (
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC", "RAY_SERVE_HAPROXY_SOCKET_PATH", "RAY_SERVE_HAPROXY_SERVER_STATE_BASE",
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE", "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH",
            "RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
        ),
        "one stack per pod: Ray's own places do",
    ),
}  # fmt: skip
OWN_PLACE = {"RAY_SERVE_HAPROXY_BINARY_PATH", "FOVEA_HAPROXY"}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_ray_container_has_the_fast_path(profile: str, tmp_path: Path) -> None:
    wanted = fast_path_environment(tmp_path, 1, 2, 3) | HARD_DAYS
    assert set(LEFT_OUT) <= set(wanted)
    ray = {name: pod for name, pod in pods(manifests(profile)).items() if name.startswith("RayService/")}
    assert len(ray) > 1
    for name, pod in ray.items():
        (container,) = pod["spec"]["containers"]
        environment = {one["name"]: one.get("value") for one in container["env"]}
        for key in set(wanted) - set(LEFT_OUT):
            assert environment.get(key) == wanted[key] or key in OWN_PLACE, (name, key)
        assert set(environment) >= OWN_PLACE


@pytest.mark.parametrize("load", [None, 1.5, 1.29, 2])
def test_image_affinity_is_in_every_ray_containers_environment(load: float | None) -> None:
    section = {} if load is None else {"load": load}
    stack = parse_stack({"models": [{"name": "m", "source": "x"}], "affinity": section})
    found = [pod for name, pod in pods(render({"stack": {"affinity": section}}, "cpu")).items() if "RayService" in name]
    for pod in found:
        environment = {one["name"]: one.get("value") for one in pod["spec"]["containers"][0]["env"]}
        assert environment[BALANCE] == affinity_environment(stack)[BALANCE]
    assert len(found) == 2 and BALANCE not in str(manifests("cpu"))


def test_the_charts_version_is_in_no_pod(tmp_path: Path) -> None:
    """A new chart with the same content must not make KubeRay start a new cluster."""
    copy = tmp_path / "fovea"
    shutil.copytree(CHART, copy)
    text = (copy / "Chart.yaml").read_text()
    (copy / "Chart.yaml").write_text(re.sub(r"(?m)^version: .*$", "version: 9.9.9", text))
    before, after = (one(render({}, "cpu", chart=path), "RayService") for path in (CHART, copy))
    assert before["metadata"]["labels"] != after["metadata"]["labels"]
    assert before["spec"] == after["spec"]


@pytest.mark.parametrize("case", ["defaults", *PROFILES, "everything"])
def test_notes_are_right_for_the_profile(case: str) -> None:
    """NOTES.txt names the models, how to wait, test and call, and whether keys are needed."""
    profile, values = CASES[case]
    arguments = ["install", "x", str(CHART), "--namespace", "vision", "--dry-run=client"]
    arguments += ["-f", str(CHART / f"values-{profile}.yaml")] if profile else []
    done = helm(*arguments, "-f", "-", stdin=json.dumps(values))
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    stack = one(manifests(case), "RayService")
    name = stack["metadata"]["name"]
    assert f"wait rayservice/{name} " in notes and "helm -n vision test x" in notes
    for application in serve_config(manifests(case))["applications"]:
        assert application["name"] in notes or application["name"] == "front"
    keys = case in ("gpu-prod", "everything")
    assert ("Authorization: Bearer KEY" in notes) is keys and ("Nobody needs a key" in notes) is not keys
    route = {"gpu-prod": "https://vision.example.com/v1", "everything": "https://vision.example.com/v1"}
    assert route.get(case, f"port-forward service/{name}-serve-svc 8000:8000") in notes
    download = [m["metadata"]["name"] for m in manifests(case) if "-download-" in m["metadata"]["name"]]
    assert (f"wait for the job {download[0]} " in notes) if download else ("wait for the job" not in notes)
    assert ("Nobody is paged" in notes) is (case not in ("gpu-prod", "everything"))
    assert ("--rollback-on-failure" in notes) is (case in ("gpu-prod", "everything"))


def test_rendering_needs_no_cluster_and_says_nothing_else() -> None:
    done = template({}, "cpu")
    assert done.returncode == 0 and done.stderr == ""


def test_the_documented_commands_and_values_render() -> None:
    text = (ROOT / "docs" / "helm.md").read_text()
    commands = [line.split() for line in text.splitlines() if line.startswith("helm ") and " install " in line]
    ours = [words for words in commands if "helm/fovea" in words]
    assert len(ours) == 2
    for words in ours:
        rest = [word.replace("helm/fovea", str(CHART)) for word in words[words.index("install") + 1 :]]
        done = helm("template", *rest)
        assert done.returncode == 0, done.stderr
    snippets = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert snippets
    for snippet in snippets:
        assert render(yaml.safe_load(snippet))


def test_the_stack_file_in_the_head_is_the_values_section() -> None:
    """`fovea keys --stack /chart/stack.yaml` works on what is served."""
    data = one(manifests("everything"), "ConfigMap", "-files")["data"]
    assert yaml.safe_load(data["stack.yaml"]) == merged(EVERYTHING["stack"], {"listen": {"port": 8000}})
    head = pods(manifests("everything"))["RayService/x-fovea/head"]["spec"]
    assert {"name": "chart", "mountPath": "/chart", "readOnly": True} in head["containers"][0]["volumeMounts"]
