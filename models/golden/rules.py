"""Acceptance rules: which answers to a question count as right.

A rule is one small class in the `RULES` registry, named by `accept.rule` of a golden item.  `validate` is called once
when a set is read, so that a broken rule is found before anything is asked; `check` is called per answer, never raises.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

# An answer longer than this is never right under `regex`: it bounds the work of a bad pattern.
MAX_REGEX_ANSWER = 10_000
_SPACE = re.compile(r"\s+")
_SPLIT = re.compile(r"[,;\n]|\band\b")
# 1,234.50 | 1234.5 | .5 | 1e-3, with an optional sign; thousands separators only in groups of three
_NUMBER = re.compile(
    r"(?<![\w.])[-+−]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?![\w]|\.\d)"
)


class Rule(Protocol):
    """One way to accept an answer.

    `options` are the keys of `accept` other than `rule`; `known_options` names those that the rule understands.
    """

    name: ClassVar[str]
    known_options: ClassVar[frozenset[str]]

    def validate(self, expected: Any, options: Mapping[str, Any]) -> str | None:
        """Return what is wrong with this expected answer and these options, or None."""
        ...

    def check(self, answer: str, expected: Any, options: Mapping[str, Any]) -> bool:
        """Return whether `answer` is right."""
        ...


RULES: dict[str, Rule] = {}


def register(cls: type[Any]) -> type[Any]:
    """Add a rule class to `RULES` (class decorator)."""
    RULES[cls.name] = cls()
    return cls


def _is_punctuation(char: str) -> bool:
    return unicodedata.category(char)[0] == "P" or char in "`^~|"


def normalize(text: str) -> str:
    """Return `text` casefolded (NFKC), with punctuation around each word and repeated white space removed.

    Punctuation *inside* a word stays (`3.14`, `wi-fi`), and so does a minus before a digit: dropping either would make
    different answers equal.
    """
    words = []
    # twice NFKC: casefolding can leave a text that is not normalized any more
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    for word in _SPACE.split(folded):
        start, end = 0, len(word)
        while end > start and _is_punctuation(word[end - 1]):
            end -= 1
        while start < end and _is_punctuation(word[start]):
            if word[start] in "-−" and start + 1 < end and word[start + 1].isdigit():
                break
            start += 1
        if start < end:
            words.append(word[start:end])
    return " ".join(words)


def parse_numbers(text: str) -> list[float]:
    """Return every number written in `text` (currency signs, percent signs and thousands commas allowed)."""
    return [float(m.group().replace(",", "").replace("−", "-")) for m in _NUMBER.finditer(text)]


def _needs_text(expected: Any) -> str | None:
    if not isinstance(expected, str):
        return f"expected must be a string, not {type(expected).__name__}"
    return None if expected.strip() else "expected is empty"


@register
class Exact:
    """The answer is the expected text, character for character."""

    name = "exact"
    known_options = frozenset[str]()

    def validate(self, expected: Any, options: Mapping[str, Any]) -> str | None:
        return _needs_text(expected)

    def check(self, answer: str, expected: Any, options: Mapping[str, Any]) -> bool:
        return bool(answer == expected)


@register
class Normalized:
    """The answer equals the expected text after `normalize` (case, punctuation, white space)."""

    name = "normalized"
    known_options = frozenset[str]()

    def validate(self, expected: Any, options: Mapping[str, Any]) -> str | None:
        problem = _needs_text(expected)
        if problem is None and not normalize(expected):
            return "expected is punctuation only; use rule exact"
        return problem

    def check(self, answer: str, expected: Any, options: Mapping[str, Any]) -> bool:
        return normalize(answer) == normalize(expected)


@register
class AnyOrAllOf:
    """`expected` is a list: the answer is one of them (`match: any`, the default) or lists all of them and nothing
    else, in any order, separated by commas, semicolons, line breaks or "and" (`match: all`).  Compared normalized."""

    name = "set"
    known_options = frozenset({"match"})

    def validate(self, expected: Any, options: Mapping[str, Any]) -> str | None:
        if not isinstance(expected, list) or not expected or not all(isinstance(e, str) for e in expected):
            return "expected must be a non-empty list of strings"
        if not all(normalize(e) for e in expected):
            return "expected has an empty entry"
        if options.get("match", "any") not in ("any", "all"):
            return "accept.match must be any or all"
        return None

    def check(self, answer: str, expected: Any, options: Mapping[str, Any]) -> bool:
        wanted = {normalize(e) for e in expected}
        if options.get("match", "any") == "any":
            return normalize(answer) in wanted
        given = {normalize(part) for part in _SPLIT.split(answer.casefold())}
        return given - {""} == wanted


@register
class Numeric:
    """The answer holds exactly one number, within `abs` or within `rel` x |expected| of the expected one.

    An answer with two numbers is wrong: a tolerance must not reward listing candidates.
    """

    name = "numeric"
    known_options = frozenset({"abs", "rel"})

    def validate(self, expected: Any, options: Mapping[str, Any]) -> str | None:
        if self._number(expected) is None:
            return "expected must be one finite number"
        for key in self.known_options & options.keys():
            value = options[key]
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                return f"accept.{key} must be a number >= 0"
        return None

    def check(self, answer: str, expected: Any, options: Mapping[str, Any]) -> bool:
        want, got = self._number(expected), parse_numbers(answer)
        if want is None or len(got) != 1:
            return False
        allowed = max(float(options.get("abs", 0.0)), float(options.get("rel", 0.0)) * abs(want))
        # one part in 1e12 forgives the binary rounding of decimal text (0.1 + 0.2), nothing a person would write
        return abs(got[0] - want) <= allowed + 1e-12 * max(1.0, abs(want))

    @staticmethod
    def _number(expected: Any) -> float | None:
        if isinstance(expected, bool):
            return None
        if isinstance(expected, int | float):
            return float(expected) if math.isfinite(expected) else None
        numbers = parse_numbers(expected) if isinstance(expected, str) else []
        return numbers[0] if len(numbers) == 1 and math.isfinite(numbers[0]) else None


@register
class Regex:
    """The whole answer, stripped, matches `accept.pattern` (`accept.ignore_case`, default true).

    `expected` is one right answer, for people to read; it must match the pattern itself.
    """

    name = "regex"
    known_options = frozenset({"pattern", "ignore_case"})

    def validate(self, expected: Any, options: Mapping[str, Any]) -> str | None:
        if not isinstance(options.get("pattern"), str):
            return "accept.pattern is missing"
        try:
            re.compile(options["pattern"])
        except re.error as error:
            return f"accept.pattern is not a regular expression: {error}"
        if not isinstance(options.get("ignore_case", True), bool):
            return "accept.ignore_case must be true or false"
        return _needs_text(expected)

    def check(self, answer: str, expected: Any, options: Mapping[str, Any]) -> bool:
        if len(answer) > MAX_REGEX_ANSWER:
            return False
        flags = re.IGNORECASE if options.get("ignore_case", True) else 0
        return re.fullmatch(options["pattern"], answer.strip(), flags | re.DOTALL) is not None
