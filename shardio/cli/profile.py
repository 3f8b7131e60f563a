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
from shardio.cli.values import allow_empty_option
from shardio.errors import MisfitError, ShardioError
from shardio.profiling.profile import profile as measure
from shardio.profiling.settings import BASELINES, ProfileOptions

DEFAULTS = ProfileOptions()
_EQUAL_SIZES = "give --size, a --transform that makes them equal, or --batch-size 1"
F = TypeVar("F", bound=Callable[..., Any])


def _parse_numbers(
    _context: click.Context, _option: click.Parameter, text: str | None
) -> tuple[int, ...] | None:
    """Parse whole numbers, as in 0,1,2,4."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 1,2,4") from error


_number = partial(click.option, show_default=True)
_place = partial(click.option, metavar="FILE:NAME")
_file = partial(click.option, type=click.Path(dir_okay=False))

_OPTIONS: Sequence[Callable[[Any], Any]] = (
    click.option(
        "--workers",
        metavar="N,N,…",
        callback=_parse_numbers,
        help="Numbers of DataLoader workers to measure; 0 for none, only the loop's own thread.  "
        "[default: one per core, or none where --threads is given]",
    ),
    click.option(
        "--threads",
        metavar="N,N,…",
        callback=_parse_numbers,
        help="Numbers of shardio.Loader's threads to measure, likewise.  "
        "[default: one per core, or none where --workers is given]",
    ),
    _number(
        "--prefetch",
        type=click.IntRange(min=1),
        default=DEFAULTS.prefetch,
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
        type=float,
        default=DEFAULTS.seconds,
        help="Seconds that each loader is measured.",
    ),
    _place("--transform", help="Callable for images, in place of the crop."),
    _number(
        "--step-ms",
        type=float,
        default=DEFAULTS.step_ms,
        help="Milliseconds that a training step takes, to tell whether it waits.",
    ),
    _place("--train", help="Callable that takes a batch and makes a training step."),
    click.option(
        "--cold", is_flag=True, help="Drop the shards from the page cache before each loader."
    ),
    allow_empty_option,
    click.option("--baseline", type=click.Choice(BASELINES), help="Measure another loader, too."),
    _file("--html", "html", help="Write a report for a browser."),
    _file("--png", "png", help="Write the chart of rates; needs shardio[plot]."),
    _file("--trace", "trace", help="Write a timeline of the fastest loader, for ui.perfetto.dev."),
    click.option("--json", "as_json", is_flag=True, help="Print the results as JSON."),
)


def _with_options(command: F) -> F:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command(epilog="Example: shardio profile out/ --html report.html")
@click.argument("path", type=click.Path())
@_with_options
def profile(path: str, as_json: bool, **options: Any) -> None:
    """Say what limits how fast the shards of PATH reach a training loop.

    PATH is a packed folder, or anything else that shardio reads. The machine's limits are
    measured first, then some loaders; others are predicted. The machine should be idle.
    """
    with progress_bar("measuring") as progress:
        try:
            result = measure(path, **options, progress=progress)
        except MisfitError as error:
            raise MisfitError(error.what, where=error.where, remedy=_EQUAL_SIZES) from error
    if as_json:
        click.echo(json.dumps(asdict(result)))
    else:
        show_profile(result)
    if result.baseline_error is not None:
        raise ShardioError(f"the baseline failed: {result.baseline_error}")
