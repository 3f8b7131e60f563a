"""Dividing existing shards anew: other counts and sizes, an order, a choice, a merger, splits.

It is a pack whose source are tars: members go over as they are, checked against the checksums
that the indexes have, through the same tasks, so that it is as atomic and takes up where it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path

from shardio.index.catalog import Source, open_catalog
from shardio.packing.job import Job, PackSummary, Progress, run_job
from shardio.packing.options import EngineName, Measure, OnError, check_output, make_engine
from shardio.packing.plan import Shape, Splits
from shardio.packing.sources.tars import Predicate, Tars
from shardio.packing.store import Store


def reshard(
    source: Source,
    out: str | PathLike[str],
    *,
    shards: int | None = None,
    samples_per_shard: int | None = None,
    shard_size: int | None = None,
    split: Mapping[str, float] | None = None,
    stratify: bool = False,
    shuffle: bool = False,
    seed: int = 0,
    keys: Iterable[str] | None = None,
    where: Predicate | None = None,
    on_error: OnError = "raise",
    jobs: int | None = None,
    engine: EngineName = "local",
    progress: Progress | None = None,
) -> PackSummary:
    """Divide the samples of shards into other shards; their bytes stay as they are.

    Args:
        source: a packed folder, tars, a pattern, or a list of these, which are merged.
        out: a new or empty folder.
        shards: how many, or one of
        samples_per_shard: the most samples of a shard, or
        shard_size: the most bytes of a shard.
        split: fractions by name, as for shardio.pack.
        stratify: divide each class so.
        shuffle: order the samples at random; otherwise as they are.
        seed: of the order and the splits.
        keys: of the samples to take; one that no shard has is an error.
        where: called with each key and its decoded fields, which are read when they are looked
            at; takes the samples for which it is true.
        on_error: "raise", or "skip" to leave damaged samples, and those whose key came before,
            out and list them in skipped.jsonl.
        jobs: processes; by default one a core.
        engine: "local" or "ray".
        progress: see shardio.pack.

    Raises:
        UsageError: an argument cannot be meant, or there are no shards.
        IndexFileError: an index is stale or damaged.
        TarError: a shard without index is damaged.
        PackError: a sample is damaged, or the output is taken.
        OSError: the output cannot be written.
    """
    check_output(out, seed=seed, on_error=on_error, split=split, stratify=stratify)
    job = Job(
        shape=Shape(shards=shards, samples_per_shard=samples_per_shard, shard_size=shard_size),
        splits=None if split is None else Splits(fractions=split, stratify=stratify),
        shuffle=shuffle,
        seed=seed,
        store=Store(),
        check=False,
        skip=on_error == "skip",
        dedupe=None,
        measure=None if shard_size is None else Measure("/"),
        engine=make_engine(engine, jobs),
        progress=progress,
    )
    tars = Tars(
        catalog=open_catalog(source),
        read_labels=stratify,
        keys=None if keys is None else frozenset(keys),
        where=where,
    )
    return run_job(Path(out), job, lambda _: tars)
