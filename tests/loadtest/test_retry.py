"""Retries are off unless asked for, follow the SDKs' policy, and are counted."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fovea import main
from loadtest.client import Exchange, Kind
from loadtest.html_report import render
from loadtest.retry import pause_s, retryable
from loadtest.run import run_load
from tests.loadtest.conftest import config_for
from tests.loadtest.server import Plan, Server

Serve = Callable[..., Server]


def exchange(kind: Kind, status: int = 0, chunks: int = 0) -> Exchange:
    made = Exchange(0, b"", 0.0)
    made.kind, made.status, made.chunks = kind, status, chunks
    return made


@pytest.mark.parametrize(
    ("kind", "status", "chunks", "again"),
    [
        (Kind.CONNECT, 0, 0, True),
        (Kind.RESET, 0, 0, True),
        (Kind.TIMEOUT, 0, 0, True),
        (Kind.CUT, 200, 0, True),
        (Kind.CUT, 200, 3, False),
        (Kind.STATUS, 429, 0, True),
        (Kind.STATUS, 408, 0, True),
        (Kind.STATUS, 503, 0, True),
        (Kind.STATUS, 400, 0, False),
        (Kind.STATUS, 401, 0, False),
        (Kind.STREAM, 200, 1, False),
        (Kind.PROTOCOL, 200, 0, False),
    ],
)
def test_what_is_sent_again(kind: Kind, status: int, chunks: int, again: bool) -> None:
    assert retryable(exchange(kind, status, chunks)) is again


def test_pauses() -> None:
    chance = random.Random(1)
    one = exchange(Kind.STATUS, 503)
    for retries, longest in ((0, 0.5), (1, 1.0), (4, 8.0), (9, 8.0)):
        one.retries = retries
        assert all(0.75 * longest <= pause_s(one, chance) <= longest for _ in range(50))
    one.retry_after = 3.0
    assert pause_s(one, chance) == 3.0
    one.retry_after = 3600.0
    assert pause_s(one, chance) <= 8.0


def flaky(times: int, status: int = 503) -> Callable[[dict[str, Any]], Plan]:
    """Fail the first `times` tries of every prompt."""
    tries: Counter[str] = Counter()

    def decide(request: dict[str, Any]) -> Plan:
        prompt = request["messages"][0]["content"]
        tries[prompt] += 1
        return Plan(status=status, body=b"not now") if tries[prompt] <= times else Plan()

    return decide


def run(server: Server, prompts: str, **values: Any) -> dict[str, Any]:
    report = run_load(config_for(server, prompts, concurrency=4, requests=8, check_model=False, **values))
    assert len(report.records) == 8  # a retried request is one request
    return report.data


def test_without_being_asked_nothing_is_sent_again(serve: Serve, prompts: str) -> None:
    server = serve(flaky(1))
    data = run(server, prompts)
    assert (data["errors"], len(server.requests)) == (8, 8)
    assert data["retries"] == {"limit": 0, "requests": 0, "tries": 0, "recovered": 0, "by_kind": {}}


def test_retries_are_counted_and_their_time_is_in_the_latency(serve: Serve, prompts: str) -> None:
    server = serve(flaky(1))
    data = run(server, prompts, retries=2)
    assert (data["errors"], len(server.requests)) == (0, 16)
    assert data["retries"] == {"limit": 2, "requests": 8, "tries": 8, "recovered": 8, "by_kind": {"http_503": 8}}
    assert data["latency_ms"]["min"] > 370 and data["service_ms"]["min"] > 370  # a backoff of at least 375 ms
    assert data["queue_ms"]["p50"]["value"] < 370  # which is no waiting in the client's queue
    assert any("8 requests were sent again" in text for text in data["warnings"])
    assert "8 after an error (at most 2 times each)" in render(data)


def test_when_all_tries_fail_it_is_one_error(serve: Serve, prompts: str) -> None:
    server = serve(flaky(9))
    data = run(server, prompts, retries=1)
    assert (data["requests"], data["errors"], len(server.requests)) == (8, 8, 16)
    assert data["retries"]["tries"] == 8 and data["retries"]["recovered"] == 0
    assert data["errors_by_kind"][0]["count"] == 8


def test_the_servers_word_on_when_is_heeded(serve: Serve, prompts: str) -> None:
    failing = flaky(1, status=429)

    def decide(request: dict[str, Any]) -> Plan:
        plan = failing(request)
        plan.headers = {"Retry-After": "1"} if plan.status == 429 else {}
        return plan

    data = run(serve(decide), prompts, retries=1)
    assert data["errors"] == 0 and data["latency_ms"]["min"] >= 1000


def test_command(serve: Serve, prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--url", serve(flaky(1)).url, "--model", "m", "--workload", prompts, "--rate", "40", "--requests", "10"]
    words += ["--max-slip-ms", "5000", "--no-check", "--retries", "1", "--out", str(tmp_path)]
    assert main(["loadtest", "run", *words]) == 0
    assert "10 requests were sent again" in capsys.readouterr().out
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["load"]["retries"] == 1 and data["retries"]["recovered"] == 10
    assert "fovea_loadtest_retried_requests" in (tmp_path / "report.prom").read_text()
    head, *lines = (tmp_path / "requests.csv").read_text().splitlines()
    at = head.split(",").index("retries")
    assert {line.split(",")[at] for line in lines} == {"1"}
    assert main(["loadtest", "run", *words, "--retries", "-1"]) == 2
    assert "retries" in capsys.readouterr().err
