"""The profile as text: the verdict first, then tables, in 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from shardio.cli.text import encodable
from shardio.errors import counted
from shardio.profiling.profile import Profile
from shardio.profiling.report import (
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

_WIDTH = 80


def show_profile(result: Profile) -> None:
    """Print a profile; no line ends in blanks, which rich fills tables with."""
    console = Console(width=_WIDTH, highlight=False)
    with console.capture() as capture:
        for part in _parts(result):
            console.print(part)
    text = "\n".join(line.rstrip() for line in capture.get().splitlines())
    click.echo(encodable(text))


def _parts(result: Profile) -> Iterator[RenderableType]:
    best = result.runs[result.best]
    yield Text(result.verdict.sentence, style="bold")
    yield Text(" ".join(facts(result)))
    if result.verdict.changes:
        titles, rows = change_rows(result)
        yield ""
        yield _table(titles, rows)
    yield ""
    yield _table(RUN_TITLES, run_rows(result))
    yield Text(RUN_LEGEND, style="dim")
    if result.baseline is not None:
        yield compare(result)
    yield ""
    yield _table(PREDICTION_TITLES, prediction_rows(result))
    if best.evidence.stages is not None:
        yield f"\nA sample in {best.topology}, in µs:\n"
        yield _table(STAGE_TITLES, stage_rows(best.evidence.stages))
        yield Text(stage_note(best.evidence, best.evidence.stages), style="dim")
    yield "\nThe limits of this machine with these shards:\n"
    yield _table(("part", "limit"), _limits(result))
    yield ""
    yield Text(f"{result.settings.source}: {conditions(result)}.", style="dim")


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, title in enumerate(titles):
        table.add_column(title, justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _limits(result: Profile) -> list[tuple[str, str]]:
    limits = result.ceilings
    cold = "not measured: the page cache cannot be dropped for these files"
    rows = [
        ("storage, cold", cold if limits.cold is None else _speed(limits.cold)),
        ("page cache", _speed(limits.warm)),
    ]
    if limits.decode_one and limits.decode_all:
        rows += [
            ("decode and transform, one core", f"{limits.decode_one:,.0f} samples/s"),
            (
                f"decode and transform, {counted(result.cores, 'core')}",
                f"{limits.decode_all:,.0f} samples/s",
            ),
        ]
    size = result.settings.batch_size
    rows += [
        ("copy in memory, one core", _speed(limits.copy)),
        ("hand-over from a worker", f"{limits.handover * size:,.0f} samples/s"),
    ]
    if limits.to_device is not None:
        rows.append(("copy to the GPU", _speed(limits.to_device)))
    return rows


def _speed(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e6:,.0f} MB/s"
