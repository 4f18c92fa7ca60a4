"""The journal: cut at any byte, on a full disk, damaged; and the pace of requests."""

from __future__ import annotations

import errno
import os
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.collect.journal import Journal
from distill.collect.pace import Pace
from models.support.errors import UsageError

KEYS = st.sampled_from(["a", "b", "c", "é"])
AMOUNTS = st.decimals("0", "2", places=7)
EVENTS = st.lists(st.tuples(st.sampled_from(["reserve", "answer", "failed"]), KEYS, AMOUNTS), max_size=12)


def play(journal: Journal, events: list[tuple[str, str, Decimal]]) -> None:
    for kind, key, usd in events:
        if kind == "reserve":
            journal.reserve(key, usd)
        elif kind == "answer":
            journal.answer(key, usd, {"text": key})
        else:
            journal.failed(key, usd, {"error": {}})


@given(EVENTS)
def test_a_new_process_knows_what_the_old_one_knew(events: list[tuple[str, str, Decimal]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "j.jsonl"
        with Journal(path) as first:
            play(first, events)
            spent, answers, failures = first.spent, first.answers, first.failures
        open_: dict[str, Decimal] = {}
        for kind, key, usd in events:
            if kind == "reserve":
                open_[key] = open_.get(key, Decimal(0)) + usd
            else:
                open_.pop(key, None)
        lost = sum(open_.values(), Decimal(0))
        for _ in range(2):  # what was lost is counted once, however often it is opened
            with Journal(path) as second:
                assert second.spent == spent + lost and second.lost == lost
                assert second.answers == answers and second.failures == failures
        # a retry of something lost does not forget that it was paid for
        with Journal(path) as third:
            third.reserve("a", Decimal(1))
            third.answer("a", Decimal("0.5"), {"text": "again"})
        with Journal(path) as fourth:
            assert fourth.spent == spent + lost + Decimal("0.5")


@given(st.integers(0, 400))
def test_cut_at_any_byte_loses_at_most_the_last_line(cut: int) -> None:
    events = [("reserve", "a", Decimal("1")), ("answer", "a", Decimal("0.25")), ("reserve", "é", Decimal("1")),
              ("answer", "é", Decimal("0.5"))]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "j.jsonl"
        with Journal(path) as journal:
            play(journal, events)
        raw = path.read_bytes()[:cut]
        path.write_bytes(raw)
        whole = raw.count(b"\n")
        with Journal(path) as journal:
            spent = [Decimal(0), Decimal(1), Decimal("0.25"), Decimal("1.25"), Decimal("0.75")][whole]
            assert journal.spent == spent and len(journal.answers) == whole // 2
            journal.answer("new", Decimal(1), {"text": "x"})
        with Journal(path) as journal:
            assert "new" in journal.answers and journal.spent == spent + 1


def test_damage_inside_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text('{"t": "answer", "key": "a", "usd": "1"}\nrubbish\n{"t": "answer", "key": "b", "usd": "1"}\n')
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"j.jsonl:2: the journal of purchases is damaged"):
        Journal(path)
    assert path.read_bytes() == before


def test_a_full_disk_keeps_what_was_paid_for_and_buys_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, ballast = os.write, tmp_path / ".ballast"

    def full(handle: int, data: Any) -> int:
        if ballast.exists():
            write(handle, bytes(data)[:5])  # some of it still fits
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data)

    with Journal(tmp_path / "j.jsonl") as journal:
        journal.reserve("a", Decimal(1))
        journal.reserve("b", Decimal(1))
        monkeypatch.setattr(os, "write", full)
        journal.answer("a", Decimal("0.5"), {"text": "paid for"})
        assert journal.full and not ballast.exists()
        with pytest.raises(UsageError, match=r"the disk is full .*every answer that was paid for is kept"):
            journal.reserve("c", Decimal(1))
        journal.answer("b", Decimal("0.25"), {"text": "too"})
    with Journal(tmp_path / "j.jsonl") as journal:
        assert set(journal.answers) == {"a", "b"} and journal.spent == Decimal("0.75")


def test_a_disk_that_is_full_before_anything_is_bought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Journal(tmp_path / "j.jsonl") as journal:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(UsageError, match="the disk is full"):
            journal.reserve("a", Decimal(1))
    assert (tmp_path / "j.jsonl").read_bytes() == b""


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        Journal(tmp_path / "file" / "j.jsonl")


async def test_pace_spreads_requests_evenly() -> None:
    now, starts = 0.0, []

    async def pause(seconds: float) -> None:
        nonlocal now
        now += seconds

    pace = Pace(30, clock=lambda: now, pause=pause)
    for _ in range(4):
        await pace.wait()
        starts.append(now)
    now += 100  # an idle time saves nothing up
    for _ in range(2):
        await pace.wait()
        starts.append(now)
    assert starts == [0, 2, 4, 6, 106, 108]
    tokens = Pace(600, clock=lambda: now, pause=pause)
    before = now
    for units in (100, 50, 1):
        await tokens.wait(units)
    assert now - before == pytest.approx(15)
    free = Pace(None, clock=lambda: now, pause=pause)
    await free.wait(1e9)
    assert now - before == pytest.approx(15)
