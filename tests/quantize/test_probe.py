"""Divergence of truncated distributions, and the picture's share of the first token."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.probe import Probe, divergence, kl, picture_share


def logs(*weights: float, rest: float = 0.0) -> dict[str, float]:
    total = sum(weights) + rest
    return {f"t{n}": math.log(w / total) for n, w in enumerate(weights)}


WEIGHTS = st.lists(st.floats(0.01, 10), min_size=2, max_size=20)


@settings(deadline=None)
@given(WEIGHTS, st.floats(0, 5))
def test_a_distribution_does_not_diverge_from_itself(weights: list[float], rest: float) -> None:
    p = logs(*weights, rest=rest)
    assert kl(p, p) == pytest.approx(0, abs=1e-6)


@settings(deadline=None)
@given(WEIGHTS, WEIGHTS)
def test_complete_distributions_have_the_textbook_value(a: list[float], b: list[float]) -> None:
    size = min(len(a), len(b))
    p, q = logs(*a[:size]), logs(*b[:size])
    expected = sum(math.exp(p[t]) * (p[t] - q[t]) for t in p)
    assert kl(p, q) == pytest.approx(max(0.0, expected), abs=1e-6)


def test_a_token_that_the_candidate_never_lists_diverges() -> None:
    p, q = logs(0.9, 0.1), {"other": math.log(0.999)}
    assert kl(p, q) > 5


def test_only_common_items_count_and_none_is_no_value() -> None:
    p, q = {"a": logs(1, 1), "b": logs(1, 2)}, {"b": logs(1, 2), "c": logs(1, 1)}
    found = divergence(p, q)
    assert found.n == 1 and found.value == pytest.approx(0, abs=1e-9)
    assert divergence(p, {}).value is None


def test_the_picture_is_what_text_does_not_take() -> None:
    found = picture_share(Probe({}, [20.0, 30.0, 40.0], [10.0, 12.0, 11.0], [40, 40, 40]))
    assert found is not None
    assert found["picture_ms"] == 19.0 and found["share"] == pytest.approx(19 / 30)
    assert found["picture_range_ms"] is None  # three times have no interval
    many = picture_share(Probe({}, [20.0, 30.0, 40.0] * 20, [10.0, 12.0, 11.0] * 20, [40] * 60))
    assert many is not None
    low, high = many["picture_range_ms"]
    assert 0 <= low <= many["picture_ms"] <= high <= 30.0
    assert picture_share(Probe({}, [20.0], [], [40])) is None
