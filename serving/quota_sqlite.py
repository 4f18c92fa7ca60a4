"""Quota state in a SQLite file: exact over all replicas of one machine, without a server.

One row per tenant, read and written in one transaction.  Time is the machine's monotonic clock, the same in every
process and blind to jumps of the wall clock; after a reboot the buckets start where they were.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import orjson

from serving.errors import StoreDown
from serving.quota import Ask, State, Verdict, decide, give_back, plain

T = TypeVar("T")


class SqliteQuota:
    """See `serving.quota.QuotaStore`.

    The calls are made on the event loop: a transaction takes tens of microseconds, a thread would cost more.
    """

    def __init__(self, path: str):
        self.path = Path(path)
        self.database: sqlite3.Connection | None = None

    async def take(self, ask: Ask) -> Verdict:
        """See `QuotaStore`."""
        return self._change(ask.tenant, lambda state: decide(state, ask, time.monotonic()))

    async def settle(self, ask: Ask, back: Sequence[int], nano: int) -> None:
        """See `QuotaStore`."""
        self._change(ask.tenant, lambda state: give_back(state, ask, back, nano))

    async def renew(self, asks: Sequence[Ask]) -> None:
        """See `QuotaStore`."""
        for ask in asks:
            self._change(ask.tenant, lambda state, ask=ask: _renew(state, ask))  # type: ignore[misc]

    async def close(self) -> None:
        """See `QuotaStore`."""
        if self.database is not None:
            self.database.close()
            self.database = None

    def _change(self, tenant: str, work: Callable[[State], T]) -> T:
        try:
            database = self.database or self._open()
            try:
                database.execute("BEGIN IMMEDIATE")
                row = database.execute("SELECT state FROM quota WHERE tenant = ?", (tenant,)).fetchone()
                state = State(**orjson.loads(row[0])) if row else State()
                result = work(state)
                text = orjson.dumps(plain(state))
                database.execute("INSERT OR REPLACE INTO quota VALUES (?, ?)", (tenant, text))
                database.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    database.execute("ROLLBACK")
                raise
            return result
        except (sqlite3.Error, OSError, TypeError, ValueError) as error:
            raise StoreDown(f"{self.path}: {error}") from error

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self.path, timeout=0.25, isolation_level=None, check_same_thread=False)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("CREATE TABLE IF NOT EXISTS quota (tenant TEXT PRIMARY KEY, state BLOB)")
        self.database = database
        return database


def _renew(state: State, ask: Ask) -> None:
    if ask.lease in state.leases:
        state.leases[ask.lease] = time.monotonic() + ask.lease_s
