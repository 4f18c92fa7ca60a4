"""Inline-SVG plots without a script or a font file: they work offline, in mail, on paper, in light and dark.

Colours are CSS variables of `models.support.html`'s page shell, so one plot serves both colour schemes.
Every mark carries a `<title>`, which browsers show as a hover text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 14, 44
MAX_POINTS = 600  # per series: more cannot be told apart at this width


@dataclass
class Series:
    """One line, or one cloud of points.

    Args:
        name: shown in the legend and in hover texts.
        x, y: coordinates in data units; points where either is not finite are left out.
        low, high: lower and upper end of an interval per point (drawn as a band, or as whiskers on points).
        color: index into the page's palette (0 to 5); by default the position of the series.
        dash: draw the line dashed.
        titles: hover text per point, instead of "name: x, y".
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    color: int | None = None
    dash: bool = False
    titles: Sequence[str] | None = None


@dataclass
class Axis:
    """How one axis is drawn: label, unit, and whether it is logarithmic."""

    label: str
    log: bool = False
    lowest: float | None = None
    highest: float | None = None
    ticks: Sequence[tuple[float, str]] | None = None
    _span: tuple[float, float] = field(default=(0.0, 1.0), init=False)

    def fit(self, values: list[float]) -> None:
        """Choose the range that shows `values` (and the fixed ends, where given)."""
        usable = [v for v in values if math.isfinite(v) and (v > 0 or not self.log)] or [1.0]
        low = min(usable) if self.lowest is None else self.lowest
        high = max(usable) if self.highest is None else self.highest
        if self.log:
            low = max(low, 1e-12)
            high = high if high > low * 1.05 else low * 2
        elif high - low <= 1e-9 * max(abs(low), abs(high)):
            pad = max(0.5, 0.01 * abs(low))
            low, high = (low - pad, high + pad) if low else (0.0, 1.0)
        self._span = (low, high)

    def place(self, value: float, start: float, end: float) -> float:
        """Return the pixel position of a data value between pixels `start` and `end`."""
        low, high = self._span
        if self.log:  # logarithms apart: their quotient could underflow
            value, low, high = math.log(max(value, 1e-300)), math.log(low), math.log(high)
        share = (value - low) / (high - low)
        return start + (end - start) * min(1.02, max(-0.02, share))

    def tick_list(self) -> list[tuple[float, str]]:
        """Return tick positions with their text."""
        if self.ticks is not None:
            return [(v, t) for v, t in self.ticks if self._span[0] <= v <= self._span[1]]
        low, high = self._span
        if self.log:
            decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            steps = (1, 2, 5) if len(decades) <= 4 else (1,)
            decades = decades[:: math.ceil(len(decades) / 8)]
            found = [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
            return [(v, format_number(v)) for v in (found if len(found) >= 2 else [low, high])]
        step = nice_step((high - low) / 5)
        first = math.ceil(low / step - 1e-9)
        return [(i * step, format_number(i * step)) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def nice_step(raw: float) -> float:
    """Return the round number (1, 2 or 5 times a power of ten) nearest above `raw`."""
    power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)


def format_number(value: float) -> str:
    """Return a number short enough for a tick or a table: three significant digits, k and M for large ones."""
    size = abs(value)
    if not math.isfinite(value):
        return "–"
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return text if "e" not in text or size < 1e-6 else f"{value:.8f}".rstrip("0").rstrip(".")


def _thin(series: Series) -> list[int]:
    """Return indices to draw: all finite points, or an even choice of them that keeps each bucket's extremes."""
    finite = [i for i in range(len(series.x)) if math.isfinite(series.x[i]) and math.isfinite(series.y[i])]
    if len(finite) <= MAX_POINTS:
        return finite
    bucket = math.ceil(len(finite) / (MAX_POINTS / 2))
    kept: list[int] = []
    for start in range(0, len(finite), bucket):
        group = finite[start : start + bucket]
        kept += sorted({min(group, key=lambda i: series.y[i]), max(group, key=lambda i: series.y[i])})
    return kept


class _Canvas:
    """Collects SVG elements of one plot and draws its frame."""

    def __init__(self, x: Axis, y: Axis, width: int = WIDTH, height: int = HEIGHT, left: int = LEFT):
        self.x, self.y, self.width, self.height, self.left = x, y, width, height, left
        self.parts: list[str] = []

    def px(self, value: float) -> float:
        return self.x.place(value, self.left, self.width - RIGHT)

    def py(self, value: float) -> float:
        return self.y.place(value, self.height - BOTTOM, TOP)

    def add(self, element: str) -> None:
        self.parts.append(element)

    def frame(self) -> None:
        bottom, right = self.height - BOTTOM, self.width - RIGHT
        for value, text in self.y.tick_list():
            y = self.py(value)
            self.add(f'<line class="grid" x1="{self.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self.add(f'<text class="tick" x="{self.left - 7}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>')
        for value, text in self.x.tick_list():
            x = self.px(value)
            self.add(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
            self.add(f'<text class="tick" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{escape(text)}</text>')
        self.add(f'<line class="axis" x1="{self.left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        self.add(
            f'<text class="label" x="{(self.left + right) / 2:.0f}" y="{self.height - 6}" text-anchor="middle">'
            f"{escape(self.x.label)}</text>"
        )
        middle = (TOP + bottom) / 2
        self.add(
            f'<text class="label" transform="translate(13 {middle:.0f}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y.label)}</text>"
        )

    def figure(self, title: str, legend: Sequence[tuple[str, int]], note: str = "") -> str:
        keys = "".join(f'<span class="key"><i class="c{c % 6}"></i>{escape(name)}</span>' for name, c in legend)
        caption = f"<figcaption><b>{escape(title)}</b>{keys}</figcaption>"
        below = f'<p class="note">{escape(note)}</p>' if note else ""
        return (
            f'<figure>{caption}<svg viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{escape(title, quote=True)}">{"".join(self.parts)}</svg>{below}</figure>'
        )


def line(
    series: Sequence[Series],
    *,
    title: str,
    x: Axis,
    y: Axis,
    points: bool = False,
    lines: bool = True,
    vertical: Sequence[tuple[float, str]] = (),
    horizontal: Sequence[tuple[float, str]] = (),
    note: str = "",
) -> str:
    """Return a `<figure>` with lines (and their bands), points, or both.

    Args:
        vertical, horizontal: reference lines as (position, text): an SLO, a stall, a capacity.
    """
    extra_x = [v for v, _ in vertical]
    extra_y = [v for v, _ in horizontal]
    x.fit([v for s in series for v in s.x] + extra_x)
    y.fit([v for s in series for group in (s.y, s.low or (), s.high or ()) for v in group] + extra_y)
    canvas = _Canvas(x, y)
    canvas.frame()
    for number, one in enumerate(series):
        color = number if one.color is None else one.color
        chosen = _thin(one)
        at = [(canvas.px(one.x[i]), canvas.py(one.y[i])) for i in chosen]
        if one.low is not None and one.high is not None and not points and len(chosen) > 1:
            upper = [
                f"{canvas.px(one.x[i]):.1f},{canvas.py(one.high[i]):.1f}" for i in chosen if math.isfinite(one.high[i])
            ]
            lower = [
                f"{canvas.px(one.x[i]):.1f},{canvas.py(one.low[i]):.1f}" for i in chosen if math.isfinite(one.low[i])
            ]
            canvas.add(f'<polygon class="band f{color % 6}" points="{" ".join(upper + lower[::-1])}"/>')
        if lines and len(at) > 1:
            dash = ' stroke-dasharray="5 4"' if one.dash else ""
            canvas.add(
                f'<polyline class="line s{color % 6}"{dash} points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in at)}">'
                f"<title>{escape(one.name)}</title></polyline>"
            )
        if points or len(at) <= 60:
            radius = 3.5 if points else 2.4
            for i, (a, b) in zip(chosen, at, strict=True):
                text = (
                    one.titles[i] if one.titles else f"{one.name}: {format_number(one.x[i])}, {format_number(one.y[i])}"
                )
                if points and one.low is not None and one.high is not None:
                    low, high = canvas.py(one.low[i]), canvas.py(one.high[i])
                    canvas.add(
                        f'<line class="line s{color % 6}" x1="{a:.1f}" x2="{a:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
                    )
                canvas.add(
                    f'<circle class="f{color % 6}" cx="{a:.1f}" cy="{b:.1f}" r="{radius}">'
                    f"<title>{escape(text)}</title></circle>"
                )
    for value, text in vertical:
        at_x = canvas.px(value)
        canvas.add(f'<line class="ref" x1="{at_x:.1f}" x2="{at_x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        anchor, shift = ("end", -4) if at_x > WIDTH * 0.7 else ("start", 4)
        canvas.add(
            f'<text class="reftext" x="{at_x + shift:.1f}" y="{TOP + 10}" text-anchor="{anchor}">{escape(text)}</text>'
        )
    for value, text in horizontal:
        at_y = canvas.py(value)
        canvas.add(f'<line class="ref" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at_y:.1f}" y2="{at_y:.1f}"/>')
        canvas.add(
            f'<text class="reftext" x="{WIDTH - RIGHT}" y="{at_y - 4:.1f}" text-anchor="end">{escape(text)}</text>'
        )
    legend = [(s.name, n if s.color is None else s.color) for n, s in enumerate(series)]
    return canvas.figure(title, legend if len(legend) > 1 else [], note)


def scatter(
    series: Sequence[Series], *, title: str, x: Axis, y: Axis, note: str = "", **more: Sequence[tuple[float, str]]
) -> str:
    """Return a `<figure>` with points only (with whiskers where a series has `low` and `high`)."""
    return line(series, title=title, x=x, y=y, points=True, lines=False, note=note, **more)


def cdf(samples: dict[str, Sequence[float]], *, title: str, x: Axis, tail: bool = False, note: str = "") -> str:
    """Return a `<figure>` with empirical distribution functions.

    Args:
        samples: name -> values (any order).
        tail: stretch the top ("nines" axis: 90 %, 99 %, 99.9 % evenly spaced), so that the tail can be read.
    """
    series = []
    for name, values in samples.items():
        ordered = sorted(v for v in values if math.isfinite(v))
        n = len(ordered)
        if not n:
            continue
        picks = sorted({*range(0, n, max(1, n // 400)), *range(max(0, n - 100), n)})
        share = [(i + 0.5) / n for i in picks]
        xs = [ordered[i] for i in picks]
        ys: list[float] = [-math.log10(1 - s) for s in share] if tail else [100 * s for s in share]
        titles = [f"{name}: {100 * s:.6g} % within {format_number(v)}" for s, v in zip(share, xs, strict=True)]
        series.append(Series(name, xs, ys, titles=titles))
    if tail:
        marks = [(0.30103, "50 %"), (1.0, "90 %"), (2.0, "99 %"), (3.0, "99.9 %"), (4.0, "99.99 %"), (5.0, "99.999 %")]
        y = Axis("share of requests", lowest=0.0, ticks=[(0.0, "0 %"), *marks])
    else:
        y = Axis("share of requests, %", lowest=0.0, highest=100.0)
    return line(series, title=title, x=x, y=y, note=note)


def bars(
    labels: Sequence[str],
    values: Sequence[float],
    *,
    title: str,
    unit: str = "",
    low: Sequence[float] | None = None,
    high: Sequence[float] | None = None,
    colors: Sequence[int] | None = None,
    log: bool = False,
    show: Callable[[float], str] = format_number,
    note: str = "",
) -> str:
    """Return a `<figure>` with horizontal bars, one per label, each with its value (and interval) written beside it."""
    left, step = 16 + 7 * min(34, max((len(text) for text in labels), default=4)), 30
    height = TOP + step * len(labels) + 8
    ends = [v for group in (values, high or ()) for v in group if math.isfinite(v)]
    axis = Axis(unit, log=log, lowest=min([v for v in ends if v > 0], default=1.0) / 3 if log else min([0.0, *ends]))
    axis.fit(ends or [1.0])
    parts = []
    right = WIDTH - 110
    for number, (text, value) in enumerate(zip(labels, values, strict=True)):
        top = TOP + number * step
        color = (colors[number] if colors else 0) % 6
        shown = show(value) + (f" {unit}" if unit else "")
        parts.append(f'<text class="tick" x="{left - 8}" y="{top + 16}" text-anchor="end">{escape(text[:34])}</text>')
        end: float = left
        if math.isfinite(value):
            end = max(left + 1.0, axis.place(value, left, right))
            parts.append(
                f'<rect class="f{color}" x="{left}" y="{top + 4}" width="{end - left:.1f}" height="{step - 12}" rx="2">'
                f"<title>{escape(f'{text}: {shown}')}</title></rect>"
            )
        if low is not None and high is not None and math.isfinite(low[number]) and math.isfinite(high[number]):
            a, b = axis.place(low[number], left, right), axis.place(high[number], left, right)
            parts.append(f'<line class="whisker" x1="{a:.1f}" x2="{b:.1f}" y1="{top + 13}" y2="{top + 13}"/>')
            end = max(end, b)
        parts.append(f'<text class="value" x="{end + 6:.1f}" y="{top + 17}">{escape(shown)}</text>')
    caption = f"<figcaption><b>{escape(title)}</b></figcaption>"
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f'<figure>{caption}<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title, quote=True)}">'
        f"{''.join(parts)}</svg>{below}</figure>"
    )
