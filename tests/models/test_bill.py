"""The journal and `fovea bill`: exact sums, torn and damaged lines, periods, tenants, pages, one clear error each."""

from __future__ import annotations

import datetime as dt
import json
import random
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fovea import main
from models.cost.bill import bill
from models.cost.journal import Journal, Line, Reader
from models.cost.ledger import Finished
from models.prices import load_prices
from models.support.errors import UsageError

BOOK = load_prices()
NOON = dt.datetime(2026, 11, 20, 12, tzinfo=dt.UTC)
EACH = Decimal("0.000069444444444")


def written(folder: Path) -> Path:
    """A journal of two days, two tenants, a recalled answer, one without usage and one with unknown images."""
    journal = Journal(folder)
    picture = Finished("red", "m", 416, 5, 16, ((64, 64),))
    for hours in (-14, 0, 1):  # the first of them on the day before
        journal.add(picture, EACH, NOON + dt.timedelta(hours=hours), f"r{hours}")
    journal.add(Finished("red", "m", 416, 5, 16, ((64, 64),), recalled=True), EACH, NOON)
    journal.add(Finished("blue", "m", 100, 9), EACH, NOON)
    journal.add(Finished("blue", "m", 100, 9, None, ((64, 64),)), EACH, NOON)
    journal.add(Finished("blue", "m", 0, 0), EACH, NOON, counted=False)
    journal.close()
    assert journal.lost == 0
    return folder


def test_by_hand(tmp_path: Path) -> None:
    found = bill(Reader([written(tmp_path)]).lines(), ["gpt-4o"], BOOK)
    assert (found["first"], found["last"], found["unpriced"], found["images_unknown"]) == (
        "2026-11-19", "2026-11-20", 1, 1,
    )  # fmt: skip
    blue, red = found["lines"]
    assert (red["tenant"], red["requests"], red["prompt_tokens"]) == ("red", 4, 4 * 416)
    assert red["exact"]["own_usd"] == f"{3 * EACH:f}" and red["exact"]["cache_saved_usd"] == f"{EACH:f}"
    # 400 of text and 255 for a 64x64 image at GPT-4o
    assert Decimal(red["exact"]["avoided_usd"]["gpt-4o"]) == 4 * (655 * Decimal("2.50") + 50) / 10**6
    assert blue["requests"] == 2
    assert Decimal(blue["exact"]["avoided_usd"]["gpt-4o"]) == (100 * Decimal("2.50") + 90) / 10**6
    assert [d["requests"] for d in found["days"]] == [1, 5]
    for key in ("own_usd", "cache_saved_usd"):
        for rows in (found["lines"], found["days"]):
            parts = sum((Decimal(row["exact"][key]) for row in rows), Decimal(0))
            assert parts == Decimal(found["total"]["exact"][key])
    assert found["vendors"][0]["source"] and found["vendors"][0]["note"] == "priced, not measured"


def test_period_and_tenant(tmp_path: Path) -> None:
    folder, day = written(tmp_path), dt.date(2026, 11, 19)
    assert bill(Reader([folder]).lines(), [], BOOK, last=day)["total"]["requests"] == 1
    assert bill(Reader([folder]).lines(), [], BOOK, first=day + dt.timedelta(days=1))["total"]["requests"] == 5
    assert bill(Reader([folder]).lines(), [], BOOK, tenant="blue")["total"]["requests"] == 2
    with pytest.raises(UsageError, match="no answered request in it"):
        bill(Reader([folder]).lines(), [], BOOK, tenant="green")
    with pytest.raises(UsageError, match="ends before it begins"):
        bill(Reader([folder]).lines(), [], BOOK, first=day, last=day - dt.timedelta(days=1))


def test_the_price_of_the_day_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for day in (dt.date(2026, 10, 1), dt.date(2026, 8, 1)):
        journal.add(Finished("a", "m", 10**6, 0), EACH, dt.datetime.combine(day, dt.time(1), dt.UTC))
    found = bill(Reader([tmp_path]).lines(), ["gpt-5.6-sol"], BOOK)
    assert [d["avoided_usd"]["gpt-5.6-sol"] for d in found["days"]] == ["5.00", "4.00"]
    with pytest.raises(UsageError, match="no price of claude-opus-5-5 on that day"):
        bill(Reader([tmp_path]).lines(), ["claude-opus-5-5"], BOOK)


