"""A log-linear histogram of durations: fixed memory, mergeable without loss, three significant digits.

The layout is HdrHistogram's (Gil Tene, hdrhistogram.org): values are counted in whole microseconds; each power of
two is cut into equal sub-buckets, so a value is known to 1 part in 1,024.  Adding the counts of two histograms gives
exactly the histogram of the two samples together, whichever processes or machines they come from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

HALF_BITS = 10  # 2**10 sub-buckets per power of two
HALF = 1 << HALF_BITS
HIGHEST_US = (1 << 36) - 1  # 19 hours
BUCKETS = HALF * (36 - HALF_BITS + 1)


def bucket_of(microseconds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the bucket of each value; shape is kept.  Values outside [0, HIGHEST_US] are clipped."""
    value = np.clip(microseconds, 0, HIGHEST_US)
    # frexp gives the exact bit length for integers below 2**53.
    bits = np.frexp(value.astype(np.float64))[1].astype(np.int64)
    shift = np.maximum(bits - 1 - HALF_BITS, 0)
    # Below 2 * HALF every microsecond has a bucket of its own.
    return np.where(value < 2 * HALF, value, (shift << HALF_BITS) + (value >> shift))


def bucket_bounds(bucket: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the lowest value in each bucket and the lowest above it, in microseconds."""
    shift = np.maximum((bucket >> HALF_BITS) - 1, 0)
    low = np.where(bucket < 2 * HALF, bucket, (bucket - (shift << HALF_BITS)) << shift)
    return low, low + (np.int64(1) << shift)


class Histogram:
    """Counts of durations, in seconds."""

    def __init__(self, counts: NDArray[np.int64] | None = None):
        self.counts = np.zeros(BUCKETS, dtype=np.int64) if counts is None else counts

    @property
    def n(self) -> int:
        """How many values were recorded."""
        return int(self.counts.sum())

    def record(self, seconds: NDArray[np.float64]) -> None:
        """Count values, shape (n,), in seconds."""
        np.add.at(self.counts, bucket_of(np.rint(np.asarray(seconds) * 1e6).astype(np.int64)), 1)

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram."""
        self.counts += other.counts

    def percentile(self, q: float) -> float:
        """Return the value, in seconds, below or at which a share `q` (0 to 1) of the sample lies; NaN when empty."""
        low, high = self.bounds(q)
        return (low + high) / 2

    def bounds(self, q: float) -> tuple[float, float]:
        """Return the smallest and the largest value, in seconds, that the `q` quantile can be; NaN when empty."""
        n = self.n
        if not n:
            return float("nan"), float("nan")
        rank = max(1, int(np.ceil(q * n - 1e-9)))
        bucket = np.searchsorted(np.cumsum(self.counts), rank)
        low, high = bucket_bounds(np.array([bucket]))
        return float(low[0]) / 1e6, float(high[0] - 1) / 1e6

    def to_dict(self) -> dict[str, list[int]]:
        """Return the non-empty buckets, JSON-ready."""
        used = np.flatnonzero(self.counts)
        return {"bucket": used.tolist(), "count": self.counts[used].tolist()}

    @classmethod
    def from_dict(cls, value: dict[str, list[int]]) -> Histogram:
        """Rebuild a histogram from `to_dict`'s output."""
        histogram = cls()
        histogram.counts[np.array(value["bucket"], dtype=np.int64)] = value["count"]
        return histogram

    def encode(self) -> str:
        """Return it in HdrHistogram's own format (V2, compressed, base64), in microseconds, for other tools."""
        from hdrh.histogram import HdrHistogram

        target = HdrHistogram(1, HIGHEST_US, 3)
        used = np.flatnonzero(self.counts)
        low, high = bucket_bounds(used)
        for value, count in zip(((low + high - 1) // 2).tolist(), self.counts[used].tolist(), strict=True):
            target.record_value(max(1, value), count)
        return str(target.encode().decode("ascii"))


class BatchedHistogram:
    """A histogram that also remembers *when*: up to `BATCHES` consecutive pieces of the run, each with its own counts.

    The spread between pieces is what an interval of a percentile needs when neighbouring values hang together.
    When the pieces are used up, neighbours are merged and each piece from then on covers twice as many values.
    """

    BATCHES = 32

    def __init__(self, first_size: int = 64):
        self.size = first_size
        self.batches: list[NDArray[np.int64]] = []
        self._filled = 0

    def record(self, seconds: NDArray[np.float64]) -> None:
        """Count values, shape (n,), in the order in which they happened."""
        buckets = bucket_of(np.rint(seconds * 1e6).astype(np.int64))
        while len(buckets):
            if not self.batches or self._filled >= self.size:
                if len(self.batches) == self.BATCHES:
                    self.batches = [a + b for a, b in zip(self.batches[::2], self.batches[1::2], strict=True)]
                    self.size *= 2
                self.batches.append(np.zeros(BUCKETS, dtype=np.int32))
                self._filled = 0
            take = min(len(buckets), self.size - self._filled)
            np.add.at(self.batches[-1], buckets[:take], 1)
            self._filled += take
            buckets = buckets[take:]

    def total(self) -> Histogram:
        """Return everything recorded as one histogram."""
        counts = np.zeros(BUCKETS, dtype=np.int64)
        for batch in self.batches:
            counts += batch
        return Histogram(counts)

    def to_list(self) -> list[dict[str, list[int]]]:
        """Return the pieces, JSON-ready."""
        return [Histogram(batch).to_dict() for batch in self.batches]
