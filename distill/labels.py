"""Labelled rows: what the journal and the humans say about each row, and which answer is chosen."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distill.answers import Said, parse_reply, same_answer
from models.support.errors import UsageError
from models.support.files import atomic_write


@dataclass
class Given:
    """One answer with its lineage: who gave it, when, to which words, at what price and under which licence."""

    key: str
    teacher: str
    vendor: str
    model: str
    at: str
    prompt_sha256: str
    sample: int
    usd: str
    price: dict[str, str] | None
    licence: dict[str, str]
    usage: list[int] | None
    text: str
    answer: Any = None
    confidence: float | None = None
    rationale: str | None = None
    problem: str | None = None
    detail: str | None = None


@dataclass
class Labelled:
    """A row with everything that was said about it.

    `answer`, `confidence`, `rationale` and `source` are filled in by the filters when an answer is chosen.
    """

    id: str
    image: str
    image_sha256: str
    question: str
    category: str
    split: str
    synthetic: bool
    answers: list[Given]
    human: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    answer: Any = None
    confidence: float | None = None
    rationale: str | None = None
    source: str = ""
    agreement: float | None = None

    @property
    def usd(self) -> float:
        """Dollars of the row's answers (for display: the exact sum is the journal's)."""
        return sum(float(a.usd) for a in self.answers)


def given(line: Mapping[str, Any], reply: str, answer_schema: Mapping[str, Any]) -> Given:
    """Return an answer of the journal, taken apart."""
    said: Said = parse_reply(line["text"], line["finish_reason"], reply, answer_schema)
    kept = {name: line[name] for name in Given.__dataclass_fields__ if name in line}
    return Given(**(kept | asdict(said)))


@dataclass(frozen=True)
class Choice:
    """The answer that most say: its share of the usable answers, and who gave it."""

    answer: Any
    share: float
    teachers: tuple[str, ...]
    best: Given


def choose(answers: Sequence[Given], accept: Mapping[str, Any]) -> Choice | None:
    """Return the answer that most of the usable answers are equal to; None when there is none.

    Each teacher has one vote in all, however many samples it gave.  Equal votes go to the answer with the higher
    stated confidence, then to the one that came first in the recipe's order.
    """
    usable = [a for a in answers if a.problem is None]
    if not usable:
        return None
    per_teacher = {t: sum(a.teacher == t for a in usable) for t in {a.teacher for a in usable}}
    groups: list[list[Given]] = []
    for one in usable:
        home = next((g for g in groups if same_answer(one.answer, g[0].answer, accept)), None)
        if home is None:
            groups.append([one])
        else:
            home.append(one)

    def votes(group: list[Given]) -> float:
        return sum(1 / per_teacher[a.teacher] for a in group)

    def confidence(group: list[Given]) -> float:
        stated = [a.confidence for a in group if a.confidence is not None]
        return sum(stated) / len(stated) if stated else 0.0

    winner = max(groups, key=lambda g: (round(votes(g), 9), confidence(g)))
    best = max(winner, key=lambda a: a.confidence if a.confidence is not None else -1.0)
    teachers = tuple(dict.fromkeys(a.teacher for a in winner))
    return Choice(best.answer, votes(winner) / len(per_teacher), teachers, best)


def write_labels(path: Path, rows: Iterable[Labelled]) -> None:
    """Write labelled rows as JSONL, atomically."""
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")


def read_labels(path: Path) -> list[Labelled]:
    """Return what `write_labels` wrote.  Raises UsageError when it is not there or damaged."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"cannot read: {error.strerror}", field=str(path), fix="run fovea distill collect") from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            value["answers"] = [Given(**a) for a in value["answers"]]
            found.append(Labelled(**value))
        except (ValueError, TypeError, KeyError) as error:
            fix = "run fovea distill collect: it writes the file anew and buys nothing twice"
            raise UsageError("not a labelled row", field=f"{path}:{number}", fix=fix) from error
    return found
