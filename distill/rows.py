"""The data: pictures with questions (`data.rows`) and what people said about them (`data.human`), both JSONL.

Lines that are blank or begin with `#` are skipped.  The formats are in docs/distill.md; both are closed, and an error
names file, line and key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.support.errors import UsageError

Split = Literal["train", "validation", "test"]
T = TypeVar("T", bound=BaseModel)


class Row(BaseModel):
    """One picture with one question.  `image` is relative to the file; `line` is where it stood."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1, max_length=200)
    image: str = Field(min_length=1)
    question: str = Field(min_length=1)
    category: str = Field("all", min_length=1)
    split: Split = "train"
    synthetic: bool = False


class HumanLabel(BaseModel):
    """One line of a human's labels: the right answer to a row, and whether it corrects a teacher."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    answer: Any
    by: str = Field(min_length=1)
    at: str = ""
    correction: bool = False
    note: str = ""


@dataclass(frozen=True)
class Rows:
    """The rows of a file, in its order, and the folder that their pictures are relative to."""

    items: tuple[Row, ...]
    lines: Mapping[str, int]
    file: Path

    def where(self, row: Row) -> str:
        """Return `file:line (row id)`, for errors."""
        return f"{self.file}:{self.lines[row.id]} (row {row.id!r})"

    def path(self, row: Row) -> Path:
        """Return where the row's picture lies."""
        return self.file.parent / row.image


def _lines(path: Path) -> Iterator[tuple[int, str, Any]]:
    """Yield (line number, `file:line`, parsed JSON) of every line that is not blank or a comment."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 at byte {error.start}", field=str(path), fix="save it as UTF-8") from error
    except OSError as error:
        raise UsageError(f"cannot read: {error.strerror}", field=str(path), fix="correct the path") from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
            fix = "one JSON object a line"
            raise UsageError(f"broken line, not JSON: {reason}", field=f"{path}:{number}", fix=fix) from error
        if not isinstance(value, dict):
            raise UsageError("not a JSON object", field=f"{path}:{number}", value=line[:60])
        yield number, f"{path}:{number}", value


def _parse(kind: type[T], value: Any, where: str) -> T:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        message = {"extra_forbidden": "unknown key", "missing": "missing key"}.get(first["type"], first["msg"].lower())
        given = first["input"] if isinstance(first["input"], str | int | float | bool) else None
        raise UsageError(
            f"{key}: {message}", field=where, value=given, fix=f"known keys: {', '.join(kind.model_fields)}"
        ) from error


def read_rows(path: Path) -> Rows:
    """Return the rows of a JSONL file.

    Raises:
        UsageError: the first thing that is wrong, with file and line.
    """
    items: list[Row] = []
    lines: dict[str, int] = {}
    for number, where, value in _lines(path):
        row = _parse(Row, value, where)
        if row.id in lines:
            raise UsageError(
                f"the id is already used on line {lines[row.id]}", field=where, value=row.id, fix="ids must be unique"
            )
        if Path(row.image).is_absolute() or ".." in Path(row.image).parts:
            fix = "use a path relative to the file"
            raise UsageError("the image must lie in the folder of the file", field=where, value=row.image, fix=fix)
        lines[row.id] = number
        items.append(row)
    if not items:
        raise UsageError("there are no rows", field=str(path), fix="add one JSON object a line")
    return Rows(tuple(items), lines, path)


def read_human(paths: list[Path], rows: Rows, answer_schema: Mapping[str, Any]) -> dict[str, list[HumanLabel]]:
    """Return row id -> what people said, one label per person (the later line replaces an earlier one).

    Raises:
        UsageError: a line is wrong, names a row that is not there, or its answer does not fit `task.answer_schema`.
    """
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(dict(answer_schema))
    found: dict[str, dict[str, HumanLabel]] = {}
    for path in paths:
        for _, where, value in _lines(path):
            label = _parse(HumanLabel, value, where)
            if label.id not in rows.lines:
                raise UsageError("no row has this id", field=where, value=label.id, fix=f"ids stand in {rows.file}")
            problem = next(validator.iter_errors(label.answer), None)
            if problem is not None:
                raise UsageError(
                    f"answer does not fit task.answer_schema: {problem.message[:160]}", field=where, value=label.id
                )
            found.setdefault(label.id, {})[label.by] = label
    return {row_id: list(by.values()) for row_id, by in found.items()}


def shuffled(rows: tuple[Row, ...] | list[Row], seed: int) -> list[Row]:
    """Return the rows in an order that depends on `seed` and the ids alone, so that new rows do not move the others."""
    return sorted(rows, key=lambda r: order_of(r.id, seed))


def order_of(row_id: str, seed: int) -> bytes:
    """Return what rows are sorted by where chance decides: a digest of the seed and the id."""
    return hashlib.sha256(f"{seed}:{row_id}".encode()).digest()


def limit_synthetic(rows: list[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Return (kept, left out): at most `share` of the kept training rows are synthetic; other splits are untouched."""
    synthetic = [r for r in shuffled(rows, seed) if r.synthetic and r.split == "train"]
    real = sum(r.split == "train" and not r.synthetic for r in rows)
    allowed = len(synthetic) if share >= 1 else most_beside(real, share)
    out = {r.id for r in synthetic[allowed:]}
    return [r for r in rows if r.id not in out], [r for r in rows if r.id in out]


def most_beside(others: int, share: float) -> int:
    """Return the largest n with n <= share * (n + others); `share` below 1."""
    n = int(share * others / (1 - share) + 1)
    while n > 0 and n > share * (n + others) + 1e-9:
        n -= 1
    return n
