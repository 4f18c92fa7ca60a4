"""What is kept of every request: 86 bytes in a file, and a histogram of the pauses between tokens.

Records are packed into a fixed buffer that is appended to a spill file when full, so the memory of a run does not grow
with its length, and what was measured survives whatever ends the run.  Times in the file are seconds since the start of
the run (a clock of this process only), so files of several processes and machines can be put together without
comparing clocks.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loadtest.client import Exchange, Kind
from loadtest.histogram import BatchedHistogram

if TYPE_CHECKING:
    from numpy.typing import NDArray

# One request.  `intended` is when it should have been sent, `dispatched` when the generator got to it, `sent` when its
# first byte was written (after waiting for a connection); `first`, `last`: first and last content; `end`: last byte.
# NaN: did not happen.  `correct`: -1 not scored, 0 wrong, 1 right.  Token counts are the server's, -1 when it gave
# none.  `resent`: sent again on a new connection because the server had closed an idle one; `retries`: times that it
# was sent again after an error; `recalled`: the server said that a cache answered, or a like request in flight.
RECORD = np.dtype(
    [
        ("intended", "<f8"),
        ("dispatched", "<f8"),
        ("sent", "<f8"),
        ("first", "<f8"),
        ("last", "<f8"),
        ("end", "<f8"),
        ("max_gap", "<f4"),
        ("item", "<i4"),
        ("chunks", "<i4"),
        ("prompt_tokens", "<i4"),
        ("completion_tokens", "<i4"),
        ("bytes_in", "<i4"),
        ("status", "<i2"),
        ("kind", "<i2"),
        ("cls", "<i2"),
        ("turn", "<i2"),
        ("correct", "<i1"),
        ("resent", "<i1"),
        ("retries", "<i1"),
        ("recalled", "<i1"),
        ("worker", "<i2"),
    ]
)
_PACKER = struct.Struct("<6d f 5i 4h 4b h")
assert _PACKER.size == RECORD.itemsize
_NAN = float("nan")
BLOCK = 1024  # records held before they go to the file
EXAMPLES = 3  # of each kind of error
WRONG = 20  # wrong answers kept for reading


class Recorder:
    """Keeps the records of one process.

    Args:
        path: spill file (created anew).
        start: `perf_counter()` at the start of the run; all times are stored relative to it.
        worker: number of this process.
    """

    def __init__(self, path: Path, start: float, worker: int = 0):
        self.path, self.start, self.worker = path, start, worker
        self._file = path.open("wb")
        self._buffer = bytearray(BLOCK * _PACKER.size)
        self._used = 0
        self.count = self.errors = 0
        self.gaps: list[float] = []
        self.gap_histogram = BatchedHistogram()
        self.examples: dict[str, list[str]] = {}
        self.retried: dict[str, int] = {}  # tries that failed and were not the last, by kind of error
        self.wrong: list[dict[str, object]] = []
        self.recent: list[float] = []  # latencies since the last look of the progress line

    def add(self, x: Exchange) -> None:
        """Record a finished request."""
        start, reply = self.start, x.reply
        _PACKER.pack_into(
            self._buffer,
            self._used,
            x.intended - start,
            x.dispatched - start,
            x.sent - start if x.sent else _NAN,
            x.first - start if x.chunks else _NAN,
            x.last - start if x.chunks else _NAN,
            x.end - start,
            x.max_gap,
            x.item,
            x.chunks,
            reply.prompt_tokens if reply else -1,
            reply.completion_tokens if reply else -1,
            x.bytes_in & 0x7FFFFFFF,
            x.status,
            x.kind,
            x.cls,
            x.turn,
            x.correct,
            x.resent,
            x.retries,
            x.recalled,
            self.worker,
        )
        self._used += _PACKER.size
        if self._used == len(self._buffer):
            self.flush()
        self.count += 1
        if x.kind is not Kind.OK:
            self._error(x)
        elif len(self.recent) < 10000:
            self.recent.append(x.end - x.intended)
        if len(self.gaps) > 8192:
            self.flush_gaps()

    def _error(self, x: Exchange) -> None:
        if x.kind is not Kind.UNFINISHED:
            self.errors += 1
        kept = self.examples.setdefault(error_name(x.kind, x.status), [])
        if len(kept) < EXAMPLES:
            kept.append(x.detail)

    def retry(self, x: Exchange) -> None:
        """Count a failed try that is not the last of its request, and keep the first examples."""
        name = error_name(x.kind, x.status)
        self.retried[name] = self.retried.get(name, 0) + 1
        kept = self.examples.setdefault(name, [])
        if len(kept) < EXAMPLES:
            kept.append(x.detail)

    def flush_gaps(self) -> None:
        """Move pauses from the list into the histogram (in place: connections hold the list)."""
        self.gap_histogram.record(np.array(self.gaps))
        self.gaps.clear()

    def flush(self) -> None:
        """Write the buffered records to the file.

        Raises:
            OSError: the disk is full or gone.
        """
        self._file.write(memoryview(self._buffer)[: self._used])
        self._file.flush()
        self._used = 0

    def close(self) -> None:
        """Flush everything and close the file."""
        if not self._file.closed:
            self.flush_gaps()
            self.flush()
            self._file.close()


def error_name(kind: int, status: int) -> str:
    """Return the name of an error as it stands in reports: `connect`, `timeout`, `http_429`..."""
    return f"http_{status}" if kind == Kind.STATUS else Kind(kind).name.lower()


def read_records(path: Path) -> NDArray[np.void]:
    """Return the records of a spill file, shape (n,), dtype `RECORD`.

    Half a record at the end (a killed process, a full disk) is dropped.
    """
    size = path.stat().st_size // RECORD.itemsize
    return np.fromfile(path, dtype=RECORD, count=size)
