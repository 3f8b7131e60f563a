"""The results of a profile as text, as a page for browsers and as a chart.

What the terminal, the page and the chart have in common, sentences and rows of tables, comes first.
The page is one file without scripts that needs no network; its charts are SVG whose colours come
from the page's style, so that they fit light and dark. The chart of rates is a PNG by matplotlib,
which nothing else needs.
"""

from __future__ import annotations

import importlib.util
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from shardio.errors import SituationError, argument, counted
from shardio.profiling.claims import Measurement
from shardio.profiling.claims import notices as notices_of
from shardio.profiling.evidence import Evidence, ProducerKind, Stages
from shardio.profiling.store import MOST_BYTES, MOST_SECONDS, StoreLimits, megabytes
from shardio.profiling.verdict import Bottleneck

if TYPE_CHECKING:
    from shardio.profiling.profile import Profile

RUN_TITLES = "measured", "samples/s", "±", "predicted", "off", "waits", "first", "memory"
PREDICTION_TITLES = "predicted", "cores", "samples/s", "waits"
STAGE_TITLES = "stage", "wall", "CPU", "p50", "p99", "share"

_OF_THE_PRODUCERS: frozenset[Bottleneck] = frozenset(
    {"decode", "transform", "map", "loader", "lock"}
)
_KINDS: tuple[tuple[ProducerKind, str, str], ...] = (
    ("threads", "threads", "one"),
    ("processes", "workers", "two"),
)
"""Producers, their name in charts, and the class of the page's style."""
_COLOURS = {"one": "#1f6fb2", "two": "#b4540a"}
_ALONE: Mapping[Bottleneck | None, str] = {
    "storage": "storage",
    "cold": "cold storage",
    "handover": "the hand-over",
}

_WIDTH = 400
_HEIGHT = 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 12, 28, 40
_ROW = 27
_AXIS = 24  # height of the labels below bars
_LETTER = 7.2  # width, on average, of the page's letters
_GAP = 8
_TICKS = 4
_LEAST_DECADES = 0.7  # between the ends, where a logarithmic scale begins to be clearer
_STYLE = (
    f":root {{ --one: {_COLOURS['one']}; --two: {_COLOURS['two']}; }}"
    + """
:root { color-scheme: light dark; --page: #fcfcfa; --ink: #1d2125; --soft: #5d6670;
  --line: #d9dcdf; --card: #ffffff; --rest: #9aa3ab; }
@media (prefers-color-scheme: dark) { :root { --page: #16191c; --ink: #e8eaec; --soft: #a2abb4;
  --line: #383e44; --card: #1e2226; --one: #63aee8; --two: #eda45c; --rest: #6b747c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1.2rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.45rem; line-height: 1.3; margin: 0.3rem 0 0.6rem; }
h2 { font-size: 1rem; margin: 0 0 0.6rem; }
p { margin: 0.3rem 0; } .soft { color: var(--soft); font-size: 0.9rem; }
main { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: 0.9rem 1rem; min-width: 0; }
.wide { grid-column: 1 / -1; } .scroll { overflow-x: auto; } .hint { display: none; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0 0.25rem 0.8rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; white-space: normal; padding-left: 0; }
th { font-weight: 600; color: var(--soft); font-size: 0.85rem; }
svg { display: block; width: 100%; max-width: 34rem; height: auto;
  font: 13px system-ui, sans-serif; }
svg text { fill: var(--ink); }
svg .end { text-anchor: end; } svg .middle { text-anchor: middle; }
svg .grid { stroke: var(--line); } svg .mark { stroke: var(--ink); stroke-dasharray: 4 3; }
svg .line { fill: none; stroke-width: 2; } svg .curve.one { stroke: var(--one); }
svg .curve.two { stroke: var(--two); } svg .fill.one { fill: var(--one); }
svg .fill.two { fill: var(--two); } svg .fill.rest { fill: var(--rest); }
@media (max-width: 40rem) { body { padding: 0.5rem; } section { padding: 0.7rem 0.6rem; }
  .scroll { box-shadow: inset -1rem 0 0.8rem -1rem var(--soft); }
  .scroll table { min-width: 34rem; }
  .scroll th:first-child, .scroll td:first-child { position: sticky; left: 0; max-width: 8rem;
    background: var(--card); }
  .hint { display: block; } }
.key::before { content: ""; display: inline-block; width: 0.7rem; height: 0.7rem;
  margin: 0 0.35rem 0 0.8rem; border-radius: 2px; background: var(--rest); }
.key.one::before { background: var(--one); } .key.two::before { background: var(--two); }
"""
)


