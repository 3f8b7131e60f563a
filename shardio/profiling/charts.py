"""Charts as SVG whose colours come from the page's style, so that light and dark both fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH = 400
_HEIGHT = 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 12, 28, 40
_ROW = 27
_AXIS = 24  # height of the labels below bars
_LETTER = 7.2  # width, on average, of the page's letters
_GAP = 8
_TICKS = 4
_LEAST_DECADES = 0.7  # between the ends, where a logarithmic scale begins to be clearer


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of one kind.

    Attributes:
        style: a class of the page's style: "one" or "two", and "curve" or "points".
        points: x and y.
    """

    style: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A row of a bar chart.

    Attributes:
        label: what it is.
        value: how long.
        text: the value in words.
        style: a class of the page's style: "one", "two" or "rest".
    """

    label: str
    value: float
    text: str
    style: str = "one"


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to places between 0 and 1.

    Attributes:
        least: value at 0; 0 where the scale is linear.
        most: value at 1.
    """

    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Scale:
        """Linear from 0, or logarithmic between powers of ten where values lie far apart."""
        low, high = (math.log10(max(value, 1e-9)) for value in (min(values), max(values)))
        if high - low < _LEAST_DECADES:
            step = _nice(max(*values, 1e-9) / _TICKS)
            return cls(0.0, step * math.ceil(max(values) / step - 1e-9))
        return cls(10.0 ** (math.ceil(low) - 1), 10.0 ** math.ceil(high))

    def place(self, value: float) -> float:
        """Where a value is."""
        if not self.least:
            return value / self.most
        return max(math.log(value / self.least) / math.log(self.most / self.least), 0.0)

    def ticks(self) -> list[float]:
        """Round values, not too many."""
        if not self.least:
            step = _nice(self.most / _TICKS)
            return [step * tick for tick in range(round(self.most / step) + 1)]
        decades = round(math.log10(self.most / self.least))
        every = -(-decades // _TICKS)
        return [self.least * 10.0**power for power in range(0, decades + 1, every)]


def bar_chart(
    title: str, bars: Sequence[Bar], *, scale: Scale | None = None, mark: float | None = None
) -> str:
    """Bars from left to right between their labels and their values.

    Args:
        title: for readers that do not see it.
        bars: in order.
        scale: is drawn below; by default the longest bar is as wide as there is room.
        mark: a value where a line goes from top to bottom.
    """
    left = _GAP + _LETTER * max(len(bar.label) for bar in bars)
    room = _WIDTH - left - 2 * _GAP - _LETTER * max(len(bar.text) for bar in bars)
    bottom = _ROW * len(bars) + 4
    place = (scale or Scale(0.0, max([bar.value for bar in bars] + [1e-9]))).place
    rows = []
    for tick in scale.ticks() if scale else ():
        at = left + place(tick) * room
        rows.append(
            f'<line x1="{at:.1f}" y1="0" x2="{at:.1f}" y2="{bottom}" class="grid"/>'
            f'<text x="{at:.1f}" y="{bottom + 16}" class="middle">{_short(tick)}</text>'
        )
    for number, bar in enumerate(bars):
        top = number * _ROW + 4
        width = max(place(bar.value) * room, 1)
        rows.append(
            f'<text x="{left - _GAP:.1f}" y="{top + 15}" class="end">{escape(bar.label)}</text>'
            f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{_ROW - 7}" rx="2" '
            f'class="fill {bar.style}"/>'
            f'<text x="{_WIDTH}" y="{top + 15}" class="end">{escape(bar.text)}</text>'
        )
    if mark is not None:
        at = left + place(mark) * room
        rows.append(f'<line x1="{at:.1f}" y1="0" x2="{at:.1f}" y2="{bottom}" class="mark"/>')
    return _svg(title, bottom + (_AXIS if scale else 0), rows)


def line_chart(
    title: str, series: Sequence[Series], *, across: str, up: str, least_top: float = 0.0
) -> str:
    """Curves and points over a common pair of axes that start at 0.

    Args:
        title: for readers that do not see it.
        series: what to draw, the first below.
        across: what x is.
        up: what y is.
        least_top: the y axis reaches at least so far.
    """
    points = [point for one in series for point in one.points]
    right = max([x for x, _ in points] + [1e-9])
    step = _nice(max([y for _, y in points] + [least_top, 1e-9]) / _TICKS)
    top = step * math.ceil(max([y for _, y in points] + [least_top]) / step - 1e-9) or step
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + x / right * width, _TOP + height - y / top * height

    parts = [f'<text x="4" y="13">{escape(up)}</text>']
    parts += [
        _tick_up(place(0, step * tick)[1], step * tick) for tick in range(round(top / step) + 1)
    ]
    parts += [_tick_across(place(x, 0)[0], x) for x in _across(points, right)]
    parts.append(
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 2}" class="end">{escape(across)}</text>'
    )
    for one in series:
        placed = [place(x, y) for x, y in one.points]
        parts.append(_draw(one, placed))
    return _svg(title, _HEIGHT, parts)


def _draw(series: Series, placed: Sequence[tuple[float, float]]) -> str:
    if "curve" in series.style:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        return f'<polyline points="{path}" class="line {series.style}"/>'
    return "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="fill {series.style}"/>' for x, y in placed
    )


def _tick_up(at: float, value: float) -> str:
    return (
        f'<line x1="{_LEFT}" y1="{at:.1f}" x2="{_WIDTH - _RIGHT}" y2="{at:.1f}" class="grid"/>'
        f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" class="end">{_short(value)}</text>'
    )


def _tick_across(at: float, value: float) -> str:
    return f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 16}" class="middle">{value:g}</text>'


def _across(points: Sequence[tuple[float, float]], right: float) -> list[float]:
    """Where x is labelled: at the points if they are few whole numbers."""
    values = sorted({x for x, _ in points})
    if len(values) <= 2 * _TICKS and all(x == round(x) for x in values):
        return values
    step = _nice(right / _TICKS)
    return [step * tick for tick in range(int(right / step) + 1)]


def _nice(step: float) -> float:
    """The least of 1, 2 and 5 times a power of ten that is no smaller."""
    power = float(10.0 ** math.floor(math.log10(step)))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= step * (1 - 1e-9))


def _short(value: float) -> str:
    if value >= 1e9:
        return f"{value / 1e9:g}G"
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e4 else f"{value:,.4g}"


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img"><title>{escape(title)}</title>'
        + "".join(parts)
        + "</svg>"
    )
