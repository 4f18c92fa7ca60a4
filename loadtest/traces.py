"""Recorded traffic: when requests came, and how long they were.

Read from JSONL or CSV.  The time is in the first of these columns that is there: `timestamp`, `Timestamp`, `time`,
`arrival_time`, `intended_s` (a `requests.csv` of this tool), `TIMESTAMP`.  Numbers are seconds, or milliseconds in a
Mooncake trace (which has `hash_ids`); ISO dates are understood too.  Lengths, where given:
`input_length`/`output_length` (Mooncake), `Request tokens`/`Response tokens` (BurstGPT),
`ContextTokens`/`GeneratedTokens` (Azure), `prompt_tokens`/`completion_tokens`.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.support.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

TIMES = ("timestamp", "Timestamp", "time", "arrival_time", "intended_s", "TIMESTAMP")
INPUTS = ("input_length", "Request tokens", "ContextTokens", "prompt_tokens")
OUTPUTS = ("output_length", "Response tokens", "GeneratedTokens", "completion_tokens")


@dataclass
class Trace:
    """A recorded trace, sorted by time.

    `times` are seconds from the first request; `inputs` and `outputs` are token counts, -1 where the trace gives
    none.  All have shape (n,).
    """

    times: NDArray[np.float64]
    inputs: NDArray[np.int64]
    outputs: NDArray[np.int64]
    milliseconds: bool = False


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, row)."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"cannot read: {error.strerror}", field="--trace", value=str(path), fix="name an existing file"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"not UTF-8 at byte {error.start}", field="--trace", value=str(path), fix="save it as UTF-8"
        ) from error
    if text.lstrip().startswith("{"):
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UsageError(
                    f"not JSON: {error}", field=f"{path}, line {number}", fix="write one JSON object a line"
                ) from error
            if not isinstance(row, dict):
                raise UsageError("not an object", field=f"{path}, line {number}", fix="write one JSON object a line")
            yield number, row
        return
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise UsageError(
            f"not CSV: {error}", field=f"{path}, line {reader.line_num}", fix="mend the line there"
        ) from error


def _first(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _seconds(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError("not a time")
    try:
        return float(value)
    except (TypeError, ValueError):
        # Azure writes seven digits of a second; Python reads six.
        text = str(value).strip()
        head, dot, rest = text.partition(".")
        digits = len(rest) - len(rest.lstrip("0123456789"))
        when = dt.datetime.fromisoformat(head + (dot + rest[: min(6, digits)] + rest[digits:] if dot else ""))
        return when.replace(tzinfo=when.tzinfo or dt.UTC).timestamp()


def _tokens(value: Any) -> int:
    try:
        return max(-1, int(float(value)))
    except (TypeError, ValueError, OverflowError):
        return -1


def read_trace(path: Path | str) -> Trace:
    """Read a trace.

    Raises:
        UsageError: it cannot be read, has no column of times, or a line is wrong (the error has its number).
    """
    file = Path(path)
    times, inputs, outputs = [], [], []
    milliseconds = False
    for number, row in _rows(file):
        given = _first(row, TIMES)
        if given is None:
            raise UsageError(
                "no time in this line", field=f"{file}, line {number}", fix=f"name the column one of {', '.join(TIMES)}"
            )
        try:
            seconds = _seconds(given)
        except ValueError as error:
            raise UsageError(
                "not a time",
                field=f"{file}, line {number}",
                value=str(given),
                fix="write seconds, or a date and time as ISO 8601 has it",
            ) from error
        if not math.isfinite(seconds):
            raise UsageError(
                "not a time",
                field=f"{file}, line {number}",
                value=str(given),
                fix="write seconds, or a date and time as ISO 8601 has it",
            )
        milliseconds |= "hash_ids" in row
        times.append(seconds)
        inputs.append(_tokens(_first(row, INPUTS)))
        outputs.append(_tokens(_first(row, OUTPUTS)))
    if not times:
        raise UsageError(
            "the trace is empty", field="--trace", value=str(path), fix="name a file with at least one request"
        )
    at = np.array(times) / (1000 if milliseconds else 1)
    order = np.argsort(at, kind="stable")
    return Trace(at[order] - at[order[0]], np.array(inputs)[order], np.array(outputs)[order], milliseconds)
