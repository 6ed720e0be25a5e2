"""Charts as inline SVG: numbers in, markup out. Colours and type sizes are the page's, through class names.

Sizes are in the units of each chart's own view box; the page scales the box to the column that it stands in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

Point = tuple[float, float]
Scale = Callable[[float], float]

LEFT, RIGHT, TOP, BOTTOM = 56.0, 16.0, 30.0, 36.0  # room for the labels of the axes, at a phone's larger type too
HUGE = 1e100  # beyond it, as a loss that has run away is, an axis has no ticks; NaN is not below it either
MOST_POINTS = 300  # of a curve; a longer one is averaged down, which the eye cannot tell


@dataclass(frozen=True)
class Line:
    """A curve. look: the class name that the page colours it by. dots: whether each point is marked. joined: or not drawn through."""

    look: str
    points: Sequence[Point]
    dots: bool = False
    joined: bool = True


def gain_chart(base: float, tuned: float, ci95: Sequence[float] | None) -> Markup:
    """Base and tuned on one scale, and the 95% interval of the gain, drawn from the base.

    ci95: the lower and upper bound of the gain, or None where there is no interval. A bar that touches the dashed line at the base is a
    gain that the data cannot tell from none.
    """
    width, height, middle, axis = 480.0, 180.0, 84.0, 138.0
    ends = [base + bound for bound in ci95 or ()]
    ticks = nice_ticks(*_gain_range([base, tuned, *ends]))
    x = _scale(ticks[0], ticks[-1], 26, width - 26)
    parts = [_line(x(ticks[0]), axis, x(ticks[-1]), axis, "axis")]
    for tick in ticks:
        parts += [_line(x(tick), axis, x(tick), axis + 6, "axis"), _text(x(tick), axis + 26, short(tick), "tick")]
    parts.append(_line(x(base), middle - 34, x(base), middle + 18, "no-gain"))
    parts.append(_line(x(base), middle, x(tuned), middle, "gain"))
    if ends:
        parts.append(_rect(x(ends[0]), middle - 12, max(x(ends[1]) - x(ends[0]), 2.0), 24, "interval"))
        parts += [_line(x(end), middle - 12, x(end), middle + 12, "interval-end") for end in ends]
    parts += [_dot(x(base), middle, 7, "base"), _dot(x(tuned), middle, 9, "tuned")]
    parts.append(_text(x(base), middle + 34, f"base {base:.3f}", "label base", _anchor(x(base), width)))
    parts.append(_text(x(tuned), middle - 26, f"tuned {tuned:.3f}", "label tuned", _anchor(x(tuned), width)))
    gain = f"; 95% interval of the gain {ci95[0]:+.3f} to {ci95[1]:+.3f}" if ci95 else ""
    return _svg(width, height, f"base {base:.3f}, tuned {tuned:.3f}{gain}", parts)


def line_chart(
    lines: Sequence[Line],
    title: str,
    *,
    best: float | None = None,
    height: float = 260.0,
    mark: str = "best: step {}",
    said: Callable[[float], str] | None = None,
) -> Markup:
    """Curves over the training step. best: the step at which a dashed line stands. Points that are no finite numbers are left out.

    mark: what that line is called. said: a place on the axis in words, where it is no step. Returns nothing where no point is left.
    """
    width, said = 480.0, said or short
    lines = [replace(line, points=thin(_finite(line.points))) for line in lines]
    points = [point for line in lines for point in line.points]
    if not points:
        return Markup("")
    y_ticks = nice_ticks(*_extent([y for _, y in points]), count=5)
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    x = _scale(x_low, x_high, LEFT, width - RIGHT)
    y = _scale(y_ticks[0], y_ticks[-1], height - BOTTOM, TOP)
    parts = _grid(y_ticks, y, width)
    for tick in nice_ticks(x_low, x_high, count=5):
        if x_low <= tick <= x_high and tick == round(tick):
            parts.append(_text(x(tick), height - 12, said(tick), "tick"))
    if best is not None and x_low <= best <= x_high:
        parts.append(_line(x(best), TOP - 6, x(best), height - BOTTOM, "best"))
        parts.append(_text(x(best), TOP - 12, mark.format(said(best)), "label best", _anchor(x(best), width)))
    for line in lines:
        if line.joined:
            parts.append(_path([(x(step), y(value)) for step, value in line.points], line.look))
        parts += [_dot(x(step), y(value), 3, line.look) for step, value in line.points if line.dots]
    return _svg(width, height, title, parts)


def flow_chart(source: str, branches: Sequence[tuple[str, float, str]], title: str) -> Markup:
    """A stream that parts into branches, each as thick as its number. branches: (label, number, look)."""
    branches = [branch for branch in branches if branch[1] > 0]
    total = sum(number for _, number, _ in branches)
    if not total:
        return Markup("")
    width, stream, slot = 480.0, 130.0, 30.0
    heights = [max(stream * number / total, 2.0) for _, number, _ in branches]
    slots = [max(height + 12, slot) for height in heights]
    height = sum(slots) + 16
    top, at = (height - sum(heights)) / 2, 8.0
    parts = [_text(0, height / 2 + 5, source, "label", "start"), _rect(108, top, 8, sum(heights), "source")]
    for (label, _, look), thick, room in zip(branches, heights, slots, strict=True):
        middle = at + room / 2
        parts += [
            _ribbon(116, top, 310, middle - thick / 2, thick, look),
            _rect(310, middle - thick / 2, 8, thick, look),
        ]
        parts.append(_text(330, middle + 5, label, "label", "start"))
        top, at = top + thick, at + room
    return _svg(width, height, title, parts)


def histogram_chart(bins: Sequence[Sequence[float]], counts: Sequence[float], title: str) -> Markup:
    """Bars over their own bins [low, high)."""
    if not bins or not any(counts):
        return Markup("")
    width, height = 480.0, 220.0
    ticks = nice_ticks(0, max(counts), count=4)
    x = _scale(bins[0][0], bins[-1][1], LEFT, width - RIGHT)
    y = _scale(0, ticks[-1], height - BOTTOM, TOP)
    parts = _grid(ticks, y, width)
    for (low, high), count in zip(bins, counts, strict=False):
        parts.append(_rect(x(low) + 1, y(count), max(x(high) - x(low) - 2, 1.0), y(0) - y(count), "bar"))
    inside = [tick for tick in nice_ticks(bins[0][0], bins[-1][1], count=6) if bins[0][0] <= tick <= bins[-1][1]]
    parts += [_text(x(tick), height - 12, short(tick), "tick") for tick in inside]
    return _svg(width, height, title, parts)


def share_bar(share: float) -> Markup:
    """A bar for a cell of a table, whose number stands beside it: share in 0..1."""
    filled = 100 * min(max(share, 0.0), 1.0)
    bar = '<svg class="share" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">{}{}</svg>'
    return Markup(bar).format(_rect(0, 0, 100, 8, "rest"), _rect(0, 0, filled, 8, "bar"))


def smooth(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and its neighbours, `window` of them in all; fewer at the ends. A mean on both sides lags behind nothing."""
    sums, reach = [0.0], window // 2
    for value in values:
        sums.append(sums[-1] + value)
    spans = [(max(n - reach, 0), min(n + reach + 1, len(values))) for n in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in spans]


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most so many points, each the mean of its neighbours."""
    size = -(-len(points) // most)
    if size <= 1:
        return list(points)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers, evenly spaced, that enclose low and high."""
    if high <= low:
        low, high = low - (abs(low) or 1.0) / 2, low + (abs(low) or 1.0) / 2
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def short(value: float) -> str:
    """A number as a label of an axis: at most about five characters."""
    if abs(value) >= 10_000:
        return f"{value / 1000:,.0f}k"
    if value and abs(value) < 0.001:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.4g}".replace("-", "−")


