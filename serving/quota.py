"""Limits of a tenant: token buckets, leases and a monthly sum, decided together or not at all.

    bucket   level <- min(limit, level + (now - at) * limit / 60);  a request passes if level >= min(cost, limit), and
             then level -= cost.  A request that costs more than the limit passes when the bucket is full, and the debt
             is waited for by the next: the rate over time holds.
    leases   requests being answered; one that a dead replica left behind ends at its expiry.
    month    nano-dollars spent in a calendar month (UTC); exact integers.

A reservation is settled when the answer is there: `settle` gives back (or takes) the difference.  The stores differ in
where the state is; `decide` and the Lua script of `serving.quota_valkey` are the same rules, which a test compares.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from serving.section import is_valkey

RATES = ("requests", "tokens", "image_tokens")
MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request asks for.

    Attributes:
        rates: for each of `RATES`, (limit per minute or None, cost).
        concurrent: most requests at once, or None.
        budget: (limit, cost) in nano-dollars, or None.
        lease: a name for this request, unique over all replicas.
        lease_s: seconds that the lease lives unless it is renewed.
        month: for example `2026-11`.
    """

    tenant: str
    rates: tuple[tuple[int | None, int], ...]
    concurrent: int | None
    budget: tuple[int, int] | None
    lease: str
    lease_s: float
    month: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of it.

    Attributes:
        refused: the limits that were in the way, the first one to be told; empty when the request may go in.
        waits: for each of `refused`, seconds until there may be room; None where nobody knows.
        left: for each of `RATES`, what is left now, or None.
    """

    refused: tuple[str, ...]
    waits: tuple[float | None, ...]
    left: tuple[float | None, ...]

    @property
    def wait(self) -> float | None:
        """Seconds until all limits may have room; None where nobody knows."""
        known = [wait for wait in self.waits if wait is not None]
        return max(known) if known else None


@dataclass
class State:
    """What is kept of one tenant: buckets as [level, at], leases with their expiry, nano-dollars by month."""

    buckets: dict[str, list[float]] = field(default_factory=dict)
    leases: dict[str, float] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=dict)


def decide(state: State, ask: Ask, now: float) -> Verdict:
    """Judge a request and, if it may go in, charge it to `state`."""
    refused: list[tuple[str, float | None]] = []
    left: list[float | None] = []
    for name, (limit, cost) in zip(RATES, ask.rates, strict=True):
        if limit is None:
            left.append(None)
            continue
        level, at = state.buckets.get(name, (float(limit), now))
        level = min(float(limit), level + max(0.0, now - at) * limit / MINUTE)
        state.buckets[name] = [level, now]
        need = min(cost, limit)
        if level < need:
            refused.append((f"{name}_per_minute", (need - level) * MINUTE / limit))
        left.append(level)
    if ask.concurrent is not None:
        # a lease that ends later than any could was written before a clock went back
        state.leases = {name: end for name, end in state.leases.items() if now < end <= now + 2 * ask.lease_s}
        if len(state.leases) >= ask.concurrent:
            refused.append(("concurrent", None))
    if ask.budget is not None and state.spent.get(ask.month, 0) + ask.budget[1] > ask.budget[0]:
        refused.append(("usd_per_month", None))
    if not refused:
        for place, (name, (limit, cost)) in enumerate(zip(RATES, ask.rates, strict=True)):
            if limit is not None:
                state.buckets[name][0] -= cost
                left[place] = state.buckets[name][0]
        if ask.concurrent is not None:
            state.leases[ask.lease] = now + ask.lease_s
        if ask.budget is not None:
            state.spent = {ask.month: state.spent.get(ask.month, 0) + ask.budget[1]}
    return Verdict(tuple(name for name, _ in refused), tuple(wait for _, wait in refused), tuple(left))


def give_back(state: State, ask: Ask, back: Sequence[int], nano: int) -> None:
    """End a request's lease and correct its reservation: `back` units of each of `RATES`, `nano` nano-dollars."""
    state.leases.pop(ask.lease, None)
    for name, (limit, _), units in zip(RATES, ask.rates, back, strict=True):
        if limit is not None and name in state.buckets:
            state.buckets[name][0] = min(float(limit), state.buckets[name][0] + units)
    if ask.budget is not None and ask.month in state.spent:
        state.spent[ask.month] -= nano


class QuotaStore(Protocol):
    """Where the state of all tenants is.  Every method raises `StoreDown` when it cannot be reached."""

    async def take(self, ask: Ask) -> Verdict:
        """Judge a request and charge it, as one step over all replicas."""

    async def settle(self, ask: Ask, back: Sequence[int], nano: int) -> None:
        """See `give_back`."""

    async def renew(self, asks: Sequence[Ask]) -> None:
        """Let the leases of running requests live on."""

    async def close(self) -> None:
        """Let go of connections."""


class MemoryQuota:
    """State in this process: right for one replica."""

    def __init__(self) -> None:
        self.states: dict[str, State] = {}

    async def take(self, ask: Ask) -> Verdict:
        """See `QuotaStore`."""
        return decide(self.states.setdefault(ask.tenant, State()), ask, time.monotonic())

    async def settle(self, ask: Ask, back: Sequence[int], nano: int) -> None:
        """See `QuotaStore`."""
        self.give_back(ask, back, nano)

    def give_back(self, ask: Ask, back: Sequence[int], nano: int) -> None:
        """Settle at once: nothing has to be waited for."""
        give_back(self.states.setdefault(ask.tenant, State()), ask, back, nano)

    async def renew(self, asks: Sequence[Ask]) -> None:
        """See `QuotaStore`."""
        for ask in asks:
            leases = self.states.setdefault(ask.tenant, State()).leases
            if ask.lease in leases:
                leases[ask.lease] = time.monotonic() + ask.lease_s

    async def close(self) -> None:
        """See `QuotaStore`."""


def open_quota(location: str) -> QuotaStore:
    """Return the store at `memory`, a file or a server's URL."""
    if location == "memory":
        return MemoryQuota()
    if is_valkey(location):
        from serving.quota_valkey import ValkeyQuota

        return ValkeyQuota(location)
    from serving.quota_sqlite import SqliteQuota

    return SqliteQuota(location)


def month_of(now: dt.datetime) -> tuple[str, float]:
    """Return the calendar month of a UTC time, and the seconds until the next one begins."""
    first = (now.replace(day=1, hour=0, minute=0, second=0, microsecond=0) + dt.timedelta(days=32)).replace(day=1)
    return f"{now:%Y-%m}", (first - now).total_seconds()


def duration(seconds: float) -> str:
    """Return a time as vendors write it in `x-ratelimit-reset-*`: `250ms`, `7s`, `6m0s`."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))}ms"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def plain(state: State) -> dict[str, Any]:
    """Return a state as JSON-ready data."""
    return {"buckets": state.buckets, "leases": state.leases, "spent": state.spent}
