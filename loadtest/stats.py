"""Figures with 95 % intervals from one run.

Latencies of neighbouring requests hang together: a stall or a queue hits many at once, so n requests carry the
information of fewer. The intervals here are order-statistic intervals (no assumption on the distribution) on an
*effective* sample size.  For a percentile q the run is cut into consecutive batches; how much more the share of
values above the estimate varies between batches than it would for independent values is the variance inflation, and
n_eff = n / inflation.
For independent values n_eff stays near n, and the interval is the exact binomial one (David and Nagaraja, Order
Statistics, 7.1; batch means: Law, Simulation Modeling and Analysis, 9.5).  `tests/loadtest/test_coverage.py`
simulates the coverage.

A percentile is refused ("n too small") when even independent values could not bound it at 95 %: for instance p99
needs 368 values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONFIDENCE = 0.95
BATCHES = (8, 12, 16, 24, 32, 48)
Z = 1.959963984540054


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % interval and the number of observations behind it.

    `value` is None when the sample does not allow a figure; `note` then says why.  `low` or `high` is None where the
    sample does not bound that side.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    note: str = ""

    def to_dict(self, digits: int = 6) -> dict[str, Any]:
        """Return the figure as it stands in report.json."""
        out: dict[str, Any] = {k: _round(getattr(self, k), digits) for k in ("value", "low", "high")}
        out["n"] = self.n
        if self.note:
            out["note"] = self.note
        return out

    def scaled(self, factor: float) -> Figure:
        """Return the figure in another unit."""
        value, low, high = (None if v is None else v * factor for v in (self.value, self.low, self.high))
        return Figure(value, low, high, self.n, self.note)


def _round(value: float | None, digits: int) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def needed_n(q: float, confidence: float = CONFIDENCE) -> int:
    """Return the smallest n whose order statistics bound the `q` quantile (0 < q < 1) on both sides."""
    tail = (1 - confidence) / 2
    return math.ceil(math.log(tail) / math.log(max(q, 1 - q)) - 1e-9)


def inflation(hits: NDArray[np.bool_], batches: Sequence[int] = BATCHES) -> float:
    """Return how many times more the share of hits varies between parts of the run than for independent values (>= 1).

    Args:
        hits: shape (n,), in the order of the run.
    """
    n = len(hits)
    share = float(hits.mean()) if n else 0.0
    if n < 2 * min(batches) or not 0 < share < 1:
        return 1.0
    worst = 1.0
    total = np.concatenate([[0], np.cumsum(hits)])
    for count in batches:
        if n < 2 * count:
            continue
        edges = np.linspace(0, n, count + 1).round().astype(np.int64)
        worst = max(worst, _ratio(np.diff(total[edges]), np.diff(edges), share))
    return worst


def inflation_of_pieces(hits: NDArray[np.float64], sizes: NDArray[np.float64]) -> float:
    """Return the same from consecutive pieces of the run that are only known by their sums.

    Args:
        hits, sizes: number of hits and of values in each piece, shape (pieces,).
    """
    n = float(sizes.sum())
    share = float(hits.sum()) / n if n else 0.0
    if not 0 < share < 1:
        return 1.0
    worst = 1.0
    for count in sorted({c for c in (*BATCHES, len(sizes)) if 4 <= c <= len(sizes)}):
        starts = np.linspace(0, len(sizes), count + 1).round().astype(np.int64)[:-1]
        worst = max(worst, _ratio(np.add.reduceat(hits, starts), np.add.reduceat(sizes, starts), share))
    return worst


def _ratio(sums: NDArray[Any], sizes: NDArray[Any], share: float) -> float:
    """Return the variance of the hits per batch over that of independent values, 1 where chance explains it."""
    count = len(sizes)
    expected = share * (1 - share) * float(sizes.sum()) / count
    ratio = float(np.square(sums - share * sizes).sum()) / (count - 1) / expected
    # The ratio is itself an estimate from `count` batches; it only counts once it is beyond what chance gives
    # independent values, and then with the wider limits of Student's t.
    return ratio * (student(count - 1) / Z) ** 2 if ratio > _chance(count) else 1.0


@cache
def _chance(count: int) -> float:
    """Return the 90 % point of the batch variance ratio for independent values (chi-square over its freedom)."""
    from scipy.stats import chi2

    return float(chi2.ppf(0.9, count - 1)) / (count - 1)


@cache
def _normal(confidence: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf(0.5 + confidence / 2))


@cache
def student(freedom: int) -> float:
    """Return the two-sided point of Student's t at the confidence of all figures."""
    from scipy.stats import t

    return float(t.ppf(0.5 + CONFIDENCE / 2, freedom))


