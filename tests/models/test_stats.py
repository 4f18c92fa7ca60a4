"""Statistics against published values, scipy, and the properties that they must have."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from models.stats import (
    block_length,
    block_quantile,
    bootstrap_mean,
    calibration_error_interval,
    expected_calibration_error,
    mcnemar,
    paired_difference,
    paired_ratio,
    quantile,
    reliability,
    risk_coverage,
    wilson,
)

ANSWERS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=200)


def split(answers: list[tuple[float, bool]]) -> tuple[list[float], list[bool]]:
    return [c for c, _ in answers], [r for _, r in answers]


class TestWilson:
    @pytest.mark.parametrize(
        ("successes", "n", "low", "high"),
        [
            # Newcombe 1998, table I, method 3
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ],
    )
    def test_published(self, successes: int, n: int, low: float, high: float) -> None:
        got = wilson(successes, n)
        assert got.low == pytest.approx(low, abs=5e-5) and got.high == pytest.approx(high, abs=5e-5)

    @given(st.integers(1, 5000), st.data())
    def test_is_scipy_s_and_inside(self, n: int, data: st.DataObject) -> None:
        k = data.draw(st.integers(0, n))
        got = wilson(k, n)
        assert got.value is not None and got.low is not None and got.high is not None
        assert 0 <= got.low <= got.value <= got.high <= 1 and got.low < got.high
        reference = scipy_stats.binomtest(k, n).proportion_ci(method="wilson")
        assert got.low == pytest.approx(reference.low, abs=1e-9) and got.high == pytest.approx(reference.high, abs=1e-9)

    def test_nothing_asked(self) -> None:
        assert wilson(0, 0).value is None
        assert wilson(0, 0).as_dict()["note"] == "n too small"
        with pytest.raises(ValueError, match="between"):
            wilson(3, 2)


class TestQuantile:
    @given(st.lists(st.floats(0, 1e6), min_size=20, max_size=300), st.sampled_from([0.5, 0.95, 0.99]))
    def test_value_is_numpy_s_and_inside_its_interval(self, values: list[float], q: float) -> None:
        got = quantile(values, q)
        if len(values) * (1 - q) < 5 - 1e-9:
            assert got.value is None
            return
        assert got.value is not None and got.low is not None and got.high is not None
        assert got.value == np.quantile(values, q)
        assert got.low <= got.value <= got.high

    def test_too_small_for_p99(self) -> None:
        assert quantile(range(499), 0.99).value is None
        assert quantile(range(500), 0.99).value is not None

    def test_interval_covers_the_truth_about_95_times_in_100(self) -> None:
        rng = np.random.default_rng(7)
        truth = math.log(20)  # p95 of Exp(1)
        hits = 0
        for _ in range(400):
            got = quantile(rng.exponential(size=400), 0.95)
            hits += got.low is not None and got.high is not None and got.low <= truth <= got.high
        assert 0.92 <= hits / 400 <= 1.0

    @pytest.mark.parametrize("q", [0.0, 1.0, -1.0, 2.0])
    def test_bad_q(self, q: float) -> None:
        with pytest.raises(ValueError, match="strictly between"):
            quantile([1.0] * 100, q)

    def test_not_finite(self) -> None:
        with pytest.raises(ValueError, match="finite"):
            quantile([1.0] * 100 + [math.nan], 0.5)


class TestCalibration:
    def test_by_hand(self) -> None:
        # two bins of two: |0.5 - 0.3| and |1 - 0.85|, weighted by half each
        assert expected_calibration_error([0.2, 0.4, 0.8, 0.9], [0, 1, 1, 1], bins=2) == pytest.approx(0.175)

    def test_equal_mass(self) -> None:
        parts = reliability(np.linspace(0, 1, 100), np.ones(100), bins=15)
        assert len(parts) == 15 and {b.n for b in parts} == {6, 7} and sum(b.n for b in parts) == 100

    @given(ANSWERS, st.integers(1, 20))
    def test_bounds_and_bins(self, answers: list[tuple[float, bool]], bins: int) -> None:
        conf, right = split(answers)
        ece = expected_calibration_error(conf, right, bins)
        assert -1e-12 <= ece <= 1 + 1e-12
        parts = reliability(conf, right, bins)
        assert sum(b.n for b in parts) == len(answers) and max(b.n for b in parts) - min(b.n for b in parts) <= 1
        assert sum(b.n * b.accuracy for b in parts) == pytest.approx(sum(right))
        # never below the gap of the means (one bin), by the triangle inequality
        assert ece >= abs(np.mean(conf) - np.mean(right)) - 1e-9

    @given(ANSWERS, st.randoms(use_true_random=False))
    def test_order_of_answers_does_not_matter(self, answers: list[tuple[float, bool]], rng: object) -> None:
        conf, right = split(answers)
        again = answers[::-1]
        conf2, right2 = split(again)
        assert expected_calibration_error(conf, right) == pytest.approx(expected_calibration_error(conf2, right2))
        assert risk_coverage(conf, right).area == pytest.approx(risk_coverage(conf2, right2).area)

    def test_calibrated_answers_have_a_small_error_and_the_interval_covers_it(self) -> None:
        rng = np.random.default_rng(1)
        conf = rng.uniform(0.3, 1, 6000)
        right = rng.uniform(size=6000) < conf
        got = calibration_error_interval(conf, right, resamples=100)
        assert got.value is not None and got.value < 0.02
        assert got.low is not None and got.high is not None and got.low <= 0.012 and got.high < 0.03

    def test_overconfidence_is_found(self) -> None:
        got = calibration_error_interval(np.full(2000, 0.99), np.arange(2000) % 10 < 8, resamples=50)
        assert got.value == pytest.approx(0.19)
        assert got.low is not None and got.high is not None and 0.16 < got.low < 0.19 < got.high < 0.22

    def test_small_n(self) -> None:
        assert calibration_error_interval([0.5] * 149, [1] * 149).value is None

    @pytest.mark.parametrize(("conf", "right"), [([1.1], [1]), ([0.5], [2]), ([0.5, 0.5], [1]), ([math.nan], [1])])
    def test_bad_input(self, conf: list[float], right: list[int]) -> None:
        with pytest.raises(ValueError, match="must"):
            reliability(conf, right)

    def test_empty(self) -> None:
        assert reliability([], []) == []
        with pytest.raises(ValueError, match="no answers"):
            risk_coverage([], [])


class TestRiskCoverage:
    def test_by_hand(self) -> None:
        curve = risk_coverage([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 1])
        assert curve.coverage == [0.25, 0.5, 0.75, 1.0]
        assert curve.risk == pytest.approx([0, 0, 1 / 3, 1 / 4])
        assert curve.area == pytest.approx((1 / 3 + 1 / 4) / 4)

    @given(ANSWERS)
    def test_ends_at_the_error_rate(self, answers: list[tuple[float, bool]]) -> None:
        conf, right = split(answers)
        curve = risk_coverage(conf, right)
        assert curve.coverage[-1] == 1.0
        assert curve.risk[-1] == pytest.approx(1 - np.mean(right))
        assert all(0 <= r <= 1 for r in curve.risk) and curve.coverage == sorted(curve.coverage)


class TestPaired:
    @given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
    def test_mcnemar_is_the_exact_binomial(self, pairs: list[tuple[bool, bool]]) -> None:
        got = mcnemar([a for a, _ in pairs], [b for _, b in pairs])
        n, k = got.only_first + got.only_second, min(got.only_first, got.only_second)
        assert got.only_first == sum(a and not b for a, b in pairs)
        expected = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n) if n else 1.0
        assert got.p_value == pytest.approx(expected)

    def test_mcnemar_published(self) -> None:
        # Agresti, Categorical Data Analysis, table 10.1 (approval of the prime minister): 150 against 86
        got = mcnemar([True] * 150 + [False] * 86, [False] * 150 + [True] * 86)
        assert (got.only_first, got.only_second) == (150, 86) and 2e-5 < got.p_value < 5e-5

    def test_difference(self) -> None:
        rng = np.random.default_rng(0)
        first = rng.normal(size=400)
        got = paired_difference(first, first + rng.normal(0.5, 1, 400))
        assert got.value is not None and got.low is not None and got.high is not None
        assert got.low < 0.5 < got.high
        # about 1.96 standard errors of the mean on either side
        assert (got.high - got.low) / 2 == pytest.approx(1.96 / math.sqrt(400), rel=0.2)

    def test_difference_is_seeded_and_paired(self) -> None:
        first = [0, 1] * 50
        assert paired_difference(first, first).high == 0
        a, b = paired_difference(first, first[::-1], seed=3), paired_difference(first, first[::-1], seed=3)
        assert a == b
        with pytest.raises(ValueError, match="one length"):
            paired_difference([1.0], [1.0, 2.0])
        with pytest.raises(ValueError, match="one length"):
            mcnemar([True], [])


class TestBlockQuantile:
    @staticmethod
    def series(n: int, phi: float, seed: int) -> np.ndarray:
        """An autoregressive series of order 1, mean 0, variance 1."""
        rng = np.random.default_rng(seed)
        noise = rng.normal(0, math.sqrt(1 - phi * phi), n)
        values = np.empty(n)
        values[0] = rng.normal()
        for i in range(1, n):
            values[i] = phi * values[i - 1] + noise[i]
        return values

    def test_covers_the_truth_where_the_plain_interval_does_not(self) -> None:
        truth = float(scipy_stats.norm.ppf(0.9))
        plain = blocks = 0
        for seed in range(60):
            values = self.series(800, 0.9, seed)
            for found, counted in ((quantile(values, 0.9), "plain"), (block_quantile(values, 0.9), "blocks")):
                assert found.low is not None and found.high is not None
                covered = found.low <= truth <= found.high
                plain += covered and counted == "plain"
                blocks += covered and counted == "blocks"
        assert plain <= 42 and blocks >= 50  # of 60; 57 would be 95 %

    @given(st.lists(st.floats(-1e6, 1e6), min_size=20, max_size=200), st.sampled_from([0.5, 0.7]))
    def test_is_never_narrower_than_the_plain_one(self, values: list[float], q: float) -> None:
        plain, blocks = quantile(values, q), block_quantile(values, q, resamples=20)
        assert (plain.value, plain.n) == (blocks.value, blocks.n)
        if plain.low is not None and plain.high is not None:
            assert blocks.low is not None and blocks.high is not None
            assert blocks.low <= plain.low and blocks.high >= plain.high

    def test_too_small_stays_too_small(self) -> None:
        assert block_quantile(range(20), 0.99).value is None

    def test_block_length(self) -> None:
        assert block_length([True, False] * 500) == 100  # strictly periodic: at most a tenth
        assert block_length(np.random.default_rng(0).random(1000) > 0.5) == 10
        assert block_length([False]) == 1 == block_length([True] * 3)


def test_bootstrap_mean() -> None:
    found = bootstrap_mean([0.0, 1.0] * 200)
    assert found.value == 0.5 and found.n == 400
    assert found.low == pytest.approx(0.45, abs=0.01) and found.high == pytest.approx(0.55, abs=0.01)
    with pytest.raises(ValueError, match="non-empty"):
        bootstrap_mean([])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
@settings(max_examples=40, deadline=None)
def test_paired_ratio(pairs: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    found = paired_ratio(first, second, resamples=200)
    assert found.n == len(pairs)
    if not any(first):
        assert found.value is None and found.as_dict()["note"] == "n too small"
        return
    assert found.value is not None and found.low is not None and found.high is not None
    assert found.value == pytest.approx(sum(second) / sum(first)) and found.low <= found.high
    same = paired_ratio(first, first, resamples=200)
    assert same.value == same.low == same.high == 1  # paired: what both share cannot differ
