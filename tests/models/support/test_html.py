"""The report page: well-formed, self-contained, safe with any text, and honest plots."""

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.support.html import Axis, Page, Series, bars, cdf, details, line, scatter, table
from models.support.plots import MAX_POINTS, format_number, nice_step

ANY = st.floats(allow_nan=True, allow_infinity=True, width=32)
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)


def svg_of(figure: str) -> ET.Element:
    """Parse the SVG of a figure; fails when it is not well-formed."""
    found = re.search(r"<svg.*</svg>", figure, re.S)
    assert found is not None
    return ET.fromstring(found.group(0))


def numbers_of(svg: ET.Element) -> list[float]:
    keys = ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width")
    return [float(e.attrib[k]) for e in svg.iter() for k in keys if k in e.attrib]


@given(TEXT, st.lists(st.tuples(ANY, ANY), max_size=40), st.booleans(), st.booleans())
def test_any_data_gives_a_well_formed_plot(name: str, points: list[tuple[float, float]], log: bool, dots: bool) -> None:
    x, y = [p[0] for p in points], [p[1] for p in points]
    svg = svg_of(line([Series(name, x, y)], title=name, x=Axis(name, log=log), y=Axis("y", log=log), points=dots))
    assert all(math.isfinite(v) for v in numbers_of(svg))


@given(st.lists(st.tuples(TEXT, ANY), min_size=1, max_size=8), st.booleans())
def test_any_bars_are_well_formed(rows: list[tuple[str, float]], log: bool) -> None:
    svg = svg_of(bars([r[0] for r in rows], [r[1] for r in rows], title="t", log=log))
    assert all(math.isfinite(v) for v in numbers_of(svg))


@given(st.lists(ANY, max_size=50), st.booleans())
def test_any_cdf_is_well_formed(values: list[float], tail: bool) -> None:
    svg_of(cdf({"a": values}, title="t", x=Axis("ms"), tail=tail))


def test_points_lie_where_the_data_says() -> None:
    svg = svg_of(scatter([Series("a", [0, 5, 10], [0, 50, 100])], title="t", x=Axis("x"), y=Axis("y")))
    dots = [e for e in svg.iter() if e.tag.endswith("circle")]
    at = [(float(e.attrib["cx"]), float(e.attrib["cy"])) for e in dots]
    assert at[1] == pytest.approx(((at[0][0] + at[2][0]) / 2, (at[0][1] + at[2][1]) / 2), abs=0.2)
    assert at[0][0] < at[2][0] and at[0][1] > at[2][1]
    assert all("a: " in "".join(e.itertext()) for e in dots)


def test_log_axis_spaces_decades_evenly() -> None:
    svg = svg_of(scatter([Series("a", [1, 10, 100], [1, 1, 1])], title="t", x=Axis("x", log=True), y=Axis("y")))
    xs = [float(e.attrib["cx"]) for e in svg.iter() if e.tag.endswith("circle")]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)


def test_long_series_keep_their_extremes() -> None:
    y = [0.0] * 100_000
    y[54_321] = 9.0
    svg = svg_of(line([Series("a", list(range(100_000)), y)], title="t", x=Axis("x"), y=Axis("y")))
    points = next(e for e in svg.iter() if e.tag.endswith("polyline")).attrib["points"].split()
    assert len(points) <= MAX_POINTS
    assert min(float(p.split(",")[1]) for p in points) < 20


def test_bars_with_intervals() -> None:
    svg = svg_of(bars(["a", "b"], [1, 2], title="t", low=[0.5, math.nan], high=[1.5, math.nan], unit="ms"))
    assert sum(e.attrib.get("class") == "whisker" for e in svg.iter()) == 1
    assert any("2 ms" in "".join(e.itertext()) for e in svg.iter())


def test_page_is_self_contained_and_escapes() -> None:
    page = Page("<b>t</b>", 'a "quoted" & odd')
    page.verdict("ok", "<script>alert(1)</script>", "fine")
    page.tiles([("<i>", "1 & 2", "n = 3")])
    page.section("S", "text")
    page.add(table(["a", "b"], [["<img src=x>", 1]]), details("more", table(["c"], [[1]])))
    page.text("small", note=True)
    page.code("a < b")
    html = page.render()
    assert "<script" not in html and "<img" not in html and "<b>t</b>" not in html
    assert not re.search(r"<[^>]*(src|href)=|url\(|@import", html)
    assert "prefers-color-scheme: dark" in html and "@media print" in html
    with pytest.raises(ValueError, match="ok, warn or bad"):
        page.verdict("good", "x")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.00012, "0.00012"),
        (3.14159, "3.14"),
        (999, "999"),
        (1234, "1,234"),
        (12345, "12.3k"),
        (2.5e6, "2.5M"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert format_number(value) == text


@given(st.floats(1e-9, 1e12))
def test_steps_are_round_and_close(raw: float) -> None:
    step = nice_step(raw)
    assert raw * 0.998 <= step <= raw * 2.6
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9), 6) in (1, 2, 5, 10)
