"""Intervals and comparisons for scores: Wilson, quantiles, calibration error, risk-coverage, McNemar, bootstrap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval and sample size; all None but `n` when `n` is too small to say anything."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    def as_dict(self) -> dict[str, Any]:
        """Return `{"value", "low", "high", "n"}`, with a `note` when there is no value."""
        return asdict(self) | ({"note": "n too small"} if self.value is None else {})


def wilson(successes: int, n: int, z: float = Z95) -> Interval:
    """Return the share successes/n with its Wilson score interval (Wilson 1927; Brown, Cai, DasGupta 2001).

    Unlike p +- z sqrt(p(1-p)/n) it stays inside [0, 1] and does not collapse at 0 % or 100 %.

    Raises:
        ValueError: not 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes ({successes}) must lie between 0 and n ({n})")
    if n == 0:
        return Interval(None, None, None, 0)
    p, zz = successes / n, z * z
    center = (p + zz / (2 * n)) / (1 + zz / n)
    half = z / (1 + zz / n) * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    # exact at the ends, where rounding would leave 1e-17
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == n else min(1.0, center + half)
    return Interval(p, low, high, n)


def quantile(values: ArrayLike, q: float, z: float = Z95) -> Interval:
    """Return the `q` quantile with a distribution-free 95 % interval from order statistics.

    The value is numpy's linear interpolation.  The interval takes the order statistics at n q +- z sqrt(n q (1-q))
    (normal approximation of the binomial rank; Hahn and Meeker 1991, chapter 5).  Where fewer than 5 values are
    expected beyond the quantile, on either side, there is no value: "n too small".

    The values must be independent.  Latencies of one run are not (neighbours share a queue), so their interval is too
    narrow then: `block_quantile` is for those.

    Raises:
        ValueError: q is not strictly between 0 and 1, or a value is not finite.
    """
    if not 0 < q < 1:
        raise ValueError(f"q must lie strictly between 0 and 1, not {q}")
    ordered = np.sort(np.asarray(values, dtype=float))
    if not np.isfinite(ordered).all():
        raise ValueError("values must be finite")
    n = len(ordered)
    # the tiny allowance keeps n = 500 at q = 0.99 from failing on 4.999999999999
    if n * min(q, 1 - q) < 5 - 1e-9:
        return Interval(None, None, None, n)
    half = z * math.sqrt(n * q * (1 - q))
    low = max(0, math.floor(n * q - half) - 1)
    high = min(n - 1, math.ceil(n * q + half))
    return Interval(float(np.quantile(ordered, q)), float(ordered[low]), float(ordered[high]), n)


