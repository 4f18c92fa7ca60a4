"""Kept answers in a SQLite file, for the replicas of one machine.

Reads are made on the event loop (WAL: no writer stands in their way); writes go through one thread.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from serving.errors import StoreDown

T = TypeVar("T")
TOUCH_S = 60.0
"""How much later than the last one a use is written down."""


class SqliteShelf:
    """See `serving.recall.store.Shelf`; `most` bounds the bytes in use, the least recently used go first."""

    def __init__(self, path: str, most: int):
        self.path, self.most = Path(path), most
        self.reader: sqlite3.Connection | None = None
        self.writer: sqlite3.Connection | None = None
        self.thread = ThreadPoolExecutor(1, "recall")

    async def get(self, key: bytes) -> bytes | None:
        """See `Shelf`."""
        row = self._read(
            lambda db: db.execute("SELECT blob, used FROM answers WHERE key = ? AND ends > ?", (key, time.time()))
        ).fetchone()
        if row is None:
            return None
        if time.time() - row[1] > TOUCH_S:
            self.thread.submit(self._touch, key)
        return bytes(row[0])

    async def put(self, key: bytes, blob: bytes, ttl_s: float) -> None:
        """See `Shelf`."""
        now = time.time()
        await self._write(
            lambda db: db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", (key, blob, now + ttl_s, now))
        )
        await self._write(self._make_room)

    async def generations(self) -> dict[str, int]:
        """See `Shelf`."""
        return dict(self._read(lambda db: db.execute("SELECT scope, number FROM generations")).fetchall())

    async def purge(self, scope: str) -> None:
        """See `Shelf`."""
        text = "INSERT INTO generations VALUES (?, 1) ON CONFLICT (scope) DO UPDATE SET number = number + 1"
        await self._write(lambda db: db.execute(text, (scope,)))

    async def count(self) -> tuple[int, int]:
        """See `Shelf`."""
        row = self._read(lambda db: db.execute("SELECT count(*), coalesce(sum(length(blob)), 0) FROM answers"))
        entries, size = row.fetchone()
        return entries, size

    async def close(self) -> None:
        """See `Shelf`."""
        await asyncio.to_thread(self.thread.shutdown)
        for connection in (self.reader, self.writer):
            if connection is not None:
                connection.close()
        self.reader = self.writer = None

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self.reader is None:
                self.reader = self._open()
            return work(self.reader)
        except (sqlite3.Error, OSError) as error:
            raise StoreDown(f"{self.path}: {error}") from error

    async def _write(self, work: Callable[[sqlite3.Connection], object]) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self.thread, self._written, work)
        except (sqlite3.Error, OSError) as error:
            raise StoreDown(f"{self.path}: {error}") from error

    def _written(self, work: Callable[[sqlite3.Connection], object]) -> None:
        if self.writer is None:
            self.writer = self._open()
        with self.writer:
            work(self.writer)

    def _touch(self, key: bytes) -> None:
        try:
            self._written(lambda db: db.execute("UPDATE answers SET used = ? WHERE key = ?", (time.time(), key)))
        except (sqlite3.Error, OSError):
            return  # only the order in which entries leave depends on it

    def _make_room(self, db: sqlite3.Connection) -> None:
        """Delete what has ended, then the least recently used, until the bytes in use fit."""
        if self._used(db) <= self.most:
            return
        db.execute("DELETE FROM answers WHERE ends <= ?", (time.time(),))
        while self._used(db) > self.most:
            tenth = "SELECT key FROM answers ORDER BY used LIMIT max(1, (SELECT count(*) / 10 FROM answers))"
            if not db.execute(f"DELETE FROM answers WHERE key IN ({tenth})").rowcount:
                return

    @staticmethod
    def _used(db: sqlite3.Connection) -> int:
        (pages,), (free,), (size,) = (
            db.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            self.path.touch(mode=0o600)
        db = sqlite3.connect(self.path, timeout=1, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, blob BLOB, ends REAL, used REAL)")
        db.execute("CREATE INDEX IF NOT EXISTS by_use ON answers (used)")
        db.execute("CREATE TABLE IF NOT EXISTS generations (scope TEXT PRIMARY KEY, number INTEGER)")
        db.commit()
        return db
