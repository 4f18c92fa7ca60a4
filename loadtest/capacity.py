"""The highest open-loop rate that keeps an SLO, with a confidence.

Search: the rate doubles until the SLO is broken or a queue grows, then the gap is halved (in ratio) until it is
narrower than the tolerance.  Confirmation: fresh, longer runs at the best rate found.  The rate is *certified* when
every term's interval lies on the right side of its limit.  Requiring all terms at once needs no correction (an
intersection-union test, Berger 1982); the `ATTEMPTS` rates that may be tried for a certificate share the 5 % between
them (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from loadtest.client import Kind
from loadtest.report import Report
from loadtest.slo import Term
from loadtest.stats import CONFIDENCE, Figure
from models.support.errors import FoveaError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ATTEMPTS = 4
# Each attempt may wrongly pass with 5 % / ATTEMPTS; one-sided, so the two-sided interval leaves twice that outside.
CERTIFY = 1 - 2 * (1 - CONFIDENCE) / ATTEMPTS

RunAt = Callable[[float, float, int], Report]


@dataclass
class Step:
    """One run of the search."""

    rate: float
    purpose: str
    report: Report = field(repr=False)
    records: NDArray[np.void] = field(repr=False)
    figures: list[Figure] = field(default_factory=list)
    queue_grows: bool = False
    passed: bool = False
    certain: bool = False

    def row(self, terms: list[Term]) -> dict[str, Any]:
        """Return the step as a row of the report."""
        data = self.report.data
        return {
            "rate": self.rate,
            "purpose": self.purpose,
            "passed": self.passed,
            "certain": self.certain,
            "queue_grows": self.queue_grows,
            "valid": self.report.valid,
            "requests": data["requests"],
            "throughput_rps": data["throughput_rps"],
            "latency_ms": {k: data["latency_ms"][k] for k in ("p50", "p95", "p99")},
            "terms": [
                {
                    "term": t.text,
                    "metric": t.metric,
                    "q": t.q,
                    "limit": t.limit,
                    "unit": "share" if t.q is None else "ms",
                    **f.to_dict(),
                }
                for t, f in zip(terms, self.figures, strict=True)
            ],
        }


def measured(report: Report) -> NDArray[np.void]:
    """Return the records of the measured part."""
    low = report.data["load"]["warmup_s"]
    high = low + report.data["load"]["duration_s"]
    records = report.records
    return records[(records["intended"] >= low) & (records["intended"] < high)]


def queue_grows(records: NDArray[np.void]) -> bool:
    """Return whether more and more requests were under way: the server did not keep up with the rate.

    The mean number under way in the last quarter of the run is compared with that in the second quarter.
    """
    if len(records) < 20:
        return False
    begin, end = float(records["intended"][0]), float(records["intended"][-1])
    grid = np.linspace(begin, end, 201)[1:]
    under_way = np.searchsorted(np.sort(records["intended"]), grid) - np.searchsorted(np.sort(records["end"]), grid)
    second, last = under_way[50:100].mean(), under_way[150:].mean()
    return bool(last > 1.5 * second + 3)


def judge(step: Step, terms: list[Term], confidence: float = CONFIDENCE) -> None:
    """Fill in what a step shows about each term."""
    step.figures = [term.figure(step.records, confidence) for term in terms]
    step.queue_grows = queue_grows(step.records)
    some = bool((step.records["kind"] == Kind.OK).any())
    seems = all(term.seems(figure) for term, figure in zip(terms, step.figures, strict=True))
    step.passed = some and seems and not step.queue_grows and step.report.valid
    step.certain = step.passed and all(t.holds(f) is True for t, f in zip(terms, step.figures, strict=True))


@dataclass
class Capacity:
    """What the search found.

    `rate` is the certified rate, None when none could be; `best` the highest rate that seemed to keep the SLO;
    `broken` the lowest that broke it (None: none did up to the highest rate tried).  `partial`: the search did not get
    to its end, because it was stopped or because of `error`.
    """

    rate: float | None = None
    best: float = 0.0
    broken: float | None = None
    steps: list[Step] = field(default_factory=list)
    reason: str = ""
    partial: bool = False
    error: FoveaError | None = None


def find_capacity(
    run_at: RunAt,
    terms: list[Term],
    *,
    start: float,
    highest: float,
    step_s: float,
    confirm_s: float,
    tolerance: float = 0.1,
    tell: Callable[[Step], None] = lambda step: None,
) -> Capacity:
    """Search for the capacity.

    Args:
        run_at: runs the load at (rate, seconds, number of the run) and returns its report.
        start: first rate tried; highest: no rate above it is.
        step_s, confirm_s: length of a search run and of a confirmation run, in seconds.
        tolerance: relative width of the gap between kept and broken at which the search ends.

    Raises:
        FoveaError: the very first run was not possible.  Later ones end the search, and what it found is kept.
    """
    found = Capacity()

    def probe(rate: float, seconds: float, purpose: str, confidence: float = CONFIDENCE) -> Step:
        report = run_at(rate, seconds, len(found.steps))
        step = Step(rate, purpose, report, measured(report))
        judge(step, terms, confidence)
        found.steps.append(step)
        tell(step)
        if report.partial:
            raise KeyboardInterrupt
        return step

    try:
        _search(found, probe, start, highest, step_s, tolerance)
        if not found.reason:
            _confirm(found, probe, terms, confirm_s, tolerance)
    except (KeyboardInterrupt, FoveaError) as error:
        if not found.steps:
            raise
        found.partial = True
        found.error = error if isinstance(error, FoveaError) else None
        found.reason = f"stopped: {error}" if found.error else "stopped"
    return found


def _search(
    found: Capacity, probe: Callable[..., Step], start: float, highest: float, step_s: float, tolerance: float
) -> None:
    """Close in on the limit from both sides."""
    rate = start
    while True:
        if probe(rate, step_s, "search").passed:
            found.best = rate
        else:
            found.broken = rate
        if found.broken is None:
            if rate >= highest:
                return
            rate = min(highest, rate * 2)
        elif found.best == 0.0:
            rate /= 2
            if rate < start / 64:
                found.reason = "the SLO is broken even at a very low rate"
                return
        elif found.broken / found.best <= 1 + tolerance:
            return
        else:
            rate = math.sqrt(found.best * found.broken)


def _confirm(
    found: Capacity, probe: Callable[..., Step], terms: list[Term], confirm_s: float, tolerance: float
) -> None:
    """Certify the best rate, or one a little below it."""
    rate = found.best
    for _ in range(ATTEMPTS):
        step = probe(rate, confirm_s, "confirm", CERTIFY)
        if step.certain:
            found.rate = rate
            return
        if not step.passed:
            found.broken = rate if found.broken is None else min(found.broken, rate)
        rate /= 1 + tolerance
    found.reason = undecided(found.steps[-1], terms)


def undecided(step: Step, terms: list[Term]) -> str:
    """Return why the last confirmation did not certify the rate."""
    if not step.report.valid:
        return "the load generator was late: " + "; ".join(step.report.data["invalid_because"])
    if step.queue_grows:
        return "a queue grew"
    short = [t.text for t, f in zip(terms, step.figures, strict=True) if f.value is None]
    if short:
        return f"too few requests to decide {', '.join(short)}: lengthen --confirm"
    open_terms = [t.text for t, f in zip(terms, step.figures, strict=True) if t.holds(f) is not True]
    return f"the interval of {', '.join(open_terms)} reaches over its limit: lengthen --confirm"