def run_legend(result: Profile) -> str:
    """Describe the columns of the measured loaders."""
    cached = "" if result.store is None else ", shards cached"
    first = f"first: time to first batch{cached}"
    return f"±: spread; off: from predicted; waits: share of time; {first}"


def ceiling_name(result: Profile) -> str:
    """Name what alone would reach the profile's ceiling."""
    return f"{_ALONE.get(result.verdict.bottleneck, 'decoding and transforming')} alone"


def notices(result: Profile) -> list[str]:
    """List the sentences, besides the verdict's, that say what is withheld, and why."""
    said = notices_of(result.withheld)
    return [sentence for sentence in said if sentence != result.verdict.sentence]


def facts(result: Profile) -> list[str]:
    """List the sentences that belong beside the verdict."""
    best, verdict = result.runs[result.best], result.verdict
    seen = best.evidence
    found = notices(result)
    if result.store is not None:
        found.append(_store_line(result.store))
    if verdict.bottleneck is None:
        return [*found, *_still_known(result)]
    if result.ceiling and seen.rate > result.ceiling:
        found.append(f"This loop reaches what {ceiling_name(result)} would reach.")
    elif result.ceiling:
        found.append(
            f"This loop reaches {seen.rate / result.ceiling:.0%} of the {result.ceiling:,.0f} "
            f"samples/s that {ceiling_name(result)} would reach."
        )
    if result.storage is not None and verdict.bottleneck in _OF_THE_PRODUCERS:
        where, what = "The page cache", f"{result.storage:,.0f} samples/s"
        if result.ceilings.cold:
            where = "Storage"
            what += " to an epoch that is not cached" * (result.storage < seen.rate)
        if result.ceilings.cold or result.storage >= seen.rate:
            found.append(f"{where} could deliver {what}.")
    found.append(f"{seen.ready:.0%} of the batches were ready when the loop asked for them.")
    if verdict.rate_without:
        found.append(
            f"Without this bottleneck {verdict.rate_without:,.0f} samples/s would be expected."
        )
    return [*found, *_step_waits(result)]


def _store_line(store: StoreLimits) -> str:
    numbers = [str(number) for number, _ in store.rates]
    speeds = [megabytes(rate) for _, rate in store.rates]
    return (
        f"The store: first byte after {store.first_byte * 1e3:,.0f} ms, {' / '.join(speeds)} MB/s "
        f"by {' / '.join(numbers)} connections, which allows {store.samples_per_second:,.0f} "
        "samples/s where an epoch is fetched."
    )


def _still_known(result: Profile) -> list[str]:
    """List what holds although the verdict is withheld: CPU time, and the wait of the step."""
    stages = result.runs[result.best].evidence.stages
    found = _step_waits(result)
    if stages is not None:
        parts = (f"{name} {part.cpu:,.0f}" for name, part in stages.by_name.items())
        found.append(f"A sample takes {stages.cpu:,.0f} µs of CPU time: {', '.join(parts)}.")
    return found


def _step_waits(result: Profile) -> list[str]:
    """Say how long the step waits; nothing without a step."""
    if result.needed is None:
        return []
    best = result.runs[result.best]
    waits = f"The step alone could take {result.needed:,.0f} samples/s; it waits "
    waits += f"{best.evidence.waiting:.1%} of the time"
    if best.predicted is not None:
        waits += f", where {max(1 - best.predicted / result.needed, 0):.1%} was predicted"
    return [f"{waits}."]


