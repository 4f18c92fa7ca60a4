"""Keys in a SQLite file, for one machine."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from dataclasses import astuple, fields
from pathlib import Path
from typing import TypeVar

from serving.errors import StoreDown
from serving.keys import Key

COLUMNS = ", ".join(f.name for f in fields(Key))
MARKS = ", ".join("?" for _ in fields(Key))
T = TypeVar("T")


class SqliteKeys:
    """See `serving.keys.KeyStore`; the file is readable by its owner only."""

    def __init__(self, path: str):
        self.path = Path(path)

    async def snapshot(self, known: int | None) -> tuple[int, dict[str, Key]] | None:
        """See `KeyStore`; a file that is not there is an error, so that a wrong path is noticed."""
        if not self.path.exists():
            raise StoreDown(f"{self.path} is not there; make a key with `fovea keys create`")
        return await asyncio.to_thread(self._do, lambda database: _read(database, known))

    async def put(self, key: Key) -> None:
        """See `KeyStore`."""
        await asyncio.to_thread(self._do, lambda database: _write(database, key))

    async def close(self) -> None:
        """Every call has its own connection: nothing to do."""

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if not self.path.exists():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.touch(mode=0o600)
            database = sqlite3.connect(self.path, timeout=5)
            try:
                with database:
                    database.execute(f"CREATE TABLE IF NOT EXISTS keys ({COLUMNS}, PRIMARY KEY (id))")
                    database.execute("CREATE TABLE IF NOT EXISTS version (number INTEGER)")
                    return work(database)
            finally:
                database.close()
        except (sqlite3.Error, OSError, TypeError) as error:  # TypeError: a file of another kind with these tables
            raise StoreDown(f"{self.path}: {error}") from error


def _read(database: sqlite3.Connection, known: int | None) -> tuple[int, dict[str, Key]] | None:
    (version,) = database.execute("SELECT coalesce(max(number), 0) FROM version").fetchone()
    if version == known:
        return None
    keys = [Key(*row) for row in database.execute(f"SELECT {COLUMNS} FROM keys")]
    return version, {key.id: key for key in keys}


def _write(database: sqlite3.Connection, key: Key) -> None:
    database.execute("BEGIN IMMEDIATE")
    database.execute(f"INSERT OR REPLACE INTO keys ({COLUMNS}) VALUES ({MARKS})", astuple(key))
    (version,) = database.execute("SELECT coalesce(max(number), 0) FROM version").fetchone()
    database.execute("DELETE FROM version")
    database.execute("INSERT INTO version VALUES (?)", (version + 1,))
