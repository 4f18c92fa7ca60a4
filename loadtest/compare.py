"""Two runs side by side: is B better than A, worse, or can one not tell?

Runs with the same seed send the same prompts at the same times, so request k of one is paired with request k of the
other.  Both runs are cut into the same consecutive blocks, and blocks are drawn with replacement, the same ones from
both (a paired moving-block bootstrap, Künsch 1989): what both runs share (a hard prompt, a burst of arrivals)
cancels out, and what hangs together in time stays together.  Runs that do not match are bootstrapped apart.

What differs from one turn to the next (a neighbour on the machine, a cache that fills) is not in a bootstrap within the
turns.  When both servers were loaded in turns, the interval is therefore at least as wide as Student's t of the
differences of the single rounds makes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from loadtest.capacity import measured
from loadtest.client import Kind
from loadtest.measure import durations
from loadtest.report import Report
from loadtest.stats import needed_n, student

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Sample = NDArray[np.float64]

RESAMPLES = 1000
BLOCKS = 40  # blocks of consecutive requests; enough for the bootstrap, long enough for what hangs together


@dataclass(frozen=True)
class Metric:
    """One thing to compare.

    Args:
        columns: gives the values per request, shape (n,), from the records; NaN where a request has none.
        q: the quantile that is compared, None for the mean.
        less_is_better: the direction.
        unit: of the figure.
    """

    name: str
    columns: Callable[[NDArray[np.void]], Sample]
    q: float | None
    less_is_better: bool
    unit: str


def _timed(name: str) -> Callable[[NDArray[np.void]], Sample]:
    def values(records: NDArray[np.void]) -> Sample:
        found = durations(records)[name]
        return np.where(records["kind"] == Kind.OK, found, np.nan)

    return values


def _errors(records: NDArray[np.void]) -> Sample:
    return np.where(records["kind"] == Kind.UNFINISHED, np.nan, (records["kind"] != Kind.OK).astype(np.float64))


def _right(records: NDArray[np.void]) -> Sample:
    return np.where(records["correct"] >= 0, records["correct"].astype(np.float64), np.nan)


def _tokens(records: NDArray[np.void]) -> Sample:
    return np.where(records["completion_tokens"] >= 0, records["completion_tokens"].astype(np.float64), np.nan)


def figure_of(metric: Metric, values: Sample) -> float:
    """Return the metric's figure of finite values."""
    return float(values.mean() if metric.q is None else np.quantile(values, metric.q))


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        *(
            Metric(f"{label}_{p}", _timed(source), q, True, "ms")
            for label, source in (("latency", "latency"), ("ttft", "ttft"), ("tpot", "tpot"), ("service", "service"))
            for p, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
        ),
        Metric("latency_mean", _timed("latency"), None, True, "ms"),
        Metric("errors", _errors, None, True, "share"),
        Metric("accuracy", _right, None, False, "share"),
        Metric("output_tokens", _tokens, None, True, "tokens"),
    )
}


def paired(a: NDArray[np.void], b: NDArray[np.void], reports: Sequence[Report]) -> bool:
    """Return whether request k of one run is the same question as request k of the other."""
    digests = [[w["digest"] for w in r.data["workload"]] for r in reports]
    return digests[0] == digests[1] and len(a) == len(b) and bool((a["item"] == b["item"]).all())


def by_request(records: NDArray[np.void]) -> NDArray[np.void]:
    """Return records in the order of the schedule (equal times keep the order of their items)."""
    return records[np.lexsort((records["item"], records["intended"]))]


def compare(
    a: Report, b: Report, *, seed: int = 0, usd: tuple[float | None, float | None] = (None, None)
) -> dict[str, Any]:
    """Return the comparison of two runs, JSON-ready: one row per metric that both have.

    Args:
        usd: dollars per hour of A and of B (divided by utilization), for the cost per query; None: from the reports.
    """
    first, second = by_request(measured(a)), by_request(measured(b))
    pair = paired(first, second, (a, b))
    rounds = (round_of(a, first), round_of(b, second))
    rows = []
    for metric in METRICS.values():
        row = compare_values(metric, metric.columns(first), metric.columns(second), pair, seed, rounds)
        if row is not None:
            rows.append(row)
    cost = compare_cost(a, b, usd)
    if cost is not None:
        rows.append(cost)
    return {
        "schema_version": "1.0",
        "kind": "compare",
        "paired": pair,
        "rows": rows,
        "a": _about(a),
        "b": _about(b),
        "warnings": _differences(a, b),
    }


