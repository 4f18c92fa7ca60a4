"""Rows and prompts: closed formats, and errors that name file, line and key."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.prompts import PromptSet
from distill.recipe.load import parse_recipe
from distill.rows import Row, limit_synthetic, read_rows, shuffled
from models.support.errors import UsageError
from tests.distill.test_recipe import LEAST

ROW = {"id": "a", "image": "a.png", "question": "What?"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "there are no rows"),
        ("# only a comment\n\n", "there are no rows"),
        ('{"id": "a"', r"rows.jsonl:1: broken line, not JSON"),
        ("[]", "not a JSON object"),
        (json.dumps(ROW | {"imag": 1}), "imag: unknown key"),
        ("\n\n" + json.dumps({k: v for k, v in ROW.items() if k != "question"}), "rows.jsonl:3: question: missing key"),
        (json.dumps(ROW | {"split": "dev"}), "split: input should be 'train', 'validation' or 'test'"),
        (json.dumps(ROW) + "\n" + json.dumps(ROW), "rows.jsonl:2: the id is already used on line 1"),
        (json.dumps(ROW | {"image": "../a.png"}), "must lie in the folder of the file"),
        (json.dumps(ROW | {"image": "/etc/passwd"}), "must lie in the folder of the file"),
        ("[" * 100_000, "broken line"),
    ],
)
def test_broken_rows(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(UsageError, match=says):
        read_rows(tmp_path / "rows.jsonl")


@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
def test_any_bytes_are_rows_or_one_error(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(data)
        with pytest.raises(UsageError):
            read_rows(path)


def test_lines_are_named_as_the_editor_shows_them(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("# rows\n\n" + json.dumps(ROW) + "\n")
    rows = read_rows(tmp_path / "rows.jsonl")
    assert rows.where(rows.items[0]).endswith("rows.jsonl:3 (row 'a')")


def test_new_rows_do_not_move_the_others() -> None:
    rows = [Row(**(ROW | {"id": f"r{i}"})) for i in range(50)]
    order = [r.id for r in shuffled(rows[:40], 3)]
    assert [r.id for r in shuffled(rows, 3) if int(r.id[1:]) < 40] == order != [r.id for r in rows[:40]]
    assert [r.id for r in shuffled(rows[:40], 4)] != order


@given(st.integers(0, 40), st.integers(0, 40), st.floats(0, 1))
def test_the_share_of_synthetic_rows(real: int, made: int, share: float) -> None:
    rows = [Row(**(ROW | {"id": f"{i}", "synthetic": i >= real})) for i in range(real + made)]
    kept, out = limit_synthetic(rows, share, 0)
    synthetic = sum(r.synthetic for r in kept)
    assert len(kept) + len(out) == len(rows) and all(r.synthetic for r in out) and synthetic <= share * len(kept) + 1e-6
    if out:
        assert synthetic + 1 > share * (len(kept) + 1) - 1e-6


def prompts(folder: Path, **given_: Any) -> PromptSet:
    return PromptSet(parse_recipe(LEAST | {"prompts": given_}), folder)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{{ row.question", "not a Jinja file"),
        ("{{ rov.question }}", "prompts.user: cannot be rendered: 'rov' is undefined.*it knows answer, answer_schema"),
        ("{{ row.colour }}", "cannot be rendered"),
        ("{{ ''.__class__.__mro__ }}", "cannot be rendered"),
    ],
)
def test_broken_prompts_are_found_before_anything_is_asked(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "u.jinja").write_text(text)
    with pytest.raises(UsageError, match=says):
        prompts(tmp_path, user="u.jinja")


def test_own_and_shipped_prompts(tmp_path: Path) -> None:
    (tmp_path / "u.jinja").write_text("Look: {{ row.question }} ({{ row.category }})")
    row = Row(**ROW)
    own = prompts(tmp_path, user="u.jinja", rationale=False)
    assert own.label(row).text == "Look: What? (all)"
    system = own.label(row).system
    assert system is not None and "Name the shape." in system and "rationale" not in system
    assert own.label(row).text not in own.blind(row).text and "image is missing" in own.blind(row).text
    assert own.judge(row, "red").text.count('"red"') == 1
    plain = prompts(tmp_path, reply="text")
    assert plain.label(row) == plain.blind(row) and plain.label(row).system is None
    assert own.digest != plain.digest
