"""The mirror against a real MLflow server, in an environment of its own (mlflow.lock); FOVEA_MLFLOW names another."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from models.registry import Registry, Version
from models.registry.mlflow import Mirror
from models.support.errors import CheckFailed, UsageError
from scripts import chart_tools
from tests.models.registry.conftest import checkpoint, to_live


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    try:
        mlflow = os.environ.get("FOVEA_MLFLOW") or str(chart_tools.tool("mlflow"))
    except CheckFailed as error:
        pytest.skip(f"MLflow cannot be had here: {error}")
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [mlflow, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--default-artifact-root", str(folder / "a")]
    less = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment = {**os.environ, **less}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
            time.sleep(0.2)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def test_the_mirror_follows_the_registry(server: str, registry: Registry, one: Version, tmp_path: Path) -> None:
    mirror = Mirror(server)
    assert mirror.sync(registry, "m") == ["registered model m", "m@1 as version 1"]
    assert mirror.sync(registry, "m") == []  # nothing to do
    to_live(registry, one)
    done = mirror.sync(registry, "m")
    assert "m@1: fovea.stage = live" in done and "m@live is version 1" in done
    two = registry.register(checkpoint(tmp_path / "b", b"12345678"), "m", by="ada", parent="m@1")
    to_live(registry, two, right=970)
    mirror.sync(registry, "m")
    api = f"{server}/api/2.0/mlflow"
    live = httpx.get(f"{api}/registered-models/alias", params={"name": "m", "alias": "live"}).json()["model_version"]
    tags = {tag["key"]: tag["value"] for tag in live["tags"]}
    assert tags["fovea.version"] == "2" and tags["fovea.digest"] == two.digest
    assert tags["fovea.parent"] == "m@1" and tags["fovea.accuracy.set"] == "0.9700"
    registry.rollback("m", by="bob")
    assert "m@live is version 1" in mirror.sync(registry, "m")
    registry.promote("m@1", "retired", by="bob")
    assert "m@live removed" in mirror.sync(registry, "m")


def test_a_server_that_is_not_there(registry: Registry, one: Version) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(CheckFailed, match="MLflow does not answer"):
        Mirror(f"http://127.0.0.1:{port}").sync(registry, "m")
    with pytest.raises(UsageError, match=r"is not an http\(s\) address"):
        Mirror("mlflow.local")
