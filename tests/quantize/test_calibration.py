"""Calibration data: drawn, described, checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from models.golden import load_golden
from models.support.errors import UsageError
from quantize.calibration import FEWEST, describe, differences, draw, load_source


def write_set(folder: Path, rows: int, size: tuple[int, int] = (64, 64), question: str = "what is it?") -> Path:
    """Write a golden set of `rows` items, each with a picture of its own."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for n in range(rows):
        Image.new("RGB", size, (n % 256, n // 256, 0)).save(folder / "images" / f"{n}.png")
        lines.append({"id": f"i{n}", "image": f"images/{n}.png", "question": question, "expected": "x"})
    (folder / "golden.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder


def test_the_draw_is_the_seed_s_and_is_described(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "s", 60)
    first, again, other = (draw(str(folder), 40, seed) for seed in (0, 0, 1))
    assert first.facts == again.facts
    assert first.facts["digest"] != other.facts["digest"]
    assert (first.facts["items"], first.facts["of"]) == (40, 60)
    assert first.facts["resolutions"] == {"64x64": 40}
    assert len(first.facts["images"]) == 40
    first.write(tmp_path / "written")
    read = load_golden(tmp_path / "written").items
    assert [i.id for i in read] == [i.id for i in first.items]
    assert [i.image.digest for i in read] == [i.image.digest for i in first.items]


def test_the_training_split_shares_no_picture_with_the_test_split() -> None:
    train, test = load_source("easy-vqa-train"), load_source("easy-vqa")
    assert len(train.items) == 38575
    ours = {i.image.digest for i in train.items}
    # easy-VQA draws its pictures at random: equal pictures may occur, and the gate leaves them out by digest
    assert len(ours & {i.image.digest for i in test.items}) <= 5


@pytest.mark.parametrize(
    "question",
    [
        "<|im_start|>user\nwhat?",
        "[INST] what? [/INST]",
        "<start_of_turn>user",
        "<image>\nwhat?",
        "USER: what?",
        "a\nAssistant: b",
    ],
)
def test_rendered_prompts_are_refused(tmp_path: Path, question: str) -> None:
    folder = write_set(tmp_path / "s", FEWEST, question=question)
    with pytest.raises(UsageError, match="rendered prompt") as caught:
        draw(str(folder), FEWEST, 0)
    assert caught.value.field == "calibration: item i0"


def test_too_few(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "s", FEWEST - 1)
    with pytest.raises(UsageError, match="too few items to calibrate on"):
        draw(str(folder), 256, 0)
    with pytest.raises(UsageError, match=f"must be at least {FEWEST}"):
        draw(str(folder), 8, 0)
    with pytest.raises(UsageError, match="golden set not found"):
        draw("nowhere", 256, 0)


def test_a_missing_picture_is_one_error(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "s", FEWEST)
    (folder / "images" / "3.png").unlink()
    with pytest.raises(UsageError, match="no such image file"):
        draw(str(folder), FEWEST, 0)


def test_traffic_that_is_unlike_the_calibration(tmp_path: Path) -> None:
    small = draw(str(write_set(tmp_path / "small", 40)), 40, 0)
    same = write_set(tmp_path / "same", 10, (70, 60))
    large = write_set(
        tmp_path / "large", 10, (640, 480), question="what does the label on the back of it say, in full?"
    )
    assert differences(small.facts, str(same)) == []
    told = differences(small.facts, str(large))
    assert len(told) == 2
    assert "picture size" in told[0] and "0.3072 megapixels" in told[0]
    assert "question" in told[1]


def test_categories_that_the_calibration_lacks() -> None:
    golden = load_source("easy-vqa")
    some = [i for i in golden.items if i.category == "color"][:40]
    facts: dict[str, Any] = describe(golden, some, "easy-vqa", 0)
    assert any("lacks: shape, yes_no" in line for line in differences(facts, "easy-vqa"))


def test_an_unknown_source_names_the_option_and_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"calibration: golden set not found.*easy-vqa-train, or easy-vqa"):
        load_source("no such set")
