"""Which kind of source a path names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

from shardio.codecs.registry import IMAGE_FIELDS
from shardio.errors import PackError, UsageError
from shardio.index.catalog import SHARD_SUFFIXES, open_catalog
from shardio.index.manifest import INDEX_FOLDER
from shardio.packing.features import parse_pairs
from shardio.packing.fields import parse_fields
from shardio.packing.labels import Labels, check_classes
from shardio.packing.sources.folder import Folder, find_classes
from shardio.packing.sources.table import Table, open_table
from shardio.packing.sources.tars import Tars
from shardio.packing.sources.tfrecord import TFRecords, find_files


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """What a user says about a source; see shardio.pack.

    Attributes:
        read_labels: the labels of samples are wanted while listing.
    """

    labels: bool
    classes: Sequence[str] | None
    fields: str | None
    manifest: str | PathLike[str] | None
    path_columns: Sequence[str]
    label_column: str | None
    key_column: str | None
    features: Sequence[str]
    read_labels: bool

    def __post_init__(self) -> None:
        self.class_names()
        parse_fields(self.fields)
        if pair := next((pair for pair in parse_pairs(self.features) if not pair.name), None):
            raise UsageError(
                f"features: '{pair.field}=' names no feature; write it as jpg=image/encoded"
            )
        columns = (*self.path_columns, self.label_column, self.key_column)
        if self.manifest is None and any(columns):
            raise UsageError("columns are of a manifest; name it with manifest (--manifest)")
        if self.manifest is not None and self.fields is not None:
            raise UsageError("a manifest names the files of a sample itself; leave fields out")

    def refuse_for_values(self) -> None:
        """Raise UsageError if something is said that an iterable of samples has no use for."""
        files = (self.fields, self.manifest, *self.features)
        if not self.labels or any(each is not None for each in files):
            raise UsageError(
                "samples of a program have the fields that they have; leave fields, manifest, "
                "features and labels out"
            )

    def class_names(self) -> tuple[str, ...] | None:
        """The classes, if they are given."""
        return check_classes(self.classes)


def open_source(path: str, options: SourceOptions) -> Folder | Table | Tars | TFRecords:
    """Open a folder of files, a table of them, tars, or TFRecord files.

    Raises:
        PackError: it is not there, or not readable.
        UsageError: an option does not fit it.
    """
    tars = options.manifest is None and has_tars(path)
    records = None if tars or options.manifest is not None else find_files(path)
    if tars or records is not None:
        _refuse_mixed(path)
    if records is None and options.features:
        raise UsageError(f"features are of TFRecord files, and {path} names none")
    if options.manifest is not None:
        return open_table(
            options.manifest,
            root=path,
            paths=options.path_columns,
            label=options.label_column,
            key=options.key_column,
            classes=options.class_names(),
            with_labels=options.labels,
        )
    if tars:
        if options.fields is not None or not options.labels or options.classes is not None:
            raise UsageError(
                "members of tars are packed as they are; leave fields, labels and classes out"
            )
        return Tars(catalog=open_catalog(path), read_labels=options.read_labels)
    if records is not None:
        if options.fields is not None:
            raise UsageError("fields are of files; say with features which features are fields")
        return TFRecords(
            root=path,
            files=records,
            pairs=parse_pairs(options.features),
            labels=options.labels,
            classes=options.class_names(),
        )
    if not os.path.isdir(path):  # noqa: PTH112  bytes that are no UTF-8
        raise PackError(f"{path}: no such folder; name the folder that holds the images")
    classes = options.class_names() or find_classes(path)
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
        raise UsageError(
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
