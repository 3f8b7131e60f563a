"""The profile as one page that needs nothing else: no network, no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from shardio.errors import UsageError
from shardio.profiling.charts import Bar, Series, bar_chart, line_chart
from shardio.profiling.evidence import Stages
from shardio.profiling.profile import Profile, Run
from shardio.profiling.words import RUN_TITLES, compare, conditions, run_rows

_STYLE = """
:root { color-scheme: light dark; --page: #fcfcfa; --ink: #1d2125; --soft: #5d6670;
  --line: #d9dcdf; --card: #ffffff; --one: #1f6fb2; --two: #b4540a; --rest: #9aa3ab; }
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
.wide { grid-column: 1 / -1; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem 0.25rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; white-space: normal; }
th { font-weight: 600; color: var(--soft); font-size: 0.85rem; }
svg { display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif; }
svg text { fill: var(--ink);
  paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
 svg .end { text-anchor: end; } svg .middle { text-anchor: middle; }
svg .grid { stroke: var(--line); } svg .mark { stroke: var(--ink); stroke-dasharray: 4 3; }
svg .line { fill: none; stroke-width: 2; } svg .curve.one { stroke: var(--one); }
svg .curve.two { stroke: var(--two); } svg .fill.one { fill: var(--one); }
svg .fill.two { fill: var(--two); } svg .fill.rest { fill: var(--rest); }
.key::before { content: ""; display: inline-block; width: 0.7rem; height: 0.7rem;
  margin: 0 0.35rem 0 0.8rem; border-radius: 2px; background: var(--rest); }
.key.one::before { background: var(--one); } .key.two::before { background: var(--two); }
"""


def write_html(result: Profile, path: str) -> None:
    """Write a profile as a page.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        Path(path).write_text(_page(result), "utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error


def _page(result: Profile) -> str:
    sentence = result.verdict.sentence
    best = result.runs[result.best]
    cards = [
        _card("What to change", _changes(result)),
        _card("The limits, in samples per second", _limits(result, best)),
    ]
    if best.evidence.stages is not None:
        title = f"A sample's time, {best.topology}"
        cards.append(_card(title, _stage_bars(best.evidence.stages)))
    cards += [
        _card("Rate by threads and workers", _rates(result)),
        _card(f"Waiting of the loop over time, {best.topology}", _waits(best)),
        _card("Memory", _memory(result)),
        _card("Measured", _runs(result), wide=True),
    ]
    title = f"shardio profile of {result.settings.source}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f'<header><p class="soft">{escape(title)}</p>'
        f"<h1>{escape(sentence[0].upper() + sentence[1:])}.</h1>"
        f'<p class="soft">{escape(conditions(result))}.</p></header>'
        f"<main>{''.join(cards)}</main></body></html>"
    )


def _card(title: str, content: str, *, wide: bool = False) -> str:
    style = ' class="wide"' if wide else ""
    return f"<section{style}><h2>{escape(title)}</h2>{content}</section>"


def _changes(result: Profile) -> str:
    rows = [
        (change.text, f"{change.gain:.1f} ×" if change.gain else "")
        for change in result.verdict.changes
    ]
    return _table(("change", "expected"), rows) if rows else "<p>Nothing.</p>"


def _limits(result: Profile, best: Run) -> str:
    limits, size = result.ceilings, result.settings.batch_size
    stored = best.evidence.stages.bytes if best.evidence.stages else 0.0
    rates = [
        ("storage, cold", limits.cold / stored if limits.cold and stored else None),
        ("page cache", limits.warm / stored if stored else None),
        ("hand-over", limits.handover * size),
        ("decode, all cores", limits.decode_all),
        ("decode, one core", limits.decode_one),
        ("the step needs", result.needed),
    ]
    bars = [
        Bar(label=name, value=rate, text=f"{rate:,.0f}", style="rest")
        for name, rate in rates
        if rate is not None
    ]
    rate = best.evidence.rate
    bars.append(Bar(label=str(best.topology), value=rate, text=f"{rate:,.0f}"))
    note = '<p class="soft">The dashed line is what was reached.</p>'
    return bar_chart("limits", _on_log_scale(bars), mark=_logarithm(rate, bars)) + note


def _on_log_scale(bars: Sequence[Bar]) -> list[Bar]:
    return [
        Bar(label=bar.label, value=_logarithm(bar.value, bars), text=bar.text, style=bar.style)
        for bar in bars
    ]


def _logarithm(value: float, bars: Sequence[Bar]) -> float:
    """Length of a value where the least is a fifth of the longest; limits differ by decades."""
    least, most = min(bar.value for bar in bars), max(bar.value for bar in bars)
    if most <= 5 * least:
        return value / most
    import math  # noqa: PLC0415

    return 0.2 + 0.8 * math.log(value / least) / math.log(most / least)


def _stage_bars(stages: Stages) -> str:
    parts = [
        (name, getattr(stages, name).wall) for name in ("read", "decode", "transform", "batch")
    ]
    parts += [("plan, hand over", stages.outside), ("nothing to do", stages.waiting)]
    total = max(stages.total, 1e-9)
    bars = [
        Bar(
            label=name,
            value=value,
            text=f"{value:,.0f} µs, {value / total:.0%}",
            style="rest" if name == "nothing to do" else "one",
        )
        for name, value in parts
    ]
    note = (
        f'<p class="soft">{total:,.0f} µs in its thread, of which {stages.delay:,.0f} waited for '
        f"a core and {stages.lock:,.0f} for the interpreter's lock.</p>"
    )
    return bar_chart("stages", bars) + note


def _rates(result: Profile) -> str:
    series = []
    for kind, style in (("threads", "one"), ("processes", "two")):
        curve = [
            (float(one.topology.producers), one.rate)
            for one in result.predictions
            if one.topology.kind == kind and one.cores == result.cores
        ]
        runs = [run for run in result.runs if run.topology.kind == kind]
        curve += [(float(run.topology.producers), run.predicted or 0.0) for run in runs]
        points = [(float(run.topology.producers), run.evidence.rate) for run in runs]
        series.append(Series(name=kind, style=f"curve {style}", points=sorted(curve)))
        series.append(Series(name=kind, style=f"points {style}", points=points))
    series.sort(key=lambda one: "points" in one.style)
    chart = line_chart("rates", series, across="threads or workers", up="samples/s")
    key = (
        '<p class="soft"><span class="key one">threads</span><span class="key two">workers</span>: '
        "lines are predicted, points measured.</p>"
    )
    return chart + key


def _waits(run: Run) -> str:
    points = [(second, 100 * share) for second, share in run.waits]
    series = Series(name="waiting", style="curve one", points=points)
    return line_chart("waiting", [series], across="seconds", up="% of the time", least_top=100.0)


def _memory(result: Profile) -> str:
    bars = [
        Bar(label=name, value=run.peak_memory / 1e6, text=f"{run.peak_memory / 1e6:,.0f} MB")
        for name, run in result.named_runs()
        if run.peak_memory is not None
    ]
    return bar_chart("memory", bars) if bars else "<p>Not known here.</p>"


def _runs(result: Profile) -> str:
    note = f"<p>{escape(compare(result))}.</p>" if result.baseline else ""
    return f'<div class="scroll">{_table(RUN_TITLES, run_rows(result))}</div>{note}'


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