def block_quantile(values: ArrayLike, q: float, *, resamples: int = 400, seed: int = 0) -> Interval:
    """Return the `q` quantile of a series in order of time, with a 95 % interval that allows for its dependence.

    Moving-block bootstrap (Kuensch 1989) with blocks of n^(1/3) values, or twice as long as the series is
    correlated, up to n/10: to the first lag where the autocorrelation of "above the quantile" is within 2/sqrt(n) of 0.
    The interval is the wider, on each side, of the bootstrap's and that of `quantile`.

    Raises:
        ValueError: as `quantile`.
    """
    plain = quantile(values, q)
    series = np.asarray(values, dtype=float)
    n = len(series)
    if plain.value is None or plain.low is None or plain.high is None:
        return plain
    length = block_length(series > plain.value)
    rng = np.random.default_rng(seed)
    blocks = -(-n // length)
    offsets = np.arange(length)
    draws = np.empty(resamples)
    for i in range(resamples):
        starts = rng.integers(0, n - length + 1, blocks)
        draws[i] = np.quantile(series[(starts[:, None] + offsets).ravel()[:n]], q)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(plain.value, min(plain.low, float(low)), max(plain.high, float(high)), n)


def block_length(above: ArrayLike) -> int:
    """Return twice the lag at which true and false are uncorrelated, between n^(1/3) and n/10 (at least 1)."""
    flags = np.asarray(above, dtype=float)
    n = len(flags)
    least, most = max(1, round(n ** (1 / 3))), max(1, n // 10)
    centred = flags - flags.mean()
    variance = float(centred @ centred)
    lag = 1
    while variance > 0 and lag < most and abs(float(centred[:-lag] @ centred[lag:])) / variance > 2 / math.sqrt(n):
        lag += 1
    return min(max(least, 2 * lag), most)


def bootstrap_mean(values: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Return the mean of independent values with a 95 % percentile bootstrap interval (Efron 1979).

    Raises:
        ValueError: no values.
    """
    return paired_difference(np.zeros(len(np.asarray(values))), values, resamples=resamples, seed=seed)


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram: mean confidence, share right, number of answers, range of confidence."""

    confidence: float
    accuracy: float
    n: int
    low: float
    high: float


def _paired(confidence: ArrayLike, correct: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    conf, right = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=float)
    if conf.ndim != 1 or conf.shape != right.shape:
        raise ValueError("confidence and correct must be two flat sequences of one length")
    if not (np.isfinite(conf).all() and (conf >= 0).all() and (conf <= 1).all()):
        raise ValueError("confidence must lie between 0 and 1")
    if not np.isin(right, (0.0, 1.0)).all():
        raise ValueError("correct must be true or false")
    return conf, right


def _sorted_without_ties(conf: NDArray[np.float64], right: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Return both sorted by confidence, `right` replaced by its mean among equal confidences.

    Otherwise the arbitrary order of ties (many answers have confidence 1.0) would decide which bin gets the errors.
    """
    order = np.argsort(conf, kind="stable")
    conf, right = conf[order], right[order]
    _, start, count = np.unique(conf, return_index=True, return_counts=True)
    return conf, np.repeat(np.add.reduceat(right, start) / count, count)


def reliability(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> list[Bin]:
    """Return equal-mass bins (sizes differ by at most one), least confident first; fewer when there are fewer answers.

    Raises:
        ValueError: lengths differ, a confidence outside [0, 1], or bins < 1.
    """
    conf, right = _paired(confidence, correct)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    if not len(conf):
        return []
    conf, right = _sorted_without_ties(conf, right)
    parts = zip(np.array_split(conf, min(bins, len(conf))), np.array_split(right, min(bins, len(conf))), strict=True)
    return [Bin(float(c.mean()), float(r.mean()), len(c), float(c[0]), float(c[-1])) for c, r in parts]


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """Return sum over bins of n_b/n |accuracy_b - confidence_b| with equal-mass bins (Nguyen and O'Connor 2015).

    Raises:
        ValueError: as `reliability`, or no answers.
    """
    parts = reliability(confidence, correct, bins)
    if not parts:
        raise ValueError("no answers")
    n = sum(b.n for b in parts)
    return sum(b.n * abs(b.accuracy - b.confidence) for b in parts) / n


def calibration_error_interval(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 15, *, resamples: int = 300, seed: int = 0
) -> Interval:
    """Return the calibration error with a 95 % bootstrap interval.

    Resampling adds noise to every bin, so bootstrap values lie above the estimate: the interval is the basic one,
    [2 e - q97.5, 2 e - q2.5] cut at 0, which subtracts that bias.  Fewer than 10 answers per bin: "n too small".
    """
    conf, right = _paired(confidence, correct)
    n = len(conf)
    if n < 10 * bins:
        return Interval(None, None, None, n)
    estimate = expected_calibration_error(conf, right, bins)
    rng = np.random.default_rng(seed)
    draws = np.empty(resamples)
    for i in range(resamples):
        pick = rng.integers(0, n, n)
        draws[i] = expected_calibration_error(conf[pick], right[pick], bins)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(estimate, max(0.0, float(2 * estimate - high)), max(0.0, float(2 * estimate - low)), n)


@dataclass(frozen=True)
class RiskCoverage:
    """Share of wrong answers (`risk`) among the most confident `coverage` of all answers; `area` under the curve."""

    coverage: list[float]
    risk: list[float]
    area: float


def risk_coverage(confidence: ArrayLike, correct: ArrayLike, points: int = 100) -> RiskCoverage:
    """Return the risk-coverage curve (El-Yaniv and Wiener 2010), thinned to about `points` points.

    Raises:
        ValueError: as `reliability`, or no answers.
    """
    conf, right = _paired(confidence, correct)
    if not len(conf):
        raise ValueError("no answers")
    _, right = _sorted_without_ties(conf, right)
    n = len(right)
    risk = np.cumsum(1 - right[::-1]) / np.arange(1, n + 1)
    # rounding in the cumulative sum may leave -1e-17
    risk = np.clip(risk, 0.0, 1.0)
    keep = np.unique(np.linspace(0, n - 1, min(points, n)).round().astype(int))
    return RiskCoverage([float(k + 1) / n for k in keep], [float(risk[k]) for k in keep], float(risk.mean()))


@dataclass(frozen=True)
class McNemar:
    """Two graders of the same items: how often only the first was right, only the second, and the exact p value."""

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Return McNemar's exact test (two-sided binomial on the discordant pairs; McNemar 1947).

    Raises:
        ValueError: lengths differ.
    """
    from scipy.stats import binomtest

    if len(first) != len(second):
        raise ValueError("first and second must have one length")
    b = sum(1 for x, y in zip(first, second, strict=True) if x and not y)
    c = sum(1 for x, y in zip(first, second, strict=True) if y and not x)
    p = 1.0 if b + c == 0 else float(binomtest(b, b + c, 0.5).pvalue)
    return McNemar(b, c, p)


def paired_difference(first: ArrayLike, second: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Return mean(second - first) over the same items with a 95 % percentile bootstrap interval (Efron 1979).

    Raises:
        ValueError: lengths differ, no items, or a value is not finite.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError("first and second must be two flat, non-empty sequences of one length")
    difference = b - a
    if not np.isfinite(difference).all():
        raise ValueError("values must be finite")
    rng = np.random.default_rng(seed)
    n = len(difference)
    means = np.array([difference[rng.integers(0, n, n)].mean() for _ in range(resamples)])
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(difference.mean()), float(low), float(high), n)


def paired_ratio(first: ArrayLike, second: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Return mean(second) / mean(first) over the same items with a 95 % percentile bootstrap interval (Efron 1979).

    None of it where the mean of `first` is 0.

    Raises:
        ValueError: lengths differ, no items, or a value is not finite.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError("first and second must be two flat, non-empty sequences of one length")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("values must be finite")
    n = len(a)
    if a.mean() == 0:
        return Interval(None, None, None, n)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        pick = rng.integers(0, n, n)
        if a[pick].any():
            draws.append(b[pick].mean() / a[pick].mean())
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(b.mean() / a.mean()), float(low), float(high), n)
