"""The rows that a student is trained on, one at a time, and loud about every row that cannot be what it should be.

A picture that is missing, unreadable, no longer the one that was labelled, or whose tokens would be cut off stops the
job with the row's id; nothing is ever put in its place.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from distill.labels import Labelled, read_labels
from distill.recipe.student import Student
from models.catalog.load import load_catalog
from models.support.errors import UsageError

Tokenize = Callable[[str], int]
"""Text -> its number of tokens, by the student's own tokenizer."""


class RowError(UsageError):
    """A row that cannot be trained on.  `row` is its id."""

    def __init__(self, row: str, message: str, *, value: object = None, fix: str | None = None):
        super().__init__(message, field=f"row {row!r}", value=value, fix=fix)
        self.row = row


@dataclass(frozen=True)
class Example:
    """One row, ready for a processor: picture (RGB, as stored), question, and the text to learn."""

    id: str
    image: Image.Image
    question: str
    target: str


class TrainingRows:
    """The kept rows of one split; indexable, so that a data loader of torch takes it as it is.

    Args:
        kept: `kept.jsonl` of the filter step.
        images: folder that the rows' pictures are relative to.
        student: whose image rule, longest row and form of answer.
        tokenize: counts the tokens of question, answer and the chat form around them.
        most_image_tokens: what the processor scales larger pictures down to (`train.image_tokens`).

    `dropped` has the ids of the rows left out, with the reason: at most `student.max_dropped_rows`.

    Raises:
        RowError: the first row at fault, when more rows are at fault than may be dropped.  Every row is looked at when
            the object is made, before the first step of training.
        UsageError: the file is missing, damaged or has no row of this split.
    """

    def __init__(self, kept: Path, images: Path, student: Student, tokenize: Tokenize, *, split: str = "train",
                 most_image_tokens: int | None = None):  # fmt: skip
        self._most = most_image_tokens
        self._images, self._student, self._tokenize = images, student, tokenize
        rule = load_catalog().variant(student.model).image
        assert rule is not None, "Student requires it"
        self._rule = rule
        rows = [row for row in read_labels(kept) if row.split == split]
        if not rows:
            raise UsageError(f"no rows of split {split}", field=str(kept), fix="loosen filters, or label more rows")
        faults: dict[str, RowError] = {}
        for row in rows:
            try:
                self._load(row)
            except RowError as error:
                faults[row.id] = error
        if len(faults) > student.max_dropped_rows:
            first = next(iter(faults.values()))
            if len(faults) > 1:
                first.message += f" ({len(faults)} rows are at fault)"
            raise first
        self.dropped: Mapping[str, str] = {row: str(error) for row, error in faults.items()}
        self._rows = [row for row in rows if row.id not in faults]
        if not self._rows:
            raise UsageError("every row is at fault", field=str(kept), fix=next(iter(self.dropped.values())))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        """Return a row.  Raises RowError when its picture has gone or changed since the start."""
        return self._load(self._rows[index])

    def category(self, index: int) -> str:
        """Return the category of a row."""
        return self._rows[index].category

    def _load(self, row: Labelled) -> Example:
        path = self._images / row.image
        fix = "restore the picture, or allow it with student.max_dropped_rows"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RowError(row.id, f"the picture cannot be read: {error.strerror}", value=row.image, fix=fix) from error
        if hashlib.sha256(data).hexdigest() != row.image_sha256:
            raise RowError(row.id, "the picture is not the one that was labelled", value=row.image, fix=fix)
        try:
            with Image.open(io.BytesIO(data)) as image:
                picture = image.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = str(error).split("\n")[0][:120] or type(error).__name__
            raise RowError(row.id, f"the picture is damaged: {reason}", value=row.image, fix=fix) from error
        target = target_of(row, self._student.target)
        self._fits(row, picture, target)
        return Example(row.id, picture, row.question, target)

    def _fits(self, row: Labelled, picture: Image.Image, target: str) -> None:
        image = self._rule.tokens(picture.width, picture.height)
        image = image if self._most is None else min(image, self._most)
        words = self._tokenize(row.question) + self._tokenize(target)
        if image + words > self._student.max_tokens:
            raise RowError(
                row.id,
                f"{image} image tokens and {words} of text are more than {self._student.max_tokens}: "
                "some would be cut off",
                value=f"{picture.width}x{picture.height}",
                fix="raise student.max_tokens, make the picture smaller, or allow it with student.max_dropped_rows",
            )


def target_of(row: Labelled, form: str) -> str:
    """Return the text that the student learns to write for a row.

    Args:
        form: `answer`, `json` or `rationale` (`student.target`).
    """
    plain = row.answer if isinstance(row.answer, str) else json.dumps(row.answer, ensure_ascii=False)
    if form == "answer":
        return plain
    parts: dict[str, Any] = {"rationale": row.rationale} if form == "rationale" and row.rationale else {}
    parts["answer"] = row.answer
    # humans say no confidence; where samples and teachers disagreed, the student must not learn to be sure
    parts["confidence"] = round(row.agreement if row.agreement is not None else 1.0, 2)
    return json.dumps(parts, ensure_ascii=False)
