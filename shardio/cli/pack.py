"""shardio pack."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict

import click

from shardio.cli.progress import progress_bar
from shardio.errors import UsageError
from shardio.packing.output import SKIPPED_NAME
from shardio.packing.pack import PackSummary
from shardio.packing.pack import pack as pack_folder

_SIDES = re.compile("([0-9]{1,9})(?:x([0-9]{1,9}))?")


def _parse_resize(
    _context: click.Context, _option: click.Parameter, text: str | None
) -> int | tuple[int, int] | None:
    if text is None:
        return None
    found = _SIDES.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"{text!r} is neither a number, as 256, nor HxW, as 224x224")
    return (int(found[1]), int(found[2])) if found[2] else int(found[1])


@click.command(epilog="Example: shardio pack images/ out/ --shards 8")
@click.argument("src", type=click.Path())
@click.argument("out", type=click.Path())
@click.option("--shards", type=click.IntRange(min=1), required=True, help="How many shards.")
@click.option("--shuffle/--no-shuffle", default=True, help="Random order (default) or by path.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random order.")
@click.option(
    "--labels/--no-labels",
    default=True,
    help="Subfolders are classes (default), or no labels are packed.",
)
@click.option(
    "--store",
    type=click.Choice(["original", "raw"]),
    default="original",
    show_default=True,
    help="Store the files as they are, or decode them and store their pixels.",
)
@click.option(
    "--resize",
    metavar="N|HxW",
    callback=_parse_resize,
    help="With --store raw: shrink the shorter side to N, or cut the largest centred part of the "
    "aspect ratio of HxW out and resize it.",
)
@click.option(
    "--on-error",
    type=click.Choice(["raise", "skip"]),
    default="raise",
    show_default=True,
    help="Stop at a bad file (also one with the key of another), or leave it out and list it in "
    "OUT/skipped.jsonl.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def pack(
    src: str,
    out: str,
    shards: int,
    shuffle: bool,
    seed: int,
    labels: bool,
    store: str,
    resize: int | tuple[int, int] | None,
    on_error: str,
    as_json: bool,
) -> None:
    """Pack the images of folder SRC into tar shards in folder OUT.

    SRC has one subfolder a class, or is flat for images without labels. OUT is a
    new or empty folder outside SRC.
    """
    shown: AbstractContextManager[Callable[[int], Callable[[], None]] | None] = (
        nullcontext() if as_json else progress_bar("packing")
    )
    with shown as progress:
        try:
            summary = pack_folder(
                src,
                out,
                shards=shards,
                shuffle=shuffle,
                seed=seed,
                labels=labels,
                store="raw" if store == "raw" else "original",
                resize=resize,
                on_error="skip" if on_error == "skip" else "raise",
                progress=progress,
            )
        except UsageError as error:
            raise click.UsageError(str(error)) from error
    click.echo(json.dumps(asdict(summary)) if as_json else _sentence(summary, out))


def _sentence(summary: PackSummary, out: str) -> str:
    megabytes = summary.bytes / 1e6
    classes = "" if summary.classes is None else f" of {summary.classes:,} classes"
    lines = [
        f"packed {summary.samples:,} samples{classes}, {megabytes:,.1f} MB, into "
        f"{summary.shards:,} shards in {summary.seconds:.2f} s "
        f"({megabytes / summary.seconds:,.0f} MB/s)"
    ]
    if summary.skipped:
        lines.append(f"left out {summary.skipped:,} files, listed in {out}/{SKIPPED_NAME}")
    if summary.image_sizes is not None and summary.image_sizes > 1:
        lines.append(
            f"the images have {summary.image_sizes:,} different sizes, so batches cannot be "
            "gathered and need a transform; --resize HxW makes the sizes equal"
        )
    return "\n".join(lines)
