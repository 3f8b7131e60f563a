"""shardio profile."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

import click

from shardio.cli.progress import progress_bar
from shardio.cli.tables import show_profile
from shardio.profiling.html import write_html
from shardio.profiling.picture import check_plotting, write_png
from shardio.profiling.profile import check_writable, count_parts
from shardio.profiling.profile import profile as measure
from shardio.profiling.settings import BASELINES, Settings, Topology

DEFAULTS = Settings(source="")
F = TypeVar("F", bound=Callable[..., Any])


def _parse_numbers(
    _context: click.Context, option: click.Parameter, text: str | None
) -> tuple[int, ...]:
    """Whole numbers, as 0,1,2,4."""
    if text is None:
        return ()
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = (-1,)
    if min(numbers) < (option.name == "threads"):
        raise click.BadParameter(f"{text!r} is no list of numbers such as 1,2,4")
    return numbers


_number = partial(click.option, show_default=True)
_place = partial(click.option, metavar="FILE:NAME")
_file = partial(click.option, type=click.Path(dir_okay=False))

_OPTIONS: Sequence[Callable[[Any], Any]] = (
    click.option(
        "--workers",
        metavar="N,N,…",
        callback=_parse_numbers,
        help="Numbers of DataLoader workers to measure; 0 is the loop's own thread.  "
        "[default: one a core]",
    ),
    click.option(
        "--threads",
        metavar="N,N,…",
        callback=_parse_numbers,
        help="Numbers of shardio.Loader's threads to measure.  [default: one a core]",
    ),
    _number(
        "--prefetch",
        type=click.IntRange(min=1),
        default=Topology(kind="here").prefetch,
        help="Batches made ahead: by each worker, or by all threads together.",
    ),
    _number(
        "--batch-size",
        type=click.IntRange(min=1),
        default=DEFAULTS.batch_size,
        help="Samples in a batch.",
    ),
    _number(
        "--size",
        type=click.IntRange(min=0),
        default=DEFAULTS.size,
        help="Crop and resize images to this height and width; 0 leaves them as they are, which "
        "needs images of one size or --batch-size 1.",
    ),
    _number(
        "--seconds",
        type=click.FloatRange(min=0.1),
        default=DEFAULTS.seconds,
        help="Length of each run.",
    ),
    _place("--transform", help="A callable for images, in place of the crop."),
    _number(
        "--step-ms",
        type=click.FloatRange(min=0),
        default=DEFAULTS.step_ms,
        help="Milliseconds that a training step takes, to tell whether it waits.",
    ),
    _place("--train", help="A callable that takes a batch and makes a training step."),
    click.option("--cold", is_flag=True, help="Drop the shards from the page cache before runs."),
    click.option("--baseline", type=click.Choice(BASELINES), help="Run another loader, too."),
    _file("--html", "html", help="Write a report for a browser."),
    _file("--png", "png", help="Write the chart of rates; needs shardio[plot]."),
    _file("--trace", "trace", help="Write a timeline of the best run, for ui.perfetto.dev."),
    click.option("--json", "as_json", is_flag=True, help="Print the results as JSON."),
)


def _with_options(command: F) -> F:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command(epilog="Example: shardio profile out/ --html report.html")
@click.argument("path", type=click.Path())
@_with_options
def profile(
    *,
    path: str,
    workers: tuple[int, ...],
    threads: tuple[int, ...],
    prefetch: int,
    baseline: str | None,
    html: str | None,
    png: str | None,
    trace: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Say what limits how fast the shards of PATH reach a training loop.

    PATH is a packed folder, or anything else that shardio reads. The machine's limits are
    measured first, then some loaders; others are predicted. The machine should be idle.
    """
    if settings["step_ms"] and settings["train"]:
        raise click.UsageError("--step-ms and --train exclude each other: give one")
    for report in filter(None, (html, png)):
        check_writable(report)
    if png is not None:
        check_plotting()
    topologies = [_workers(number, prefetch) for number in workers]
    topologies += [
        Topology(kind="threads", producers=number, prefetch=prefetch) for number in threads
    ]
    with progress_bar("measuring") as progress:
        result = measure(
            Settings(source=path, **settings),
            topologies=topologies,
            baseline=baseline,
            trace=trace,
            on_part=progress(count_parts(topologies, baseline, trace)),
        )
    if html is not None:
        write_html(result, html)
    if png is not None:
        write_png(result, png)
    if as_json:
        click.echo(json.dumps(asdict(result)))
    else:
        show_profile(result)


def _workers(number: int, prefetch: int) -> Topology:
    if not number:
        return Topology(kind="here")
    return Topology(kind="processes", producers=number, prefetch=prefetch)
