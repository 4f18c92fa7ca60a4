"""Plots of money for a page of `models.support.html`: a cost waterfall and a tornado."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from models.support.plots import TOP, WIDTH, Axis

STEP = 30
RIGHT = WIDTH - 110


def _figure(title: str, rows: int, parts: Sequence[str], keys: Sequence[tuple[str, int]], note: str) -> str:
    legend = "".join(f'<span class="key"><i class="c{c}"></i>{escape(name)}</span>' for name, c in keys)
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f"<figure><figcaption><b>{escape(title)}</b>{legend}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {TOP + STEP * rows + 8}" role="img" aria-label="{escape(title, quote=True)}">'
        f"{''.join(parts)}</svg>{below}</figure>"
    )


def _left(labels: Sequence[str]) -> int:
    return 16 + 7 * min(34, max((len(text) for text in labels), default=4))


def _label(text: str, left: int, top: int) -> str:
    return f'<text class="tick" x="{left - 8}" y="{top + 16}" text-anchor="end">{escape(text[:34])}</text>'


def _bar(start: float, end: float, top: int, color: int, title: str) -> str:
    low, width = min(start, end), max(1.0, abs(end - start))
    return (
        f'<rect class="f{color}" x="{low:.1f}" y="{top + 4}" width="{width:.1f}" height="{STEP - 12}" rx="2">'
        f"<title>{escape(title)}</title></rect>"
    )


def waterfall(
    parts: Sequence[tuple[str, float]],
    *,
    title: str,
    show: Callable[[float], str],
    total: str = "total",
    note: str = "",
) -> str:
    """Return a `<figure>`: each part (0 or more) starts where the one above it ends; the last bar is the sum."""
    names = [*(name for name, _ in parts), total]
    left, whole = _left(names), sum(value for _, value in parts)
    axis = Axis("", lowest=0.0)
    axis.fit([whole or 1.0])
    drawn, at = [], 0.0
    for number, (name, value) in enumerate([*parts, (total, whole)]):
        top = TOP + STEP * number
        start = 0.0 if number == len(parts) else at
        ends = [axis.place(v, left, RIGHT) for v in (start, start + value)]
        share = f" ({value / whole:.1%})" if whole and number < len(parts) else ""
        drawn.append(_label(name, left, top))
        drawn.append(_bar(ends[0], ends[1], top, 0 if number == len(parts) else 1, f"{name}: {show(value)}{share}"))
        drawn.append(f'<text class="value" x="{max(ends) + 6:.1f}" y="{top + 17}">{escape(show(value))}</text>')
        if number < len(parts):
            x = f"{ends[1]:.1f}"
            drawn.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{top + STEP - 8}" y2="{top + STEP + 4}"/>')
        at += value
    return _figure(title, len(names), drawn, [("part", 1), ("sum", 0)], note)


def tornado_plot(
    rows: Sequence[tuple[str, str, str, float, float]],
    base: float,
    *,
    title: str,
    show: Callable[[float], str],
    note: str = "",
) -> str:
    """Return a `<figure>`: per assumption a bar from the result at its low value to that at its high value.

    Args:
        rows: (assumption, low value, high value, result at low, result at high).
        base: the result that all bars are around.
    """
    left = _left([name for name, *_ in rows])
    axis = Axis("")
    axis.fit([base, *(v for row in rows for v in row[3:])])
    middle = axis.place(base, left + 60, RIGHT)
    drawn = [f'<line class="ref" x1="{middle:.1f}" x2="{middle:.1f}" y1="{TOP}" y2="{TOP + STEP * len(rows)}"/>']
    for number, (name, low_input, high_input, low, high) in enumerate(rows):
        top = TOP + STEP * number
        drawn.append(_label(name, left, top))
        for value, given, color in ((low, low_input, 2), (high, high_input, 1)):
            end = axis.place(value, left + 60, RIGHT)
            drawn.append(_bar(middle, end, top, color, f"{name} {given}: {show(value)}"))
        for value, anchor, shift in ((min(low, high), "end", -6), (max(low, high), "start", 6)):
            x = axis.place(value, left + 60, RIGHT) + shift
            drawn.append(f'<text class="value" x="{x:.1f}" y="{top + 17}" text-anchor="{anchor}">{show(value)}</text>')
    return _figure(title, len(rows), drawn, [("assumption lower", 2), ("higher", 1)], note)
