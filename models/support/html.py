"""A self-contained HTML page: no script, no font, no network; light and dark, phone and desktop, screen and paper.

    page = Page("Load test", subtitle="model X at 10 req/s")
    page.verdict("ok", "meets the SLO", "p95 412 ms (95 % interval 398 to 431)")
    page.section("Latency")
    page.add(table(["", "p50", "p95"], [["end to end", "12 ms", "40 ms"]]))
    page.add(plots.line(...))
    atomic_write(...).write(page.render())

All text given to these functions is escaped; only what the plot and table functions return is taken as HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path

from models.support.plots import Axis, Series, bars, cdf, line, scatter

__all__ = ["Axis", "Page", "Series", "bars", "cdf", "details", "line", "scatter", "table"]


@cache
def _style() -> str:
    return (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[object]], text_columns: Sequence[int] = (0,)) -> str:
    """Return an HTML table that scrolls sideways on a narrow screen; `text_columns` are aligned left."""

    def cell(tag: str, column: int, value: object) -> str:
        kind = ' class="text"' if column in text_columns else ""
        return f"<{tag}{kind}>{escape(str(value))}</{tag}>"

    top = "".join(cell("th", i, h) for i, h in enumerate(head))
    body = "".join("<tr>" + "".join(cell("td", i, v) for i, v in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def details(summary: str, inner: str) -> str:
    """Return a folded block; `inner` is HTML from these functions (it is printed unfolded)."""
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>"


class Page:
    """Collects blocks in order and renders one page.

    Args:
        title: heading and window title.
        subtitle: one line under the heading.
    """

    def __init__(self, title: str, subtitle: str = ""):
        self.title, self.subtitle = title, subtitle
        self._blocks: list[str] = []

    def add(self, *blocks: str) -> None:
        """Append HTML made by `table`, `details` or a plot function; several blocks stand side by side."""
        self._blocks.append(blocks[0] if len(blocks) == 1 else f'<div class="two">{"".join(blocks)}</div>')

    def section(self, heading: str, text: str = "") -> None:
        """Start a section."""
        self._blocks.append(f"<h2>{escape(heading)}</h2>")
        if text:
            self.text(text)

    def text(self, text: str, *, note: bool = False) -> None:
        """Append a paragraph of plain text."""
        self._blocks.append(f"<p{' class=note' if note else ''}>{escape(text)}</p>")

    def code(self, text: str) -> None:
        """Append preformatted text (a command, an error)."""
        self._blocks.append(f"<pre>{escape(text)}</pre>")

    def verdict(self, kind: str, headline: str, text: str = "") -> None:
        """Append a verdict box; `kind` is "ok", "warn" or "bad"."""
        if kind not in ("ok", "warn", "bad"):
            raise ValueError(f"verdict kind must be ok, warn or bad, not {kind!r}")
        below = f"<p>{escape(text)}</p>" if text else ""
        self._blocks.append(f'<div class="verdict {kind}"><b>{escape(headline)}</b>{below}</div>')

    def tiles(self, tiles: Sequence[tuple[str, str, str]]) -> None:
        """Append a row of figures, each (label, value, small print)."""
        inner = "".join(
            f"<div><small>{escape(a)}</small><span>{escape(b)}</span><small>{escape(c)}</small></div>"
            for a, b, c in tiles
        )
        self._blocks.append(f'<div class="tiles">{inner}</div>')

    def render(self) -> str:
        """Return the whole page as one HTML document."""
        sub = f'<p class="sub">{escape(self.subtitle)}</p>' if self.subtitle else ""
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{_style()}</style></head>"
            f"<body><main><h1>{escape(self.title)}</h1>{sub}{''.join(self._blocks)}</main></body></html>\n"
        )
