"""Load from the machines of a Ray cluster: two nodes on this machine, a process on each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.run import run_load
from models.support.errors import UsageError
from tests.loadtest.conftest import config_for
from tests.loadtest.server import Plan, Server, holding

Serve = Callable[..., Server]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray cluster of two nodes with one CPU each; gives its address."""
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=node)
    made.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    yield made.address
    made.shutdown()


def test_load_from_two_nodes_is_one_report(serve: Serve, prompts: str, cluster: str) -> None:
    server = serve(Plan(first_s=0.03, gap_s=0.01, pieces=("y", "es")))
    config = config_for(server, prompts, rate=60, requests=200, processes=2, ray_address=cluster, seed=3)
    report = run_load(config)
    data = report.data
    assert (data["requests"], data["errors"], data["accuracy"]["value"]) == (200, 0, 1.0)
    assert np.bincount(report.records["worker"]).tolist() == [100, 100]
    assert (np.diff(report.records["intended"]) >= 0).all()
    assert data["latency_ms"]["min"] >= 40 and 100 <= data["inter_token_ms"]["p50"]["n"] <= 200
    assert len(data["generator"]["cpu_cores"]) == 2
    # The schedule is that of a run in one process: the machines share it, and none compares its clock with another's.
    alone = run_load(config_for(server, prompts, rate=60, requests=200, seed=3))
    assert report.records["intended"] == pytest.approx(alone.records["intended"], abs=1e-6)
    assert sorted(report.records["item"].tolist()) == sorted(alone.records["item"].tolist())


def test_what_a_config_names_travels_along(serve: Serve, tmp_path: Path, cluster: str) -> None:
    prompts, trace = tmp_path / "p.jsonl", tmp_path / "t.jsonl"
    prompts.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    trace.write_text("".join(f'{{"timestamp": {t / 10}}}\n' for t in range(8)))
    server = serve(key="secret")
    os.environ["CLUSTER_KEY"] = "secret"
    try:
        config = config_for(server, str(prompts), trace=str(trace), ray_address=cluster, api_key_env="CLUSTER_KEY")
        report = run_load(config)
    finally:
        del os.environ["CLUSTER_KEY"]
    assert (report.data["requests"], report.data["errors"]) == (8, 0)
    assert report.records["intended"].tolist() == pytest.approx([t / 10 for t in range(8)], abs=1e-6)


def test_ctrl_c_keeps_what_the_nodes_have_measured(serve: Serve, prompts: str, tmp_path: Path, cluster: str) -> None:
    server = serve(holding(60, 0.01))
    command = [sys.executable, str(ROOT / "fovea.py"), "loadtest", "run", "--url", server.url, "--model", "m"]
    command += ["--workload", prompts, "--rate", "40", "--duration", "120", "--out", str(tmp_path / "out")]
    command += ["--processes", "2", "--ray-address", cluster, "--max-slip-ms", "5000", "--max-connections", "4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 90
        while (
            len(server.requests) < 64 and time.monotonic() < deadline
        ):  # one on each connection: 60 have been read, the check is one of them
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Partial run" in out
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert data["partial"] and data["requests"] >= 59 and len(data["generator"]["cpu_cores"]) == 2


def test_errors_say_what_is_wrong(serve: Serve, prompts: str, cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    for address, says in (("127.0.0.1:9", "cannot reach Ray"), ("head", "not an address"), ("h:x", "not an address")):
        with pytest.raises(UsageError, match=f"--ray-address: {says}"):
            run_load(config_for(server, prompts, concurrency=1, requests=2, ray_address=address))
    monkeypatch.setattr("loadtest.cluster.READY_S", 4)
    with pytest.raises(UsageError, match=r"only 2 of 3 load processes got a CPU"):
        run_load(config_for(server, prompts, concurrency=3, requests=6, processes=3, ray_address=cluster))
