"""Figures with intervals: exactness on small cases, refusals, and sanity on every sample."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from loadtest.stats import Figure, inflation, mean, needed_n, percentile, proportion, quantile_ranks, rate, wilson


@pytest.mark.parametrize(("q", "n"), [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368), (0.999, 3688)])
def test_smallest_samples(q: float, n: int) -> None:
    assert needed_n(q) == n
    assert 1 - q**n >= 0.975 > 1 - q ** (n - 1)
    values = np.arange(n, dtype=np.float64)
    assert percentile(values, q).value is not None
    small = percentile(values[:-1], q)
    assert (small.value, small.low, small.high, small.n, small.note) == (None, None, None, n - 1, "n too small")


@given(st.integers(6, 3000), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_ranks_of_independent_values_cover_at_least_95_percent(n: int, q: float) -> None:
    if n < needed_n(q):
        return
    low, high = quantile_ranks(n, q)
    assert 0 <= low <= math.ceil(q * n) - 1 <= high < n
    # P(X_(low+1) <= quantile < X_(high+1)) for a continuous distribution, by the binomial law
    inside = binom.cdf(high, n, q) - binom.cdf(low, n, q)
    assert inside >= 0.95 or high == n - 1


@given(st.lists(st.floats(0, 1e6), min_size=72, max_size=400))
def test_an_interval_holds_its_value(values: list[float]) -> None:
    for q in (0.5, 0.95):
        figure = percentile(np.array(values), q)
        assert figure.low is not None and figure.value is not None and figure.high is not None
        assert figure.low <= figure.value <= figure.high


def test_bursts_widen_the_interval() -> None:
    rng = np.random.default_rng(3)
    values = rng.lognormal(0, 0.3, 5000)
    for start in (500, 1700, 4200):
        values[start : start + 60] += 10
    together = percentile(values, 0.99)
    scattered = percentile(rng.permutation(values), 0.99)
    assert inflation(values > 5) > 10
    assert together.high - together.low > 2 * (scattered.high - scattered.low)  # type: ignore[operator]
    assert together.note == "rests on few episodes" and scattered.note == ""


def test_wilson_against_published_values() -> None:
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662; 15 of 148 gives 0.0624 to 0.1605
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_proportion_without_observations_is_refused() -> None:
    assert proportion(np.array([], dtype=bool)).value is None


def test_mean_and_rate_hold_the_truth() -> None:
    rng = np.random.default_rng(4)
    hits = sum(f.low <= 2 <= f.high for f in (mean(rng.exponential(2, 400)) for _ in range(300)))  # type: ignore[operator]
    assert hits / 300 > 0.93
    hits = 0
    for _ in range(300):
        figure = rate(np.sort(rng.random(rng.poisson(1000))) * 20, 20)
        hits += figure.low <= 50 <= figure.high  # type: ignore[operator]
    assert hits / 300 > 0.92


def test_figures_are_written_without_nan() -> None:
    assert Figure(float("nan"), None, 1.23456789, 3, "x").to_dict() == {
        "value": None, "low": None, "high": 1.23457, "n": 3, "note": "x"
    }  # fmt: skip
