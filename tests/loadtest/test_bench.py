"""The benchmark of the generator itself: it measures what it says, and fails when a target is missed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadtest.bench import check, measure, memory
from loadtest.fixed_server import haproxy, streamer
from models.support.errors import CheckFailed, UsageError


@pytest.fixture
def workload(tmp_path: Path) -> str:
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"What is {i}?"}) for i in range(50)))
    return str(path)


def test_streams_of_twenty_pieces(workload: str) -> None:
    with streamer() as url:
        closed = measure(url, workload, True, 0.5, concurrency=4)
        opened = measure(url, workload, True, 0.5, rate=50)
    assert closed["errors"] == opened["errors"] == 0 and closed["rps"] > 20
    assert closed["slip_p99_ms"] is None and opened["slip_p99_ms"] >= 0
    assert opened["load"] == "open loop, 50 req/s"


def test_whole_replies_and_memory(workload: str) -> None:
    with haproxy() as url:
        row = measure(url, workload, False, 0.5, concurrency=4)
        seen = memory(url, workload, 150_000)  # long enough to be looked at twice on a fast machine
        with pytest.raises(UsageError, match="too few"):
            memory(url, workload, 20)
    assert row["errors"] == 0 and row["rps"] > 20
    assert seen["requests"] == 150_000 and abs(seen["growth_mib"]) < 100


def rows(**change: Any) -> list[dict[str, Any]]:
    closed = {"tool": "fovea loadtest", "mode": "whole", "processes": 1, "rps": 5000.0, "slip_p99_ms": None}
    opened = {"tool": "fovea loadtest", "mode": "stream", "processes": 1, "rps": 750.0, "slip_p99_ms": 0.5}
    grown = {"tool": "fovea loadtest", "mode": "memory", "requests": 10**6, "growth_mib": 0.1}
    other = {"tool": "aiperf", "mode": "whole", "rps": 366.0}
    found = [closed, opened, grown, other]
    for row in found:
        row.update({k: v for k, v in change.items() if k in row and row["tool"] != "aiperf" and row[k] is not None})
    return found


def test_targets() -> None:
    check(rows())
    with pytest.raises(CheckFailed, match="3999 req/s per process, the target is 4000"):
        check(rows(rps=3999.0))
    with pytest.raises(CheckFailed, match=r"slip P99 2\.1 ms"):
        check(rows(slip_p99_ms=2.1))
    with pytest.raises(CheckFailed, match=r"memory grew by 9\.0 MiB"):
        check(rows(growth_mib=9.0))
