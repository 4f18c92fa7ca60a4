"""The capacity search finds the known capacity of a simulated server, and certifies only what the data shows."""

import json
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea import main
from loadtest.capacity import find_capacity, queue_grows
from loadtest.forecast import Demand, hourly, plan, replicas
from loadtest.recorder import RECORD
from loadtest.report import Report
from loadtest.slo import parse_slo
from models.support.errors import UsageError
from tests.loadtest.server import Plan, Server


def simulated(rate: float, seconds: float, number: int, service: float = 0.02, valid: bool = True) -> Report:
    """A single server with fixed service time (M/D/1), simulated exactly."""
    rng = np.random.default_rng(number)
    times = np.sort(rng.random(rng.poisson(rate * seconds)) * seconds)
    records = np.zeros(len(times), dtype=RECORD)
    # Each request ends one service time after it came or after the one before it ended, whichever is later.
    done = service * np.arange(len(times))
    records["end"] = done + service + np.maximum.accumulate(times - done) if len(times) else 0.0
    for name in ("intended", "dispatched", "sent"):
        records[name] = times
    records["first"] = records["last"] = np.nan
    records["correct"] = -1
    data: dict[str, Any] = {"load": {"warmup_s": 0.0, "duration_s": seconds}, "valid": valid, "partial": False}
    return Report({**data, "invalid_because": ["late"]}, records)


def seeded(seed: int, rate: float, seconds: float, number: int) -> Report:
    return simulated(rate, seconds, 1000 * seed + number)


def test_capacity_of_a_known_queue() -> None:
    """For M/D/1 with 20 ms service, P95 of the response time reaches 100 ms at 34.8 requests/s (simulated exactly)."""
    truth = 34.8
    long = simulated(truth, 20_000, 1)
    assert np.quantile(long.records["end"] - long.records["intended"], 0.95) == pytest.approx(0.1, rel=0.05)
    certified = []
    for seed in range(100):
        run = partial(seeded, seed)
        found = find_capacity(run, parse_slo("p95<100ms"), start=2, highest=1000, step_s=60, confirm_s=300)
        if found.rate is not None:
            certified.append(found.rate)
        assert found.broken is not None and found.best <= found.broken
    assert len(certified) >= 90
    # the promise: a certified rate is above the true capacity in 5 % of searches at most
    assert sum(rate > truth for rate in certified) <= 5
    assert np.median(certified) > 0.75 * truth


def test_nothing_is_certified_on_too_little_data() -> None:
    found = find_capacity(simulated, parse_slo("p99<200ms"), start=4, highest=1000, step_s=5, confirm_s=5)
    assert found.rate is None and "--confirm" in found.reason
    late = find_capacity(
        lambda r, s, n: simulated(r, s, n, valid=False), parse_slo("p95<1s"), start=4, highest=9, step_s=5, confirm_s=5
    )
    assert late.rate is None


def test_a_growing_queue_is_seen_before_the_limit_is_broken() -> None:
    assert queue_grows(simulated(60, 20, 1).records)
    assert not queue_grows(simulated(30, 20, 1).records)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("p95<2s", ("latency", 0.95, True, 2000)),
        ("ttft_p99<500ms", ("ttft", 0.99, True, 500)),
        (" p99.9 <= 1.5s ", ("latency", 0.999, True, 1500)),
        ("errors<0.1%", ("errors", None, True, 0.001)),
        ("accuracy>0.9", ("accuracy", None, False, 0.9)),
    ],
)
def test_slo_terms(text: str, parsed: tuple[Any, ...]) -> None:
    term = parse_slo(text)[0]
    assert (term.metric, term.q, term.less, pytest.approx(term.limit)) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "p95",
        "p95<2",
        "p95>2s",
        "p0<1s",
        "speed<1s",
        "errors<1s",
        "accuracy<0.9",
        "errors<200%",
        "ttft<1s",
        "p95<-1s",
    ],
)
def test_wrong_slos(text: str) -> None:
    with pytest.raises(UsageError, match="--slo"):
        parse_slo(text)


@given(st.text(max_size=30))
def test_any_slo_text_is_read_or_refused(text: str) -> None:
    try:
        assert parse_slo(text)
    except UsageError as error:
        assert error.field == "--slo"


@given(st.floats(0.01, 1e4), st.floats(0.01, 1e3), st.floats(0, 2), st.integers(0, 3))
def test_replicas_hold_the_rate(rate: float, capacity: float, headroom: float, spare: int) -> None:
    demand = Demand(peak=rate, headroom=headroom, spare=spare)
    count = replicas(rate, capacity, demand)
    assert (count - spare) * capacity >= rate * (1 + headroom) * (1 - 1e-6) or count == demand.minimum
    assert (count - spare - 1) * capacity < rate * (1 + headroom) * (1 + 1e-6)


