"""shardio info."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from shardio.cli.pages import Part, page, table
from shardio.cli.progress import progress_bar
from shardio.cli.text import fields_text, say, say_json, size_text
from shardio.cli.values import Command, allow_empty_option, max_pixels_option, store_options
from shardio.errors import counted, escaped, shown
from shardio.inspection.info import (
    MOST_PREVIEWED,
    PREVIEW_COUNT,
    ClassCount,
    ClassesInfo,
    FieldInfo,
    Info,
    SampleInfo,
    ShardInfo,
)
from shardio.inspection.info import info as inspect_source
from shardio.packing.layout import DROPPED_NAME, DUPLICATES_NAME, RENAMED_NAME, SKIPPED_NAME

_MOST_CLASSES = 20
_MOST_SPLITS = 4  # with a column each


@click.command(cls=Command, epilog="Example: shardio info out/ --preview sheet.png")
@click.argument("path", type=click.Path())
@click.option(
    "--sample",
    metavar="KEY|N",
    help="Sample to look at, by key or by position as packed.  [default: the first one]",
)
@click.option("--shards", "all_shards", is_flag=True, help="List every shard.")
@click.option(
    "--classes",
    "all_classes",
    is_flag=True,
    help=f"List every class, not the first {_MOST_CLASSES} alone.",
)
@click.option(
    "--preview",
    metavar="PNG",
    type=click.Path(),
    help="Write a contact sheet of images evenly spread over the samples.",
)
@click.option(
    "--preview-count",
    type=click.IntRange(1, MOST_PREVIEWED),
    default=PREVIEW_COUNT,
    show_default=True,
    help="Images on it.",
)
@allow_empty_option
@store_options
@max_pixels_option
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print everything as JSON, by the names that shardio.info documents.",
)
def info(
    path: str,
    sample: str | None,
    all_shards: bool,
    all_classes: bool,
    preview: str | None,
    preview_count: int,
    allow_empty: bool,
    max_pixels: int,
    storage_options: dict[str, Any] | None,
    as_json: bool,
) -> None:
    """Say what the shards of PATH hold.

    PATH is a packed folder, a folder of its splits, or anything else that shardio reads. Counts and
    sizes come from the indexes; see `shardio verify` for what the shards themselves say.
    """
    with progress_bar("looking", hidden=as_json) as progress:
        found = inspect_source(
            path,
            sample=0 if sample is None else sample,
            preview=preview,
            preview_count=preview_count,
            allow_empty=allow_empty,
            max_pixels=max_pixels,
            storage_options=storage_options,
            progress=progress,
        )
    if as_json:
        say_json(found)
        return
    text = page(_parts(found, all_shards=all_shards, all_classes=all_classes))
    say(re.sub("\n{3,}", "\n\n", text).rstrip(), as_it_is=True)
    if preview is not None:
        say(f"\nwrote the preview to {escaped(preview)}")


def _parts(found: Info, *, all_shards: bool, all_classes: bool) -> Iterator[Part]:
    yield _sentence(found)
    if found.splits:
        yield _splits_table(found)
    for name, split in (found.splits or {"": found}).items():
        yield escaped(f"{name}: " * bool(name) + _shards_sentence(split.shards))
    if all_shards:
        yield _shards_table(found.shards)
    yield _fields_table(found.fields, found.samples)
    if found.classes is not None:
        yield from _classes_sentences(found.classes)
        some = found.classes.counts[: None if all_classes else _MOST_CLASSES]
        yield _classes_table(found, some)
        if len(some) < len(found.classes.counts):
            more = len(found.classes.counts) - len(some)
            yield f"and {more:,} more classes; --classes shows all"
    elif found.class_names:
        yield _names_sentence(found.class_names, None if all_classes else _MOST_CLASSES)
    if found.sample is not None:
        yield f"sample {found.sample.number:,}: {shown(found.sample.key)}"
        yield _sample_table(found.sample)
    for name, lines in found.ledgers.items():
        yield _ledger_sentence(name, lines)
    for warning in found.warnings:
        yield Text(f"warning: {escaped(warning)}", style="yellow")


_LEDGERS = {
    SKIPPED_NAME: ("file was", "files were", "left out"),
    RENAMED_NAME: ("sample has", "samples have", "another key than its path"),
    DUPLICATES_NAME: ("duplicate was", "duplicates were", "found"),
    DROPPED_NAME: ("sample was", "samples were", "lost"),
}


def _ledger_sentence(name: str, lines: int) -> str:
    one, several, what = _LEDGERS[name]
    return f"{counted(lines, one, several)} {what}, see {name}"


def _sentence(found: Info) -> str:
    classes = found.classes
    of_classes = (
        "" if classes is None else f" of {counted(len(classes.counts), 'class', 'classes')}"
    )
    fields = fields_text((field.name, field.kind) for field in found.fields)
    return (
        f"{counted(found.samples, 'sample')}{of_classes} in {counted(len(found.shards), 'shard')}, "
        f"{size_text(found.bytes)}, with the fields {fields}."
    )


def _splits_table(found: Info) -> Table:
    made = table("split", "samples", "share", "shards", "size", "classes")
    for name, split in found.splits.items():
        held = [] if split.classes is None else split.classes.counts
        made.add_row(
            shown(name),
            f"{split.samples:,}",
            f"{split.samples / max(found.samples, 1):.1%}",
            f"{len(split.shards):,}",
            size_text(split.bytes),
            f"{sum(count.samples > 0 for count in held):,}",
        )
    return made


def _shards_sentence(shards: Sequence[ShardInfo]) -> str:
    if not shards:
        return "No shards."
    without = sum(not shard.checksums for shard in shards)
    hint = f" {counted(without, 'index', 'indexes')} without checksums." if without else ""
    return (
        f"Samples in a shard: {_range([shard.samples for shard in shards], _number)}; its size: "
        f"{_range([shard.bytes for shard in shards], size_text)}.{hint}"
    )


def _shards_table(shards: Iterable[ShardInfo]) -> Table:
    made = table("shard", "samples", "size")
    for shard in shards:
        made.add_row(escaped(shard.name), f"{shard.samples:,}", size_text(shard.bytes))
    return made


def _fields_table(fields: Iterable[FieldInfo], samples: int) -> Table:
    made = table("field", "kind", "samples", "total", "median", "largest", left=2)
    for field in fields:
        lacking = "" if field.samples == samples else f" of {samples:,}"
        made.add_row(
            shown(field.name),
            field.kind,
            f"{field.samples:,}{lacking}",
            *map(size_text, (field.bytes, field.median, field.largest)),
        )
    return made


def _names_sentence(names: tuple[str, ...], most: int | None) -> str:
    some = names[:most]
    more = f" and {len(names) - len(some):,} more (--classes)" if len(some) < len(names) else ""
    listed = ", ".join(f"{number} {shown(name)}" for number, name in enumerate(some))
    return f"Names of {counted(len(names), 'class', 'classes')}: {listed}{more}."


def _classes_sentences(classes: ClassesInfo) -> list[str]:
    counts = [count.samples for count in classes.counts]
    sentences = []
    if counts:
        sentences.append(f"Samples of a class: {_range(counts, _number)}.")
    if classes.by_name:
        sentences.append(
            "The splits number their classes differently, so these are counted by name; to train "
            "and validate on them, pack them with one list of names (--classes names.txt)."
        )
    if not classes.complete:
        sentences.append(f"There are more than {len(counts):,} class numbers; not all are counted.")
    for samples, what in (
        (classes.outside, f"a class number that is not among the {classes.named or 0:,} named"),
        (classes.unreadable, "a cls that is no number"),
        (classes.missing, "no cls"),
    ):
        if samples:
            sentences.append(f"{counted(samples, 'sample has', 'samples have')} {what}.")
    return sentences


def _classes_table(found: Info, counts: Iterable[ClassCount]) -> Table:
    """Count the samples of each class, and of each split if there are few."""
    named = found.classes is not None and found.classes.named is not None
    by_name = found.classes is not None and found.classes.by_name
    key_of = attrgetter("name" if by_name else "number")
    splits = {
        name: {key_of(count): count.samples for count in split.classes.counts}
        for name, split in found.splits.items()
        if split.classes is not None and len(found.splits) <= _MOST_SPLITS
    }
    heads = ["class"] * (not by_name) + ["name"] * named
    made = table(*heads, "samples", *map(shown, splits), left=len(heads))
    for count in counts:
        name = "(not in the list)" if count.name is None else shown(count.name)
        inside = [f"{held.get(key_of(count), 0):,}" for held in splits.values()]
        first = [str(count.number)] * (not by_name) + [name] * named
        made.add_row(*first, f"{count.samples:,}", *inside)
    return made


def _sample_table(sample: SampleInfo) -> Table:
    made = table("field", "size", "value")
    made.columns[2].justify, made.columns[2].overflow = "left", "fold"
    for field in sample.fields:
        made.add_row(shown(field.name), size_text(field.bytes), escaped(field.value))
    return made


def _range(values: Sequence[int], show: Callable[[int], str]) -> str:
    low, high = show(min(values)), show(max(values))
    if low == high:
        return low
    return f"{low} to {high}, median {show(statistics.median_low(values))}"


def _number(count: int) -> str:
    return f"{count:,}"