def test_a_line_that_was_cut_off_is_told_and_a_damaged_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path / "journal")
    largest = max(folder.iterdir(), key=lambda p: p.stat().st_size)
    whole = largest.read_bytes()
    largest.write_bytes(whole[:-20])
    assert main(["bill", str(folder)]) == 0
    assert "warning: 1 lines were cut off" in capsys.readouterr().out
    largest.write_bytes(whole.replace(b'"prompt_tokens":100', b'"prompt_tokens":-1', 1))
    assert main(["bill", str(folder), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert re.search(r"\.jsonl, line \d+: prompt_tokens: .*greater than or equal to 0 \(got '-1'\)", error), error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_command_writes_json_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = written(tmp_path / "journal"), tmp_path / "out"
    words = ["bill", str(folder), "--against", "gpt-4o", "--against", "GPT-4o", "--out", str(out)]
    assert main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads((out / "bill.json").read_text())
    assert data["kind"] == "bill" and [v["model"] for v in data["vendors"]] == ["gpt-4o"]
    html = (out / "bill.html").read_text()
    assert "priced, not measured" in html and "2026-11-19" in html and "<script" not in html
    assert not re.search(r"https?://(?!www\.w3\.org)", html.split("</style>")[1].split("Prices")[0])
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "2026-11-19 to 2026-11-20: 6 answers cost $0.00" in text and "warning: 1 answers told no usage" in text
    assert re.search(r"^all\s+6\s+1,864", text, re.MULTILINE) and "openai  gpt-4o" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "JOURNAL: cannot read"),
        (["empty"], "holds no *.jsonl"),
        (["journal", "--against", "gpt-4oo"], "did you mean gpt-4o"),
        (["journal", "--prices", "none.yaml"], "cannot read"),
        (["journal", "--from", "2027-01-01"], "no answered request in it"),
        (["journal", "--from", "2026-11-20", "--to", "2026-11-19"], "ends before it begins"),
        (["journal", "--out", "file"], "is a file"),
    ],
)
def test_bad_input_is_one_clear_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    written(tmp_path / "journal")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    assert main(["bill", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_two_processes_and_a_killed_one_share_a_folder(tmp_path: Path) -> None:
    first, second = Journal(tmp_path), Journal(tmp_path)
    for number in range(50):
        random.Random(number).choice((first, second)).add(Finished("a", "m", number, 1), EACH, NOON)
    lines = list(Reader([tmp_path]).lines())  # nothing was closed: every line is there all the same
    assert sorted(line.prompt_tokens or 0 for line in lines) == list(range(50))
    assert len(Reader([tmp_path, *tmp_path.iterdir()]).files()) == 2  # a file that is named twice counts once


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"money\.journal: cannot make the folder"):
        Journal(tmp_path / "file" / "journal")


REQUESTS = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.integers(0, 10**6),
        st.integers(0, 10**5),
        st.sampled_from([(), ((64, 64),), ((1024, 768), (10, 900))]),
        st.booleans(),
        st.integers(0, 3 * 86_400),
    ),
    min_size=1,
    max_size=15,
)


@given(REQUESTS)
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read_and_totals_are_the_sum_of_the_parts(rows: list[Any]) -> None:
    made = [Finished(t, "m", 10**6 + p, c, 7 * len(i), i, again) for t, p, c, i, again, _ in rows]
    lines = [
        Line(at=NOON + dt.timedelta(seconds=row[5]), tenant=one.tenant, model=one.model, usd=EACH,
             prompt_tokens=one.prompt_tokens, completion_tokens=one.completion_tokens,
             image_tokens=one.image_tokens, images=one.images, recalled=one.recalled)
        for one, row in zip(made, rows, strict=True)
    ]  # fmt: skip
    assert [Line.model_validate_json(line.model_dump_json()).finished for line in lines] == made
    found = bill(lines, ["gpt-4o", "claude-haiku-5-5"], BOOK)
    for parts in (found["lines"], found["days"]):
        assert sum(part["requests"] for part in parts) == len(rows) == found["total"]["requests"]
        for model in ("gpt-4o", "claude-haiku-5-5"):
            exact = sum((Decimal(part["exact"]["avoided_usd"][model]) for part in parts), Decimal(0))
            assert exact == Decimal(found["total"]["exact"]["avoided_usd"][model])
    assert bill(reversed(lines), ["gpt-4o", "claude-haiku-5-5"], BOOK) == found


@given(st.binary(max_size=80) | st.text(max_size=80).map(lambda t: json.dumps({"at": t, "usd": t}).encode()))
@settings(max_examples=80, deadline=None)
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.write(content + b"\n")
        file.flush()
        with pytest.raises(UsageError, match=r", line \d+"):
            list(Reader([Path(file.name)]).lines())
