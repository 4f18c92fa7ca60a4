"""From the records of a run to its figures.

Definitions (times in ms unless said otherwise; only successful requests, errors are counted apart):

    latency     last byte of the reply - intended send   (response time: what a user who came at that moment waits)
    service     last byte of the reply - actual send     (what most tools call latency)
    queue       actual send - intended send              (generator lateness, and waiting for or opening a connection)
    ttft        first content - intended send
    tpot        (last content - first content) / (output tokens - 1), for replies with at least two tokens
    inter_token pause between two arrivals of content (tokens that arrive together are one arrival)
    normalized  latency / output tokens
    goodput     share (and rate) of all requests, failed ones included, that meet every limit of the SLO at once
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from loadtest.client import Kind
from loadtest.config import Slo
from loadtest.histogram import BUCKETS, Histogram
from loadtest.recorder import error_name
from loadtest.stats import (
    Figure,
    inflation,
    inflation_of_pieces,
    mean,
    needed_n,
    percentile,
    proportion,
    quantile_ranks,
    rate,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Records = NDArray[np.void]
    Values = NDArray[np.float64]

PERCENTILES = (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p99_9", 0.999))
SLICES = 100  # of the run, for plots over time
CURVE = (*np.linspace(0.0, 0.98, 50), 0.985, 0.99, 0.9925, 0.995, 0.9975, 0.999, 0.9995, 0.9999, 1.0)


def durations(records: Records) -> dict[str, Values]:
    """Return the durations of successful requests in ms, by name; NaN where a request has none."""
    tokens = np.where(records["completion_tokens"] > 0, records["completion_tokens"], records["chunks"])
    with np.errstate(divide="ignore", invalid="ignore"):
        several = (tokens > 1) & (records["chunks"] > 1)
        tpot = np.where(several, (records["last"] - records["first"]) / np.maximum(tokens - 1, 1), np.nan)
        latency = records["end"] - records["intended"]
        values = {
            "latency": latency,
            "service": records["end"] - records["sent"],
            "queue": records["sent"] - records["intended"],
            "ttft": records["first"] - records["intended"],
            "tpot": tpot,
            "normalized": np.where(tokens > 0, latency / np.maximum(tokens, 1), np.nan),
        }
    return {name: value * 1e3 for name, value in values.items()}


def summary(values: Values) -> dict[str, Any]:
    """Return percentiles with intervals, mean, smallest and largest of `values` (NaN left out, order of the run)."""
    finite = values[np.isfinite(values)]
    out: dict[str, Any] = {name: percentile(finite, q).to_dict() for name, q in PERCENTILES}
    out["mean"] = mean(finite).to_dict()
    out["min"], out["max"] = (float(f"{f(finite):.6g}") if len(finite) else None for f in (np.min, np.max))
    return out


def curve(values: Values) -> list[list[float]]:
    """Return points (share, value) of the distribution, dense in the tail, for plots."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return []
    shares = [q for q in CURVE if q <= 0.98 or q == 1.0 or len(finite) * (1 - q) >= 1]
    return [[round(float(q), 6), float(f"{v:.5g}")] for q, v in zip(shares, np.quantile(finite, shares), strict=True)]


def histogram_summary(batches: list[dict[str, list[int]]]) -> dict[str, Any]:
    """Return percentiles (ms) of values that are only known as consecutive histograms."""
    parts = [Histogram.from_dict(b) for b in batches]
    total = np.zeros(BUCKETS, dtype=np.int64)
    for part in parts:
        total += part.counts
    whole = Histogram(total)
    n = whole.n
    out: dict[str, Any] = {}
    for name, q in PERCENTILES:
        if n < needed_n(q):
            out[name] = Figure(None, None, None, n, "n too small").to_dict()
            continue
        value = whole.percentile(q)
        above = np.searchsorted(np.cumsum(total), math.ceil(q * n))
        hits = np.array([p.counts[above + 1 :].sum() for p in parts], dtype=np.float64)
        ratio = inflation_of_pieces(hits, np.array([p.n for p in parts], dtype=np.float64))
        low, high = quantile_ranks(n, q, ratio)
        note = "" if n / ratio >= needed_n(q) else "rests on few episodes"
        # The interval reaches to the far edges of the buckets that its ends are in.
        ends = whole.bounds((low + 1) / n)[0], whole.bounds((high + 1) / n)[1]
        out[name] = Figure(value, *ends, n, note).scaled(1e3).to_dict()
    return out


def meets(records: Records, slo: Slo) -> NDArray[np.bool_]:
    """Return which requests succeeded within every limit."""
    good = records["kind"] == Kind.OK
    values = durations(records)
    for name, limit in (("ttft", slo.ttft_ms), ("tpot", slo.tpot_ms), ("latency", slo.latency_ms)):
        if limit is not None:
            # A reply of one token has no time per token and cannot break that limit.
            with np.errstate(invalid="ignore"):
                good = good & ((values[name] <= limit) | (np.isnan(values[name]) & (name == "tpot")))
    return np.asarray(good, dtype=bool)


