"""The images' files: what the chart expects in an image is put there, nothing runs as root, the bill is complete."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.helm.chart import EVERYTHING, ROOT, pods, render

PROFILES = ("cpu", "gpu")
INSTALL = ROOT / "helm" / "image" / "install.sh"


def steps(profile: str) -> list[tuple[str, str]]:
    """Return the instructions of a Containerfile, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / f"Containerfile.{profile}").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


@pytest.mark.parametrize("profile", PROFILES)
def test_containerfile(profile: str) -> None:
    found = steps(profile)
    names = [name for name, _ in found]
    assert names[:2] == ["ARG", "FROM"] and names.count("FROM") == 1
    base = dict(found)["ARG"].partition("=")[2]
    assert re.search(r":[a-z]+-[0-9]{8}-slim@sha256:[0-9a-f]{64}$", base), "a base by digest, and its name"
    assert ("RUN", f"sh /opt/fovea/helm/image/install.sh {profile}") in found
    assert dict(found)["USER"] == "10001:10001" and names.index("USER") > names.index("RUN")
    assert "/ready" in dict(found)["HEALTHCHECK"]
    assert json.loads(dict(found)["CMD"]) == ["fovea", "serve", "/opt/fovea/stack.yaml"]


def test_the_image_of_quantization_jobs_adds_its_environment_to_a_serving_image() -> None:
    found = steps("quantize")
    names = [name for name, _ in found]
    assert names == ["ARG", "FROM", "ARG", "USER", "RUN", "USER", "HEALTHCHECK", "CMD"]
    assert found[0][1] == "BASE=fovea:0.1.0-gpu" and found[5] == ("USER", "10001:10001"), "root only to install"
    assert dict(found)["RUN"] == "sh /opt/fovea/helm/image/install-quantize.sh ${PROFILE}"
    job = pods(render(EVERYTHING))["RayJob/x-fovea-two-int4-" + digest("two-int4") + "/head"]
    assert job["spec"]["containers"][0]["image"].endswith(":0.1.0-gpu-quantize")


def digest(job: str) -> str:
    """Return what a RayJob's name ends with."""
    (name,) = {name.split("/")[1] for name in pods(render(EVERYTHING)) if f"-{job}-" in name}
    return name.rpartition("-")[2]


def test_distillation_runs_in_the_serving_image() -> None:
    """Its command runs in the serving environment; were it otherwise, the job's image had to change."""
    found = steps("distill")
    assert [name for name, _ in found] == ["ARG", "FROM", "USER", "RUN", "USER", "WORKDIR", "HEALTHCHECK", "CMD"]
    assert found[0][1] == "BASE=fovea:0.1.0-gpu" and found[4] == ("USER", "10001:10001"), "root only for the folder"
    assert json.loads(dict(found)["CMD"]) == ["fovea", "distill", "schema"]
    (pod,) = [pod for name, pod in pods(render(EVERYTHING)).items() if "-totals-" in name and name.endswith("/head")]
    assert pod["spec"]["containers"][0]["image"] == "fovea:0.1.0-gpu"
    done = subprocess.run(
        [sys.executable, str(ROOT / "fovea.py"), "distill", "schema"], capture_output=True, check=False
    )
    assert done.returncode == 0


def test_the_profiles_differ_in_the_profile_only() -> None:
    cpu, gpu = ([step for step in steps(p) if step[0] not in ("ENV", "RUN")] for p in PROFILES)
    assert cpu == gpu


@pytest.mark.parametrize("profile", PROFILES)
def test_everything_that_is_copied_is_there_and_not_ignored(profile: str) -> None:
    ignored = (ROOT / ".containerignore").read_text().splitlines()
    let_in = [line[1:] for line in ignored if line.startswith("!")]
    assert ignored[0] == "*"
    for name, rest in steps(profile):
        if name == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert any(fnmatch(source, pattern) for pattern in let_in), source


def test_every_package_of_the_project_is_in_the_image() -> None:
    copied = {source for name, rest in steps("cpu") if name == "COPY" for source in rest.split()[:-1]}
    ours = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert ours <= copied | {"scripts"} and {"pyproject.toml", "requirements", "scripts"} <= copied


@pytest.mark.parametrize("script", ["install.sh", "install-quantize.sh", "clean-root.sh"])
def test_the_scripts_parse(script: str) -> None:
    path = ROOT / "helm" / "image" / script
    shell = path.read_text().partition("\n")[0].removeprefix("#!")
    subprocess.run([shell, "-n", str(path)], check=True)


def test_what_the_chart_expects_in_an_image_is_put_there() -> None:
    text = INSTALL.read_text()
    expected: set[str] = set()
    for pod in pods(render(EVERYTHING)).values():
        for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]:
            words = (
                " ".join(container.get("command", []))
                + " "
                + " ".join(str(e.get("value")) for e in container.get("env", []))
            )
            expected |= set(re.findall(r"/opt/fovea/[\w./-]+", words))
    assert len(expected) >= 5
    for path in expected:
        inside = path.removeprefix("/opt/fovea/")
        made = inside in text or (
            inside.startswith(".venv/bin/") and (Path(sys.executable).parent / Path(inside).name).exists()
        )
        assert made or (ROOT / inside).exists(), path


def test_bill_of_materials() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "helm/image/sbom.py")], capture_output=True, text=True, check=True
    )
    bom = json.loads(done.stdout)
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    names = {one["name"]: one["version"] for one in bom["components"] if one["purl"].startswith("pkg:pypi/")}
    for name in ("ray", "torch", "transformers"):
        assert names[name] == importlib.metadata.version(name)
    references = [one["bom-ref"] for one in bom["components"]]
    assert len(references) == len(set(references)) > 100
