"""From a capacity per replica to replicas and GPU-hours per month.

    replicas(rate) = max(minimum, ceil(rate * (1 + headroom) / capacity) + spare)

`spare` is the N+1: replicas that may fail without breaking the SLO.  A day is 24 equal hours whose rates follow a
cosine between trough and peak; a fixed fleet is sized for the peak, a following fleet for each hour.  A month has
730 hours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from models.support.errors import UsageError

HOURS = Decimal(730)


@dataclass(frozen=True)
class Demand:
    """The traffic to plan for.

    Args:
        peak: requests per second in the busiest hour of the first month.
        trough: rate of the quietest hour as a share of the peak (1: flat).
        growth: relative growth per month.
        months: how many months to plan.
        headroom: share of extra capacity for bursts within an hour.
        spare: replicas kept for failures (the 1 of N+1).
        minimum: fewest replicas at any time.
        gpus: GPUs (or machines) per replica.
    """

    peak: float
    trough: float = 1.0
    growth: float = 0.0
    months: int = 1
    headroom: float = 0.3
    spare: int = 1
    minimum: int = 1
    gpus: int = 1

    def __post_init__(self) -> None:
        checks = {
            "peak": self.peak > 0 and math.isfinite(self.peak),
            "trough": 0 <= self.trough <= 1,
            "growth": -1 < self.growth < 10,
            "months": 1 <= self.months <= 120,
            "headroom": 0 <= self.headroom <= 10,
            "spare": self.spare >= 0,
            "minimum": self.minimum >= 0,
            "gpus": self.gpus >= 1,
        }
        for name, good in checks.items():
            if not good:
                raise UsageError(
                    "out of range",
                    field=f"--{name}",
                    value=getattr(self, name),
                    fix="stay within the bounds that docs/money.md gives",
                )


def replicas(rate: float, capacity: float, demand: Demand) -> int:
    """Return how many replicas a rate needs."""
    # The tiny allowance keeps 3 * 9.4 / 9.4 at three replicas.
    return max(demand.minimum, math.ceil(rate * (1 + demand.headroom) / capacity - 1e-9) + demand.spare)


def hourly(demand: Demand, peak: float) -> list[float]:
    """Return the rates of the 24 hours of a day; the largest is `peak`."""
    middle, height = (1 + demand.trough) / 2, (1 - demand.trough) / 2
    return [peak * (middle - height * math.cos(2 * math.pi * hour / 24)) for hour in range(24)]


def plan(capacity: float, demand: Demand, usd_per_gpu_hour: Decimal | None = None) -> list[dict[str, Any]]:
    """Return one row per month: peak, replicas, GPU-hours and dollars of a fixed and of a following fleet.

    Args:
        capacity: requests per second that one replica holds within the SLO.
    """
    rows = []
    for month in range(demand.months):
        peak = demand.peak * (1 + demand.growth) ** month
        fixed = replicas(peak, capacity, demand)
        hours = [replicas(rate, capacity, demand) for rate in hourly(demand, peak)]
        following = Decimal(sum(hours)) / 24
        row: dict[str, Any] = {
            "month": month + 1,
            "peak_rps": round(peak, 3),
            "replicas": fixed,
            "fewest_replicas": min(hours),
            "gpu_hours_fixed": float(HOURS * fixed * demand.gpus),
            "gpu_hours_following": float((HOURS * following * demand.gpus).quantize(Decimal("0.1"))),
        }
        if usd_per_gpu_hour is not None:
            row["usd_fixed"] = float((HOURS * fixed * demand.gpus * usd_per_gpu_hour).quantize(Decimal("0.01")))
            dollars = HOURS * following * demand.gpus * usd_per_gpu_hour
            row["usd_following"] = float(dollars.quantize(Decimal("0.01")))
        rows.append(row)
    return rows
