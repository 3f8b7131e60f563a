"""shardio plan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from shardio.cli.pages import Part, page, table
from shardio.cli.progress import progress_bar
from shardio.cli.settings import describe, plan_options
from shardio.cli.text import say, say_json
from shardio.cli.values import Command
from shardio.errors import ShardioError, counted
from shardio.inspection.coverage import BucketShare, Coverage, DrawnClass
from shardio.inspection.coverage import plan as plan_epoch

_MOST_ROWS = 16


@click.command(cls=Command, epilog="Example: shardio plan out/ --ranks 8 --batch-size 64 --shuffle")
@plan_options
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Workers of each rank.",
)
@click.option(
    "--nodes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of machines, over which the ranks are spread in order.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def plan(path: str, as_json: bool, **options: Any) -> None:
    """Prove what an epoch over PATH delivers, without reading data.

    Every step of every rank and worker is worked out, and each sample counted. PATH is a packed
    folder, or anything else that shardio reads.
    """
    with progress_bar("planning", hidden=as_json) as progress:
        coverage = plan_epoch(path, **options, progress=progress)
    if as_json:
        say_json(coverage, exact=coverage.exact)
    else:
        say(page(_parts(coverage)), as_it_is=True)
    if not coverage.exact:
        raise ShardioError(
            "the plan is not exact",
            where=coverage.settings.source,
            remedy="this is a bug in shardio; report it",
        )


def _parts(coverage: Coverage) -> Iterator[Part]:
    settings = coverage.settings
    whole = settings.weights is None and settings.epoch_size is None
    why = " left out by the tail" if whole else " not in this epoch"
    left_out = f", {coverage.left_out:,}{why}" if coverage.left_out else ""
    pads = sum(share.pads for share in coverage.ranks)
    size = coverage.epoch_samples
    drawn = "weighted draws" if coverage.drawn_classes is not None else "samples"
    epoch = (
        f"An epoch has {size:,} {drawn}. " if size != coverage.samples or settings.weights else ""
    )
    yield (
        f"{epoch}{counted(coverage.steps, 'step')} of {settings.batch_size:,} × "
        f"{counted(settings.ranks, 'rank')}: "
        f"{coverage.delivered_once:,} of {coverage.samples:,} samples come exactly once, "
        f"{coverage.delivered_again:,} more often{left_out}; "
        f"{counted(pads, 'pad')} with valid=False."
    )
    if coverage.drawn_classes is not None:
        yield _class_table(coverage.drawn_classes)
    if coverage.buckets is not None:
        yield _bucket_table(coverage.buckets)
    yield _rank_table(coverage)
    yield _node_table(coverage)
    yield from _traffic(coverage)
    yield from _mixing(coverage)
    for warning in coverage.warnings:
        yield Text(f"warning: {warning}", style="yellow")
    yield Text(describe(settings), style="dim")


def _class_table(classes: tuple[DrawnClass, ...]) -> Table:
    made = table("class", "samples", "draws", "each", left=0)
    for each in classes[:_MOST_ROWS]:
        label = "no label" if each.label is None else each.label
        often = each.draws / each.samples
        made.add_row(label, f"{each.samples:,}", f"{each.draws:,}", f"{often:.2f} ×")
    if len(classes) > _MOST_ROWS:
        made.add_row("…", *[""] * 3)
    return made


def _bucket_table(buckets: tuple[BucketShare, ...]) -> Table:
    made = table("bucket", "samples", "steps", "pads", left=0)
    for each in buckets:
        shape = f"{each.height} × {each.width}"
        made.add_row(shape, f"{each.samples:,}", f"{each.steps:,}", f"{each.pads:,}")
    return made


def _rank_table(coverage: Coverage) -> Table:
    titles = "rank", "steps", "samples", "pads", "samples of a worker", "pads of a worker"
    made = table(*titles, left=0)
    for share in coverage.ranks[:_MOST_ROWS]:
        made.add_row(
            str(share.rank),
            f"{share.steps:,}",
            f"{share.samples:,}",
            f"{share.pads:,}",
            _range(share.samples_of_workers),
            _range(share.pads_of_workers),
        )
    if len(coverage.ranks) > _MOST_ROWS:
        made.add_row("…", *[""] * 5)
    return made


def _node_table(coverage: Coverage) -> Table:
    later = ["later epochs"] if coverage.cache_limit is not None else []
    is_cached = coverage.remote or coverage.cache_limit is not None
    windows = "windows in cache" if is_cached else "window memory"
    made = table("node", "shards", "reads", windows, *later, left=0)
    for share in coverage.nodes[:_MOST_ROWS]:
        made.add_row(
            str(share.node),
            f"{share.shards:,}",
            _megabytes(share.bytes),
            _megabytes(share.window_bytes),
            *[_megabytes(share.later_bytes or 0) for _ in later],
        )
    if len(coverage.nodes) > _MOST_ROWS:
        made.add_row("…", *[""] * (3 + len(later)))
    return made


def _traffic(coverage: Coverage) -> Iterator[str]:
    """Say what the nodes fetch from a store, if shards are of one or a cache is planned."""
    if not (coverage.remote or coverage.cache_limit is not None):
        return
    nodes, ranks = len(coverage.nodes), coverage.settings.ranks
    most = max(share.bytes for share in coverage.nodes)
    whole = sum(share.bytes for share in coverage.nodes)
    each = f"Each of {nodes} nodes" if nodes > 1 else "The node"
    together = f", {_megabytes(whole)} together" if nodes > 1 else ""
    yield (
        f"{each}, with {counted(ranks // nodes, 'rank')}, fetches up to {_megabytes(most)} from "
        f"the store in the first epoch{together}; without a cache in every epoch."
    )
    if nodes > 1 and coverage.settings.streams == 1:
        share = _megabytes(coverage.bytes // nodes)
        yield f"With --streams {ranks} each would fetch about {share}."
    if coverage.cache_limit is None:
        yield (
            f"A cache of {_megabytes(most)} leaves nothing to fetch in later epochs; "
            "--cache-limit says what a smaller one leaves."
        )
    else:
        later = max(share.later_bytes or 0 for share in coverage.nodes)
        yield (
            f"A cache of {_megabytes(coverage.cache_limit)} leaves up to {_megabytes(later)} to "
            "fetch in each later epoch."
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _mixing(coverage: Coverage) -> list[str]:
    sentences = [
        f"All nodes together read {coverage.bytes_read:.2f} × the {coverage.bytes / 1e6:,.1f} MB "
        f"in {counted(coverage.shards, 'shard')}."
    ]
    if coverage.neighbour_distance is not None:
        sentences.append(
            f"Neighbours in a batch lie {coverage.neighbour_distance:.3f} of the dataset apart in "
            "packed order; a random order has 0.333."
        )
    if coverage.batch_entropy is not None:
        sentences.append(
            f"A batch has {coverage.batch_entropy:.2f} bits of class entropy, its classes together "
            f"{coverage.classes_entropy:.2f}."
        )
    return sentences


def _range(values: tuple[int, ...]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
