from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hrzs.results.pages.charts import HEIGHT, MAX_POINTS, WIDTH, Curve, line_chart, smooth, thin, tick_labels, ticks

numbers = st.floats(allow_nan=True, allow_infinity=True)
points = st.lists(st.tuples(st.integers(0, 10_000).map(float), numbers), max_size=40)


def parse(chart: str) -> ElementTree.Element:
    """The drawing; what is no XML raises."""
    svg = ElementTree.fromstring(chart).find("svg")
    assert svg is not None
    return svg


def places(svg: ElementTree.Element) -> list[list[tuple[float, float]]]:
    """Of each line the corners."""
    return [
        [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.attrib["points"].split())]
        for line in svg.findall("polyline")
    ]


def test_a_curve_is_where_its_values_are() -> None:
    svg = parse(line_chart("Heights", [Curve("h", [(float(i), i**2 / 100) for i in range(11)])], y=(0.0, 1.0)))
    (corners,) = places(svg)
    assert len(corners) == 11
    # The grid says which height stands for which value.
    texts = {t.text: float(t.attrib["y"]) - 4 for t in svg.findall("text") if t.attrib.get("text-anchor") == "end"}
    zero, one = texts["0"], texts["1.0"]
    for i, (_, y) in enumerate(corners):
        assert (zero - y) / (zero - one) == pytest.approx(i**2 / 100, abs=1e-3)
    across = {t.text: float(t.attrib["x"]) for t in svg.findall("text") if t.attrib.get("text-anchor") == "middle"}
    assert corners[4][0] == pytest.approx(across["4"])
    assert svg.attrib["aria-label"] == "Heights"
    assert svg.findtext("desc") == "h: 11 points from 0 to 1, between 0 and 1"


def test_the_legend_has_last_values_and_no_entry_for_what_stands_behind() -> None:
    curves = [Curve("raw", [(1.0, 9.0)], kind="faint"), Curve("new", [(1.0, 5.0), (2.0, 0.25), (3.0, math.nan)])]
    figure = ElementTree.fromstring(line_chart("a", curves, unit="%"))
    assert ["".join(li.itertext()) for li in figure.iter("li")] == ["new 0.25%"]


def test_a_gap_is_left_where_nothing_finite_is() -> None:
    values = [1.0, 2.0, math.nan, 3.0, math.inf, 4.0, 5.0, 6.0]
    svg = parse(line_chart("gaps", [Curve("g", [(float(i), v) for i, v in enumerate(values)])]))
    assert [len(line) for line in places(svg)] == [2, 3]
    # The lone one is a dot, as all are while they are few.
    assert len(svg.findall("circle")) == 6
    assert "nan" not in ElementTree.tostring(svg, "unicode")


@example([[(0.0, 1.2e300)]], "cloud")
@given(st.lists(points, min_size=1, max_size=3), st.sampled_from(["line", "thick", "faint", "cloud", "limit"]))
def test_any_values_make_a_chart_inside_its_frame(found: list[list[tuple[float, float]]], kind: str) -> None:
    chart = line_chart("any", [Curve(str(i), sorted(p, key=lambda q: q[0]), i, kind) for i, p in enumerate(found)])
    if not any(math.isfinite(y) for p in found for _, y in p):
        assert "Nothing finite" in chart
        return
    svg = parse(chart)
    drawn = [corner for line in places(svg) for corner in line]
    drawn += [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in svg.findall("circle")]
    assert drawn
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in drawn)


def test_long_curves_are_thinned_and_keep_their_extremes() -> None:
    long = [(float(i), math.sin(i / 50)) for i in range(3000)]
    long[1234] = (1234.0, 7.0)
    long[2345] = (2345.0, -7.0)
    kept = thin(long)
    assert MAX_POINTS / 2 < len(kept) <= MAX_POINTS
    assert {long[0], long[1234], long[2345], long[-1]} <= set(kept)
    assert kept == sorted(kept)
    assert thin(long[:MAX_POINTS]) == long[:MAX_POINTS]
    ((*_, last),) = places(parse(line_chart("long", [Curve("c", long)])))
    assert last[0] == WIDTH - 22


def test_smooth() -> None:
    values = [(float(i), v) for i, v in enumerate([0.0, 3.0, math.nan, 9.0])]
    assert smooth(values, 1) == [(0.0, 1.5), (1.0, 1.5), (2.0, 6.0), (3.0, 9.0)]
    assert math.isnan(smooth([(0.0, math.nan)], 3)[0][1])


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.0, 1.0, ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0.0, 3e-4, ["0", "1e-4", "2e-4", "3e-4"]),
        (-1.0, 1.2, ["-1.0", "-0.5", "0", "0.5", "1.0"]),
        (1.0, 30.0, ["10", "20", "30"]),
        (0.0, 2e6, ["0", "0.5e6", "1.0e6", "1.5e6", "2.0e6"]),
    ],
)
def test_ticks(low: float, high: float, words: list[str]) -> None:
    assert tick_labels(ticks(low, high)) == words


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    high = low + max(span, 1e-5 * abs(low))
    found = ticks(low, high)
    assert 1 <= len(found) <= 6
    assert all(low - 1e-5 * (high - low) <= t <= high + 1e-5 * (high - low) for t in found)
    assert len(set(tick_labels(found))) == len(found)


def test_names_are_escaped() -> None:
    chart = line_chart("<b>", [Curve("<script>&\"'\x1b", [(1.0, 1.0)])], x="<i>", marks=[(1.0, "<u>")])
    figure = ElementTree.fromstring(chart)
    assert not {e.tag for e in figure.iter()} & {"script", "b" * 2, "i", "u"}
    assert "<script>" in "".join(figure.itertext())
