"""Charts as SVG whose colours come from the page's style, so that light and dark both fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH = 400
_HEIGHT = 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 26, 34
_ROW = 26
_LABEL = 128
_VALUE = 74
_TICKS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of one kind.

    Attributes:
        name: for the legend.
        style: a class of the page's style: "one" or "two", and "curve" or "points".
        points: x and y.
    """

    name: str
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


def bar_chart(title: str, bars: Sequence[Bar], *, mark: float | None = None) -> str:
    """Bars from left to right, the longest as wide as there is room.

    Args:
        title: for readers that do not see it.
        bars: in order.
        mark: where a line goes from top to bottom.
    """
    room = _WIDTH - _LABEL - _VALUE
    most = max([bar.value for bar in bars] + [mark or 0.0, 1e-9])
    height = _ROW * len(bars) + 4
    rows = []
    if mark is not None:
        at = _LABEL + mark / most * room
        rows.append(f'<line x1="{at:.1f}" y1="0" x2="{at:.1f}" y2="{height}" class="mark"/>')
    for number, bar in enumerate(bars):
        top = number * _ROW + 4
        width = max(bar.value / most * room, 1)
        rows.append(
            f'<text x="{_LABEL - 8}" y="{top + 14}" class="end">{escape(bar.label)}</text>'
            f'<rect x="{_LABEL}" y="{top}" width="{width:.1f}" height="{_ROW - 7}" rx="2" '
            f'class="fill {bar.style}"/>'
            f'<text x="{_LABEL + width + 5:.1f}" y="{top + 14}">{escape(bar.text)}</text>'
        )
    return _svg(title, height, rows)


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
    """Where x is labelled: at the points if they are few."""
    values = sorted({x for x, _ in points})
    if len(values) <= 2 * _TICKS:
        return values
    step = _nice(right / _TICKS)
    return [step * tick for tick in range(int(right / step) + 1)]


def _nice(step: float) -> float:
    """The least of 1, 2 and 5 times a power of ten that is no smaller."""
    power = float(10.0 ** math.floor(math.log10(step)))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= step * (1 - 1e-9))


def _short(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e4 else f"{value:,.6g}"


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img"><title>{escape(title)}</title>'
        + "".join(parts)
        + "</svg>"
    )