def change_rows(result: Profile) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return titles and a row for each change, with the expected gain where one is known."""
    changes = result.verdict.changes
    if not any(change.gain for change in changes):
        return ("what to change",), [(change.text,) for change in changes]
    rows = [(one.text, f"{one.gain:.1f} ×" if one.gain else "") for one in changes]
    return ("what to change", "expected"), [*rows]


def run_rows(result: Profile) -> list[tuple[str, ...]]:
    """Return a row for each measured loader, under RUN_TITLES."""
    return [
        (
            name,
            f"{run.evidence.rate:,.0f}",
            f"{run.spread:.0%}",
            f"{run.predicted:,.0f}" if run.predicted else "",
            f"{run.error:+.0%}" if run.error is not None else "",
            f"{run.evidence.waiting:.0%}",
            f"{run.evidence.first_batch:,.2f} s",
            "-" if run.peak_memory is None else f"{run.peak_memory / 1e6:,.0f} MB",
        )
        for name, run in result.named_runs()
    ]


def prediction_rows(result: Profile) -> list[tuple[str, ...]]:
    """Return a row for each prediction, under PREDICTION_TITLES."""
    return [
        (str(one.topology), str(one.cores), f"{one.rate:,.0f}", f"{one.waiting:.0%}")
        for one in result.predictions or ()
    ]


def stage_rows(stages: Stages) -> list[tuple[str, ...]]:
    """Return a row for each part of a sample's time, under STAGE_TITLES, in microseconds."""
    rows: list[tuple[str, ...]] = []
    total = max(stages.total, 1e-9)
    for name, part in stages.by_name.items():
        times = [f"{value:,.1f}" for value in (part.wall, part.cpu, part.p50, part.p99)]
        rows.append((name, *times, f"{part.wall / total:.0%}"))
    rest = ("plan, hand over", stages.outside), ("idle", stages.waiting)
    for name, value in (*rest, ("total", stages.total)):
        rows.append((name, f"{value:,.1f}", "", "", "", f"{value / total:.0%}"))
    rows.append(("wait for a core", f"{stages.delay:,.1f}", "", "", "", ""))
    rows.append(("wait for the lock", f"{stages.lock:,.1f}", "", "", "", ""))
    return rows


def stage_note(seen: Evidence, stages: Stages) -> str:
    """Describe how much was recorded, and what that took."""
    return (
        f"A sample has {stages.bytes / 1e3:,.1f} kB. {stages.recorded:.0%} of the samples were "
        f"recorded, which took {stages.overhead:.1%} of the time; watching took "
        f"{seen.watching:.1%} of a core."
    )


def compare(result: Profile) -> str:
    """Compare the best loader with the baseline; empty where that cannot be done."""
    if result.baseline is None or result.ratio is None:
        return ""
    return f"{result.ratio:.2f} × {result.baseline[0]}, on the same shards with the same crop."


def conditions(result: Profile) -> str:
    """Describe what was held equal, without the source."""
    settings = result.settings
    crop = f"RandomResizedCrop({settings.size})" if settings.size else "no transform"
    cache = "cold" if settings.cold else "warm"
    parts = [
        counted(result.samples, "sample") + " in " + counted(result.shards, "shard"),
        settings.transform or crop,
        f"batches of {settings.batch_size}",
        f"page cache {cache}",
        f"{settings.seconds:g} s per loader",
        counted(result.cores, "core"),
        f"native core {result.native}",
    ]
    store = result.store
    if store is not None:
        loaded = counted(store.loaded, "shard")
        parts += [
            f"the store measured without the cache by {store.measured_bytes / 1e6:,.1f} MB in "
            f"{store.measured_seconds:.1f} s (it stops at {MOST_BYTES / 1e6:,.0f} MB or "
            f"{MOST_SECONDS:g} s)",
            f"the loaders with {loaded} of {store.loaded_bytes / 1e6:,.1f} MB in the cache",
        ]
    return ", ".join(parts)


