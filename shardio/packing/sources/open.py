"""Which kind of source a path names."""

from __future__ import annotations

import os

from shardio.codecs.registry import IMAGE_FIELDS
from shardio.errors import PackError, SituationError
from shardio.index.catalog import SHARD_SUFFIXES, open_catalog
from shardio.index.manifest import INDEX_FOLDER
from shardio.packing.features import parse_pairs
from shardio.packing.fields import parse_fields
from shardio.packing.labels import Labels, check_classes
from shardio.packing.options import PackOptions
from shardio.packing.sources.folder import Folder, find_classes
from shardio.packing.sources.table import Table, open_table
from shardio.packing.sources.tars import Tars
from shardio.packing.sources.tfrecord import TFRecords, find_files
from shardio.storage.local import refuse_url


def open_source(path: str, options: PackOptions) -> Folder | Table | Tars | TFRecords:
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
                "members of tars are packed as they are; leave fields, labels and classes out"
            )
        catalog = open_catalog(path, allow_empty=options.allow_empty)
        return Tars(catalog=catalog, read_labels=options.stratify)
    if records is not None:
        if options.fields is not None:
            raise SituationError("fields are of files; say with features which features are fields")
        return TFRecords(
            root=path,
            files=records,
            pairs=parse_pairs(options.features),
            labels=options.labels,
            classes=check_classes(options.classes),
        )
    if os.path.isfile(path):  # noqa: PTH113  bytes that are no UTF-8
        raise PackError(
            f"{path}: it is a file, not a folder; unpack it if it is an archive, pass it as the "
            "manifest if it is a table, or name the folder that holds the images"
        )
    if not os.path.isdir(path):  # noqa: PTH112  bytes that are no UTF-8
        raise PackError(f"{path}: no such folder; name the folder that holds the images")
    classes = check_classes(options.classes) or find_classes(path)
    labels = Labels(classes) if options.labels and classes else None
    return Folder(root=path, rule=parse_fields(options.fields), labels=labels)


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
            f"{path}: it has shards or records, and {min(others)} beside them; name what is meant, "
            f"as '{path}/*.tar', or move the others away"
        )


def has_tars(path: str) -> bool:
    """Whether a path is that of a tar, a pattern of tars, or a folder with some."""
    if path.endswith(SHARD_SUFFIXES):
        return True
    if not os.path.isdir(path):  # noqa: PTH112  bytes that are no UTF-8
        return False
    with os.scandir(path) as entries:
        return any(each.name.endswith(SHARD_SUFFIXES) and each.is_file() for each in entries)