Rounds = tuple["NDArray[np.int64]", "NDArray[np.int64]"]


def round_of(report: Report, records: NDArray[np.void]) -> NDArray[np.int64]:
    """Return the number of the round that each record is of, shape (n,); all 0 in a run without rounds."""
    ends = report.data.get("rounds_end_s", [])[:-1]
    return np.searchsorted(np.array(ends, dtype=np.float64), records["intended"], side="right").astype(np.int64)


def between_rounds(metric: Metric, a: Sample, b: Sample, rounds: Rounds) -> float:
    """Return half the width that the differences of the single rounds give an interval, 0 for fewer than two."""
    count = min(int(numbers.max(initial=-1)) + 1 for numbers in rounds)
    found = []
    for number in range(count):
        one, two = (v[(numbers == number) & np.isfinite(v)] for v, numbers in zip((a, b), rounds, strict=True))
        if len(one) and len(two):
            found.append(figure_of(metric, two) - figure_of(metric, one))
    if len(found) < 2:
        return 0.0
    return student(len(found) - 1) * float(np.std(found, ddof=1)) / math.sqrt(len(found))


def compare_values(
    metric: Metric, a: Sample, b: Sample, pair: bool, seed: int, rounds: Rounds | None = None
) -> dict[str, Any] | None:
    """Return one row of the comparison, or None when either run has no such values."""
    known = (a[np.isfinite(a)], b[np.isfinite(b)])
    sizes = [len(k) for k in known]
    if not min(sizes):
        return None
    row: dict[str, Any] = {"metric": metric.name, "unit": metric.unit, "n": sizes}
    if metric.q is not None and min(sizes) < needed_n(metric.q):
        return {**row, "a": None, "b": None, "difference": None, "verdict": "cannot tell", "note": "n too small"}
    values = [figure_of(metric, k) for k in known]
    draws = bootstrap(metric.q, a, b, pair, seed)
    low, high = (float(v) for v in np.quantile(draws, (0.025, 0.975)))
    difference = values[1] - values[0]
    if rounds is not None:
        half = between_rounds(metric, a, b, rounds)
        low, high = min(low, difference - half), max(high, difference + half)
    row |= {"a": _short(values[0]), "b": _short(values[1])}
    row["difference"] = {"value": _short(difference), "low": _short(low), "high": _short(high), "n": min(sizes)}
    if values[0]:
        row["relative"] = {k: _short(v / values[0]) for k, v in (("value", difference), ("low", low), ("high", high))}
    row["effect_size"] = effect_size(metric, *known)
    row["verdict"] = verdict(low, high, metric.less_is_better)
    return row


