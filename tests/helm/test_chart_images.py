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
    assert re.search(r":[0-9][0-9.]*-slim$|@sha256:", base), "a pinned base"
    assert ("RUN", f"sh /opt/fovea/helm/image/install.sh {profile}") in found
    assert dict(found)["USER"] == "10001:10001" and names.index("USER") > names.index("RUN")
    assert "/ready" in dict(found)["HEALTHCHECK"]
    assert json.loads(dict(found)["CMD"]) == ["fovea", "serve", "/opt/fovea/stack.yaml"]


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


@pytest.mark.parametrize("script", ["install.sh", "clean-root.sh"])
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