def test_forecast_by_hand() -> None:
    demand = Demand(peak=100, trough=0.2, growth=0.1, months=2, headroom=0.3, spare=1, gpus=2)
    first, second = plan(37.7, demand, Decimal("0.80"))
    # 100 * 1.3 / 37.7 = 3.45: 4 replicas and 1 spare, 2 GPUs each, 730 hours
    assert (first["replicas"], first["gpu_hours_fixed"], first["usd_fixed"]) == (5, 7300.0, 5840.0)
    assert second["peak_rps"] == pytest.approx(110)
    assert first["gpu_hours_following"] < first["gpu_hours_fixed"]
    rates = hourly(demand, 100)
    assert max(rates) == pytest.approx(100) and min(rates) == pytest.approx(20)
    with pytest.raises(UsageError, match="--trough"):
        Demand(peak=1, trough=2)


def test_command(
    serve: Callable[..., Server], prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free = [0.0]

    def one_at_a_time(request: dict[str, Any]) -> Plan:
        now = perf_counter()
        free[0] = max(free[0], now) + 0.01
        return Plan(first_s=free[0] - now)

    words = ["--url", serve(one_at_a_time).url, "--model", "m", "--workload", prompts, "--slo", "p50<150ms,errors<20%"]
    words += ["--start-rate", "40", "--max-rate", "160", "--step", "0.8", "--confirm", "1", "--tolerance", "0.5"]
    words += ["--max-slip-ms", "5000", "--peak", "100", "--months", "2", "--usd-per-hour", "1", "--out", str(tmp_path)]
    assert main(["loadtest", "capacity", *words]) == 0
    out = capsys.readouterr()
    assert "95 % confidence" in out.out and "replicas" in out.out and "search 40 req/s" in out.err
    data = json.loads((tmp_path / "capacity.json").read_text())
    assert 26 <= data["capacity_rps"] <= 120
    assert len(data["forecast"]["months"]) == 2
    assert "<svg" in (tmp_path / "capacity.html").read_text()


def test_command_with_nonsense(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["loadtest", "capacity", "--url", "http://127.0.0.1:9/v1", "--model", "m"]
    assert main([*words, "--slo", "quick"]) == 2
    assert main([*words, "--slo", "p95<1s", "--step", "0"]) == 2
    assert "--step" in capsys.readouterr().err
    assert main([*words, "--slo", "p95<1s"]) == 2
    assert "cannot connect" in capsys.readouterr().err


def test_a_search_that_ends_early_keeps_what_it_found() -> None:
    """The server dies, or Ctrl-C comes, in the fourth run."""
    terms = parse_slo("p95<1s")
    search: dict[str, Any] = {"start": 2, "highest": 1000, "step_s": 20, "confirm_s": 20}

    def dies(rate: float, seconds: float, number: int) -> Report:
        if number == 3:
            raise UsageError("cannot connect", field="--url")
        return simulated(rate, seconds, number)

    found = find_capacity(dies, terms, **search)
    assert found.partial and found.rate is None and len(found.steps) == 3 and found.best == 8
    assert isinstance(found.error, UsageError) and "cannot connect" in found.reason

    def stopped(rate: float, seconds: float, number: int) -> Report:
        report = simulated(rate, seconds, number)
        report.data["partial"] = number == 3
        return report

    found = find_capacity(stopped, terms, **search)
    assert found.partial and found.error is None and found.reason == "stopped" and len(found.steps) == 4

    def never(rate: float, seconds: float, number: int) -> Report:
        raise UsageError("cannot connect", field="--url")

    with pytest.raises(UsageError):
        find_capacity(never, terms, **search)


def test_command_keeps_what_it_found_when_the_server_dies(
    serve: Callable[..., Server], prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def decide(request: dict[str, Any]) -> Plan:
        if len(server.requests) == 60:
            server.die()
        return Plan(first_s=0.001)

    server = serve(decide)
    words = ["--url", server.url, "--model", "m", "--workload", prompts, "--slo", "p50<5s,errors<100%"]
    words += ["--start-rate", "20", "--step", "1", "--confirm", "1", "--max-slip-ms", "5000", "--out", str(tmp_path)]
    assert main(["loadtest", "capacity", *words]) == 2
    out = capsys.readouterr()
    assert "--url: cannot connect" in out.err.splitlines()[-1] and "no rate certified" in out.out
    data = json.loads((tmp_path / "capacity.json").read_text())
    assert data["partial"] and data["steps"] and data["capacity_rps"] is None
    assert "<svg" in (tmp_path / "capacity.html").read_text()
