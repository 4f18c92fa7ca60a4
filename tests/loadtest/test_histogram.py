"""The histogram keeps three digits, merges without loss, and speaks HdrHistogram's format."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from loadtest.histogram import BatchedHistogram, Histogram, bucket_bounds, bucket_of

SECONDS = st.lists(st.floats(0, 5000), min_size=1, max_size=200)


@given(st.lists(st.integers(0, (1 << 36) - 1), min_size=1, max_size=50))
def test_a_value_lies_in_its_bucket_which_is_narrow(values: list[int]) -> None:
    array = np.array(values, dtype=np.int64)
    low, high = bucket_bounds(bucket_of(array))
    assert (low <= array).all() and (array < high).all()
    assert ((high - low) * 1024 <= np.maximum(low, 1024)).all()


@given(SECONDS, SECONDS)
def test_merging_is_the_same_as_recording_together(a: list[float], b: list[float]) -> None:
    together, one, two = Histogram(), Histogram(), Histogram()
    together.record(np.array(a + b))
    one.record(np.array(a))
    two.record(np.array(b))
    one.merge(Histogram.from_dict(two.to_dict()))
    assert (one.counts == together.counts).all() and one.n == len(a) + len(b)


@given(SECONDS, st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_percentiles_are_right_to_a_thousandth(values: list[float], q: float) -> None:
    histogram = Histogram()
    histogram.record(np.array(values))
    exact = sorted(values)[max(1, int(np.ceil(q * len(values) - 1e-9))) - 1]
    assert abs(histogram.percentile(q) - exact) <= exact / 1000 + 1e-6


def test_hdrhistogram_reads_what_is_encoded() -> None:
    from hdrh.histogram import HdrHistogram

    rng = np.random.default_rng(1)
    values = rng.lognormal(-3, 1, 5000)
    histogram = Histogram()
    histogram.record(values)
    other = HdrHistogram.decode(histogram.encode())
    assert other.get_total_count() == 5000
    for q in (50, 99, 99.9):
        assert abs(other.get_value_at_percentile(q) / 1e6 / histogram.percentile(q / 100) - 1) < 0.002


@given(st.lists(st.integers(1, 500), max_size=60))
def test_batches_keep_every_value_in_bounded_memory(sizes: list[int]) -> None:
    batched = BatchedHistogram()
    for size in sizes:
        batched.record(np.full(size, 0.01))
    assert batched.total().n == sum(sizes)
    assert len(batched.batches) <= batched.BATCHES
