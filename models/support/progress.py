"""One line of progress on stderr: how much is done, how fast, how long is left.

Nothing is printed when stderr is not a terminal, so logs and pipes stay clean.
"""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType
from typing import TextIO


def format_seconds(seconds: float) -> str:
    """Return a duration as people read it: `4s`, `2m05s`, `1h03m`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress:
    """A progress line, used as a context manager.

    Args:
        total: amount of work, in `unit`s; None when it is not known (no bar, no time left).
        label: what is being done.
        unit: name of one piece of work, shown with the rate.
        stream: where to write (stderr by default).
        enabled: force the line on or off; by default on only when `stream` is a terminal.
        min_interval_s: the line is redrawn at most this often.
    """

    def __init__(
        self,
        total: float | None = None,
        label: str = "",
        unit: str = "",
        *,
        stream: TextIO | None = None,
        enabled: bool | None = None,
        min_interval_s: float = 0.1,
    ):
        self.total, self.label, self.unit = total, label, unit
        self.stream: TextIO = sys.stderr if stream is None else stream
        self.enabled = self.stream.isatty() if enabled is None else enabled
        self.min_interval_s = min_interval_s
        self.done: float = 0
        self.note = ""
        self._started = time.monotonic()
        self._drawn = float("-inf")
        self._width = 0

    def __enter__(self) -> Progress:
        self._draw(force=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def advance(self, by: float = 1, note: str | None = None) -> None:
        """Count `by` more units as done."""
        self.update(self.done + by, note)

    def update(self, done: float, note: str | None = None) -> None:
        """Set the amount done; `note` is free text at the end of the line (kept until replaced)."""
        self.done = done
        if note is not None:
            self.note = note
        self._draw()

    def close(self) -> None:
        """Draw the last state and end the line."""
        if self.enabled and self._width >= 0:
            self._draw(force=True)
            self.stream.write("\n")
            self.stream.flush()
        self._width = -1

    def line(self, columns: int = 100) -> str:
        """Return the text of the line, at most `columns` wide."""
        elapsed = time.monotonic() - self._started
        parts = [self.label] if self.label else []
        if self.total:
            share = min(1.0, max(0.0, self.done / self.total))
            filled = round(share * 20)
            parts.append(f"[{'#' * filled}{'.' * (20 - filled)}] {share:4.0%}")
        if self.unit:
            count = f"{self.done:,.0f}" if self.total is None else f"{self.done:,.0f}/{self.total:,.0f}"
            rate = f", {self.done / elapsed:,.1f}/s" if elapsed > 0.5 else ""
            parts.append(f"{count} {self.unit}{rate}")
        if self.total and 0 < self.done < self.total and elapsed > 0.5:
            parts.append(f"{format_seconds(elapsed * (self.total - self.done) / self.done)} left")
        else:
            parts.append(format_seconds(elapsed))
        if self.note:
            parts.append(self.note)
        return "  ".join(parts)[:columns]

    def _draw(self, force: bool = False) -> None:
        if not self.enabled or self._width < 0:
            return
        now = time.monotonic()
        if not force and now - self._drawn < self.min_interval_s:
            return
        self._drawn = now
        text = self.line(shutil.get_terminal_size((100, 24)).columns - 1)
        # Blanks wipe what is left of a longer earlier line.
        self.stream.write("\r" + text + " " * max(0, self._width - len(text)))
        self.stream.flush()
        self._width = len(text)
