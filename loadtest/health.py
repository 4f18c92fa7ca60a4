"""How well the load generator itself did: slip, loop lag, CPU, retries; and whether the run is valid."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from loadtest.config import RunConfig
from loadtest.histogram import Histogram

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUSY = 0.9  # share of a core above which the generator may be the limit
SLIP_BOUND_MS, SLIP_BOUND_SHARE = 20.0, 0.1


def generator_of(
    config: RunConfig, records: NDArray[np.void], summaries: list[dict[str, Any]], window: tuple[float, float]
) -> dict[str, Any]:
    """Return how well the generator itself did: slip, waiting for connections, loop lag, CPU."""
    measured = records[(records["intended"] >= window[0]) & (records["intended"] < window[1])]
    opened = np.isin(measured["cls"], [i for i, c in enumerate(config.classes) if c.open_loop])
    slip = (measured["dispatched"] - measured["intended"])[opened] * 1e3
    lag = Histogram()
    for one in summaries:
        lag.merge(Histogram.from_dict(one["lag"]))

    def points(values: NDArray[np.float64]) -> dict[str, float | None]:
        if not len(values):
            return {"p50": None, "p99": None, "max": None}
        at = np.quantile(values, (0.5, 0.99, 1.0))
        return {k: float(f"{v:.4g}") for k, v in zip(("p50", "p99", "max"), at, strict=True)}

    lags = (
        {k: float(f"{lag.percentile(q) * 1e3:.4g}") for k, q in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))}
        if lag.n
        else {}
    )
    return {
        "slip_ms": points(slip),
        "loop_lag_ms": lags,
        "cpu_cores": [round(float(s["cpu"]), 3) for s in summaries],
        "peak_connections": sum(s["peak_connections"] for s in summaries),
        "resent": int(measured["resent"].sum()),
    }


def retries_of(
    config: RunConfig, records: NDArray[np.void], summaries: list[dict[str, Any]], window: tuple[float, float]
) -> dict[str, Any]:
    """Return how often the client sent failed requests again, in the measured part; `by_kind` is of the whole run."""
    again = records[(records["intended"] >= window[0]) & (records["intended"] < window[1]) & (records["retries"] > 0)]
    by_kind: Counter[str] = Counter()
    for one in summaries:
        by_kind.update(one["retried"])
    return {
        "limit": config.retries,
        "requests": len(again),
        "tries": int(again["retries"].sum()),
        "recovered": int((again["kind"] == 0).sum()),
        "by_kind": dict(sorted(by_kind.items())),
    }


def slip_bound(config: RunConfig, latency_p50: float | None) -> float:
    """Return the bound on the p99 of the slip, in ms."""
    if config.max_slip_ms is not None:
        return config.max_slip_ms
    return max(SLIP_BOUND_MS, SLIP_BOUND_SHARE * (latency_p50 or 0.0))


def judge(config: RunConfig, data: dict[str, Any]) -> None:
    """Decide whether the run is valid, and warn of what the reader must know."""
    own, p50 = data["generator"], data["latency_ms"]["p50"]["value"]
    bound = own["slip_bound_ms"] = slip_bound(config, p50)
    for name, values in (("schedule slip", own["slip_ms"]), ("event-loop lag", own["loop_lag_ms"])):
        worst = values.get("p99")
        if worst is not None and worst > bound:
            text = f"{name} p99 {worst:.3g} ms is above {bound:.3g} ms: the generator was late, not the server"
            data["invalid_because"].append(text)
    data["valid"] = not data["invalid_because"]
    warn = data["warnings"].append
    if max(own["cpu_cores"], default=0.0) > BUSY:
        warn("a load process used a whole core: the generator may be the limit; use more --processes")
    queue = data["queue_ms"]["p95"]["value"]
    if queue is not None and p50 and queue > max(5.0, 0.2 * p50) and own["peak_connections"] >= config.max_connections:
        warn("requests waited for a free connection (the wait is in the latency); raise --max-connections")
    if data["workload"][0]["repeats"]:
        times = f"{data['workload'][0]['repeats']:,}"
        warn(f"{times} requests repeated an earlier prompt: the server's caches may have helped")
    if config.stream and data["requests"] > data["errors"] and data["ttft_ms"]["p50"]["n"] == 0:
        warn("no reply was streamed, so there is no time to first token")
    again = data["retries"]
    if again["requests"]:
        warn(
            f"{again['requests']:,} requests were sent again after an error, {again['recovered']:,} of them succeeded: "
            "their errors are only in their latency (--retries)"
        )
    if data["unfinished"]:
        warn(f"{data['unfinished']:,} requests were still running when the run was stopped; they are in no figure")
    share = (data["n_eff_p99"] or 0) / max(1, data["latency_ms"]["p99"]["n"])
    if data["n_eff_p99"] is not None and share < 0.2:
        warn("the slowest requests come in few bursts: intervals of the tail are wide, and a longer run narrows them")