def store_rows(store: StoreLimits) -> list[tuple[str, str]]:
    """Return a row for each limit of a store: its name, and its value."""
    rows = [("store, first byte", f"{store.first_byte * 1e3:,.0f} ms")]
    rows += [
        (f"store, {counted(number, 'connection')}", f"{megabytes(rate)} MB/s")
        for number, rate in store.rates
    ]
    return [*rows, ("store, these shards", f"{store.samples_per_second:,.0f} samples/s")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Curve or points of a line chart.

    Attributes:
        style: classes of the page's style: "one" or "two", and "curve" or "points".
        points: pairs of x and y.
    """

    style: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Row of a bar chart.

    Attributes:
        label: label at the left.
        value: length of the bar.
        text: value as text, at the right.
        style: class of the page's style: "one", "two" or "rest".
    """

    label: str
    value: float
    text: str
    style: str = "one"


@dataclass(frozen=True, slots=True)
class Scale:
    """Axis that maps values to places between 0 and 1.

    Attributes:
        least: value at 0; 0 where the scale is linear.
        most: value at 1.
    """

    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Scale:
        """Make an axis, linear from 0, or logarithmic where the values lie far apart."""
        low, high = (math.log10(max(value, 1e-9)) for value in (min(values), max(values)))
        if high - low < _LEAST_DECADES:
            step = _nice(max(*values, 1e-9) / _TICKS)
            return cls(0.0, step * math.ceil(max(values) / step - 1e-9))
        return cls(10.0 ** (math.ceil(low) - 1), 10.0 ** math.ceil(high))

    def place(self, value: float) -> float:
        """Return the place of a value."""
        if not self.least:
            return value / self.most
        return max(math.log(value / self.least) / math.log(self.most / self.least), 0.0)

    def ticks(self) -> list[float]:
        """Return a few round values to label."""
        if not self.least:
            step = _nice(self.most / _TICKS)
            return [step * tick for tick in range(round(self.most / step) + 1)]
        decades = round(math.log10(self.most / self.least))
        every = -(-decades // _TICKS)
        return [self.least * 10.0**power for power in range(0, decades + 1, every)]


def bar_chart(
    title: str,
    bars: Sequence[Bar],
    *,
    scale: Scale | None = None,
    mark: float | None = None,
    width: int = _WIDTH,
) -> str:
    """Draw horizontal bars between their labels and their values.

    Args:
        title: description for screen readers.
        bars: bars from top to bottom.
        scale: axis to draw below; by default the longest bar takes all the room.
        mark: value that a vertical line marks.
        width: width of the chart, in the units of its letters.
    """
    left = _GAP + _LETTER * max(len(bar.label) for bar in bars)
    room = width - left - 2 * _GAP - _LETTER * max(len(bar.text) for bar in bars)
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
        length = max(place(bar.value) * room, 1)
        rows.append(
            f'<text x="{left - _GAP:.1f}" y="{top + 15}" class="end">{escape(bar.label)}</text>'
            f'<rect x="{left:.1f}" y="{top}" width="{length:.1f}" height="{_ROW - 7}" rx="2" '
            f'class="fill {bar.style}"/>'
            f'<text x="{width}" y="{top + 15}" class="end">{escape(bar.text)}</text>'
        )
    if mark is not None:
        at = left + place(mark) * room
        rows.append(f'<line x1="{at:.1f}" y1="0" x2="{at:.1f}" y2="{bottom}" class="mark"/>')
    return _svg(title, bottom + (_AXIS if scale else 0), rows, width)


def line_chart(
    title: str, series: Sequence[Series], *, across: str, up: str, least_top: float = 0.0
) -> str:
    """Draw curves and points over a pair of axes that start at 0.

    Args:
        title: description for screen readers.
        series: curves and points, the first one lowest.
        across: label of the x axis.
        up: label of the y axis.
        least_top: smallest upper end of the y axis.
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
    """Return the labels of x: the points if they are few whole numbers."""
    values = sorted({x for x, _ in points})
    if len(values) <= 2 * _TICKS and all(x == round(x) for x in values):
        return values
    step = _nice(right / _TICKS)
    return [step * tick for tick in range(int(right / step) + 1)]


def _nice(step: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten."""
    power = float(10.0 ** math.floor(math.log10(step)))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= step * (1 - 1e-9))


def _short(value: float) -> str:
    if value >= 1e9:
        return f"{value / 1e9:g}G"
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e4 else f"{value:,.4g}"


def _svg(title: str, height: float, parts: Sequence[str], width: int = _WIDTH) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img"><title>{escape(title)}</title>'
        + "".join(parts)
        + "</svg>"
    )


