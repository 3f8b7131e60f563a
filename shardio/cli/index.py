"""shardio index."""

from __future__ import annotations

from typing import Any

import click

from shardio.cli.progress import progress_bar
from shardio.cli.text import say, say_json, size_text
from shardio.cli.values import Command, allow_empty_option, store_options
from shardio.errors import counted, shown
from shardio.indexing.publish import index as write_indexes


@click.command(cls=Command, epilog="Example: shardio index shards/")
@click.argument("path", type=click.Path())
@click.option(
    "--force", is_flag=True, help="Accept packed shards as they are, also changed or fewer."
)
@allow_empty_option
@store_options
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def index(
    path: str,
    force: bool,
    allow_empty: bool,
    storage_options: dict[str, Any] | None,
    as_json: bool,
) -> None:
    """Write indexes with checksums and sizes of pictures for the shards of PATH.

    PATH is a folder of tars, one tar, a glob or a pattern like 'shard-{000000..000007}.tar'.
    The indexes go to the folder index/ beside the shards.
    """
    with progress_bar("indexing", hidden=as_json) as progress:
        summary = write_indexes(
            path,
            force=force,
            allow_empty=allow_empty,
            storage_options=storage_options,
            progress=progress,
        )
    if as_json:
        say_json(summary)
    else:
        fields = ", ".join(map(shown, summary.fields))
        say(
            f"indexed {counted(summary.samples, 'sample')} with the fields {fields} "
            f"in {counted(summary.shards, 'shard')}, {size_text(summary.bytes)}"
        )
