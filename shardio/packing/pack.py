"""Which kind of source a path names.

Packing: what users call.

Dividing existing shards anew: other counts and sizes, an order, a choice, a merger, splits.

It is a pack whose source are tars: members go over as they are, checked against the checksums
that the indexes have, through the same tasks, so that it is as atomic and takes up where it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from shardio.errors import PackError, SituationError, UsageError
from shardio.fields.base import IMAGE_FIELDS
from shardio.indexing.catalog import SHARD_SUFFIXES, ShardPaths, open_catalog
from shardio.indexing.manifest import INDEX_FOLDER
from shardio.packing.job import PackSummary, Source, run_job
from shardio.packing.options import PackOptions, ReshardOptions, with_options
from shardio.packing.sources.base import Labels, check_classes, parse_fields
from shardio.packing.sources.folder import FolderSource, find_classes
from shardio.packing.sources.table import Table, open_table
from shardio.packing.sources.tars import Tars
from shardio.packing.sources.tfrecord import TFRecords, find_files, parse_pairs
from shardio.packing.sources.values import Values
from shardio.storage.folder import Folder
from shardio.storage.local import refuse_url
from shardio.storage.location import locate


def open_source(path: str, options: PackOptions) -> FolderSource | Table | Tars | TFRecords:
    """Open a folder of files, a table of them, tars, or TFRecord files.

    Raises:
        PackError: it is not there, or not readable.
        UsageError: an option does not fit it, or it is a URL.
    """
    refuse_url(path)
    tars = options.manifest is None and has_tars(path)
    records = None if tars or options.manifest is not None else find_files(path)
    if tars or records is not None:
        _refuse_mixed(path)
    if records is None and options.features:
        raise SituationError(f"features are of TFRecord files, and {path} names none")
    if options.manifest is not None:
        return open_table(
            options.manifest,
            root=path,
            paths=options.path_columns,
            label=options.label_column,
            key=options.key_column,
            classes=check_classes(options.classes),
            with_labels=options.labels,
        )
    if tars:
        if options.fields is not None or not options.labels or options.classes is not None:
            raise SituationError(
                "members of tars are packed as they are",
                remedy="leave fields, labels and classes out",
            )
        catalog = open_catalog(path, allow_empty=options.allow_empty)
        return Tars(catalog=catalog, read_labels=options.stratify)
    if records is not None:
        if options.fields is not None:
            raise SituationError(
                "fields are of files", remedy="say with features which features are fields"
            )
        return TFRecords(
            root=path,
            files=records,
            pairs=parse_pairs(options.features),
            labels=options.labels,
            classes=check_classes(options.classes),
        )
    if os.path.isfile(path):  # noqa: PTH113  bytes that are no UTF-8
        raise PackError(
            "it is a file, not a folder",
            where=path,
            remedy=(
                "unpack it if it is an archive, pass it as the manifest if it is a "
                "table, or name the folder that holds the images"
            ),
        )
    if not os.path.isdir(path):  # noqa: PTH112  bytes that are no UTF-8
        raise PackError(
            "no such folder", where=path, remedy="name the folder that holds the images"
        )
    classes = check_classes(options.classes) or find_classes(path)
    labels = Labels(classes) if options.labels and classes else None
    return FolderSource(root=path, rule=parse_fields(options.fields), labels=labels)


def _refuse_mixed(path: str) -> None:
    """Raise UsageError if a folder with tars or TFRecord files has what else could be meant."""
    if not os.path.isdir(path):  # noqa: PTH112  bytes that are no UTF-8
        return
    with os.scandir(path) as entries:
        others = [
            each.name
            for each in entries
            if not each.name.startswith(".")
            and (
                (each.is_dir() and each.name != INDEX_FOLDER)
                or each.name.lower().rpartition(".")[2] in IMAGE_FIELDS
            )
        ]
    if others:
        raise SituationError(
            f"it has shards or records, and {min(others)} beside them",
            where=path,
            remedy=f"name what is meant, as '{path}/*.tar', or move the others away",
        )


def has_tars(path: str) -> bool:
    """Whether a path is that of a tar, a pattern of tars, or a folder with some."""
    if path.endswith(SHARD_SUFFIXES):
        return True
    if not os.path.isdir(path):  # noqa: PTH112  bytes that are no UTF-8
        return False
    with os.scandir(path) as entries:
        return any(each.name.endswith(SHARD_SUFFIXES) and each.is_file() for each in entries)


@with_options(PackOptions)
def pack(
    source: str | PathLike[str] | Iterable[Mapping[str, Any]],
    out: str | PathLike[str],
    options: PackOptions,
) -> PackSummary:
    """Pack samples into tar shards.

    As with `shardio.pack("images", "out", shards=8)`. A pack that was interrupted, by whatever,
    is finished by the same call again.

    Args:
        source: a folder with one subfolder a class, or a flat folder without labels; folders
            inside are searched too, dot files are left out. Or tars (a folder of them, one, a
            glob or a pattern), whose members are taken as they are. Or TFRecord files of
            tf.train.Example messages (a folder of them, one, a glob or a pattern); numbers and
            texts that are no field of their own go into the field json. Or an iterable of
            samples, mappings from fields to bytes, paths or values, with their "__key__".
        out: a folder without shards for the shards.
        options: as keywords; PackOptions says what each means.

    Raises:
        UsageError: an argument cannot be meant.
        PackError: a file cannot be packed, the source is empty, or the output is taken.
        TFRecordError: a TFRecord file is damaged, so that records are lost.
        OSError: the output cannot be written.
    """
    if isinstance(source, str | PathLike):
        root = fspath(source)
        job = options.pack_job(root)
        if locate(out, options.storage).is_local:
            _refuse_inside(Path(root), Path(out), options)
        open_: Callable[[Folder], Source] = lambda _: open_source(root, options)  # noqa: E731
    else:
        job = options.pack_job(".")
        _refuse_for_values(options)
        classes = check_classes(options.classes)
        open_ = lambda work: Values(source, work, classes)  # noqa: E731
    return run_job(out, job, open_)


def _refuse_inside(source: Path, out: Path, options: PackOptions) -> None:
    """Raise PackError if the output, or a part of it, lies inside the source."""
    real = source.resolve()
    for target in (out, *(out / part for part in options.split or ())):
        if real in (target.resolve(), *target.resolve().parents):
            raise PackError(
                "the output lies inside the source", where=out, remedy="name a folder outside it"
            )


def _refuse_for_values(options: PackOptions) -> None:
    """Raise UsageError if something is said that samples of a program have no use for."""
    files = (options.fields, options.manifest, *options.features)
    if not options.labels or any(each is not None for each in files):
        raise UsageError(
            "samples of a program have the fields that they have",
            remedy="leave fields, manifest, features and labels out",
        )


@with_options(ReshardOptions)
def reshard(source: ShardPaths, out: str | PathLike[str], options: ReshardOptions) -> PackSummary:
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
