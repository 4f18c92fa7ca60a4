"""Training rows: what cannot be trained on stops the job with the row's id, and nothing takes its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from distill.labels import Given, Labelled, read_labels, write_labels
from distill.recipe.student import Student
from distill.training_rows import RowError, TrainingRows, target_of
from models.golden import ImageRef
from models.support.errors import UsageError
from tests.distill.simulator import COLOURS, picture, write_data

STUDENT = Student(model="qwen2-5-vl-embedded", max_tokens=40)


def words(text: str) -> int:
    return len(text.split())


def kept(folder: Path, n: int = 6) -> Path:
    found = [
        Labelled(
            **{"synthetic": False, "split": "train", **row},
            image_sha256=ImageRef.open(folder / row["image"]).digest,
            answers=[],
            answer=row["category"],
            source="sim",
            agreement=0.75,
            rationale="seen",
        )
        for row in write_data(folder, n)
    ]
    write_labels(folder / "kept.jsonl", found)
    return folder / "kept.jsonl"


def rows(folder: Path, **student: int | str) -> TrainingRows:
    return TrainingRows(folder / "kept.jsonl", folder, STUDENT.model_copy(update=student), words)


def test_rows_are_what_was_labelled(tmp_path: Path) -> None:
    kept(tmp_path)
    found = rows(tmp_path)
    assert len(found) == 6 and found.dropped == {}
    for i in range(6):
        one = found[i]
        assert (one.id, one.question, one.target) == (f"r{i}", f"Colour of square {i}?", list(COLOURS)[i % 3])
        assert one.image.size == (48, 48) and one.image.mode == "RGB"


def missing(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:70])


def swapped(path: Path) -> None:
    path.write_bytes(picture("blue", 99))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [missing, truncated, swapped, emptied])
@pytest.mark.parametrize("when", ["before", "during"])
def test_a_picture_that_is_not_there_or_not_the_same(tmp_path: Path, harm: Callable[[Path], None], when: str) -> None:
    kept(tmp_path)
    found = rows(tmp_path) if when == "during" else None
    harm(tmp_path / "p3.png")
    with pytest.raises(RowError, match="row 'r3': ") as caught:
        found[3] if found is not None else rows(tmp_path)
    assert caught.value.row == "r3" and caught.value.exit_code == 2
    if when == "before":
        left = rows(tmp_path, max_dropped_rows=1)
        assert len(left) == 5 and list(left.dropped) == ["r3"] and "r3" not in {left[i].id for i in range(5)}
        missing(tmp_path / "p4.png")
        with pytest.raises(RowError, match=r"row 'r3': .*\(2 rows are at fault\)"):
            rows(tmp_path, max_dropped_rows=1)


def test_damage_that_the_digest_does_not_show(tmp_path: Path) -> None:
    """A file that was damaged before it was labelled has the right digest, and is found all the same."""
    path = kept(tmp_path)
    truncated(tmp_path / "p2.png")
    found = read_labels(path)
    import hashlib

    found[2].image_sha256 = hashlib.sha256((tmp_path / "p2.png").read_bytes()).hexdigest()
    write_labels(path, found)
    with pytest.raises(RowError, match="row 'r2': the picture is damaged"):
        rows(tmp_path)


def test_image_tokens_that_would_be_cut_off(tmp_path: Path) -> None:
    kept(tmp_path)
    # 48x48 at 16 px a token is enlarged to 64x48: 12 tokens; the question has 4 words, the answer 1
    assert len(rows(tmp_path, max_tokens=21)) == 6
    with pytest.raises(RowError, match=r"row 'r0': \d+ image tokens and 5 of text are more than 16: some would be cut"):
        rows(tmp_path, max_tokens=16)
    with pytest.raises(UsageError, match="every row is at fault"):
        rows(tmp_path, max_tokens=16, max_dropped_rows=6)


def test_no_rows(tmp_path: Path) -> None:
    kept(tmp_path)
    with pytest.raises(UsageError, match="no rows of split validation"):
        TrainingRows(tmp_path / "kept.jsonl", tmp_path, STUDENT, words, split="validation")
    (tmp_path / "kept.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(UsageError, match=r"kept.jsonl:1: not a labelled row"):
        rows(tmp_path)


def test_targets(tmp_path: Path) -> None:
    kept(tmp_path, 1)
    (row,) = read_labels(tmp_path / "kept.jsonl")
    assert target_of(row, "answer") == "red"
    assert json.loads(target_of(row, "json")) == {"answer": "red", "confidence": 0.75}
    assert list(json.loads(target_of(row, "rationale"))) == ["rationale", "answer", "confidence"]
    row.answer, row.agreement, row.rationale = {"a": 1}, None, None
    assert target_of(row, "answer") == '{"a": 1}'
    assert json.loads(target_of(row, "rationale")) == {"answer": {"a": 1}, "confidence": 1.0}
    assert Given.__dataclass_fields__.keys() >= {"teacher", "at", "prompt_sha256", "price", "licence"}
