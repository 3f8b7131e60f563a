"""Tars that exist already: packed folders, WebDataset's shards, img2dataset's output.

Their members are taken as they are, in their order; an index says where they lie, one that is
there or one that a header scan makes. What is read is held against the checksums of the data where
it has them, otherwise against those of their headers and the time of change.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardio.errors import CodecError, PackError, quoted, shown
from shardio.fields.arrays import decode_cls
from shardio.fields.base import LABEL_FIELD
from shardio.fields.defaults import decode_field
from shardio.fields.limits import MAX_PIXELS
from shardio.indexing.catalog import Catalog, ShardEntry
from shardio.indexing.shard_index import ShardIndex
from shardio.packing.listing import (
    FromRange,
    Problem,
    SourceField,
    SourceFiles,
    SourceSample,
    UnreadableError,
    in_memory,
    stamp_of,
)
from shardio.packing.sources.base import key_fault

Predicate = Callable[[str, Mapping[str, Any]], Any]
"""Tells of a key and the decoded fields, which are read when they are looked at, what to take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tars:
    """The samples of existing shards, or some of them.

    Attributes:
        catalog: of the shards.
        read_labels: read the class number of each sample while listing, to split by it.
        keys: of the samples to take; None for all.
        where: what to take of these; None for all.
        max_pixels: greatest number of pixels of an image that `where` looks at.
    """

    catalog: Catalog
    read_labels: bool = False
    keys: frozenset[str] | None = None
    where: Predicate | None = None
    max_pixels: int = MAX_PIXELS

    @property
    def name(self) -> str:
        """What errors call it."""
        return ", ".join(sorted({str(Path(entry.name).parent) for entry in self.catalog.shards}))

    @property
    def root(self) -> str:
        """Where relative paths would start; those of shards are absolute."""
        return "/"

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes by label, where a manifest has them."""
        return self.catalog.classes

    def samples(self) -> Iterator[SourceSample | Problem]:
        """The samples, shard by shard, and the keys that no shard has.

        Raises:
            IndexFileError: an index is stale or damaged.
            TarError: a shard was changed after it was looked through.
            PackError: what the predicate looks at cannot be read.
        """
        missing = set(self.keys or ())
        for entry in self.catalog.shards:
            for sample in self._of_shard(entry):
                if isinstance(sample, SourceSample):
                    missing.discard(sample.key)
                yield sample
        for key in sorted(missing):
            yield Problem(path=key, reason="no shard has a sample with this key")

    def _of_shard(self, entry: ShardEntry) -> Iterator[SourceSample | Problem]:
        index, path = entry.load_index(), os.fsencode(os.path.abspath(entry.path))  # noqa: PTH100
        stamp = stamp_of(Path(entry.path).stat())
        entry.verify_unchanged()  # it is still the file that was looked through
        with SourceFiles(self.root) as files:
            for number in range(len(index)):
                key = index.key(number)
                if self.keys is not None and key not in self.keys:
                    continue
                if fault := key_fault(key):
                    yield Problem(path=f"{entry.name}: {key}", reason=fault)
                    continue
                fields = _fields_of(index, number, path, stamp)
                name = f"{entry.name}: {key}"
                values = _Values(name, fields, files, self.max_pixels)
                if self.where is not None and not self.where(key, values):
                    continue
                yield SourceSample(
                    key=key,
                    name=name,
                    fields=tuple(SourceField(*field) for field in fields.items()),
                    label=_label_of(fields, files) if self.read_labels else None,
                )


class _Values(Mapping[str, Any]):
    """The decoded fields of a sample.

    Args:
        name: of the sample, for errors.
        fields: where they are.
        files: reads them.
        max_pixels: greatest number of pixels of an image.
    """

    def __init__(
        self,
        name: str,
        fields: Mapping[str, FromRange],
        files: SourceFiles,
        max_pixels: int,
    ) -> None:
        self._name = name
        self._fields = fields
        self._files = files
        self._max_pixels = max_pixels

    def __getitem__(self, field: str) -> Any:
        try:
            data = _read(self._fields[field], self._files)
            return decode_field(field, data, max_pixels=self._max_pixels)
        except (UnreadableError, CodecError) as error:
            raise error.at(f"{shown(self._name)}, field {quoted(field)}", PackError) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


def _fields_of(index: ShardIndex, number: int, path: bytes, stamp: str) -> dict[str, FromRange]:
    """Where the fields of a sample are, in their order."""
    offsets, sizes = index.offsets[number].tolist(), index.sizes[number].tolist()
    sums: list[int | None] = [None] * len(sizes)
    headers, before = [0] * len(sizes), [0] * len(sizes)
    if index.checksums is not None:
        sums = index.checksums[number].tolist()
    if index.headers is not None:
        headers = index.headers[number].tolist()
        before = (index.offsets[number] - index.firsts[number]).tolist()
    places = zip(offsets, index.fields, sizes, sums, before, headers, strict=True)
    return {
        field: FromRange(path, offset, size, checksum, stamp, *checks)
        for offset, field, size, checksum, *checks in sorted(places)
        if offset >= 0
    }


def _label_of(fields: Mapping[str, FromRange], files: SourceFiles) -> int | None:
    """A class number; None where there is none, so that the sample has no class to split by."""
    with suppress(UnreadableError, CodecError, KeyError):
        return decode_cls(_read(fields[LABEL_FIELD], files))
    return None


def _read(origin: FromRange, files: SourceFiles) -> memoryview:
    return files.read(origin, in_memory)
