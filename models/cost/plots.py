"""Plots of money for a page of `models.support.html`: a cost waterfall, a tornado, a ranking.

Name and value stand above each bar, so that neither is cut where the page is narrow and its text large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from models.support.plots import TOP, WIDTH, Axis

STEP, LEFT, RIGHT = 46, 8, WIDTH - 8


def _figure(title: str, rows: int, parts: Sequence[str], keys: Sequence[tuple[str, int]], note: str) -> str:
    legend = "".join(f'<span class="key"><i class="c{c}"></i>{escape(name)}</span>' for name, c in keys)
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f"<figure><figcaption><b>{escape(title)}</b>{legend}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {TOP + STEP * rows}" role="img" aria-label="{escape(title, quote=True)}">'
        f"{''.join(parts)}</svg>{below}</figure>"
    )


def _label(name: str, value: str, top: int) -> str:
    return (
        f'<text class="tick" x="{LEFT}" y="{top + 15}">{escape(name)}'
        f'<tspan class="value" dx="10">{escape(value)}</tspan></text>'
    )


def _bar(start: float, end: float, top: int, color: int, title: str) -> str:
    low, width = min(start, end), max(1.0, abs(end - start))
    return (
        f'<rect class="f{color % 6}" x="{low:.1f}" y="{top + 22}" width="{width:.1f}" height="15" rx="2">'
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
    whole = sum(value for _, value in parts)
    axis = Axis("", lowest=0.0)
    axis.fit([whole or 1.0])
    drawn, at = [], 0.0
    for number, (name, value) in enumerate([*parts, (total, whole)]):
        top, last = TOP + STEP * number, number == len(parts)
        start = 0.0 if last else at
        ends = [axis.place(v, LEFT, RIGHT) for v in (start, start + value)]
        share = f" ({value / whole:.1%})" if whole and not last else ""
        drawn.append(_label(name, show(value) + share, top))
        drawn.append(_bar(ends[0], ends[1], top, 0 if last else 1, f"{name}: {show(value)}{share}"))
        at += value
    return _figure(title, len(parts) + 1, drawn, [("part", 1), ("sum", 0)], note)


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
    axis = Axis("")
    axis.fit([base, *(v for row in rows for v in row[3:])])
    middle = axis.place(base, LEFT, RIGHT)
    drawn = []
    for number, (name, low_input, high_input, low, high) in enumerate(rows):
        top = TOP + STEP * number
        drawn.append(_label(name, f"{show(low)} lower, {show(high)} higher", top))
        for value, given, color in ((low, low_input, 2), (high, high_input, 1)):
            drawn.append(_bar(middle, axis.place(value, LEFT, RIGHT), top, color, f"{name} {given}: {show(value)}"))
        drawn.append(f'<line class="ref" x1="{middle:.1f}" x2="{middle:.1f}" y1="{top + 20}" y2="{top + 39}"/>')
    keys = [("assumption lower", 2), ("higher", 1)]
    return _figure(f"{title} ({show(base)})", len(rows), drawn, keys, note)


def ranking(
    rows: Sequence[tuple[str, str, float, float, float, int]], *, title: str, keys: Sequence[tuple[str, int]], note: str
) -> str:
    """Return a `<figure>` with a bar per row: (name, shown value, value, low, high, colour); NaN: no interval."""
    axis = Axis("", lowest=0.0)
    axis.fit([v for row in rows for v in row[2:5] if math.isfinite(v)] or [1.0])
    drawn = []
    for number, (name, shown, value, low, high, color) in enumerate(rows):
        top = TOP + STEP * number
        drawn.append(_label(name, shown, top))
        drawn.append(_bar(LEFT, axis.place(value, LEFT, RIGHT), top, color, f"{name}: {shown}"))
        if math.isfinite(low) and math.isfinite(high):
            a, b = axis.place(low, LEFT, RIGHT), axis.place(high, LEFT, RIGHT)
            drawn.append(f'<line class="whisker" x1="{a:.1f}" x2="{b:.1f}" y1="{top + 29}" y2="{top + 29}"/>')
    return _figure(title, len(rows), drawn, keys, note)
