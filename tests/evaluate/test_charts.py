from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from burnish.evaluate import charts


def elements(svg: str, look: str) -> list[dict[str, str]]:
    """The attributes of every element of a chart with this class."""
    return [dict(one.attrib) for one in ElementTree.fromstring(svg).iter() if one.get("class") == look]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.61, 0.64), (-3.2, 41), (1e-5, 1.3e-3), (5, 5), (0, 0), (0, 987_654)]
)
def test_ticks_enclose_the_range_evenly_and_are_few(low, high):
    ticks = charts.nice_ticks(low, high)
    gaps = [after - before for before, after in pairwise(ticks)]
    assert ticks[0] <= low <= high <= ticks[-1]
    assert max(gaps) == pytest.approx(min(gaps))
    assert 2 <= len(ticks) <= 8


def test_interval_bar_spans_base_plus_the_bounds_of_the_gain():
    svg = charts.gain_chart(0.2, 0.7, [0.4, 0.6])
    (bar,), (base,), (tuned,) = elements(svg, "interval"), elements(svg, "base"), elements(svg, "tuned")
    unit = (float(tuned["cx"]) - float(base["cx"])) / 0.5
    assert float(bar["x"]) == pytest.approx(float(base["cx"]) + 0.4 * unit, abs=0.2)
    assert float(bar["width"]) == pytest.approx(0.2 * unit, abs=0.2)


def test_gain_without_an_interval_has_dots_and_no_bar():
    svg = charts.gain_chart(0.2, 0.7, None)
    assert elements(svg, "tuned")
    assert not elements(svg, "interval")


@pytest.mark.parametrize(("base", "tuned"), [(0.0, 1.0), (0.5, 0.5), (0.999, 1.0), (-4.0, -3.5), (12.0, 80.0)])
def test_everything_of_a_gain_lies_inside_its_chart(base, tuned):
    svg = charts.gain_chart(base, tuned, [tuned - base - 0.01, tuned - base + 0.01])
    places = [
        float(one.get(name))
        for one in ElementTree.fromstring(svg).iter()
        for name in ("x", "x1", "cx")
        if one.get(name)
    ]
    assert all(0 <= place <= 480 for place in places)


def test_a_higher_loss_is_drawn_higher():
    svg = charts.line_chart([charts.Line("smooth", [(1, 3.0), (2, 1.0)])], "loss")
    (curve,) = elements(svg, "smooth")
    first, second = (float(point.split()[1]) for point in curve["d"].removeprefix("M").split(" L"))
    assert first < second  # SVG counts downwards


def test_points_that_are_no_numbers_are_left_out_of_a_curve():
    svg = charts.line_chart(
        [charts.Line("smooth", [(1, 2.0), (2, math.nan), (3, math.inf), (4, 1e308), (5, 1.0)])], "loss"
    )
    assert elements(svg, "smooth")[0]["d"].count("L") == 1


def test_no_points_give_no_chart():
    assert charts.line_chart([charts.Line("smooth", [(1, math.nan)])], "loss") == ""
    assert charts.histogram_chart([], [], "lengths") == ""
    assert charts.flow_chart("read 0", [("train 0", 0, "train")], "rows") == ""


def test_the_best_step_is_marked_where_it_lies():
    svg = charts.line_chart([charts.Line("metric", [(0, 0.1), (50, 0.9), (100, 0.8)], dots=True)], "metric", best=50)
    (best,) = elements(svg, "best")
    assert best["x1"] == elements(svg, "metric")[2]["cx"]


def test_smoothing_keeps_the_length_the_mean_and_a_straight_line():
    line = [float(n) for n in range(20)]
    assert charts.smooth(line, 5)[2:-2] == pytest.approx(line[2:-2])
    assert len(charts.smooth([1.0, 9.0], 7)) == 2
    assert charts.smooth([], 5) == []


def test_a_long_curve_is_thinned_without_moving_its_mean():
    points = [(float(step), math.sin(step)) for step in range(9000)]
    thinned = charts.thin(points)
    assert len(thinned) <= charts.MOST_POINTS
    assert sum(y for _, y in thinned) / len(thinned) == pytest.approx(sum(y for _, y in points) / 9000, abs=1e-9)


def test_branches_are_as_thick_as_their_numbers():
    svg = charts.flow_chart("read 40", [("train 30", 30, "train"), ("test 10", 10, "test")], "rows")
    thick = {look: float(elements(svg, look)[0]["height"]) for look in ("train", "test")}
    assert thick["train"] == pytest.approx(3 * thick["test"], abs=0.2)


def test_bars_of_a_histogram_are_as_high_as_their_counts():
    bars = elements(charts.histogram_chart([[0, 10], [10, 20], [20, 30]], [4, 8, 0], "lengths"), "bar")
    assert float(bars[1]["height"]) == pytest.approx(2 * float(bars[0]["height"]), abs=0.2)
    assert float(bars[2]["height"]) == 0


def test_texts_in_charts_are_escaped():
    svg = charts.flow_chart("<script>", [("</svg><b>", 1, "train")], "<i>")
    assert "<script>" not in svg
    assert ElementTree.fromstring(svg).findtext("title") == "<i>"


@pytest.mark.parametrize(("share", "width"), [(0.25, "25.0"), (-1.0, "0.0"), (7.0, "100.0")])
def test_a_share_stays_within_its_bar(share, width):
    assert elements(charts.share_bar(share), "bar")[0]["width"] == width
