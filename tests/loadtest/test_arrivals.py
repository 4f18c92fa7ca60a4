"""Arrival processes: rate, order, shape, reproducibility, and clear refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.arrivals import ARRIVALS, make_times
from models.support.errors import UsageError


@pytest.mark.parametrize("name", sorted(ARRIVALS))
@given(rate=st.floats(0.5, 500), duration=st.floats(0.5, 30), seed=st.integers(0, 2**31))
def test_times_are_sorted_inside_the_run_and_repeatable(name: str, rate: float, duration: float, seed: int) -> None:
    times = make_times(name, rate, duration, np.random.default_rng(seed))
    assert (np.diff(times) >= 0).all()
    assert not len(times) or (times[0] >= 0 and times[-1] < duration + 1e-9)
    assert (times == make_times(name, rate, duration, np.random.default_rng(seed))).all()


@pytest.mark.parametrize("name", sorted(ARRIVALS))
def test_the_mean_rate_is_what_was_asked_for(name: str) -> None:
    counts = [len(make_times(name, 50, 100, np.random.default_rng(s))) for s in range(20)]
    # 20 runs of 5,000: the mean is within 1 % (5 standard errors of the burstiest, gamma with cv 2, are 4 %)
    assert abs(np.mean(counts) / 5000 - 1) < (0.04 if name == "gamma" else 0.015)


def test_gamma_is_as_bursty_as_asked() -> None:
    gaps = np.diff(make_times("gamma", 100, 2000, np.random.default_rng(1), cv=3))
    assert 2.8 < gaps.std() / gaps.mean() < 3.2
    poisson = np.diff(make_times("poisson", 100, 2000, np.random.default_rng(1)))
    assert 0.97 < poisson.std() / poisson.mean() < 1.03


def share(times: np.ndarray, low: float, high: float) -> float:
    return float(((times >= low) & (times < high)).mean())


def test_changing_rates_have_their_shape() -> None:
    rng = np.random.default_rng(2)
    ramp = make_times("ramp", 200, 100, rng, start=0, end=2)
    assert abs(share(ramp, 0, 50) - 0.25) < 0.02
    spike = make_times("spike", 200, 100, rng, factor=5, at=0.5, width=0.1)
    assert abs(share(spike, 45, 55) - 0.5 / 1.4) < 0.02
    day = make_times("diurnal", 200, 100, rng, peak=3)
    assert abs(share(day, 45, 55) / share(day, 0, 5) / 2 - 3) < 0.5
    step = make_times("step", 200, 100, rng, steps=5, start=0.2)
    assert abs(share(step, 80, 100) / share(step, 0, 20) - 5) < 0.6


@pytest.mark.parametrize(
    ("name", "rate", "duration", "options", "match"),
    [
        ("poisson", 0, 1, {}, "--rate"),
        ("poisson", -1, 1, {}, "--rate"),
        ("poisson", float("nan"), 1, {}, "--rate"),
        ("poisson", 1, 0, {}, "--duration"),
        ("poisson", 1e9, 1e9, {}, "requests"),
        ("bursts", 1, 1, {}, "unknown arrival process"),
        ("gamma", 1, 1, {"cv": 0}, "cv"),
        ("gamma", 1, 1, {"shape": 2}, "wrong settings"),
        ("ramp", 1, 1, {"start": 0, "end": 0}, "above zero"),
        ("soak", 1, 1, {"swing": 2}, "swing"),
    ],
)
def test_nonsense_is_refused(name: str, rate: float, duration: float, options: dict[str, float], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        make_times(name, rate, duration, np.random.default_rng(0), **options)
