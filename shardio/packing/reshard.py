"""Dividing existing shards anew: other counts and sizes, an order, a choice, a merger, splits.

It is a pack whose source are tars: members go over as they are, checked against the checksums
that the indexes have, through the same tasks, so that it is as atomic and takes up where it was.
"""

from __future__ import annotations

from os import PathLike

from shardio.index.catalog import Source, open_catalog
from shardio.packing.job import PackSummary, run_job
from shardio.packing.options import ReshardOptions, with_options
from shardio.packing.sources.tars import Tars


@with_options(ReshardOptions)
def reshard(source: Source, out: str | PathLike[str], options: ReshardOptions) -> PackSummary:
    """Divide the samples of shards into other shards.

    As with `shardio.reshard("old", "new", shards=8)`. Members stay byte for byte what they are.

    Args:
        source: a packed folder, tars, a pattern, or a list of these, which are merged.
        out: a folder without shards.
        options: as keywords; ReshardOptions says what each means.

    Raises:
        UsageError: an argument cannot be meant, or there are no shards.
        IndexFileError: an index is stale or damaged.
        TarError: a shard without index is damaged.
        PackError: a sample is damaged, or the output is taken.
        OSError: the output cannot be written.
    """
    job = options.job(root="/", check=False)
    tars = Tars(
        catalog=open_catalog(source, allow_empty=options.allow_empty),
        read_labels=options.stratify,
        keys=None if options.keys is None else frozenset(options.keys),
        where=options.where,
        max_pixels=options.max_pixels,
    )
    return run_job(out, job, lambda _: tars)
