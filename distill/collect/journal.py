"""The journal of what was bought: one JSON line per event, on disk before the next thing happens.

    {"t": "reserve", "key": ..., "usd": "0.0012"}       before a request leaves: the most it can cost
    {"t": "answer", "key": ..., "usd": "0.0007", ...}   an answer and what it cost
    {"t": "failed", "key": ..., "usd": "0", ...}        no answer will come, and what was billed all the same
    {"t": "lost", "key": ..., "usd": "0.0012"}          a process was killed while it waited: counted in full
    {"t": "batch", "id": ..., "teacher": ..., "asked": {key: ...}}   a vendor took a batch: its reservations stay
    {"t": "batch_end", "id": ...}                       all that a batch will ever answer is above

A process that is killed leaves reservations without an end.  The next one counts them in full, so that the limit holds
whatever the vendor billed.  An answer in the journal is never asked for again; a line cut short by the kill is removed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any

from models.support.errors import UsageError

# Room on the disk that is given up when the disk is full, so that answers in flight, which are paid for, are kept.
BALLAST_BYTES = 4 * 2**20


class Journal:
    """An open journal, locked against other processes; a context manager.

    Attributes:
        answers: key -> the line of its answer.
        failures: key -> the line of its last failure, of those without an answer.
        spent: dollars of all answers, failures and losses.
        batches: id -> line of the batches that a vendor still has.
        lost: dollars, of `spent`, of requests that were in flight when a process was killed.
    """

    def __init__(self, path: Path):
        self.path, self._ballast = path, path.with_name(".ballast")
        self.answers: dict[str, dict[str, Any]] = {}
        self.failures: dict[str, dict[str, Any]] = {}
        self.spent = self.lost = Decimal(0)
        self.batches: dict[str, dict[str, Any]] = {}
        self.full = False
        self._open: dict[str, Decimal] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise UsageError(f"cannot write: {error.strerror}", field=str(path), fix="name another folder") from error
        try:
            self._lock()
            self._replay()
            self._make_ballast()
        except BaseException:
            os.close(self._handle)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._handle)
        self._ballast.unlink(missing_ok=True)

    def reserve(self, key: str, usd: Decimal) -> None:
        """Record that a request that can cost `usd` is about to leave.

        Raises:
            UsageError: the disk is full: nothing must be bought that cannot be kept.
        """
        if self.full:
            raise self._disk_full()
        self._append({"t": "reserve", "key": key, "usd": f"{usd:f}"})
        self._open[key] = self.pending_of(key) + usd

    @property
    def pending(self) -> Decimal:
        """Dollars reserved for what is in flight."""
        return sum(self._open.values(), Decimal(0))

    def waits_for(self, key: str) -> bool:
        """Return whether an answer to a question is on its way."""
        return key in self._open

    def pending_of(self, key: str) -> Decimal:
        """Return the dollars reserved for one question; 0 when it is not in flight."""
        return self._open.get(key, Decimal(0))

    def batch(self, batch: str, teacher: str, asked: dict[str, dict[str, Any]]) -> None:
        """Record that a vendor took a batch; `asked` says what each key was asked for."""
        line = {"t": "batch", "id": batch, "teacher": teacher, "asked": asked}
        self._append(line, paid=True)
        self._apply(line)

    def batch_end(self, batch: str) -> None:
        """Record that every answer of a batch is in the journal."""
        line = {"t": "batch_end", "id": batch}
        self._append(line, paid=True)
        self._apply(line)

    def answer(self, key: str, usd: Decimal, record: dict[str, Any]) -> None:
        """Record an answer and what all attempts at it cost.  On a full disk it goes where the ballast was."""
        line = {"t": "answer", "key": key, "usd": f"{usd:f}", **record}
        self._append(line, paid=True)
        self._apply(line)

    def failed(self, key: str, usd: Decimal, record: dict[str, Any]) -> None:
        """Record that no answer came, and what was billed all the same."""
        line = {"t": "failed", "key": key, "usd": f"{usd:f}", **record}
        self._append(line, paid=True)
        self._apply(line)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                "another process is buying into this folder",
                field="out",
                value=str(self.path.parent),
                fix="wait for it",
            ) from error

    def _replay(self) -> None:
        good = 0
        for number, (start, raw) in enumerate(_lines_of(self.path), 1):
            try:
                line = json.loads(raw)
                if line["t"] == "reserve":
                    self._open[line["key"]] = self.pending_of(line["key"]) + Decimal(line["usd"])
                else:
                    self._apply(line)
            except (ValueError, KeyError, TypeError, ArithmeticError) as error:
                raise UsageError(
                    "the journal of purchases is damaged", field=f"{self.path}:{number}", fix="restore it from a copy"
                ) from error
            good = start + len(raw)
        if good < self.path.stat().st_size:  # cut while it was written
            os.ftruncate(self._handle, good)
        waited_for = {key for line in self.batches.values() for key in line["asked"]}
        for key, usd in [(k, u) for k, u in self._open.items() if k not in waited_for]:
            lost = {"t": "lost", "key": key, "usd": f"{usd:f}"}
            self._append(lost)
            self._apply(lost)

    def _apply(self, line: dict[str, Any]) -> None:
        if line["t"] == "batch":
            self.batches[line["id"]] = line
            return
        if line["t"] == "batch_end":
            self.batches.pop(line["id"])
            return
        key = line["key"]
        self._open.pop(key, None)
        usd = Decimal(line["usd"])
        self.spent += usd
        if line["t"] == "answer":
            self.answers[key] = line
            self.failures.pop(key, None)
        elif line["t"] == "lost":
            self.lost += usd
        elif key not in self.answers:
            self.failures[key] = line

    def _append(self, line: dict[str, Any], *, paid: bool = False) -> None:
        raw = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        size = os.fstat(self._handle).st_size
        try:
            self._write(raw)
        except OSError as error:
            os.ftruncate(self._handle, size)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise UsageError(f"cannot write: {error.strerror}", field=str(self.path)) from error
            self.full = True
            if not paid:
                raise self._disk_full() from error
            self._ballast.unlink(missing_ok=True)
            try:
                self._write(raw)
            except OSError:
                os.ftruncate(self._handle, size)
                raise self._disk_full() from error

    def _write(self, raw: bytes) -> None:
        view = memoryview(raw)
        while view:
            view = view[os.write(self._handle, view) :]
        os.fsync(self._handle)

    def _make_ballast(self) -> None:
        try:
            with self._ballast.open("wb") as file:
                file.write(bytes(BALLAST_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._ballast.unlink(missing_ok=True)
            raise self._disk_full() from error

    def _disk_full(self) -> UsageError:
        fix = "free space and run it again: every answer that was paid for is kept"
        return UsageError("the disk is full", field="out", value=str(self.path.parent), fix=fix)


def _lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, line) of the whole lines; the rest after the last line break is left out."""
    at = 0
    with path.open("rb") as file:
        for raw in file:
            if raw.endswith(b"\n"):
                yield at, raw
            at += len(raw)