def errors_by_kind(records: Records, examples: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Return one row per kind of error: name, count, first examples."""
    failed = records[(records["kind"] != Kind.OK) & (records["kind"] != Kind.UNFINISHED)]
    counts: dict[str, int] = {}
    pairs, times = np.unique(np.stack([failed["kind"], failed["status"]]), axis=1, return_counts=True)
    for kind, status, count in zip(pairs[0], pairs[1], times, strict=True):
        name = error_name(int(kind), int(status))
        counts[name] = counts.get(name, 0) + int(count)
    rows = [{"kind": name, "count": count, "examples": examples.get(name, [])} for name, count in counts.items()]
    return sorted(rows, key=lambda row: -int(str(row["count"])))


def throughput(records: Records, window: tuple[float, float]) -> Figure:
    """Return successful replies per second that ended within the window."""
    ok = records[records["kind"] == Kind.OK]
    inside = (ok["end"] >= window[0]) & (ok["end"] <= window[1])
    return rate(ok["end"][inside] - window[0], window[1] - window[0])


def made(records: Records, window: tuple[float, float]) -> Figure:
    """Return the successful replies per second that the engine made: `throughput` without those from a cache."""
    return throughput(records[records["recalled"] == 0], window)


def figures(
    everything: Records, window: tuple[float, float], slo: Slo, examples: dict[str, list[str]]
) -> dict[str, Any]:
    """Return the figures of one class of traffic (or of the whole run), JSON-ready.

    Args:
        everything: all records, warm-up and cool-down included, sorted by intended time.
        window: the measured part; requests count by their intended time, throughput by the end of the reply.
    """
    measured = everything[(everything["intended"] >= window[0]) & (everything["intended"] < window[1])]
    over = measured[measured["kind"] != Kind.UNFINISHED]
    ok = over[over["kind"] == Kind.OK]
    seconds = max(window[1] - window[0], 1e-9)
    values = durations(ok)
    scored = ok[ok["correct"] >= 0]
    rps = throughput(everything, window)
    out: dict[str, Any] = {
        "requests": len(over),
        "errors": int(len(over) - len(ok)),
        "unfinished": int(len(measured) - len(over)),
        "error_rate": proportion(over["kind"] != Kind.OK).to_dict(),
        "errors_by_kind": errors_by_kind(over, examples),
        "throughput_rps": rps.to_dict(),
        "made_rps": made(everything, window).to_dict(),
        "recalled": int(ok["recalled"].sum()),
        "offered_rps": float(f"{len(measured) / seconds:.6g}"),
    }
    for name in ("latency", "service", "queue", "ttft", "tpot", "normalized"):
        out[f"{name}_ms"] = summary(values[name])
    tokens = ok["completion_tokens"]
    known = tokens[tokens >= 0]
    prompt = ok["prompt_tokens"][ok["prompt_tokens"] >= 0]
    out["tokens"] = {
        "prompt_per_request": mean(prompt.astype(np.float64)).to_dict(),
        "completion_per_request": mean(known.astype(np.float64)).to_dict(),
        "completion_per_s": float(f"{known.sum() / seconds:.6g}"),
        "replies_without_usage": int(len(tokens) - len(known)),
    }
    accuracy = proportion(scored["correct"] == 1) if len(scored) else Figure(None, None, None, 0, "answers not scored")
    out["accuracy"] = accuracy.to_dict()
    if slo:
        good = meets(over, slo)
        share = proportion(good)
        out["goodput"] = {
            "slo": {k: v for k, v in slo.model_dump().items() if v is not None},
            "share": share.to_dict(),
            "rps": share.scaled(len(over) / seconds).to_dict(),
        }
    out["curves"] = {name: curve(values[name]) for name in ("latency", "service", "ttft", "tpot")}
    out["timeline"] = timeline(everything, window)
    out["n_eff_p99"] = _effective(values["latency"])
    return out


def _effective(latency: Values) -> int | None:
    if len(latency) < needed_n(0.99):
        return None
    cut = np.quantile(latency, 0.99)
    return int(len(latency) / inflation(latency > cut))


def timeline(records: Records, window: tuple[float, float]) -> list[dict[str, float | None]]:
    """Return what happened in equal slices of the whole run (by intended time): rates, errors, p50 and p99 in ms."""
    if not len(records):
        return []
    last = float(records["intended"].max())
    end = max(window[1], last) if math.isfinite(window[1]) else last
    edges = np.linspace(0.0, max(end, 1e-3), SLICES + 1)
    width = edges[1]
    which = np.clip(np.searchsorted(edges, records["intended"], side="right") - 1, 0, SLICES - 1)
    ended = np.histogram(records["end"][records["kind"] == Kind.OK], bins=edges)[0]
    latency = (records["end"] - records["intended"]) * 1e3
    first = (records["first"] - records["intended"]) * 1e3
    rows: list[dict[str, float | None]] = []
    for i in range(SLICES):
        inside = which == i
        ok = inside & (records["kind"] == Kind.OK)
        some = latency[ok]
        heard = first[ok][np.isfinite(first[ok])]
        row: dict[str, float | None] = {
            "t": float(edges[i] + width / 2),
            "offered_rps": float(inside.sum() / width),
            "done_rps": float(ended[i] / width),
            "errors": float((inside & (records["kind"] != Kind.OK) & (records["kind"] != Kind.UNFINISHED)).sum()),
            "p50_ms": float(np.median(some)) if len(some) else None,
            "p99_ms": float(np.quantile(some, 0.99)) if len(some) else None,
            "ttft_p50_ms": float(np.median(heard)) if len(heard) else None,
        }
        rows.append({k: v if v is None else float(f"{v:.5g}") for k, v in row.items()})
    return rows
