"""Figures for the ROI page from live or recorded data, each with its source."""

from __future__ import annotations

import math
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from loadtest.baselines import read_report
from models.cost.forecast import HOURS_PER_MONTH
from models.support.errors import UsageError

LARGEST = 50 * 2**20
PRICED = "fovea_priced_answers_total"
ANSWERS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


@dataclass(frozen=True)
class Datum:
    """One figure and where it is from."""

    value: Decimal
    source: str


def _figure(number: float | str | None) -> Decimal | None:
    return None if number is None else Decimal(str(number))


def from_load_test(path: str) -> dict[str, Datum]:
    """Return the figures of a load test's report.  Raises UsageError as `read_report`."""
    data = read_report(path)
    if data["kind"] != "loadtest":
        raise UsageError("is not a load test's report", field="data.report", value=path, fix="name its report.json")
    where = f"load test of {data['started'][:10]}, {path}"
    p95 = data["latency_ms"]["p95"]
    found = {
        "accuracy": (data["accuracy"]["value"], data["accuracy"]["n"]),
        "error_rate": (data["error_rate"]["value"], data["error_rate"]["n"]),
        "p95_s": (None if p95["value"] is None else p95["value"] / 1000, p95["n"]),
        "usd_per_query": (data["cost"]["usd_per_query"]["value"], data["cost"]["usd_per_query"]["n"]),
    }
    return _named("report", {k: (_figure(v), f"{where}, n = {n:,}") for k, (v, n) in found.items()})


def from_cost(path: str) -> dict[str, Datum]:
    """Return the figures of a cost.json.  Raises UsageError when it is none."""
    import json

    file = Path(path)
    file = file / "cost.json" if file.is_dir() else file
    try:
        data = json.loads(file.read_bytes())
        cost = data["cost"] if data["kind"] == "cost" else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "not a cost report"
        raise UsageError(f"cannot read: {reason}", field="data.cost", value=path, fix="name a cost.json") from error
    if cost is None:
        raise UsageError("is not a cost report", field="data.cost", value=path, fix="name a cost.json")
    keys = ("usd_per_query", "usd_per_successful_answer", "usd_per_month", "queries_per_month", "success_rate")
    where = f"cost of the whole path, {path}"
    return _named("cost", {k: (_figure(cost[k]), where) for k in keys})


def from_metrics(where: str, now: Callable[[], float] = time.time) -> dict[str, Datum]:
    """Return the figures of a server's `/metrics`: an http(s) URL, or a file that holds such text.

    Counters run since the server started (`process_start_time_seconds`), and are scaled from there to a month of 730
    hours.  P95 is interpolated in the histogram's buckets, as Prometheus' `histogram_quantile` does.

    Raises:
        UsageError: it cannot be read, or there are no requests in it.
    """
    from prometheus_client.parser import text_string_to_metric_families

    text, seen = _read(where, now)
    sums: dict[str, Decimal] = {}
    starts: list[float] = []
    buckets: dict[float, float] = {}

    def add(name: str, value: float) -> None:
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}")
        sums[name] = sums.get(name, Decimal(0)) + Decimal(repr(value))

    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                answer = sample.labels.get("route") in ANSWERS
                if sample.name == "process_start_time_seconds":
                    starts.append(sample.value)
                elif sample.name == "fovea_requests_total" and answer:
                    add(f"status {sample.labels['status']}", sample.value)
                elif sample.name == "fovea_request_seconds_bucket" and answer:
                    edge = float(sample.labels["le"])
                    buckets[edge] = buckets.get(edge, 0.0) + sample.value
                elif sample.name in ("fovea_usd_total", "fovea_cache_saved_usd_total", PRICED):
                    add(sample.name, sample.value)
                elif sample.name == "fovea_vendor_usd_avoided_total":
                    add(f"avoided {sample.labels['vendor_model']}", sample.value)
    except (ValueError, KeyError) as error:
        raise UsageError(
            f"not Prometheus text: {error}", field="data.metrics", value=where, fix="save what GET /metrics answers"
        ) from error
    answered, failed = sums.get("status 2xx", Decimal(0)), sums.get("status 5xx", Decimal(0))
    if not answered:
        fix = "ask again once it has served"
        raise UsageError("no answered request in it", field="data.metrics", value=where, fix=fix)
    hours = (seen - min(starts)) / 3600 if starts else 0.0
    source = f"server metrics, {where}, {hours:.3g} h, n = {answered + failed:,.0f}"
    found = {
        "error_rate": failed / (answered + failed),
        "availability": answered / (answered + failed),
        "p95_s": _quantile(buckets, 0.95),
    }
    queries = sums.get(PRICED) or answered  # the readiness probe's requests are no queries
    if "fovea_usd_total" in sums:
        found["usd_per_query"] = sums["fovea_usd_total"] / queries
    if hours > 0:
        month = HOURS_PER_MONTH / Decimal(repr(hours))
        found["queries_per_month"] = queries * month
        for name, value in sums.items():
            if name.startswith("avoided "):
                found[f"avoided_usd_per_month.{name.removeprefix('avoided ')}"] = value * month
        if "fovea_usd_total" in sums:
            found["usd_per_month"] = sums["fovea_usd_total"] * month
            found["cache_saved_usd_per_month"] = sums.get("fovea_cache_saved_usd_total", Decimal(0)) * month
    return _named("metrics", {name: (value, source) for name, value in found.items()})


def _named(prefix: str, found: dict[str, tuple[Decimal | None, str]]) -> dict[str, Datum]:
    return {f"{prefix}.{k}": Datum(value, source) for k, (value, source) in found.items() if value is not None}


def _read(where: str, now: Callable[[], float]) -> tuple[str, float]:
    """Return the text, and when it was true."""
    try:
        if where.startswith(("http://", "https://")):
            with urllib.request.urlopen(where, timeout=10) as reply:
                return reply.read(LARGEST).decode("utf-8"), now()
        path = Path(where)
        return path.read_text(encoding="utf-8"), path.stat().st_mtime
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise UsageError(
            f"cannot read: {reason}", field="data.metrics", value=where, fix="name an existing file"
        ) from error


def _quantile(buckets: dict[float, float], q: float) -> Decimal | None:
    """Return the quantile of cumulative bucket counts, None when it lies above the last finite edge."""
    edges = sorted(buckets)
    if not edges or not buckets[edges[-1]]:
        return None
    rank, before, low = q * buckets[edges[-1]], 0.0, 0.0
    for edge in edges:
        if buckets[edge] >= rank:
            if math.isinf(edge):
                return None
            return Decimal(f"{low + (edge - low) * (rank - before) / (buckets[edge] - before):.6g}")
        before, low = buckets[edge], edge
    return None


def gather(report: str | None, cost: str | None, metrics: str | None) -> dict[str, Datum]:
    """Return all figures by name, such as `report.accuracy` or `metrics.usd_per_month`."""
    found: dict[str, Datum] = {}
    for given, read in ((report, from_load_test), (cost, from_cost), (metrics, from_metrics)):
        if given is not None:
            found |= read(given)
    return found


def pick(data: dict[str, Datum], name: str, where: str) -> Datum:
    """Return a figure by name.  Raises UsageError with the known names."""
    if name not in data:
        known = ", ".join(sorted(data)) or "none: name a report, cost or metrics under data"
        raise UsageError("no such figure in the data", field=where, value=name, fix=f"known: {known}")
    return data[name]


__all__ = ["Datum", "from_cost", "from_load_test", "from_metrics", "gather", "pick"]
