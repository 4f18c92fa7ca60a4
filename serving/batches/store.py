"""Files and batches on disk: a folder with one SQLite file.

A result is one row, with batch and line as its key: it is there whole or not at all, and never twice.  Everything is
called from one thread of its own, not from the event loop.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

DAY_S = 86_400.0
LIVING = "(expires IS NULL OR expires > ?)"
RUNNING = ("in_progress", "cancelling", "finalizing")
ADDED = (("files", "expires"), ("batches", "output_s"))
"""Columns that folders of an earlier version lack."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS files (id TEXT PRIMARY KEY, tenant, filename, purpose, bytes, created, expires);
CREATE TABLE IF NOT EXISTS batches (id TEXT PRIMARY KEY, tenant, model, endpoint, input, status, created, expires,
    role, key_id, metadata, total, ended, output, errors, problem, output_s);
CREATE TABLE IF NOT EXISTS leases (batch TEXT PRIMARY KEY, holder, until);
CREATE TABLE IF NOT EXISTS results (batch, line INTEGER, failed INTEGER, text BLOB, PRIMARY KEY (batch, line));
CREATE INDEX IF NOT EXISTS by_outcome ON results (batch, failed);
"""


@dataclass(slots=True)
class File:
    """One file."""

    id: str
    tenant: str
    filename: str
    purpose: str
    bytes: int
    created: float
    expires: float | None = None

    def public(self) -> dict[str, Any]:
        """Return it as the API shows it."""
        return {
            "id": self.id, "object": "file", "bytes": self.bytes, "created_at": int(self.created),
            "filename": self.filename, "purpose": self.purpose, "status": "processed",
            "expires_at": None if self.expires is None else int(self.expires),
        }  # fmt: skip


@dataclass(slots=True)
class Batch:
    """One batch; times are seconds since 1970, `ended` by status (`completed_at` and so on).

    `output_s`: life of its result files, seconds, None for ever.
    """

    id: str
    tenant: str
    model: str
    endpoint: str
    input: str
    status: str
    created: float
    expires: float
    role: str
    key_id: str
    metadata: dict[str, str] = field(default_factory=dict)
    total: int = 0
    ended: dict[str, float] = field(default_factory=dict)
    output: str | None = None
    errors: str | None = None
    problem: str | None = None
    output_s: float | None = None

    def public(self, completed: int, failed: int) -> dict[str, Any]:
        """Return it as the API shows it."""
        problem = {"object": "list", "data": [{"code": "failed", "message": self.problem}]} if self.problem else None
        names = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        return {
            "id": self.id, "object": "batch", "endpoint": self.endpoint, "errors": problem,
            "input_file_id": self.input, "completion_window": "24h", "status": self.status,
            "output_file_id": self.output, "error_file_id": self.errors, "created_at": int(self.created),
            "expires_at": int(self.expires), "metadata": self.metadata or None,
            **{f"{name}_at": int(self.ended[name]) if name in self.ended else None for name in names},
            "request_counts": {"total": self.total, "completed": completed, "failed": failed},
        }  # fmt: skip


def new_id(kind: str) -> str:
    """Return an id like `batch_...` or `file-...` that nobody can guess."""
    return f"{kind}{secrets.token_hex(16)}"


class Store:
    """See the module's docstring."""

    def __init__(self, folder: str):
        self.folder = Path(folder)
        (self.folder / "files").mkdir(parents=True, exist_ok=True)
        self.database = sqlite3.connect(self.folder / "batches.db", timeout=10, check_same_thread=False)
        self.database.execute("PRAGMA journal_mode = WAL")
        self.database.execute("PRAGMA synchronous = FULL")  # a result that was counted is on the disk
        self.database.executescript(SCHEMA)
        for table, column in ADDED:
            if column not in {row[1] for row in self.database.execute(f"PRAGMA table_info({table})")}:
                self.database.execute(f"ALTER TABLE {table} ADD COLUMN {column}")

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def path(self, file_id: str) -> Path:
        """Return where a file's content is."""
        return self.folder / "files" / file_id

    # files

    def add_file(self, file: File) -> None:
        """Make a file known whose content is in its place."""
        with self.database:
            self.database.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", tuple(asdict(file).values()))

    def file(self, file_id: str, tenant: str) -> File | None:
        """Return a tenant's file, None when it has expired."""
        text = f"SELECT * FROM files WHERE id = ? AND tenant = ? AND {LIVING}"
        row = self.database.execute(text, (file_id, tenant, time.time())).fetchone()
        return File(*row) if row else None

    def files(self, tenant: str, after: str | None, limit: int) -> list[File]:
        """Return a tenant's files, newest first, those that come after one."""
        return [File(*row) for row in self._page("files", tenant, after, limit)]

    def used(self, tenant: str) -> int:
        """Return the bytes of a tenant's files."""
        text = "SELECT coalesce(sum(bytes), 0) FROM files WHERE tenant = ?"
        return int(self.database.execute(text, (tenant,)).fetchone()[0])

    def sweep(self) -> int:
        """Delete expired files that no running batch reads, and what an upload left that was never finished.

        Returns how many files were deleted.
        """
        read = f"SELECT input FROM batches WHERE status IN {RUNNING}"
        text = f"SELECT id FROM files WHERE NOT {LIVING} AND id NOT IN ({read})"
        gone = [row[0] for row in self.database.execute(text, (time.time(),))]
        for file_id in gone:
            self.drop_file(file_id)
        for path in (self.folder / "files").iterdir():
            known = self.database.execute("SELECT 1 FROM files WHERE id = ?", (path.name,)).fetchone()
            if known is None and time.time() - path.stat().st_mtime > DAY_S:
                path.unlink(missing_ok=True)
                gone.append(path.name)
        return len(gone)

    def drop_file(self, file_id: str) -> None:
        """Forget a file and delete its content."""
        with self.database:
            self.database.execute("DELETE FROM files WHERE id = ?", (file_id,))
        self.path(file_id).unlink(missing_ok=True)

    # batches

    def add(self, batch: Batch) -> None:
        """Write a new batch."""
        values = [json.dumps(v) if isinstance(v, dict) else v for v in asdict(batch).values()]
        with self.database:
            self.database.execute(f"INSERT INTO batches VALUES ({', '.join('?' * len(values))})", values)

    def change(self, batch_id: str, **values: Any) -> None:
        """Write some columns of a batch."""
        with self.database:
            pairs = ", ".join(f"{name} = :{name}" for name in values)
            self.database.execute(f"UPDATE batches SET {pairs} WHERE id = :id", {**values, "id": batch_id})

    def become(self, batch_id: str, status: str, **values: Any) -> None:
        """Give a batch a status and note the time."""
        now = json.dumps({status: time.time()})
        with self.database:
            self.database.execute("UPDATE batches SET ended = json_patch(ended, ?) WHERE id = ?", (now, batch_id))
        self.change(batch_id, status=status, **values)

    def batch(self, batch_id: str, tenant: str | None = None) -> Batch | None:
        """Return a batch; with a tenant only if it is that one's."""
        row = self.database.execute("SELECT * FROM batches WHERE id = ?", (batch_id,)).fetchone()
        return _batch(row) if row and tenant in (None, row[1]) else None

    def batches(self, tenant: str, after: str | None, limit: int) -> list[Batch]:
        """Return a tenant's batches, newest first, those that come after one."""
        return [_batch(row) for row in self._page("batches", tenant, after, limit)]

    def cancel(self, batch_id: str) -> None:
        """Let whoever runs a batch end it."""
        with self.database:
            now = json.dumps({"cancelling": time.time()})
            self.database.execute(
                "UPDATE batches SET status = 'cancelling', ended = json_patch(ended, ?) "
                "WHERE id = ? AND status = 'in_progress'",
                (now, batch_id),
            )

    def counts(self, batch_id: str) -> tuple[int, int]:
        """Return how many lines were answered, and how many failed."""
        rows = dict(
            self.database.execute("SELECT failed, count(*) FROM results WHERE batch = ? GROUP BY failed", (batch_id,))
        )
        return rows.get(0, 0), rows.get(1, 0)

    # running

    def claim(self, model: str, holder: str, lease_s: float) -> Batch | None:
        """Take a batch of a model that nobody runs, the oldest first."""
        now = time.time()
        with self.database:
            self.database.execute("BEGIN IMMEDIATE")
            row = self.database.execute(
                f"SELECT batches.* FROM batches LEFT JOIN leases ON batch = id WHERE model = ? AND status IN {RUNNING} "
                "AND (holder IS NULL OR until < ? OR until > ?) ORDER BY created LIMIT 1",
                (model, now, now + 10 * lease_s),  # later than any lease ends: a clock went back
            ).fetchone()
            if row is None:
                return None
            self.database.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", (row[0], holder, now + lease_s))
        return _batch(row)

    def oldest(self, model: str) -> float:
        """Return when the oldest batch of a model that has not ended was made, seconds since 1970; 0: there is none."""
        text = f"SELECT MIN(created) FROM batches WHERE model = ? AND status IN {RUNNING}"
        return float(self.database.execute(text, (model,)).fetchone()[0] or 0.0)

    def renew(self, batch_id: str, holder: str, lease_s: float) -> bool:
        """Keep a batch; return False when somebody else has it."""
        with self.database:
            text = "UPDATE leases SET until = ? WHERE batch = ? AND holder = ?"
            return self.database.execute(text, (time.time() + lease_s, batch_id, holder)).rowcount == 1

    def release(self, batch_id: str, holder: str) -> None:
        """Give a batch back."""
        with self.database:
            self.database.execute("DELETE FROM leases WHERE batch = ? AND holder = ?", (batch_id, holder))

    def done(self, batch_id: str) -> set[int]:
        """Return the lines that have a result."""
        return {line for (line,) in self.database.execute("SELECT line FROM results WHERE batch = ?", (batch_id,))}

    def add_results(self, batch_id: str, rows: list[tuple[int, bool, bytes]]) -> None:
        """Write results; a line that has one keeps it."""
        with self.database:
            self.database.executemany(
                "INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?)",
                [(batch_id, line, int(failed), text) for line, failed, text in rows],
            )

    def write_results(self, batch: Batch, failed: bool) -> str | None:
        """Write the answered (or the failed) lines into a new file, in order; return its id, None if there are none."""
        rows = self._results(batch.id, failed)
        first = next(rows, None)
        if first is None:
            return None
        file_id = new_id("file-")
        with self.path(file_id).open("wb") as file:
            file.write(first + b"\n")
            for text in rows:
                file.write(text + b"\n")
            size = file.tell()
        name = f"{batch.id}_{'errors' if failed else 'output'}.jsonl"
        ends = None if batch.output_s is None else time.time() + batch.output_s
        self.add_file(File(file_id, batch.tenant, name, "batch_output", size, time.time(), ends))
        return file_id

    def _results(self, batch_id: str, failed: bool) -> Iterator[bytes]:
        text = "SELECT text FROM results WHERE batch = ? AND failed = ? ORDER BY line"
        for (one,) in self.database.execute(text, (batch_id, int(failed))):
            yield bytes(one)

    def _page(self, table: str, tenant: str, after: str | None, limit: int) -> list[Any]:
        text = f"SELECT * FROM {table} WHERE tenant = :tenant "
        if table == "files":
            text += "AND (expires IS NULL OR expires > :now) "
        if after:
            text += f"AND (created, id) < (SELECT created, id FROM {table} WHERE id = :after AND tenant = :tenant) "
        names = {"tenant": tenant, "after": after, "limit": limit, "now": time.time()}
        return self.database.execute(text + "ORDER BY created DESC, id DESC LIMIT :limit", names).fetchall()


def _batch(row: tuple[Any, ...]) -> Batch:
    names = [one.name for one in fields(Batch)]
    values = dict(zip(names, row, strict=True))
    return Batch(**{**values, "metadata": json.loads(values["metadata"]), "ended": json.loads(values["ended"])})
