"""Recovery and the verdict."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.support.errors import UsageError
from quantize.recovery import Recovery, recovery
from quantize.verdict import Thresholds, decide, load_thresholds

PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200)


def of(both: int, lost: int, won: int, neither: int) -> Recovery:
    parent = [True] * (both + lost) + [False] * (won + neither)
    candidate = [True] * both + [False] * lost + [True] * won + [False] * neither
    return recovery(parent, candidate)


@settings(deadline=None)
@given(PAIRS)
def test_the_interval_holds_the_value(pairs: list[tuple[bool, bool]]) -> None:
    found = recovery([p for p, _ in pairs], [c for _, c in pairs])
    if found.value is None:
        assert not any(p for p, _ in pairs)
        return
    assert found.low is not None and found.high is not None
    assert 0 <= found.low <= found.value <= found.high
    assert found.value == pytest.approx(sum(c for _, c in pairs) / sum(p for p, _ in pairs))


def test_a_small_sample_without_a_flip_proves_little() -> None:
    few, many = of(50, 0, 0, 0), of(5000, 0, 0, 0)
    assert few.value == many.value == 1.0
    assert few.low is not None and few.low < 0.98
    assert many.low is not None and many.low > 0.999


def test_the_interval_covers_the_truth_nineteen_times_in_twenty() -> None:
    # parent right 95 %, candidate keeps 97 % of these and wins 20 % of the rest: true recovery 0.98052...
    rng, covered, rounds = random.Random(7), 0, 600
    truth = (0.95 * 0.97 + 0.05 * 0.2) / 0.95
    for _ in range(rounds):
        parent = [rng.random() < 0.95 for _ in range(500)]
        candidate = [rng.random() < (0.97 if p else 0.2) for p in parent]
        found = recovery(parent, candidate)
        assert found.low is not None and found.high is not None
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / rounds <= 0.985


def test_pass_fail_and_not_enough() -> None:
    limits = Thresholds(recovery=0.98, items=300)
    assert decide(limits, of(4900, 20, 15, 65), {}, {}).outcome == "pass"
    assert decide(limits, of(4000, 900, 10, 90), {}, {}).outcome == "fail"
    open_verdict = decide(limits, of(380, 5, 2, 13), {}, {})
    assert open_verdict.outcome == "not enough items"
    assert "items would show it" in open_verdict.sentence
    assert decide(limits, of(100, 0, 0, 0), {}, {}).outcome == "not enough items"


def test_a_failed_category_is_named_even_when_the_whole_holds() -> None:
    limits = Thresholds(recovery=0.98, category_recovery=0.95, items=300)
    verdict = decide(limits, of(9900, 50, 20, 30), {"color": of(9000, 0, 0, 0), "digits": of(60, 40, 0, 0)}, {})
    assert verdict.outcome == "fail"
    assert verdict.failed_categories == ["digits"]
    assert "digits" in verdict.sentence


def test_a_small_category_does_not_fail_by_chance() -> None:
    limits = Thresholds(recovery=0.98, category_recovery=0.95, items=300)
    verdict = decide(limits, of(9900, 20, 20, 60), {"rare": of(9, 1, 0, 0)}, {})
    assert verdict.outcome == "pass"
    assert "not shown to fail" in verdict.checks[1].text


def test_other_limits() -> None:
    limits = Thresholds(recovery=0.9, items=10, divergence=0.05, p95_ratio=1.2)
    good = of(4900, 20, 15, 65)
    assert decide(limits, good, {}, {"divergence": 0.01, "p95_ratio": 1.0}).outcome == "pass"
    failed = decide(limits, good, {}, {"divergence": 0.2, "p95_ratio": 1.0})
    assert failed.outcome == "fail" and "divergence 0.2, at most 0.05 asked" in failed.sentence
    missing = decide(limits, good, {}, {"divergence": 0.01, "p95_ratio": None})
    assert missing.outcome == "not enough items" and "p95_ratio not measured" in missing.sentence


def test_a_parent_that_is_never_right_gives_no_verdict() -> None:
    assert decide(Thresholds(recovery=0.9, items=1), of(0, 0, 3, 400), {}, {}).outcome == "not enough items"


def test_the_shipped_thresholds() -> None:
    assert load_thresholds("w8a8").recovery == 0.99
    assert load_thresholds("w4a16").recovery == 0.98
    assert load_thresholds("w4a16").items == load_thresholds("w8a8").items == 300


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("default: {recovery: 2}", "default.recovery"),
        ("default: {recovery: 0.9, recovry: 1}", "recovry"),
        ("schemes: {}", "default"),
        ("default: {recovery: 0.9}\nschemes: {w3: {items: 1}}", "unknown scheme"),
        ("default: {recovery: 0.9}\nschemes: {w8a8: {items: 0}}", "items"),
        ("default: [", "not YAML"),
    ],
)
def test_a_wrong_file_of_thresholds_is_one_error(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        load_thresholds("w8a8", path)
    with pytest.raises(UsageError, match="cannot read"):
        load_thresholds("w8a8", tmp_path / "none.yaml")
