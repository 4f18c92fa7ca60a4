"""Comparing runs: true differences are found, equal servers are not told apart, gates fail when they must."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fovea import main
from loadtest.compare import METRICS, compare, compare_values, effect_size
from loadtest.gate import apply_gate, read_gate
from loadtest.report import load_report
from loadtest.run import run_load, write_reports
from models.support.errors import UsageError
from tests.loadtest.conftest import config_for
from tests.loadtest.server import Plan, Server

Serve = Callable[..., Server]


def rows_of(a: np.ndarray, b: np.ndarray, name: str = "latency_p50", pair: bool = True) -> dict[str, Any]:
    row = compare_values(METRICS[name], a, b, pair, 0)
    assert row is not None
    return row


def test_intervals_of_a_difference_hold_the_truth() -> None:
    """Coverage of the paired block bootstrap on latencies that hang together (first-order autoregressive, 0.6)."""
    rng = np.random.default_rng(5)
    held = told = 0
    for _ in range(120):
        shared = np.zeros(1500)
        for i in range(1, 1500):
            shared[i] = 0.6 * shared[i - 1] + rng.normal()
        a = np.exp(3 + 0.3 * shared + rng.normal(0, 0.1, 1500))
        b = np.exp(3 + 0.3 * shared + rng.normal(0, 0.1, 1500)) + 1.0
        row = rows_of(a, b)
        held += row["difference"]["low"] <= 1.0 <= row["difference"]["high"]
        told += row["verdict"] == "worse"
    assert held / 120 >= 0.9
    assert told / 120 > 0.8  # pairing finds 1 ms in 20 although neighbours differ by 30 %


def test_what_differs_between_rounds_is_no_difference_between_servers() -> None:
    """Two equal servers in four turns each, on a machine whose speed changes by a quarter from one turn to the next."""
    rng = np.random.default_rng(8)
    rounds = np.repeat(np.arange(4), 200)
    verdicts = {True: 0, False: 0}
    for _ in range(150):
        a, b = (rng.lognormal(3, 0.3, 800) * rng.lognormal(0, 0.25, 4)[rounds] for _ in range(2))
        for aware in verdicts:
            row = compare_values(METRICS["latency_p50"], a, b, True, 0, (rounds, rounds) if aware else None)
            assert row is not None
            verdicts[aware] += row["verdict"] != "cannot tell"
    assert verdicts[True] / 150 <= 0.08
    assert verdicts[False] / 150 > 0.3  # what a bootstrap within the turns would call a difference


def test_a_difference_that_every_round_shows_is_told() -> None:
    rng = np.random.default_rng(9)
    rounds = np.repeat(np.arange(4), 200)
    a = rng.lognormal(3, 0.3, 800)
    row = compare_values(
        METRICS["latency_p50"], a, a * 1.5 * rng.lognormal(0, 0.05, 4)[rounds], True, 0, (rounds, rounds)
    )
    assert row is not None and row["verdict"] == "worse"


def test_equal_samples_are_rarely_told_apart() -> None:
    rng = np.random.default_rng(6)
    verdicts = [rows_of(rng.exponential(1, 800), rng.exponential(1, 800), pair=False)["verdict"] for _ in range(150)]
    assert verdicts.count("cannot tell") / 150 >= 0.9


def test_direction_and_effect_size() -> None:
    a = np.arange(100, dtype=np.float64)
    b = a + 1000
    assert rows_of(a, b)["verdict"] == "worse" and rows_of(b, a)["verdict"] == "better"
    assert effect_size(METRICS["latency_p50"], a, b)["value"] == 1.0
    assert effect_size(METRICS["latency_p50"], b, a)["value"] == -1.0
    assert effect_size(METRICS["latency_p50"], a, a)["value"] == pytest.approx(0, abs=0.02)
    right, wrong = np.ones(200), np.r_[np.ones(100), np.zeros(100)]
    assert rows_of(right, np.random.default_rng(1).permutation(wrong), "accuracy")["verdict"] == "worse"
    assert rows_of(a[:10], a[:10], "latency_p99")["note"] == "n too small"
    assert rows_of(a, a)["verdict"] == "same"


def run_to(folder: Path, server: Server, prompts: str, **values: Any) -> Path:
    config = config_for(server, prompts, **{"rate": 150, "requests": 200, "hardware": {"usd_per_hour": "1"}, **values})
    write_reports(run_load(config), folder)
    return folder


def test_reports_are_compared_and_gated(
    serve: Serve, prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run_to(tmp_path / "a", serve(Plan(first_s=0.01)), prompts)
    after = run_to(tmp_path / "b", serve(Plan(first_s=0.15, pieces=("no",))), prompts)
    gate = tmp_path / "gate.yaml"
    gate.write_text("limits:\n  latency_p50: {max_increase: 20%}\n  accuracy: {max_drop: 0.05}\n")
    code = main(["loadtest", "compare", str(before), str(after), "--gate", str(gate), "--out", str(tmp_path / "out")])
    out = capsys.readouterr()
    assert code == 1 and "latency_p50 (limit 20%)" in out.err and "accuracy" in out.err
    assert "paired request by request" in out.out
    data = json.loads((tmp_path / "out" / "compare.json").read_text())
    verdicts = {row["metric"]: row["verdict"] for row in data["rows"]}
    assert data["paired"] and verdicts["latency_p50"] == verdicts["accuracy"] == "worse"
    assert "usd_per_query" in verdicts
    assert "<svg" in (tmp_path / "out" / "compare.html").read_text()
    assert main(["loadtest", "compare", str(before), str(before), "--gate", str(gate)]) == 0


def test_both_servers_in_turns(serve: Serve, prompts: str, capsys: pytest.CaptureFixture[str]) -> None:
    slow, fast = serve(Plan(first_s=0.08)), serve(Plan(first_s=0.005))
    words = ["--before", slow.url, "--after", fast.url, "--model", "m", "--workload", prompts, "--rate", "100"]
    words += ["--duration", "1.6", "--rounds", "2", "--json", "--max-slip-ms", "5000", "--usd-per-hour", "1"]
    assert main(["loadtest", "compare", *words]) == 0
    data = json.loads(capsys.readouterr().out)
    rows = {row["metric"]: row for row in data["rows"]}
    assert data["paired"] and rows["latency_p50"]["verdict"] == "better"
    assert rows["latency_p50"]["n"][0] > 100
    assert abs(len(slow.requests) - len(fast.requests)) <= 1


def test_unlike_runs_are_compared_with_a_warning(serve: Serve, prompts: str, tmp_path: Path) -> None:
    server = serve()
    a = load_report(run_to(tmp_path / "a", server, prompts))
    b = load_report(run_to(tmp_path / "b", server, prompts, seed=1, requests=150))
    data = compare(a, b)
    assert not data["paired"] and any("seeds differ" in text for text in data["warnings"])


def comparison(low: float, high: float, metric: str = "latency_p95") -> dict[str, Any]:
    middle = {"value": (low + high) / 2, "low": low, "high": high}
    return {"rows": [{"metric": metric, "relative": middle, "difference": {**middle, "n": 9}}]}


@pytest.mark.parametrize(
    ("mode", "low", "high", "passed"),
    [
        ("detect", 0.05, 0.3, True),
        ("detect", 0.11, 0.3, False),
        ("prove", 0.05, 0.3, False),
        ("prove", -0.2, 0.09, True),
    ],
)
def test_gate_modes(tmp_path: Path, mode: str, low: float, high: float, passed: bool) -> None:
    path = tmp_path / "g.yaml"
    path.write_text(f"mode: {mode}\nlimits: {{latency_p95: {{max_increase: 10%}}}}")
    assert apply_gate(read_gate(path), comparison(low, high))[0]["passed"] is passed


def test_gate_for_accuracy_looks_at_the_drop(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text("limits: {accuracy: {max_drop: 0.01}}")
    gate = read_gate(path)
    assert apply_gate(gate, comparison(-0.05, -0.02, "accuracy"))[0]["passed"] is False
    assert apply_gate(gate, comparison(0.02, 0.05, "accuracy"))[0]["passed"] is True
    assert apply_gate(gate, {"rows": []})[0]["passed"] is False


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must have the keys"),
        ("limits: {}", "could never fail"),
        ("limits: {speed: {max_increase: 1%}}", "unknown metric"),
        ("limits: {accuracy: {max_increase: 1%}}", "max_drop"),
        ("limits: {latency_p95: {max_increase: 5}}", "say what unit"),
        ("limits: {errors: {max_increase: 5ms}}", "not a time"),
        ("limits: {errors: {max_increase: much}}", "not a limit"),
        ("mode: maybe\nlimits: {errors: {max_increase: 1%}}", "detect or prove"),
        ("limits: [", "not YAML"),
    ],
)
def test_broken_gates(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "g.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        read_gate(path)


def test_compare_with_wrong_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loadtest", "compare", "nowhere", "nowhere"]) == 2
    assert "cannot read the report" in capsys.readouterr().err
    for kind, message in (("evaluation", "not a load test's report"), ("loadtest", "was written by another version")):
        (tmp_path / "report.json").write_text(json.dumps({"kind": kind}))
        np.save(tmp_path / "requests.npy", np.zeros(3, dtype=[("intended", "<f8")]))
        assert main(["loadtest", "compare", str(tmp_path), str(tmp_path)]) == 2
        assert message in capsys.readouterr().err
    assert main(["loadtest", "compare", "one"]) == 2
    assert main(["loadtest", "compare", "--before", "http://h/v1"]) == 2
