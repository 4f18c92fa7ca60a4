"""The record of an evaluation: one JSON line per answer, written as it comes, continued after an interruption.

`run.json` says what was asked (model, golden set digest, request parameters), `answers.jsonl` holds the answers.
A folder is only continued by the same evaluation.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from models.support.errors import UsageError
from models.support.files import write_json

RUN_FILE, ANSWERS_FILE = "run.json", "answers.jsonl"


@dataclass(frozen=True)
class Answer:
    """What came back for one item.

    Attributes:
        id: of the golden item.
        text: the answer; None when there was an error.
        latency_ms: from sending the request to the last byte, of the attempt that succeeded.
        confidence: product of the token probabilities; None when the endpoint sent no logprobs.
        finish_reason: as the endpoint says (`stop`, `length`).
        prompt_tokens, completion_tokens: the endpoint's own usage.
        error: kind of error (`http_500`, `timeout`, `connection`, `bad_response`); None when answered.
        usd: what it cost, as decimal text, where the answer is priced.
        image_tokens_difference: image tokens that the vendor reports, minus those of its documented rule.
        attempts: requests sent for this item.
        at: seconds since the epoch when it came.
    """

    id: str
    text: str | None
    latency_ms: float | None
    confidence: float | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None
    usd: str | None = None
    image_tokens_difference: int | None = None
    attempts: int = 1
    at: float = 0.0


class AnswerLog:
    """An open `answers.jsonl`; `done` holds what was already answered, by item id."""

    def __init__(self, folder: Path, identity: dict[str, Any], *, fresh: bool = False):
        """Open the log in `folder`, created when missing.

        Raises:
            UsageError: the folder holds another evaluation, is damaged, or cannot be written.
        """
        self.folder, self.path = folder, folder / ANSWERS_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if fresh:
                self.path.unlink(missing_ok=True)
                (folder / RUN_FILE).unlink(missing_ok=True)
            self._claim(identity)
            self.done: dict[str, Answer] = {a.id: a for a in self._recover() if a.error is None}
            self._file = self.path.open("ab")
        except OSError as error:
            raise UsageError(f"cannot use the folder: {error.strerror}", field="out", value=str(folder)) from error

    def _claim(self, identity: dict[str, Any]) -> None:
        """Write `run.json`, or check that the one there is of the same evaluation."""
        path = self.folder / RUN_FILE
        if not path.exists():
            if self.path.exists():
                raise self._other("answers.jsonl lies there without a run.json")
            write_json(path, identity)
            return
        try:
            there = orjson.loads(path.read_bytes())
        except ValueError:
            raise self._other("run.json is damaged") from None
        different = [key for key in identity if not isinstance(there, dict) or there.get(key) != identity[key]]
        if different:
            raise self._other(f"it holds another evaluation ({', '.join(different)} differ)")

    def _other(self, what: str) -> UsageError:
        return UsageError(
            what, field="out", value=str(self.folder), fix="name another folder, or --fresh to start again"
        )

    def _recover(self) -> list[Answer]:
        """Return the answers on file; a last line cut by a crash is removed from it."""
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        answers = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                answers.append(Answer(**orjson.loads(line)))
            except (ValueError, TypeError):
                raise self._other(f"answers.jsonl is damaged on line {number}") from None
        return answers

    def add(self, answer: Answer) -> None:
        """Append one answer; it survives a kill of the process from then on.

        Raises:
            UsageError: the disk is full or the folder has gone.
        """
        try:
            self._file.write(orjson.dumps(asdict(answer)) + b"\n")
            self._file.flush()
        except OSError as error:
            raise UsageError(
                f"cannot write: {error.strerror}", field=str(self.path), fix="free space and run again"
            ) from error
        if answer.error is None:
            self.done[answer.id] = answer

    def __enter__(self) -> AnswerLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()
