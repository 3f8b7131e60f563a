"""shardio profile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from shardio.cli.pages import Part, page, table
from shardio.cli.progress import progress_bar
from shardio.cli.text import say, say_json
from shardio.cli.values import Command, allow_empty_option, several, store_options
from shardio.errors import ShardioError, counted, quoted
from shardio.profiling.profile import Profile
from shardio.profiling.profile import profile as measure
from shardio.profiling.report import (
    PREDICTION_TITLES,
    RUN_TITLES,
    STAGE_TITLES,
    change_rows,
    compare,
    conditions,
    facts,
    prediction_rows,
    run_legend,
    run_rows,
    stage_note,
    stage_rows,
    store_rows,
)
from shardio.profiling.settings import (
    BASELINES,
    MOST,
    MOST_A_CORE,
    SHORTEST,
    ProfileOptions,
)

_DEFAULTS = ProfileOptions()
_RANGE = f"at most {MOST_A_CORE} per core, and at most {MOST} or one per core"


def _parse_numbers(
    _context: click.Context, _option: click.Parameter, text: str | None
) -> tuple[int, ...] | None:
    """Parse whole numbers, as in 0,1,2,4."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(
            f"{quoted(text)} is not a list of numbers such as 1,2,4"
        ) from error


_number = partial(click.option, show_default=True)
_place = partial(click.option, metavar="FILE:NAME")
_file = partial(click.option, type=click.Path(dir_okay=False))

_options = several(
    click.option(
        "--workers",
        metavar="N,N,...",
        callback=_parse_numbers,
        help="Numbers of DataLoader workers to measure; 0 for none, only the loop's own thread.  "
        f"[default: one per core, or none where --threads is given; {_RANGE}]",
    ),
    click.option(
        "--threads",
        metavar="N,N,...",
        callback=_parse_numbers,
        help="Numbers of shardio.Loader's threads to measure, likewise.  "
        f"[default: one per core, or none where --workers is given; {_RANGE}]",
    ),
    _number(
        "--prefetch",
        type=click.IntRange(min=1),
        default=_DEFAULTS.prefetch,
        help="Batches made ahead: by each worker, or by all threads together.",
    ),
    _number(
        "--batch-size",
        type=click.IntRange(min=1),
        default=_DEFAULTS.batch_size,
        help="Samples in a batch.",
    ),
    _number(
        "--size",
        type=click.IntRange(min=0),
        default=_DEFAULTS.size,
        help="Crop and resize images to this height and width; 0 leaves them as they are, which "
        "needs images of one size or --batch-size 1.",
    ),
    _number(
        "--seconds",
        type=click.FloatRange(min=SHORTEST),
        default=_DEFAULTS.seconds,
        help="Seconds that each loader is measured.",
    ),
    _place(
        "--transform",
        help="Callable that takes an image, a uint8 tensor [3, H, W], in place of the crop.",
    ),
    _number(
        "--step-ms",
        type=click.FloatRange(min=0),
        default=_DEFAULTS.step_ms,
        help="Milliseconds that a training step takes, to tell whether it waits.",
    ),
    _place(
        "--train", help="Callable that takes a batch and makes a training step, as train.py:step."
    ),
    click.option(
        "--cold", is_flag=True, help="Drop the shards from the page cache before each loader."
    ),
    allow_empty_option,
    store_options,
    click.option("--baseline", type=click.Choice(BASELINES), help="Measure another loader, too."),
    _file("--html", "html", help="Write a report for a browser."),
    _file("--png", "png", help="Write the chart of rates; needs shardio[plot]."),
    _file("--trace", "trace", help="Write a timeline of the fastest loader, for ui.perfetto.dev."),
    click.option("--json", "as_json", is_flag=True, help="Print the results as JSON."),
)


@click.command(cls=Command, epilog="Example: shardio profile out/ --html report.html")
@click.argument("path", type=click.Path())
@_options
def profile(path: str, as_json: bool, **options: Any) -> None:
    """Say what limits how fast the shards of PATH reach a training loop.

    PATH is a packed folder (one split, not the folder of all), or anything else that shardio reads.
    The machine's limits are measured first, then some loaders; others are predicted. The machine
    should be idle. What a training loop of yours waits for, shardio.profiling.monitor tells.
    """
    with progress_bar("measuring") as progress:
        result = measure(path, **options, progress=progress)
    if as_json:
        say_json(result)
    else:
        say(page(_parts(result)), as_it_is=True)
    if result.baseline_error is not None:
        raise ShardioError(f"the baseline failed: {result.baseline_error}")


def _parts(result: Profile) -> Iterator[Part]:
    best = result.runs[result.best]
    yield Text(result.verdict.sentence, style="bold")
    if said := facts(result):
        yield Text(" ".join(said))
    if result.verdict.changes:
        titles, rows = change_rows(result)
        yield ""
        yield _table(titles, rows)
    yield ""
    yield _table(RUN_TITLES, run_rows(result))
    yield Text(run_legend(result), style="dim")
    if compared := compare(result):
        yield compared
    if predicted := prediction_rows(result):
        yield ""
        yield _table(PREDICTION_TITLES, predicted)
    if best.evidence.stages is not None:
        yield f"\nA sample in {best.topology}, in µs:\n"
        yield _table(STAGE_TITLES, stage_rows(best.evidence.stages))
        yield Text(stage_note(best.evidence, best.evidence.stages), style="dim")
    if "limit" not in result.withheld:
        yield "\nThe limits of this machine with these shards:\n"
        yield _table(("part", "limit"), _limits(result))
    yield ""
    yield Text(f"{result.settings.source}: {conditions(result)}.", style="dim")


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    made = table(*titles, tight=True)
    for row in rows:
        made.add_row(*row)
    return made


def _limits(result: Profile) -> list[tuple[str, str]]:
    limits = result.ceilings
    store = store_rows(result.store) if result.store is not None else []
    cold = "not measured: the page cache cannot be dropped for these files"
    rows = [
        *store,
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
