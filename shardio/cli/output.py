"""What the commands that write shards have in common: options, and the sentences at the end."""

from __future__ import annotations

import click

from shardio.cli.text import fields_text
from shardio.cli.values import (
    allow_empty_option,
    parse_size,
    parse_split,
    several,
    store_options,
)
from shardio.errors import counted, without_secrets
from shardio.packing.job import PackSummary
from shardio.packing.layout import DUPLICATES_NAME, SKIPPED_NAME

output_options = several(
    click.option(
        "--shards",
        type=click.IntRange(min=1),
        help="How many shards, of all splits together; this or one of the next two is required.",
    ),
    click.option(
        "--samples-per-shard", type=click.IntRange(min=1), help="Instead: at most so many in each."
    ),
    click.option(
        "--shard-size",
        metavar="SIZE",
        callback=parse_size,
        help="Instead: at most so large, as 512MB.",
    ),
    click.option(
        "--split",
        metavar="NAME=FRACTION,...",
        callback=parse_split,
        help="Parts, each a folder inside OUT, as train=0.9,val=0.1.",
    ),
    click.option("--stratify", is_flag=True, help="Divide each class so."),
    click.option(
        "--seed", type=int, default=0, show_default=True, help="Seed of the order and the split."
    ),
    click.option(
        "--on-error",
        type=click.Choice(["raise", "skip"]),
        default="raise",
        show_default=True,
        help="Stop at a bad file (also one with the key of another), or leave it out and list it "
        "in OUT/skipped.jsonl.",
    ),
    allow_empty_option,
    store_options,
    click.option("--jobs", type=click.IntRange(min=1), help="Processes; by default one a core."),
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Run on this machine, or on a Ray cluster.",
    ),
)


def passes(title: str, *, on_error: str, dedupe: str | None = None) -> list[str]:
    """Name the passes over the samples, of which the last one writes them."""
    return ["checking"] * (on_error == "skip") + ["comparing"] * (dedupe is not None) + [title]


def describe(summary: PackSummary, out: str) -> str:
    """Describe what was packed, in sentences."""
    megabytes = summary.bytes / 1e6
    folder = without_secrets(out).rstrip("/")
    classes = (
        "" if summary.classes is None else f" of {counted(summary.classes, 'class', 'classes')}"
    )
    lines = [
        f"packed {counted(summary.samples, 'sample')}{classes}, {megabytes:,.1f} MB, into "
        f"{counted(summary.shards, 'shard')} in {summary.seconds:.2f} s "
        f"({summary.samples / summary.seconds:,.0f} samples/s, "
        f"{megabytes / summary.seconds:,.1f} MB/s)"
    ]
    lines.append(f"fields: {fields_text(summary.fields.items())}")
    for name, samples in (summary.splits or {}).items():
        lines.append(f"{folder}/{name}: {counted(samples, 'sample')}")
    if summary.skipped:
        lines.append(
            f"left out {counted(summary.skipped, 'file')}, listed in {folder}/{SKIPPED_NAME}"
        )
    if summary.duplicates == 0:
        lines.append("found no duplicates")
    elif summary.duplicates:
        lines.append(
            f"found {counted(summary.duplicates, 'duplicate')}, listed in "
            f"{folder}/{DUPLICATES_NAME}"
        )
    if summary.image_sizes is not None and summary.image_sizes > 1:
        lines.append(
            f"the images have {summary.image_sizes:,} different sizes, so batches cannot be "
            "gathered and need a transform; --resize HxW makes the sizes equal"
        )
    return "\n".join(lines)
