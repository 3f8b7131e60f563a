"""shardio convert."""

from __future__ import annotations

from typing import Any, get_args

import click

from shardio.cli.progress import progress_bar
from shardio.cli.text import say, say_json, size_text
from shardio.cli.values import Command, allow_empty_option, store_options
from shardio.conversion.tfrecord import ConvertSummary, Target
from shardio.conversion.tfrecord import convert as convert_source
from shardio.errors import counted

_WHAT = {
    "tfrecord": ("TFRecord file", "TFRecord files"),
    "wids": ("index for wids", "indexes for wids"),
    "dali": ("index for DALI", "indexes for DALI"),
    "energon": ("index for Energon", "indexes for Energon"),
}


@click.command(
    cls=Command, goes_on=True, epilog="Example: shardio convert out/ records/ --to tfrecord"
)
@click.argument("src", type=click.Path())
@click.argument("out", type=click.Path(), required=False)
@click.option(
    "--to",
    type=click.Choice(get_args(Target)),
    required=True,
    help="TFRecord files, or indexes for wids, DALI or Megatron-Energon.",
)
@click.option(
    "--feature",
    "features",
    metavar="FIELD=NAME",
    multiple=True,
    help="Name of the feature that a field becomes in TFRecord files, as jpg=image/encoded; "
    "FIELD= leaves a field out. By default fields keep their names, cls becomes label and the key "
    "__key__.",
)
@allow_empty_option
@store_options
@click.option("--jobs", type=click.IntRange(min=1), help="Processes; by default one a core.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def convert(
    src: str,
    out: str | None,
    to: Target,
    features: tuple[str, ...],
    allow_empty: bool,
    storage_options: dict[str, Any] | None,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Make TFRecord files of the shards SRC, or index them for other tools.

    SRC may be a URL; OUT is a local folder. TFRecord files go to OUT, one a shard; a conversion
    that was interrupted is finished by the same command again. Indexes go beside their shards, or
    to OUT: shardindex.json for wids; NAME.idx of each shard for DALI, whose reader takes them as
    index_paths; NAME.tar.idx for Energon, which looks for them beside the shards. A file that
    differs is not replaced.

    From TFRecord files to shards is shardio pack FILES OUT --shards N.
    """
    with progress_bar("converting", hidden=as_json) as progress:
        summary = convert_source(
            src,
            out,
            to=to,
            features=features,
            allow_empty=allow_empty,
            storage_options=storage_options,
            jobs=jobs,
            progress=progress,
        )
    if as_json:
        say_json(summary)
    else:
        say(_sentence(summary, to))


def _sentence(summary: ConvertSummary, to: Target) -> str:
    return (
        f"wrote {counted(summary.files, *_WHAT[to])}, {size_text(summary.bytes)}, of "
        f"{counted(summary.samples, 'sample')} in {counted(summary.shards, 'shard')} in "
        f"{summary.seconds:.2f} s"
    )