def write_html(result: Profile, path: str) -> None:
    """Write a profile as a page for browsers.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        Path(path).write_text(_page(result), "utf-8")
    except OSError as error:
        raise SituationError(f"it cannot be written: {error.strerror}", where=path) from error


def _page(result: Profile) -> str:
    best = result.runs[result.best]
    cards = [_card("What to change", _changes(result))] if result.verdict.changes else []
    if "limit" not in result.withheld:
        cards.append(_card("The limits, in samples per second", _limits(result, best)))
    stages = best.evidence.stages
    if stages is not None:
        cards.append(_card(f"A sample's time, {best.topology}", _stage_bars(stages)))
    cards += [
        _card("Rate by threads and workers", _rates(result)),
        _card(f"Waiting of the loop over time, {best.topology}", _waits(best)),
        _card("Memory", _memory(result)),
        _card("Measured", _runs(result), wide=True),
    ]
    if stages is not None:
        note = _note(stage_note(best.evidence, stages))
        table = _scrolled(_table(STAGE_TITLES, stage_rows(stages)))
        cards.append(_card(f"Stages of a sample, {best.topology}, in µs", table + note))
    if rows := prediction_rows(result):
        cards.append(_card("Predicted", _table(PREDICTION_TITLES, rows)))
    title = f"shardio profile of {result.settings.source}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f'<header><p class="soft">{escape(title)}</p>'
        f"<h1>{escape(result.verdict.sentence)}</h1>"
        f"<p>{escape(' '.join(facts(result)))}</p>"
        f'<p class="soft">{escape(conditions(result))}.</p></header>'
        f"<main>{''.join(cards)}</main></body></html>"
    )


def _card(title: str, content: str, *, wide: bool = False) -> str:
    style = ' class="wide"' if wide else ""
    return f"<section{style}><h2>{escape(title)}</h2>{content}</section>"


def _changes(result: Profile) -> str:
    (_, *titles), rows = change_rows(result)
    return _table(("change", *titles), rows)  # the card has the title


def _limits(result: Profile, best: Measurement) -> str:
    limits, size = result.ceilings, result.settings.batch_size
    stored = best.evidence.stages.bytes if best.evidence.stages else 0.0
    rates = [
        ("store", result.store.samples_per_second if result.store else None),
        ("storage, cold", limits.cold / stored if limits.cold and stored else None),
        ("page cache", limits.warm / stored if stored else None),
        ("hand-over", limits.handover * size),
        ("decode, all cores", limits.decode_all),
        ("decode, one core", limits.decode_one),
        ("the step alone", result.needed),
    ]
    bars = [
        Bar(label=name, value=rate, text=f"{rate:,.0f}", style="rest")
        for name, rate in rates
        if rate is not None
    ]
    rate = best.evidence.rate
    bars.append(Bar(label=str(best.topology), value=rate, text=f"{rate:,.0f}"))
    scale = Scale.of([bar.value for bar in bars])
    note = "The dashed line is what was reached."
    if scale.least:
        note += " The scale is logarithmic."
    return bar_chart("limits", bars, scale=scale, mark=rate) + _note(note)


def _stage_bars(stages: Stages) -> str:
    parts = [(name, part.wall) for name, part in stages.by_name.items()]
    parts += [("plan, hand over", stages.outside), ("idle", stages.waiting)]
    total = max(stages.total, 1e-9)
    bars = [
        Bar(
            label=name,
            value=value,
            text=f"{value:,.0f} µs, {value / total:.0%}",
            style="rest" if name == "idle" else "one",
        )
        for name, value in parts
    ]
    note = (
        f"{total:,.0f} µs in its thread, of which {stages.delay:,.0f} waited for a core and "
        f"{stages.lock:,.0f} for the interpreter's lock."
    )
    return bar_chart("stages", bars) + _note(note)


def _rates_by_producers(
    result: Profile, kind: ProducerKind
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Return pairs of number and rate, predicted and measured, on this machine."""
    runs = [run for run in result.runs if run.topology.kind == kind]
    predicted = [
        (float(run.topology.producers), run.predicted) for run in runs if run.predicted is not None
    ]
    predicted += [
        (float(one.topology.producers), one.rate)
        for one in result.predictions or ()
        if one.topology.kind == kind and one.cores == result.cores
    ]
    measured = [(float(run.topology.producers), run.evidence.rate) for run in runs]
    return sorted(predicted), measured


