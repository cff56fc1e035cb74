"""Charts as inline SVG: lines and stacked bars, with axes, and words for those who cannot see them. Pure.

Drawn for a box 360 wide, so that letters stay readable on a telephone; a page with more room sets several side by
side. Colours are classes s0 to s7, which the page defines for light and dark; lines also differ by their dashes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 350, 26, 192
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
COLOURS = 8


@dataclass(frozen=True, slots=True)
class Series:
    """(x, y) in order of x."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Axes:
    """What the two axes say, and how a y is written. `whole`: only whole numbers on x."""

    x: str
    y: str
    write: Callable[[float], str]
    whole: bool = True


def lines(key: str, title: str, axes: Axes, series: Sequence[Series], marks: Sequence[float] = ()) -> str:
    """`key`: unique in the page. `marks`: x of vertical lines (commits)."""
    points = [point for one in series for point in one.points]
    if not points:
        return _nothing(title)
    xs, ys = [x for x, _ in points], [y for _, y in points]
    frame = _Frame(_ticks(min(xs), max(xs), 6, axes.whole), _ticks(min(ys), max(ys), 5, False), (min(xs), max(xs)))
    body = [f'<line class="mark" x1="{frame.x(at)}" x2="{frame.x(at)}" y1="{_TOP}" y2="{_BOTTOM}"/>' for at in marks]
    for place, one in enumerate(series):
        path = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in one.points)
        body.append(f'<polyline class="line {_class(place)}" {_dash(place)}points="{path}"><title>{escape(one.name)}</title></polyline>')
        if len(one.points) <= 40:
            body += [
                f'<circle class="dot {_class(place)}" cx="{frame.x(x)}" cy="{frame.y(y)}" r="3">'
                f"<title>{escape(one.name)}, {x:g}: {axes.write(y)}</title></circle>"
                for x, y in one.points
            ]
    told = [f"{one.name} from {axes.write(one.points[0][1])} to {axes.write(one.points[-1][1])}" for one in series if one.points]
    return _svg(key, title, f"{axes.y} over {axes.x}: {'; '.join(told)}.", frame, axes, body)


def bars(key: str, title: str, axes: Axes, series: Sequence[Series]) -> str:
    """One bar for each x, each series a piece of it; x are whole numbers."""
    totals: dict[float, float] = {}
    for x, y in (point for one in series for point in one.points):
        totals[x] = totals.get(x, 0.0) + y
    if not totals:
        return _nothing(title)
    low, high = min(totals), max(totals)
    frame = _Frame(_ticks(low, high, 6, True), _ticks(0.0, max(totals.values()), 5, False), (low - 0.6, high + 0.6))
    broad = min(40.0, 0.7 * (_RIGHT - _LEFT) / (high - low + 1.2))
    body, done = [], dict.fromkeys(totals, 0.0)
    for place, one in enumerate(series):
        for x, y in one.points:
            top, foot = frame.y(done[x] + y), frame.y(done[x])
            done[x] += y
            body.append(
                f'<rect class="bar {_class(place)}" x="{frame.x(x) - broad / 2:.1f}" y="{top}" width="{broad:.1f}" '
                f'height="{max(0.0, foot - top):.1f}"><title>{escape(one.name)}, {x:g}: {axes.write(y)}</title></rect>'
            )
    told = "; ".join(f"{x:g}: {axes.write(total)}" for x, total in sorted(totals.items()))
    return _svg(key, title, f"{axes.y} by {axes.x}, all peers together: {told}.", frame, axes, body)


def legend(names: Sequence[str], bars: bool = False) -> str:
    """Which colour and dash is whose."""
    if bars:
        signs = [f'<rect class="bar {_class(place)}" x="1" y="1" width="12" height="10"/>' for place in range(len(names))]
    else:
        signs = [f'<line class="line {_class(place)}" {_dash(place)}x1="0" y1="6" x2="28" y2="6"/>' for place in range(len(names))]
    room = 14 if bars else 28
    rows = [
        f'<li><svg class="key" width="{room}" height="12" viewBox="0 0 {room} 12" aria-hidden="true">{sign}</svg>{escape(name)}</li>'
        for sign, name in zip(signs, names, strict=True)
    ]
    return f'<ul class="legend">{"".join(rows)}</ul>'


class _Frame:
    """Where numbers lie in the box. `span`: the x that its left and right edges stand for."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], span: tuple[float, float]) -> None:
        self.xs, self.ys = [x for x in xs if span[0] <= x <= span[1]], ys
        self._x0, self._dx = span[0], (span[1] - span[0]) or 1.0

    def x(self, value: float) -> float:
        return round(_LEFT + (value - self._x0) / self._dx * (_RIGHT - _LEFT), 1)

    def y(self, value: float) -> float:
        low, high = self.ys[0], self.ys[-1]
        return round(_BOTTOM - (value - low) / (high - low) * (_BOTTOM - _TOP), 1)


def _ticks(low: float, high: float, most: int, whole: bool) -> list[float]:
    """Round numbers, at most about `most`, that enclose [low, high]."""
    rough = ((high - low) or abs(high) or 1.0) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    step = max(1.0, math.ceil(step)) if whole else step
    first, last = math.floor(low / step), math.ceil(high / step)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def _svg(key: str, title: str, told: str, frame: _Frame, axes: Axes, body: Sequence[str]) -> str:
    grid = []
    for y in frame.ys:
        at = frame.y(y)
        grid.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{at}" y2="{at}"/>')
        grid.append(f'<text x="{_LEFT - 6}" y="{at + 4}" text-anchor="end">{escape(axes.write(y))}</text>')
    grid += [f'<text x="{frame.x(x)}" y="{_BOTTOM + 16}" text-anchor="middle">{x:g}</text>' for x in frame.xs]
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{key}-t {key}-d">'
        f'<title id="{key}-t">{escape(title)}</title><desc id="{key}-d">{escape(told)}</desc>{"".join(grid)}{"".join(body)}'
        f'<text class="axis" x="4" y="12">{escape(axes.y)}</text>'
        f'<text class="axis" x="{(_LEFT + _RIGHT) / 2:g}" y="{HEIGHT - 6}" text-anchor="middle">{escape(axes.x)}</text></svg>'
    )


def _nothing(title: str) -> str:
    return f'<p class="nothing">{escape(title)}: nothing was measured.</p>'


def _class(place: int) -> str:
    return f"s{place % COLOURS}"


def _dash(place: int) -> str:
    dash = _DASHES[place % len(_DASHES)]
    return f'stroke-dasharray="{dash}" ' if dash else ""
