"""What users call: packing samples of any source, and dividing existing shards anew.

A path is opened by the first of SOURCES that claims it. Resharding is a pack whose source is tars:
members go over as they are, checked against the checksums in the indexes, through the same tasks,
so that it is as atomic and goes on where it was.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from shardio.errors import PackError, SituationError, UsageError, argument
from shardio.indexing.catalog import open_catalog
from shardio.indexing.parts import ShardPaths
from shardio.options import with_options
from shardio.packing.job import PackSummary, locate_output, run_job
from shardio.packing.options import PackOptions, ReshardOptions
from shardio.packing.sources.base import PathSource, Source
from shardio.packing.sources.coco import CocoSource
from shardio.packing.sources.folder import FolderSource
from shardio.packing.sources.iterable import IterableSource
from shardio.packing.sources.rules import check_classes
from shardio.packing.sources.table import TableSource
from shardio.packing.sources.tars import TarSource
from shardio.packing.sources.tfrecord import TFRecordSource
from shardio.packing.sources.voc import VocSource
from shardio.packing.sources.yolo import YoloSource
from shardio.storage.folder import refuse_inside
from shardio.storage.location import locate

SOURCES: tuple[type[PathSource], ...] = (
    *(TableSource, CocoSource, VocSource, YoloSource),
    *(TarSource, TFRecordSource, FolderSource),
)
"""Sources of paths, in the order in which they are asked; the last claims every path."""


@with_options(PackOptions)
def pack(
    source: str | PathLike[str] | Source | Iterable[Mapping[str, Any]],
    out: str | PathLike[str],
    options: PackOptions,
) -> PackSummary:
    """Pack samples into tar shards.

    As with `shardio.pack("images", "out", shards=8)`. A pack that was interrupted, by whatever,
    is finished by the same call again.

    Args:
        source: path of a folder with one subfolder a class, or of a flat folder without labels;
            folders inside are searched too, dot files are left out. Or tars (a folder of them, one,
            a glob or a pattern; also a URL), whose members are taken as they are. Or TFRecord files
            of tf.train.Example messages (a folder of them, one, a glob or a pattern); numbers and
            texts that are not fields of their own go into the field json. Or a table, CSV, TSV,
            JSON Lines or Parquet, with a row a sample. Or a dataset of YOLO, COCO or Pascal VOC,
            which is recognised by its folders and logged. Or an iterable of samples, mappings from
            fields to bytes, paths or values, with their `__key__`. Or any `shardio.Source`.
        out: path or URL of a folder without shards.
        options: keywords; PackOptions describes each.

    Raises:
        UsageError: an argument is invalid.
        PackError: a file cannot be packed, the source is empty, or the output is taken.
        TFRecordError: a TFRecord file is damaged, so that records are lost.
        OSError: the output cannot be written.
    """
    if isinstance(source, str | PathLike):
        _require_path(fspath(source), options)
    job = options.make_pack_job()
    if isinstance(source, str | PathLike):
        root, opened = fspath(source), None
        if options.split_column is not None:  # the splits are known before the output is claimed
            opened = open_source(root, options)
            job = replace(
                job, named_splits=opened.splits if isinstance(opened, TableSource) else ()
            )
        if locate(out, options.storage, options.storage_options).is_local:
            parts = job.parts if options.split or options.split_column else ()
            refuse_inside(Path(out), [Path(root)], parts=parts)
        return run_job(out, job, lambda _: opened or open_source(root, options))
    if isinstance(source, Source):
        _refuse_others(options, "a Source", ())
        return run_job(out, job, lambda _: source)
    _refuse_others(options, "samples of a program", IterableSource.options)
    if isinstance(options.fields, str):
        raise UsageError(
            "fields as text does not apply to samples of a program",
            remedy="leave it out, or pass field types with types=, as {'wav': Audio(rate=16000)}",
        )
    classes, entries = check_classes(options.classes), options.fields
    return run_job(out, job, lambda work: IterableSource(source, work, classes, entries, job.types))


@with_options(ReshardOptions)
def reshard(source: ShardPaths, out: str | PathLike[str], options: ReshardOptions) -> PackSummary:
    """Divide the samples of shards into other shards.

    As with `shardio.reshard("old", "new", shards=8)`. Members stay byte for byte what they are.

    Args:
        source: path or URL of a packed folder, tars, a pattern, or a list of these, which are
            merged. Shards of stores are read in their order, or fetched into the cache for another.
        out: path or URL of a folder without shards.
        options: keywords; ReshardOptions describes each.

    Raises:
        UsageError: an argument is invalid, or there are no shards.
        IndexFileError: an index is stale or damaged.
        TarError: a shard without index is damaged.
        PackError: a sample is damaged, or the output is taken.
        OSError: the output cannot be written.
    """
    job = options.make_job()
    target = locate_output(out, job)  # before anything is read
    catalog = open_catalog(source, options=options.storage_options, allow_empty=options.allow_empty)
    tars = TarSource(
        catalog=catalog,
        read_labels=options.stratify,
        keys=None if options.keys is None else frozenset(options.keys),
        where=options.where,
        max_pixels=options.max_pixels,
        keep=options.rereads or options.where is not None,
    )
    return run_job(target, job, lambda _: tars)


def open_source(path: str, options: PackOptions) -> Source:
    """Open the source at a path: the first of SOURCES that claims it.

    Raises:
        PackError: it is not there, or not readable.
        UsageError: an option does not fit it, or it is a URL of what is not packed.
    """
    kind: type[PathSource] = TarSource
    if locate(path, options=options.storage_options).is_local:
        kind = next(each for each in SOURCES if each.claims(path, options))
    if kind is not TableSource:
        options.require_table()
    _refuse_others(options, kind.described, kind.options, where=path)
    return kind.open(path, options)


def _require_path(path: str, options: PackOptions) -> None:
    """Raise PackError if nothing is at a path, before a missing number of shards is asked for."""
    given = (options.shards, options.samples_per_shard, options.shard_size, options.manifest)
    if given.count(None) < len(given) or {*path} & {*"*?[{"}:
        return
    is_local = locate(path, options=options.storage_options).is_local
    if is_local and not os.path.lexists(path):
        remedy = "name the folder that holds the images"
        raise PackError("no such folder or file", where=path, remedy=remedy)


def _refuse_others(
    options: PackOptions, described: str, allowed: Collection[str], *, where: str | None = None
) -> None:
    """Raise UsageError for an option of other sources."""
    others = [name for name in options.given_for_source() if name not in allowed]
    if others:
        verb = "does" if len(others) == 1 else "do"
        apply = f"; options that apply: {', '.join(map(argument, allowed))}" if allowed else ""
        kind = UsageError if where is None else SituationError
        raise kind(
            f"{' and '.join(map(argument, others))} {verb} not apply to {described}",
            where=where,
            remedy=f"leave {'it' if len(others) == 1 else 'them'} out{apply}",
        )
