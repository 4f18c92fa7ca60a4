"""The journal: one line of JSON per answered request, from which the bill can be made again at any time.

    {"at": "2026-11-20T09:30:00.125Z", "id": "...", "tenant": "red", "model": "m", "usd": "0.0000694",
     "prompt_tokens": 412, "completion_tokens": 9, "image_tokens": 391, "images": [[512, 384]], "recalled": false}

`usd` is the own price that was in force, exact; `prompt_tokens` is null when the engine told no usage, `image_tokens`
when nobody knows them.  Every process appends to a file of its own, one per UTC day, a line in one write: what was
written stays when the process is killed, and a line that was cut off is told apart from a damaged one.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.cost.ledger import Finished
from models.prices import Money, reason
from models.support.errors import UsageError

logger = logging.getLogger("fovea.money")
COMPLAIN_EVERY_S = 60.0


class Line(BaseModel):
    """One line of the journal."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: dt.datetime
    id: str = ""
    tenant: str
    model: str
    usd: Money
    prompt_tokens: Annotated[int, Field(ge=0, strict=True)] | None
    completion_tokens: Annotated[int, Field(ge=0, strict=True)] = 0
    image_tokens: Annotated[int, Field(ge=0, strict=True)] | None = 0
    images: tuple[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], ...] = ()
    recalled: bool = False

    @property
    def day(self) -> dt.date:
        """The UTC day whose prices count."""
        at = self.at if self.at.tzinfo is not None else self.at.replace(tzinfo=dt.UTC)
        return at.astimezone(dt.UTC).date()

    @property
    def finished(self) -> Finished | None:
        """The request as the ledger takes it; None when it has no usage."""
        if self.prompt_tokens is None:
            return None
        return Finished(
            self.tenant,
            self.model,
            self.prompt_tokens,
            self.completion_tokens,
            self.image_tokens,
            self.images,
            self.recalled,
        )


class Journal:
    """Appends lines.  A disk that is full or gone never fails a request: what could not be written is counted.

    Args:
        folder: made when it is not there.

    Raises:
        UsageError: the folder cannot be made.
    """

    def __init__(self, folder: Path):
        self.folder, self.lost = folder, 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot make the folder: {error.strerror}", field="money.journal", value=str(folder)
            ) from error
        self._day: dt.date | None = None
        self._file = -1
        self._complained = float("-inf")

    def add(self, one: Finished, usd: Decimal, at: dt.datetime, request_id: str = "", *, counted: bool = True) -> None:
        """Write one answered request; `counted` is False when the engine told no usage."""
        line = {
            "at": at.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "id": request_id,
            "tenant": one.tenant,
            "model": one.model,
            "usd": f"{usd}",
            "prompt_tokens": one.prompt_tokens if counted else None,
            "completion_tokens": one.completion_tokens,
            "image_tokens": one.image_tokens,
            "images": one.images,
            "recalled": one.recalled,
        }
        text = json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
        try:
            self._open(at.astimezone(dt.UTC).date())
            if os.write(self._file, text) != len(text):
                raise OSError("the disk took half a line")
        except OSError as error:
            self.lost += 1
            self.close()  # the next line starts a new file: half a line must not swallow it
            if time.monotonic() - self._complained > COMPLAIN_EVERY_S:
                self._complained = time.monotonic()
                logger.error("the journal in %s cannot be written: %s; %d lines lost", self.folder, error, self.lost)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
        self._file, self._day = -1, None

    def _open(self, day: dt.date) -> None:
        if day == self._day:
            return
        self.close()
        name = f"{day.isoformat()}.{socket.gethostname()}-{os.getpid()}-{time.time_ns():x}.jsonl"
        self._file = os.open(self.folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        self._day = day


@dataclass
class Reader:
    """Reads journals, counting the lines that were cut off when a process was killed.

    Args:
        paths: files, or folders of `*.jsonl`.
    """

    paths: Sequence[Path]
    torn: int = 0

    def lines(self) -> Iterator[Line]:
        """Yield the lines of all files, file by file.

        Raises:
            UsageError: a path cannot be read or holds no journal, or a line is wrong; file, line and key are named.
        """
        for path in self.files():
            try:
                content = path.read_bytes()
            except OSError as error:
                raise UsageError(f"cannot read: {error.strerror}", field="JOURNAL", value=str(path)) from error
            *whole, rest = content.split(b"\n")
            self.torn += bool(rest)
            for number, text in enumerate(whole, 1):
                yield _parsed(text, f"{path}, line {number}")

    def files(self) -> list[Path]:
        """Return the files, each once, folders taken apart.  Raises UsageError when one is not there or empty."""
        found: list[Path] = []
        for path in self.paths:
            inside = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
            if not inside:
                fix = "name the folder of the stack's money.journal"
                raise UsageError("holds no *.jsonl", field="JOURNAL", value=str(path), fix=fix)
            found += inside
        return list(dict.fromkeys(p.resolve() for p in found))


def _parsed(text: bytes, where: str) -> Line:
    try:
        return Line.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        value = None if isinstance(first["input"], dict | bytes | list) else str(first["input"])[:80]
        fix = "mend or remove the line"
        raise UsageError(
            reason(first["msg"]), field=f"{where}: {key}" if key else where, value=value, fix=fix
        ) from error
