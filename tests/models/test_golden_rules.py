"""Rules: which answers count as right."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.golden import RULES, normalize
from models.golden.structured import JsonFields


class TestRules:
    @pytest.mark.parametrize(
        ("rule", "expected", "options", "answer", "right"),
        [
            ("exact", "Red", {}, "Red", True),
            ("exact", "Red", {}, "red", False),
            ("exact", "Red", {}, "Red ", False),
            ("normalized", "red", {}, "  **Red!** ", True),
            ("normalized", "red", {}, "red shape", False),
            ("normalized", "3.14", {}, "314", False),
            ("normalized", "-5", {}, "5", False),
            ("normalized", "straße", {}, "STRASSE", True),
            ("normalized", "red", {}, "", False),
            ("set", ["gray", "grey"], {}, "Grey.", True),
            ("set", ["gray", "grey"], {}, "gray, grey", False),
            ("set", ["red", "dark blue"], {"match": "all"}, "Dark blue and red", True),
            ("set", ["red", "dark blue"], {"match": "all"}, "red, dark blue, teal", False),
            ("numeric", 42.1, {"abs": 0.05}, "The total is $42.14.", True),
            ("numeric", 42.1, {"abs": 0.05}, "42.16", False),
            ("numeric", 1234.5, {}, "1,234.50 EUR", True),
            ("numeric", 100, {"rel": 0.01}, "99", True),
            ("numeric", 100, {"rel": 0.01}, "98.9", False),
            ("numeric", 100, {"rel": 1}, "99 or 101", False),
            ("numeric", -3, {}, "−3 °C", True),
            ("numeric", 3, {}, "three", False),
            ("numeric", "7", {}, "7%", True),
            ("regex", "ab12", {"pattern": r"[a-z]{2}\d\d"}, " AB99\n", True),
            ("regex", "ab12", {"pattern": r"[a-z]{2}\d\d", "ignore_case": False}, "AB99", False),
            ("regex", "ab12", {"pattern": r"[a-z]{2}\d\d"}, "ab123", False),
        ],
    )
    def test_check(self, rule: str, expected: Any, options: dict[str, Any], answer: str, right: bool) -> None:
        assert RULES[rule].validate(expected, options) is None
        assert RULES[rule].check(answer, expected, options) is right

    @pytest.mark.parametrize(
        ("answer", "right"),
        [
            ('{"total": 42.1, "currency": "eur", "items": ["tea", "milk"], "tip": null, "paid": true}', True),
            (
                'So:\n```json\n{"total": "42.10 EUR", "currency": "EUR.", "items": "milk; tea", "paid": "True"}\n```',
                True,
            ),
            ('{"total": 42.2, "currency": "EUR", "items": ["tea", "milk"], "paid": true}', False),
            ('{"total": 42.1, "currency": "EUR", "items": ["tea"], "paid": true}', False),
            ('{"total": 42.1, "currency": "EUR", "items": ["tea", "milk"], "tip": 3, "paid": true}', False),
            ('{"total": 42.1, "currency": "EUR", "items": ["tea", "milk"], "paid": false}', False),
            ('{"total": 42.1', False),
            ("[]", False),
            ("", False),
        ],
    )
    def test_json(self, answer: str, right: bool) -> None:
        expected = {"total": 42.1, "currency": "EUR", "items": ["tea", "milk"], "tip": None, "paid": True}
        options = {"fields": {"total": {"rule": "numeric", "abs": 0.05}}}
        assert RULES["json"].validate(expected, options) is None
        assert RULES["json"].check(answer, expected, options) is right

    def test_json_by_field_and_extras(self) -> None:
        rule = JsonFields()
        assert rule.fields('{"a": "x", "b": 1, "c": 2}', {"a": "x", "b": 2}, {}) == {"a": True, "b": False}
        assert rule.fields("no", {"a": "x"}, {}) == {"a": False}
        strict = {"allow_extra": False}
        assert not rule.check('{"a": "x", "c": 2}', {"a": "x"}, strict) and rule.check('{"a": "x"}', {"a": "x"}, strict)

    @pytest.mark.parametrize(
        ("answer", "right"),
        [
            ("I don't know.", True),
            ("Cannot tell from this photo", True),
            ("", False),
            ("N/A", True),
            ("Red", False),
            ("unknowns", False),
        ],
    )
    def test_abstain(self, answer: str, right: bool) -> None:
        assert RULES["abstain"].check(answer, None, {}) is right
        assert RULES["abstain"].check("pass", None, {"phrases": ["pass"]})

    @pytest.mark.parametrize(
        ("rule", "expected", "options"),
        [
            ("json", {}, {}),
            ("json", [1], {}),
            ("json", {"a": 1}, {"fields": {"b": {"rule": "exact"}}}),
            ("json", {"a": 1}, {"fields": {"a": {"rule": "none"}}}),
            ("json", {"a": 1}, {"fields": {"a": {"rule": "json"}}}),
            ("json", {"a": 1}, {"fields": {"a": {"rule": "numeric", "tolerance": 1}}}),
            ("json", {"a": ""}, {}),
            ("json", {"a": 1}, {"allow_extra": 1}),
            ("abstain", "x", {}),
            ("abstain", None, {"phrases": []}),
            ("exact", 3, {}),
            ("normalized", "  ", {}),
            ("normalized", "?!", {}),
            ("set", [], {}),
            ("set", "red", {}),
            ("set", ["red", "."], {}),
            ("set", ["red"], {"match": "some"}),
            ("numeric", True, {}),
            ("numeric", "1 2", {}),
            ("numeric", float("nan"), {}),
            ("numeric", 1, {"abs": -1}),
            ("numeric", 1, {"rel": "x"}),
            ("regex", "a", {}),
            ("regex", "a", {"pattern": "a", "ignore_case": 1}),
        ],
    )
    def test_validate_refuses(self, rule: str, expected: Any, options: dict[str, Any]) -> None:
        assert RULES[rule].validate(expected, options) is not None

    @given(st.text())
    def test_normalize_is_idempotent(self, text: str) -> None:
        assert normalize(normalize(text)) == normalize(text)

    @given(st.text(min_size=1), st.text())
    def test_check_never_raises(self, expected: str, answer: str) -> None:
        assert RULES["json"].check(answer, {"a": expected}, {}) in (True, False)
        assert RULES["abstain"].check(answer, None, {}) in (True, False)
        cases: list[tuple[str, dict[str, Any]]] = [
            ("exact", {}),
            ("normalized", {}),
            ("numeric", {"abs": 1}),
            ("regex", {"pattern": "a|b"}),
        ]
        for name, options in cases:
            assert RULES[name].check(answer, expected, options) in (True, False)
        assert RULES["set"].check(answer, [expected], {"match": "all"}) in (True, False)

    @given(st.floats(-1e9, 1e9), st.floats(0, 1e3))
    def test_numeric_accepts_exactly_the_tolerance(self, expected: float, tolerance: float) -> None:
        check = RULES["numeric"].check
        assert check(repr(expected), expected, {"abs": tolerance})
        far = expected + tolerance * 1.01 + 1
        assert not check(repr(far), expected, {"abs": tolerance})