def percentile(values: NDArray[np.float64], q: float, ordered: bool = True, confidence: float = CONFIDENCE) -> Figure:
    """Return the `q` quantile (0 < q < 1) of `values` with its interval.

    Args:
        values: shape (n,), in the order of the run (by intended send time), finite.
        ordered: the order means something; False for values that are independent by construction.
    """
    n = len(values)
    if n < needed_n(q, confidence):
        return Figure(None, None, None, n, "n too small")
    ranked = np.sort(values)
    value = float(ranked[max(1, math.ceil(q * n - 1e-9)) - 1])
    ratio = inflation(values > value) if ordered else 1.0
    low, high = quantile_ranks(n, q, ratio, confidence)
    note = "" if n / ratio >= needed_n(q, confidence) else "rests on few episodes"
    return Figure(value, float(ranked[low]), float(ranked[high]), n, note)


def quantile_ranks(n: int, q: float, ratio: float = 1.0, confidence: float = CONFIDENCE) -> tuple[int, int]:
    """Return the (zero-based) ranks of the values that bound the `q` quantile, clipped to the sample.

    With n_eff = n / ratio independent values, the number below the true quantile is binomial(n_eff, q): the ranks are
    the limits of Clopper and Pearson's interval for a share of q, taken the other way round.
    """
    from scipy.stats import beta

    size = n / ratio
    below = q * size
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, below, size - below + 1)) if below > 0 else 0.0
    high = float(beta.ppf(1 - tail, below + 1, size - below)) if below < size else 1.0
    return max(0, math.floor(low * n) - 1), min(n - 1, math.ceil(high * n))


def proportion(hits: NDArray[np.bool_], ordered: bool = True, confidence: float = CONFIDENCE) -> Figure:
    """Return a share with its Wilson interval (Wilson 1927) on the effective sample size."""
    n = len(hits)
    if not n:
        return Figure(None, None, None, 0, "n too small")
    ratio = inflation(np.asarray(hits, dtype=bool)) if ordered else 1.0
    low, high = wilson(float(np.mean(hits)), n / ratio, confidence)
    return Figure(float(np.mean(hits)), low, high, n)


def wilson(share: float, n: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return Wilson's interval of a share seen in n trials."""
    z = Z if confidence == CONFIDENCE else _normal(confidence)
    square = z * z
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = z / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    # Exact at the ends, where rounding would leave 1e-17.
    return (0.0 if share == 0 else max(0.0, middle - half)), (1.0 if share == 1 else min(1.0, middle + half))


def mean(values: NDArray[np.float64]) -> Figure:
    """Return the mean with a batch-means interval (the wider of independent values and batches; Student's t)."""
    n = len(values)
    if n < 2:
        return Figure(None, None, None, n, "n too small")
    middle = float(values.mean())
    half = student(n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    for count in BATCHES:
        if n >= 2 * count:
            parts = np.array([part.mean() for part in np.array_split(values, count)])
            half = max(half, student(count - 1) * float(parts.std(ddof=1)) / math.sqrt(count))
    return Figure(middle, middle - half, middle + half, n)


def rate(times: NDArray[np.float64], duration: float) -> Figure:
    """Return events per second with an interval from the counts in equal slices of the run.

    Args:
        times: when the events happened, in seconds, within [0, duration].
    """
    n = len(times)
    if duration <= 0 or n < 2:
        return Figure(None, None, None, n, "n too small")
    value = n / duration
    count = min(BATCHES[-1], max(2, n // 4))
    counts, _ = np.histogram(times, bins=count, range=(0.0, duration))
    half = student(count - 1) * float(counts.std(ddof=1)) * math.sqrt(count) / duration
    return Figure(value, max(0.0, value - half), value + half, n)
