"""shardio replay."""

from __future__ import annotations

from typing import Any

import click

from shardio.cli.settings import describe, plan_options
from shardio.cli.text import say, say_json
from shardio.cli.values import Command
from shardio.errors import ShardioError, counted, quoted
from shardio.inspection.replay import LISTING_NAME, ReplayedBatch
from shardio.inspection.replay import replay as write_batch


@click.command(
    cls=Command,
    epilog="Example: shardio replay out/ --batch-size 64 --shuffle --step 3 --to batch/",
)
@plan_options
@click.option("--step", type=click.IntRange(min=0), required=True, help="Step of the epoch.")
@click.option(
    "--rank",
    type=click.IntRange(min=0),
    help="Rank whose batch is written; by default those of all ranks.",
)
@click.option("--to", "out", type=click.Path(), required=True, help="New or empty folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the listing as JSON.")
def replay(path: str, out: str, as_json: bool, **options: Any) -> None:
    """Write the samples of one batch of a training run to a folder.

    PATH is what the run read. The options are those of its ShardDataset; the step and epoch are
    in its batches as "__step__" and "__epoch__".
    """
    batch = write_batch(path, out, **options)
    damaged = [sample for sample in batch.samples if sample.problem]
    if as_json:
        say_json(batch)
    else:
        say(_sentence(batch, out))
    if damaged:
        first = damaged[0]
        raise ShardioError(
            f"members of {counted(len(damaged), 'sample')} could not be written; the first is "
            f"sample {quoted(first.key)}, {first.problem}"
        )


def _sentence(batch: ReplayedBatch, out: str) -> str:
    pads = sum(not sample.valid for sample in batch.samples)
    whose = "all ranks" if batch.rank is None else f"rank {batch.rank}"
    return (
        f"wrote the {counted(len(batch.samples), 'sample')} ({pads:,} of them pads) of {whose} in "
        f"step {batch.step} to {out}, listed in {LISTING_NAME}\n{describe(batch.settings)}"
    )
