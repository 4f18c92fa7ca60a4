"""The progress line: silent where nobody looks, right where somebody does."""

import io

import pytest

from models.support.progress import Progress, format_seconds


def test_silent_without_a_terminal() -> None:
    out = io.StringIO()
    with Progress(10, "work", stream=out) as progress:
        progress.advance()
    assert out.getvalue() == ""


def test_line_on_a_terminal() -> None:
    out = io.StringIO()
    with Progress(4, "work", "items", stream=out, enabled=True, min_interval_s=0) as progress:
        progress.advance(note="a long note to be wiped later")
        progress.update(4, "end")
    shown = out.getvalue()
    assert shown.startswith("\rwork  [....................]   0%  0/4 items")
    assert "[#####...............]  25%  1/4 items" in shown
    last = shown.rstrip("\n").split("\r")[-1]
    assert "100%  4/4 items" in last and last.rstrip().endswith("end") and shown.endswith("\n")


def test_unknown_total_has_no_bar() -> None:
    progress = Progress(None, "read", "rows", enabled=False)
    progress.update(1234)
    assert "[" not in progress.line() and "1,234 rows" in progress.line()
    assert len(progress.line(12)) == 12


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (59.4, "59s"), (125, "2m05s"), (3780, "1h03m"), (-1, "0s")])
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
