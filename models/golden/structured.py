"""Acceptance rules for answers that are JSON objects, and for questions that must not be answered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from models.golden.rules import MAX_REGEX_ANSWER, RULES, normalize, register

# What counts as declining to answer, normalized; `accept.phrases` replaces the list.
ABSTENTIONS = (
    "cannot tell",
    "can not tell",
    "can't tell",
    "cannot determine",
    "unable to determine",
    "not visible",
    "not readable",
    "unreadable",
    "illegible",
    "unknown",
    "unanswerable",
    "not enough information",
    "i don't know",
    "n/a",
    "none",
    "null",
)


def find_object(answer: str) -> dict[str, Any] | None:
    """Return the first JSON object in `answer` (prose and code fences around it are allowed), or None."""
    if len(answer) > MAX_REGEX_ANSWER:
        return None
    decoder = json.JSONDecoder()
    start = answer.find("{")
    while start >= 0:
        try:
            value, _ = decoder.raw_decode(answer, start)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            return value
        start = answer.find("{", start + 1)
    return None


def is_abstention(answer: str, phrases: tuple[str, ...] = ABSTENTIONS) -> bool:
    """Return whether the answer declines: one of the phrases is all of it, or begins it."""
    text = normalize(answer)
    return any(text == p or text.startswith(f"{p} ") for p in map(normalize, phrases))


@register
class JsonFields:
    """The answer holds a JSON object in which every expected field is right by its own rule.

    `expected` is an object; `accept.fields` gives rules by field: `{"total": {"rule": "numeric", "abs": 0.01}}`.
    Without one, numbers are compared as `numeric`, lists as `set` with `match: all`, null as absent or null, and text
    as `normalized`.  Fields that are not expected are ignored unless `accept.allow_extra` is false.
    """

    name: ClassVar[str] = "json"
    known_options: ClassVar[frozenset[str]] = frozenset({"fields", "allow_extra"})

    def validate(self, expected: Any, options: Mapping[str, Any]) -> str | None:
        if not isinstance(expected, dict) or not expected:
            return "expected must be an object with at least one field"
        fields = options.get("fields", {})
        if not isinstance(fields, dict) or not all(isinstance(f, dict) for f in fields.values()):
            return "accept.fields must be an object of rules"
        if not isinstance(options.get("allow_extra", True), bool):
            return "accept.allow_extra must be true or false"
        unknown = sorted(fields.keys() - expected.keys())
        if unknown:
            return f"accept.fields.{unknown[0]} is not an expected field"
        for field, value in expected.items():
            problem = self._validate_field(field, value, fields)
            if problem is not None:
                return problem
        return None

    def check(self, answer: str, expected: Any, options: Mapping[str, Any]) -> bool:
        right = self.fields(answer, expected, options)
        return bool(right) and all(right.values())

    def fields(self, answer: str, expected: Any, options: Mapping[str, Any]) -> dict[str, bool]:
        """Return, per expected field, whether it is right; one more, `(extra)`, is false where extras are forbidden."""
        given = find_object(answer)
        rules = options.get("fields", {})
        right = {f: given is not None and self._field(given.get(f), v, rules.get(f)) for f, v in expected.items()}
        if not options.get("allow_extra", True) and given is not None and given.keys() - expected.keys():
            right["(extra)"] = False
        return right

    @staticmethod
    def _default(value: Any) -> dict[str, Any]:
        if isinstance(value, list):
            return {"rule": "set", "match": "all"}
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        return {"rule": "numeric" if numeric else "normalized"}

    def _validate_field(self, field: str, value: Any, fields: Mapping[str, Any]) -> str | None:
        if value is None:
            return None
        spec = fields.get(field) or self._default(value)
        rule = RULES.get(str(spec.get("rule")))
        if rule is None or rule.name == self.name:
            return f"accept.fields.{field} has no known rule"
        options = {k: v for k, v in spec.items() if k != "rule"}
        extra = sorted(options.keys() - rule.known_options)
        if extra:
            return f"accept.fields.{field}: rule {rule.name} has no option {extra[0]}"
        problem = rule.validate(str(value).lower() if isinstance(value, bool) else value, options)
        return None if problem is None else f"field {field}: {problem}"

    def _field(self, given: Any, expected: Any, spec: Mapping[str, Any] | None) -> bool:
        if expected is None:
            return given is None or (isinstance(given, str) and (not given.strip() or is_abstention(given)))
        if given is None or isinstance(given, dict):
            return False
        chosen = spec or self._default(expected)
        options = {k: v for k, v in chosen.items() if k != "rule"}
        text = ", ".join(map(str, given)) if isinstance(given, list) else str(given)
        want = str(expected).lower() if isinstance(expected, bool) else expected
        return RULES[chosen["rule"]].check(text.lower() if isinstance(given, bool) else text, want, options)


@register
class Abstain:
    """The right answer is to decline: the image does not show it, or cannot be read.  `expected` is null."""

    name: ClassVar[str] = "abstain"
    known_options: ClassVar[frozenset[str]] = frozenset({"phrases"})

    def validate(self, expected: Any, options: Mapping[str, Any]) -> str | None:
        if expected is not None:
            return "expected must be null where the model should abstain"
        phrases = options.get("phrases", ["x"])
        if (
            not isinstance(phrases, list)
            or not phrases
            or not all(isinstance(p, str) and normalize(p) for p in phrases)
        ):
            return "accept.phrases must be a non-empty list of strings"
        return None

    def check(self, answer: str, expected: Any, options: Mapping[str, Any]) -> bool:
        return is_abstention(answer, tuple(options.get("phrases", ABSTENTIONS)))
