"""Several short runs of one server put together into one report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from loadtest.capacity import measured
from loadtest.config import Slo
from loadtest.measure import figures
from loadtest.report import Report


def joined(reports: Sequence[Report]) -> Report:
    """Return one report over the measured parts of several runs, laid end to end.

    Figures are computed anew from all records; what is not about requests is taken from the last run, and cost from its
    own figures scaled by the joint throughput.
    """
    if len(reports) == 1:
        return reports[0]
    parts, ends = [], []
    at = 0.0
    for report in reports:
        part = measured(report).copy()
        shift = at - report.data["load"]["warmup_s"]
        for name in ("intended", "dispatched", "sent", "first", "last", "end"):
            part[name] += shift
        parts.append(part)
        at += report.data["load"]["duration_s"]
        ends.append(at)
    records = np.concatenate(parts)
    last = reports[-1].data
    data: dict[str, Any] = {**last, **figures(records, (0.0, at), Slo(), {})}
    data["load"] = {**last["load"], "warmup_s": 0.0, "cooldown_s": 0.0, "duration_s": at}
    data["seed"] = reports[0].data["seed"]
    data["rounds_end_s"] = ends
    data["valid"] = all(r.valid for r in reports)
    data["invalid_because"] = [text for r in reports for text in r.data["invalid_because"]]
    data["partial"] = any(r.partial for r in reports)
    again = [r.data["retries"] for r in reports]
    by_kind: Counter[str] = Counter()
    for one in again:
        by_kind.update(one["by_kind"])
    totals = {key: sum(one[key] for one in again) for key in ("requests", "tries", "recovered")}
    data["retries"] = {"limit": again[0]["limit"], **totals, "by_kind": dict(by_kind)}
    query, rate = last["cost"]["usd_per_query"], data["throughput_rps"]
    if query["value"] is not None and rate["value"]:
        hourly = query["value"] * last["throughput_rps"]["value"]
        prices = {
            k: None if not rate[v] else hourly / rate[v]
            for k, v in (("value", "value"), ("low", "high"), ("high", "low"))
        }
        data["cost"] = {**last["cost"], "usd_per_query": {**prices, "n": rate["n"]}}
    return Report(data, records)
