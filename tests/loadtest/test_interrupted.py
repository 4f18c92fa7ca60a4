"""Whatever ends a command early, what it has measured is kept: Ctrl-C, a full disk, a server that goes away."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.recorder import RECORD
from tests.loadtest.server import Plan, Server, holding

Serve = Callable[..., Server]
ROOT = Path(__file__).resolve().parents[2]


def fovea(*words: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "fovea.py"), "loadtest", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def interrupted(server: Server, requests: int, *words: str) -> tuple[int, str, str]:
    """Run a command and send it Ctrl-C once the server has had so many requests."""
    with fovea(*words) as process:
        deadline = time.monotonic() + 90
        while len(server.requests) < requests and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert "Traceback" not in error, error
    return process.returncode, out, error


@pytest.mark.parametrize("processes", ["1", "2"])
def test_ctrl_c_in_a_run(serve: Serve, prompts: str, tmp_path: Path, processes: str) -> None:
    server = serve(holding(30, 0.01))
    words = ["run", "--url", server.url, "--model", "m", "--workload", prompts, "--rate", "100", "--duration", "60"]
    words += ["--out", str(tmp_path), "--processes", processes, "--max-slip-ms", "5000", "--max-connections", "4"]
    # a request on each of the connections that answers came on: those have been read (the first is the check)
    code, out, error = interrupted(server, 34, *words)
    assert code == 130, error
    assert "Partial run" in out
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["partial"] and data["requests"] >= 29


def test_ctrl_c_in_a_search_for_capacity(serve: Serve, prompts: str, tmp_path: Path) -> None:
    server = serve(holding(40, 0.002))
    words = ["capacity", "--url", server.url, "--model", "m", "--workload", prompts, "--slo", "p50<5s", "--step", "0.5"]
    words += ["--start-rate", "40", "--max-slip-ms", "5000", "--out", str(tmp_path)]
    code, out, error = interrupted(server, 41, *words)
    assert code == 130, error
    assert "no rate certified for p50<5s: stopped" in out
    data = json.loads((tmp_path / "capacity.json").read_text())
    assert data["partial"] and data["steps"][0]["rate"] == 40 and data["best_rate_rps"] >= 40


def test_ctrl_c_between_the_rounds_of_a_comparison(serve: Serve, prompts: str, tmp_path: Path) -> None:
    before, after = serve(Plan(first_s=0.002)), serve(holding(90, 0.03))
    words = ["compare", "--before", before.url, "--after", after.url, "--model", "m", "--workload", prompts]
    words += ["--rate", "100", "--duration", "16", "--rounds", "20", "--max-slip-ms", "5000", "--out", str(tmp_path)]
    code, _, error = interrupted(after, 91, *words)  # the first round is over at about 80
    assert code == 130 and "of 20 rounds" in error, error
    data = json.loads((tmp_path / "compare.json").read_text())
    rows = {row["metric"]: row for row in data["rows"]}
    assert data["paired"] and rows["latency_p50"]["verdict"] == "worse"
    assert any("stopped after" in text for text in data["warnings"])
    assert json.loads((tmp_path / "rounds" / "after-1" / "report.json").read_text())["requests"] > 20


def test_ctrl_c_before_the_first_pair_of_a_comparison(serve: Serve, prompts: str, tmp_path: Path) -> None:
    server = serve(holding(20, 0.002))
    words = ["compare", "--before", server.url, "--after", server.url, "--model", "m", "--workload", prompts]
    words += ["--rate", "100", "--duration", "60", "--rounds", "1", "--max-slip-ms", "5000", "--out", str(tmp_path)]
    code, _, error = interrupted(server, 21, *words)
    assert code == 130 and "stopped after 0 of 1 rounds; the runs are in" in error
    assert json.loads((tmp_path / "rounds" / "before-1" / "report.json").read_text())["partial"]


def test_a_server_that_goes_away_in_a_comparison(serve: Serve, prompts: str, tmp_path: Path) -> None:

    def decide(request: dict[str, Any]) -> Plan:
        if len(after.requests) == 90:  # in the second round
            after.die()
        return Plan(first_s=0.002)

    before, after = serve(Plan(first_s=0.002)), serve(decide)
    words = ["compare", "--before", before.url, "--after", after.url, "--model", "m", "--workload", prompts]
    words += ["--rate", "100", "--duration", "16", "--rounds", "20", "--max-slip-ms", "5000", "--out", str(tmp_path)]
    with fovea(*words) as process:
        _, error = process.communicate(timeout=120)
    assert process.returncode == 2 and "--after: cannot connect" in error.splitlines()[-1]
    assert json.loads((tmp_path / "compare.json").read_text())["rows"]


def test_ctrl_c_in_the_drills(serve: Serve, prompts: str, tmp_path: Path) -> None:
    server = serve(holding(75, 0.002))
    words = ["rehearse", "--url", server.url, "--model", "m", "--workload", prompts, "--rate", "80", "--part", "0.25"]
    words += ["--drill", "contradiction", "--drill", "upstream-500", "--max-slip-ms", "5000", "--out", str(tmp_path)]
    code, out, error = interrupted(server, 76, *words)  # the first drill takes about 65 requests
    assert code == 130, error
    data = json.loads((tmp_path / "rehearse.json").read_text())
    assert data["partial"] and [d["name"] for d in data["drills"]] == ["contradiction"]
    assert "partial" in out and "partial" in (tmp_path / "rehearse.html").read_text()


def small_files(size: int) -> Callable[[], None]:
    """Let no file of the process grow beyond `size` bytes: the disk is full then, whoever runs the test."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_disk_that_fills_up_in_the_run(serve: Serve, prompts: str, tmp_path: Path) -> None:
    """Records go to a file while the run lasts; when it can grow no more, the run ends and is reported so far."""
    size = 600 * RECORD.itemsize
    words = ["run", "--url", serve().url, "--model", "m", "--workload", prompts, "--concurrency", "4"]
    words += ["--requests", "100000", "--no-stream", "--max-slip-ms", "5000", "--json"]
    with fovea(*words, preexec_fn=small_files(size)) as process:
        out, error = process.communicate(timeout=120)
    assert process.returncode == 1
    data = json.loads(out)
    assert data["partial"] and "File too large" in data["failures"][0]
    assert 300 <= data["requests"] <= 1100
    assert "the run ended early" in error and error.count("\n") == 1


def test_a_disk_that_is_full_when_reports_are_written(serve: Serve, prompts: str, tmp_path: Path) -> None:
    """What fits is there and whole, what does not is not there at all, and the result has been printed."""
    words = ["run", "--url", serve().url, "--model", "m", "--workload", prompts, "--concurrency", "4"]
    words += ["--requests", "3000", "--max-slip-ms", "5000", "--out", str(tmp_path)]
    with fovea(*words, preexec_fn=small_files(3020 * RECORD.itemsize)) as process:
        out, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    assert "3,000 requests, 0 errors" in out
    assert "requests.csv: cannot write: File too large" in error and error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "prompts.jsonl") == [
        "report.html",
        "report.json",
        "report.md",
        "report.prom",
        "requests.npy",
    ]
    assert json.loads((tmp_path / "report.json").read_text())["requests"] == 3000
    assert len(np.load(tmp_path / "requests.npy")) == 3000
