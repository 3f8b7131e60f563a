"""shardio reshard."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import click

from shardio.cli.output import describe, output_options, passes
from shardio.cli.progress import progress_bar
from shardio.cli.text import say, say_json
from shardio.cli.values import Command, ShuffleOption, read_names
from shardio.errors import UsageError, argument
from shardio.packing.pack import reshard as reshard_source

_EXAMPLES = """\b
Example: shardio reshard old/ more/ new/ --shard-size 512MB --shuffle
         shardio reshard s3://bucket/old s3://bucket/new --shards 64
"""


@click.command(cls=Command, goes_on=True, epilog=_EXAMPLES)
@click.argument("sources", metavar="IN...", type=click.Path(), nargs=-1, required=True)
@click.argument("out", type=click.Path())
@output_options
@click.option(
    "--shuffle",
    cls=ShuffleOption,
    default="false",
    show_default=True,
    help="Random order, or the order of IN.",
)
@click.option(
    "--keys",
    metavar="FILE",
    type=click.Path(),
    callback=read_names,
    help="Take the samples whose keys are in the file, one a line.",
)
@click.option(
    "--match", "where", metavar="REGEX", help="Take the samples whose keys it matches anywhere."
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def reshard(
    sources: tuple[str, ...], out: str, where: str | None, as_json: bool, **options: Any
) -> None:
    """Divide the samples of the shards IN, merged, into other shards in folder OUT.

    IN are packed folders, tars or patterns of them; IN and OUT may be URLs. Members
    stay byte for byte what they are.
    """
    titles = passes("resharding", on_error=options["on_error"])
    with progress_bar(*titles, hidden=as_json) as progress:
        matcher = None if where is None else _matcher(where)
        summary = reshard_source([*sources], out, where=matcher, progress=progress, **options)
    if as_json:
        say_json(summary)
    else:
        say(describe(summary, out))


class _Matcher:
    """A predicate on keys, which pickles.

    Args:
        pattern: pattern that is searched for in keys.
    """

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern

    def __call__(self, key: str, _fields: Mapping[str, Any]) -> bool:
        return bool(self._pattern.search(key))


def _matcher(text: str) -> _Matcher:
    try:
        return _Matcher(re.compile(text))
    except re.error as error:
        raise UsageError(
            f"it is not a regular expression ({error})", where=argument("where", text)
        ) from error
