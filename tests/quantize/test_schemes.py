"""Schemes, methods and group sizes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.fit import SCHEMES as FIT_SCHEMES
from models.support.errors import UsageError
from quantize.schemes import GROUP_SIZES, SCHEMES, choose_group, find_method, find_scheme


def test_every_scheme_is_known_to_the_memory_table_or_says_so() -> None:
    for scheme in SCHEMES.values():
        assert scheme.fit is None or scheme.fit in FIT_SCHEMES
        assert scheme.methods


def test_a_typo_gets_the_closest_scheme() -> None:
    with pytest.raises(UsageError, match="w4a16") as caught:
        find_scheme("w4a61")
    assert caught.value.exit_code == 2
    assert find_scheme(" W8A8 ").name == "w8a8"


def test_method_defaults_and_refusals() -> None:
    assert find_method(find_scheme("w4a16"), None) == "gptq"
    assert find_method(find_scheme("w4a16"), "AWQ") == "awq"
    with pytest.raises(UsageError, match="fp8 has rtn"):
        find_method(find_scheme("fp8"), "gptq")


def test_the_largest_group_that_divides_every_width_is_taken() -> None:
    w4 = find_scheme("w4a16")
    assert choose_group(w4, {"a": 3584, "b": 18944}, None) == 128
    assert choose_group(w4, {"a": 192, "b": 512}, None) == 64
    assert choose_group(w4, {"a": 192, "b": 512}, 32) == 32
    with pytest.raises(UsageError, match=r"does not divide the 192 inputs of a .*; one of 64, 32"):
        choose_group(w4, {"a": 192, "b": 512}, 128)
    with pytest.raises(UsageError, match="which have no groups"):
        choose_group(w4, {"a": 100}, None)
    with pytest.raises(UsageError, match="no such group size"):
        choose_group(w4, {"a": 128}, 16)
    assert choose_group(find_scheme("w8a8"), {"a": 100}, None) is None
    with pytest.raises(UsageError, match="has no groups"):
        choose_group(find_scheme("w8a8"), {"a": 128}, 64)


@settings(deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 4096), min_size=1, max_size=6))
def test_a_chosen_group_always_divides(widths: dict[str, int]) -> None:
    try:
        group = choose_group(find_scheme("w4a16"), widths, None)
    except UsageError:
        assert any(width % GROUP_SIZES[-1] for width in widths.values())
    else:
        assert group in GROUP_SIZES
        assert all(width % group == 0 for width in widths.values())