def _gain_range(points: Sequence[float]) -> Point:
    """The whole of 0..1 for a gain that can be seen on it; closer for a small one."""
    low, high = min(points), max(points)
    if low >= 0 and high <= 1 and high - low > 0.15:
        return 0.0, 1.0
    room = max((high - low) * 0.4, 0.005)
    return max(low - room, min(low, 0.0)), min(high + room, max(high, 1.0))


def _extent(values: Sequence[float]) -> Point:
    """The range of an axis: from zero unless the values are far from it."""
    low, high = min(values), max(values)
    return (0.0, high or 1.0) if 0 <= low < high / 2 or high == low == 0 else (low, high)


def _finite(points: Iterable[Point]) -> list[Point]:
    return [(float(x), float(y)) for x, y in points if abs(x) < HUGE and abs(y) < HUGE]


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    """The straight line that takes low to start and high to end."""
    if high == low:
        return lambda value: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _anchor(x: float, width: float) -> str:
    """Where a label hangs at x, so that it stays inside the chart."""
    if x < width * 0.16:
        return "start"
    return "end" if x > width * 0.84 else "middle"


def _grid(ticks: Sequence[float], y: Scale, width: float) -> list[Markup]:
    lines = [_line(LEFT, y(tick), width - RIGHT, y(tick), "grid") for tick in ticks]
    return lines + [_text(LEFT - 9, y(tick) + 5, short(tick), "tick", "end") for tick in ticks]


def _svg(width: float, height: float, title: str, parts: Sequence[Markup]) -> Markup:
    frame = '<svg class="chart" viewBox="0 0 {} {}" role="img"><title>{}</title>{}</svg>'
    return Markup(frame).format(f"{width:g}", f"{height:g}", title, Markup("").join(parts))


def _line(x1: float, y1: float, x2: float, y2: float, look: str) -> Markup:
    ends = (f"{value:.1f}" for value in (x1, y1, x2, y2))
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(look, *ends)


def _rect(x: float, y: float, width: float, height: float, look: str) -> Markup:
    sizes = (f"{value:.1f}" for value in (x, y, width, height))
    return Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}" rx="2"/>').format(look, *sizes)


def _dot(x: float, y: float, radius: float, look: str) -> Markup:
    return Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>').format(look, f"{x:.1f}", f"{y:.1f}", f"{radius:g}")


def _text(x: float, y: float, text: str, look: str, anchor: str = "middle") -> Markup:
    place = (f"{x:.1f}", f"{y:.1f}")
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(look, *place, anchor, text)


def _path(points: Sequence[Point], look: str) -> Markup:
    route = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return Markup('<path class="{}" d="M{}"/>').format(look, route) if points else Markup("")


def _ribbon(x1: float, y1: float, x2: float, y2: float, thick: float, look: str) -> Markup:
    """A band of even thickness from (x1, y1) to (x2, y2), its upper edge named."""
    bend = (x1 + x2) / 2
    route = (
        f"M{x1:.1f} {y1:.1f} C{bend:.1f} {y1:.1f} {bend:.1f} {y2:.1f} {x2:.1f} {y2:.1f} V{y2 + thick:.1f} "
        f"C{bend:.1f} {y2 + thick:.1f} {bend:.1f} {y1 + thick:.1f} {x1:.1f} {y1 + thick:.1f} Z"
    )
    return Markup('<path class="ribbon {}" d="{}"/>').format(look, route)
