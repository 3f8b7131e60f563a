"""shardio cache."""

from __future__ import annotations

import time

import click

from shardio.cli.text import say, say_json, size_text
from shardio.cli.values import OnceCommand, parse_size, several
from shardio.errors import counted, escaped
from shardio.inspection.cache import CacheEntry, CacheRemoval, clear_cache, list_cache
from shardio.inspection.cache import prune_cache as prune_entries

_MOST_ROWS = 20
_DIGITS = 12  # of a key, which tell it from others
_options = several(
    click.option(
        "--cache-dir",
        type=click.Path(),
        help="Cache folder.  [default: $SHARDIO_CACHE or ~/.cache/shardio]",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
)


@click.group()
def cache() -> None:
    """List or remove the shards that were fetched from stores.

    They are in the folder remote/ of the cache folder, which is that of --cache-dir,
    $SHARDIO_CACHE or ~/.cache/shardio. Indexes of local shards are not touched.
    """


@cache.command(cls=OnceCommand, epilog="Example: shardio cache ls")
@_options
def ls(cache_dir: str | None, as_json: bool) -> None:
    """List shards, bytes and last use, and the limit."""
    contents = list_cache(cache_dir=cache_dir)
    if as_json:
        say_json(contents)
        return
    say(
        f"{contents.folder}: {counted(contents.shards, 'shard')}, {size_text(contents.bytes)} with "
        f"indexes; the default limit is {size_text(contents.limit)}"
    )
    for entry in contents.entries[:_MOST_ROWS]:
        say(_line(entry))
    others = len(contents.entries) - _MOST_ROWS
    if others > 0:
        say(f"and {counted(others, 'file')} more, which --json lists")


@cache.command(cls=OnceCommand, epilog="Example: shardio cache prune --limit 100GB")
@click.option(
    "--limit",
    metavar="SIZE",
    callback=parse_size,
    help="Bytes that may stay, as 100GB; by default all but what killed processes left.",
)
@_options
def prune(limit: int | None, cache_dir: str | None, as_json: bool) -> None:
    """Remove what killed processes left, then what nobody has used longest."""
    _report(prune_entries(limit, cache_dir=cache_dir), as_json=as_json)


@cache.command(cls=OnceCommand, epilog="Example: shardio cache clear")
@_options
def clear(cache_dir: str | None, as_json: bool) -> None:
    """Remove all that `ls` lists, except what is being fetched."""
    _report(clear_cache(cache_dir=cache_dir), as_json=as_json)


def _report(removal: CacheRemoval, *, as_json: bool) -> None:
    if as_json:
        say_json(removal)
    else:
        say(
            f"{removal.folder}: removed {counted(len(removal.removed), 'file')}, "
            f"{size_text(removal.bytes)}; {size_text(removal.kept)} stay"
        )


def _line(entry: CacheEntry) -> str:
    """Describe a file; the name comes last, as it may be long."""
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
    key = entry.path.rpartition("/")[2].lstrip(".")[:_DIGITS]
    name = escaped(entry.url or key)
    return f"  {entry.state:6}  {used}  {size_text(entry.bytes):>8}  {name}"
