"""Service-level objectives as text: `p95<2s,ttft_p99<500ms,errors<0.1%,accuracy>0.9`.

A term is a metric, `<` or `>`, and a limit.  Metrics: `pNN` (end to end from the intended send), `ttft_pNN`,
`tpot_pNN`, `service_pNN` with `ms` or `s`; `errors`, `accuracy` with a share or `%`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from loadtest.client import Kind
from loadtest.measure import durations
from loadtest.stats import CONFIDENCE, Figure, percentile, proportion
from models.support.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TERM = re.compile(r"^\s*([a-z_]*?)_?(p\d{1,2}(?:\.\d+)?)?\s*([<>])=?\s*([0-9.eE+-]+)\s*(ms|s|%)?\s*$")
TIMED = {"": "latency", "latency": "latency", "ttft": "ttft", "tpot": "tpot", "service": "service"}
SHARES = ("errors", "accuracy")


@dataclass(frozen=True)
class Term:
    """One limit.  `limit` is in ms for times and a share (0 to 1) otherwise; `q` is None for shares."""

    text: str
    metric: str
    q: float | None
    less: bool
    limit: float

    def figure(self, records: NDArray[np.void], confidence: float = CONFIDENCE) -> Figure:
        """Return what the records (of the measured part, in order) say about this metric."""
        over = records[records["kind"] != Kind.UNFINISHED]
        if self.metric == "errors":
            return proportion(over["kind"] != Kind.OK, confidence=confidence)
        ok = over[over["kind"] == Kind.OK]
        if self.metric == "accuracy":
            return proportion(ok["correct"][ok["correct"] >= 0] == 1, confidence=confidence)
        assert self.q is not None
        values = durations(ok)[self.metric]
        return percentile(values[np.isfinite(values)], self.q, confidence=confidence)

    def holds(self, figure: Figure) -> bool | None:
        """Return True when the whole interval keeps the limit, False when it breaks it, None when it does neither."""
        if figure.value is None or figure.low is None or figure.high is None:
            return None
        if self.less:
            return True if figure.high <= self.limit else False if figure.low > self.limit else None
        return True if figure.low >= self.limit else False if figure.high < self.limit else None

    def seems(self, figure: Figure) -> bool:
        """Return whether the value alone keeps the limit; True when there is no value yet."""
        if figure.value is None:
            return True
        return figure.value <= self.limit if self.less else figure.value >= self.limit


def parse_slo(text: str) -> list[Term]:
    """Return the terms of an SLO.

    Raises:
        UsageError: a term cannot be read; it is named.
    """
    return [_term(part) for part in text.split(",")]


def _term(text: str) -> Term:
    match = _TERM.match(text)
    example = "for instance p95<2s, ttft_p99<500ms, errors<0.1%, accuracy>0.9"
    if match is None:
        raise UsageError("cannot read this term", field="--slo", value=text.strip(), fix=example)
    metric, percent, sign, number, unit = match.groups()
    try:
        limit = float(number)
    except ValueError as error:
        raise UsageError("not a number", field="--slo", value=text.strip(), fix=example) from error
    if metric in SHARES and percent is None:
        if unit in ("ms", "s"):
            raise UsageError(f"{metric} is a share", field="--slo", value=text.strip(), fix=example)
        limit = limit / 100 if unit == "%" else limit
        if not 0 <= limit <= 1 or (metric == "errors") != (sign == "<"):
            raise UsageError("must read errors<SHARE or accuracy>SHARE", field="--slo", value=text.strip(), fix=example)
        return Term(text.strip(), metric, None, sign == "<", limit)
    if metric not in TIMED or percent is None or unit not in ("ms", "s") or sign != "<" or not limit > 0:
        fix = f"{example}; metrics are pNN, ttft_pNN, tpot_pNN, service_pNN, errors, accuracy"
        raise UsageError("not an objective", field="--slo", value=text.strip(), fix=fix)
    q = round(float(percent[1:]) / 100, 9)
    if not 0 < q < 1:
        raise UsageError("the percentile must lie between 0 and 100", field="--slo", value=text.strip(), fix=example)
    return Term(text.strip(), TIMED[metric], q, True, limit * (1000 if unit == "s" else 1))