def _rates(result: Profile) -> str:
    series = []
    for kind, _, style in _KINDS:
        curve, points = _rates_by_producers(result, kind)
        series.append(Series(style=f"curve {style}", points=curve))
        series.append(Series(style=f"points {style}", points=points))
    if not any(one.points for one in series):
        return "<p>Only the loop's own thread was measured.</p>"
    series.sort(key=lambda one: "points" in one.style)
    chart = line_chart("rates", series, across="threads or workers", up="samples/s")
    curves = any(one.points for one in series if "curve" in one.style)
    key = (
        '<p class="soft"><span class="key one">threads</span><span class="key two">workers</span> '
        f"({'lines are predicted, ' * curves}points are measured)</p>"
    )
    return chart + key


def _waits(run: Measurement) -> str:
    points = [(second, 100 * share) for second, share in run.waits]
    if len(points) < 2:
        return "<p>The run was too short to tell.</p>"
    series = Series(style="curve one", points=points)
    return line_chart("waiting", [series], across="seconds", up="% of the time", least_top=100.0)


def _memory(result: Profile) -> str:
    bars = [
        Bar(label=name, value=run.peak_memory / 1e6, text=f"{run.peak_memory / 1e6:,.0f} MB")
        for name, run in result.named_runs()
        if run.peak_memory is not None
    ]
    return bar_chart("memory", bars) if bars else "<p>Not known here.</p>"


def _runs(result: Profile) -> str:
    note = f"<p>{escape(compare(result))}</p>" if result.ratio else ""
    return _scrolled(_table(RUN_TITLES, run_rows(result))) + _note(f"{run_legend(result)}.") + note


def _note(text: str) -> str:
    return f'<p class="soft">{escape(text)}</p>'


def _scrolled(table: str) -> str:
    """Wrap a table that a narrow page shows in part, with a hint."""
    hint = '<p class="soft hint">Swipe the table sideways for the other columns →</p>'
    return f'{hint}<div class="scroll">{table}</div>'


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def check_plotting() -> None:
    """Refuse a chart where there is nothing to draw it with.

    Raises:
        UsageError: matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise SituationError(
            "a chart needs matplotlib", where=argument("png"), remedy="pip install 'shardio[plot]'"
        )


def write_png(result: Profile, path: str) -> None:
    """Draw rates by threads and workers, predicted and measured, under the verdict.

    Raises:
        UsageError: matplotlib is missing, or the file cannot be written.
    """
    check_plotting()
    from matplotlib.figure import Figure  # noqa: PLC0415  an extra

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for kind, name, style in _KINDS:
        colour = _COLOURS[style]
        curve, points = _rates_by_producers(result, kind)
        if curve:
            axes.plot(*zip(*curve, strict=True), color=colour, label=f"{name}, predicted")
        if points:
            axes.plot(*zip(*points, strict=True), "o", color=colour, label=f"{name}, measured")
    if result.ceiling:
        axes.axhline(result.ceiling, linestyle="--", color="0.5", label=ceiling_name(result))
    axes.set(xlabel="threads or workers", ylabel="samples/s", ylim=(0, None))
    axes.set_title(_wrapped(result.verdict.sentence), fontsize="medium", loc="left")
    axes.legend()
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise SituationError(f"it cannot be written: {error.strerror}", where=path) from error


def _wrapped(sentence: str) -> str:
    return "\n".join(textwrap.wrap(sentence, 90))
