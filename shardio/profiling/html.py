"""The profile as one page that needs nothing else: no network, no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from shardio.errors import SituationError
from shardio.profiling.charts import Bar, Scale, Series, bar_chart, line_chart
from shardio.profiling.evidence import Stages
from shardio.profiling.phrases import as_sentence
from shardio.profiling.profile import Profile, Run
from shardio.profiling.words import (
    PREDICTION_TITLES,
    RUN_LEGEND,
    RUN_TITLES,
    STAGE_TITLES,
    change_rows,
    compare,
    conditions,
    facts,
    prediction_rows,
    run_rows,
    stage_note,
    stage_rows,
)

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


def write_html(result: Profile, path: str) -> None:
    """Write a profile as a page.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        Path(path).write_text(_page(result), "utf-8")
    except OSError as error:
        raise SituationError(f"{path} cannot be written: {error.strerror}") from error


def _page(result: Profile) -> str:
    best = result.runs[result.best]
    cards = [
        _card("What to change", _changes(result)),
        _card("The limits, in samples per second", _limits(result, best)),
    ]
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
    cards.append(_card("Predicted", _table(PREDICTION_TITLES, prediction_rows(result))))
    title = f"shardio profile of {result.settings.source}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f'<header><p class="soft">{escape(title)}</p>'
        f"<h1>{escape(as_sentence(result.verdict.sentence))}</h1>"
        f"<p>{escape(' '.join(facts(result)))}</p>"
        f'<p class="soft">{escape(conditions(result))}.</p></header>'
        f"<main>{''.join(cards)}</main></body></html>"
    )


def _card(title: str, content: str, *, wide: bool = False) -> str:
    style = ' class="wide"' if wide else ""
    return f"<section{style}><h2>{escape(title)}</h2>{content}</section>"


def _changes(result: Profile) -> str:
    titles, rows = change_rows(result)
    return _table(titles, rows) if rows else "<p>Nothing.</p>"


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
    scale = Scale.of([bar.value for bar in bars])
    note = "The dashed line is what was reached."
    if scale.least:
        note += " The scale is logarithmic."
    return bar_chart("limits", bars, scale=scale, mark=rate) + _note(note)


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
        f"{total:,.0f} µs in its thread, of which {stages.delay:,.0f} waited for a core and "
        f"{stages.lock:,.0f} for the interpreter's lock."
    )
    return bar_chart("stages", bars) + _note(note)


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
        series.append(Series(style=f"curve {style}", points=sorted(curve)))
        series.append(Series(style=f"points {style}", points=points))
    series.sort(key=lambda one: "points" in one.style)
    chart = line_chart("rates", series, across="threads or workers", up="samples/s")
    key = (
        '<p class="soft"><span class="key one">threads</span><span class="key two">workers</span>: '
        "lines are predicted, points measured.</p>"
    )
    return chart + key


def _waits(run: Run) -> str:
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
    note = f"<p>{escape(compare(result))}</p>" if result.baseline else ""
    return _scrolled(_table(RUN_TITLES, run_rows(result))) + _note(f"{RUN_LEGEND}.") + note


def _note(text: str) -> str:
    return f'<p class="soft">{escape(text)}</p>'


def _scrolled(table: str) -> str:
    """A table that a narrow page shows in part, and says so."""
    hint = '<p class="soft hint">Swipe the table sideways for the other columns →</p>'
    return f'{hint}<div class="scroll">{table}</div>'


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