def bootstrap(q: float | None, a: Sample, b: Sample, pair: bool, seed: int) -> Sample:
    """Return `RESAMPLES` bootstrap draws of the figure of B minus that of A, shape (RESAMPLES,)."""
    rng = np.random.default_rng(seed)
    blocks = [min(BLOCKS, max(2, len(values) // 2)) for values in (a, b)]
    first = _weights(blocks[0], rng)
    second = first if pair else _weights(blocks[1], rng)
    draws = _draws(q, b, second) - _draws(q, a, first)
    return draws[np.isfinite(draws)]


def _weights(blocks: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return how often each block is drawn, shape (RESAMPLES, blocks)."""
    return rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=RESAMPLES)


def _draws(q: float | None, values: Sample, weights: NDArray[np.int64]) -> Sample:
    """Return the figure of each resample: the mean (q None) or the quantile, NaN values left out."""
    block = np.repeat(np.arange(weights.shape[1]), [len(p) for p in np.array_split(values, weights.shape[1])])
    known = np.isfinite(values)
    values, block = values[known], block[known]
    if q is None:
        counts = np.bincount(block, minlength=weights.shape[1])
        sums = np.bincount(block, values, minlength=weights.shape[1])
        with np.errstate(invalid="ignore"):
            return np.asarray((weights @ sums) / (weights @ counts))
    order = np.argsort(values, kind="stable")
    values, block = values[order], block[order]
    out = np.empty(len(weights))
    for i, row in enumerate(weights):
        upto = np.cumsum(row[block])  # each value counts as often as its block was drawn: no sorting per resample
        out[i] = values[np.searchsorted(upto, q * upto[-1])] if upto[-1] else math.nan
    return out


def effect_size(metric: Metric, a: Sample, b: Sample) -> dict[str, Any]:
    """Return Cliff's delta for times (share of pairs in which B is larger minus smaller), Cohen's h for shares."""
    if metric.unit == "share":
        h = 2 * math.asin(math.sqrt(float(b.mean()))) - 2 * math.asin(math.sqrt(float(a.mean())))
        return {"name": "Cohen's h", "value": _short(h)}
    ranked = np.sort(a)
    larger = np.searchsorted(ranked, b, side="left").mean() / len(a)
    smaller = 1 - np.searchsorted(ranked, b, side="right").mean() / len(a)
    return {"name": "Cliff's delta", "value": _short(float(larger - smaller))}


def verdict(low: float, high: float, less_is_better: bool) -> str:
    """Return better, worse or cannot tell for B, from the interval of B - A."""
    if low > 0:
        return "worse" if less_is_better else "better"
    if high < 0:
        return "better" if less_is_better else "worse"
    return "same" if low == high == 0 else "cannot tell"


def compare_cost(a: Report, b: Report, usd: tuple[float | None, float | None]) -> dict[str, Any] | None:
    """Return the row of dollars per query (relative errors of both added in squares), None without prices."""
    figures = []
    for report in (a, b):
        query = report.data["cost"]["usd_per_query"]
        if query["value"] is None or query["low"] is None or query["high"] is None:
            return None
        figures.append(query)
    ratio = figures[1]["value"] / figures[0]["value"]
    spread = [math.log(f["high"] / f["low"]) / 2 for f in figures]
    half = math.hypot(*spread)
    ends = [figures[0]["value"] * (ratio * math.exp(s * half) - 1) for s in (-1, 1)]
    difference = figures[1]["value"] - figures[0]["value"]
    return {
        "metric": "usd_per_query",
        "unit": "USD",
        "n": [f["n"] for f in figures],
        "a": figures[0]["value"],
        "b": figures[1]["value"],
        "difference": {
            "value": _short(difference),
            "low": _short(ends[0]),
            "high": _short(ends[1]),
            "n": figures[1]["n"],
        },
        "relative": {
            "value": _short(ratio - 1),
            "low": _short(ratio * math.exp(-half) - 1),
            "high": _short(ratio * math.exp(half) - 1),
        },
        "effect_size": {"name": "log ratio", "value": _short(math.log(ratio))},
        "verdict": verdict(ends[0], ends[1], True),
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _about(report: Report) -> dict[str, Any]:
    data = report.data
    about = ("command", "started", "seed", "target", "load", "versions", "hardware")
    keys = (*about, "requests", "errors", "valid", "partial", "latency_ms")
    return {**{k: data[k] for k in keys}, "curves": data["curves"], "timeline": data["timeline"]}


def _differences(a: Report, b: Report) -> list[str]:
    """Return what makes the comparison less than fair."""
    found = []
    for name, report in (("A", a), ("B", b)):
        if not report.valid:
            found.append(f"{name} is invalid: {'; '.join(report.data['invalid_because'])}")
        if report.partial:
            found.append(f"{name} is partial")
    if [w["digest"] for w in a.data["workload"]] != [w["digest"] for w in b.data["workload"]]:
        found.append("the workloads differ")
    if a.data["seed"] != b.data["seed"]:
        found.append("the seeds differ, so requests cannot be paired")

    def offered(report: Report) -> list[Any]:
        return [[c[k] for k in ("rate", "concurrency", "arrival", "trace")] for c in report.data["load"]["classes"]]

    if offered(a) != offered(b):
        found.append("the loads differ")
    return found
