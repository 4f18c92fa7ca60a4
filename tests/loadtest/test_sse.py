"""Events are cut out of the byte stream wherever TCP happens to split it."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.sse import EventScanner

PAYLOADS = st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), max_size=6)


def feed_in_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    scanner = EventScanner()
    edges = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    found: list[bytes] = []
    for a, b in pairwise(edges):
        found += scanner.feed(data[a:b])
    return found


@given(PAYLOADS, st.sampled_from(["\n", "\r\n", "\r"]), st.lists(st.integers(0, 10_000), max_size=12))
def test_any_split_gives_the_same_events(payloads: list[str], end: str, cuts: list[int]) -> None:
    data = "".join(f": note{end}event: x{end}data: {p}{end}{end}" for p in payloads).encode()
    # After a lone CR at the very end the scanner must wait: it may be half of a CRLF.
    assert feed_in_pieces(data + b"\n", cuts) == [p.encode() for p in payloads]


@given(PAYLOADS, st.lists(st.integers(0, 10_000), max_size=12))
def test_plain_form_in_any_split(payloads: list[str], cuts: list[int]) -> None:
    data = "".join(f"data: {p}\n\n" for p in payloads).encode()
    assert feed_in_pieces(data, cuts) == [p.encode() for p in payloads]


def test_several_data_lines_are_joined_and_others_dropped() -> None:
    assert EventScanner().feed(b"id: 1\ndata: a\ndata:b\nretry: 5\n\n: only a comment\n\n") == [b"a\nb"]


def test_an_event_that_never_ends_is_refused() -> None:
    scanner = EventScanner(limit=100)
    with pytest.raises(ValueError, match="100 bytes"):
        for _ in range(20):
            scanner.feed(b"data: " + b"x" * 10)


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_arbitrary_bytes_never_raise(data: bytes, cuts: list[int]) -> None:
    assert all(isinstance(e, bytes) for e in feed_in_pieces(data, cuts))
