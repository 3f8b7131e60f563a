"""shardio profile."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from shardio.cli.progress import progress_bar
from shardio.profiling.profile import DEFAULT_WORKERS, Profile, Settings, Stages
from shardio.profiling.profile import profile as measure

DEFAULTS = Settings(source="")
_WIDTH = 80


class _Numbers(click.ParamType[tuple[int, ...]]):
    name = "N,N,…"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            numbers = (-1,)
        if min(numbers) < 0:
            self.fail(f"{value!r} is no list of numbers such as 0,1,2,4", param, ctx)
        return numbers


@click.command(epilog="Example: shardio profile out/")
@click.argument("path", type=click.Path())
@click.option(
    "--workers",
    type=_Numbers(),
    default=DEFAULT_WORKERS,
    help="Numbers of DataLoader workers to measure.  [default: 0,1,2,4]",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=DEFAULTS.batch_size,
    show_default=True,
    help="Samples in a batch.",
)
@click.option(
    "--size",
    type=click.IntRange(min=0),
    default=DEFAULTS.size,
    show_default=True,
    help="Crop and resize images to this height and width; 0 leaves them as they are, which "
    "needs images of one size or --batch-size 1.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=DEFAULTS.seconds,
    show_default=True,
    help="Length of each run, one for every number of workers.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def profile(
    path: str, workers: tuple[int, ...], batch_size: int, size: int, seconds: float, as_json: bool
) -> None:
    """Measure how fast the shards of PATH reach a training loop.

    PATH is a packed folder, or anything else that shardio reads.
    """
    settings = Settings(source=path, batch_size=batch_size, size=size, seconds=seconds)
    with progress_bar("measuring") as progress:
        result = measure(settings, workers=workers, on_run=progress(len(workers)))
    if as_json:
        click.echo(json.dumps(asdict(result)))
    else:
        _show(result)


def _show(result: Profile) -> None:
    console = Console(width=_WIDTH, highlight=False)
    settings = result.settings
    best = max(result.runs, key=lambda run: run.images_per_second)
    console.print(
        f"{best.images_per_second:,.0f} img/s with {best.workers} workers is the fastest of "
        f"{len(result.runs)} on {result.cores} cores."
    )
    console.print(_rates(result))
    for run in result.runs:
        if run.stages is not None:
            console.print("Where the time of a sample goes, with 0 workers:")
            console.print(_split(run.stages))
    crop = f"RandomResizedCrop({settings.size})" if settings.size else "no transform"
    console.print(
        f"{settings.source}: {result.samples:,} samples in {result.shards:,} shards, {crop}, "
        f"batches of {settings.batch_size}, page cache warm, {settings.seconds:g} s a run.",
        style="dim",
    )


def _rates(result: Profile) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for title in ("workers", "img/s", "MB/s", "first batch", "peak memory"):
        table.add_column(title, justify="right")
    for run in result.runs:
        memory = "-" if run.peak_memory is None else f"{run.peak_memory / 1e6:,.0f} MB"
        table.add_row(
            str(run.workers),
            f"{run.images_per_second:,.0f}",
            f"{run.megabytes_per_second:,.1f}",
            f"{run.first_batch_seconds * 1e3:,.0f} ms",
            memory,
        )
    return table


def _split(stages: Stages) -> Table:
    parts = asdict(stages)
    total = sum(parts.values())
    table = Table(box=SIMPLE_HEAD)
    table.add_column("stage")
    table.add_column("µs", justify="right")
    table.add_column("share", justify="right")
    for stage, microseconds in (parts | {"total": total}).items():
        table.add_row(stage, f"{microseconds:,.1f}", f"{microseconds / total:.0%}")
    return table
