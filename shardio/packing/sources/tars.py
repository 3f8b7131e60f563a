"""Tars that exist already: packed folders, WebDataset's shards, img2dataset's output.

Their members are taken as they are, in their order; an index says where they lie, one that is
there or one that a header scan makes. What is read is held against the checksums of the data where
it has them, otherwise against those of their headers and the time of change. Shards of a store are
read by it, and its version of the object takes the place of the time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from shardio.errors import (
    CodecError,
    PackError,
    SituationError,
    argument,
    counted,
    in_words,
    quoted,
    shown,
)
from shardio.fields.arrays import decode_cls
from shardio.fields.base import LABEL_FIELD, FieldType
from shardio.fields.defaults import type_of
from shardio.fields.limits import MAX_PIXELS
from shardio.indexing.catalog import Catalog, open_catalog
from shardio.indexing.entry import ShardEntry, keep_shards
from shardio.indexing.parts import SHARD_SUFFIXES, is_packed
from shardio.indexing.shard_index import ShardIndex
from shardio.naming import join_member_name
from shardio.packing.sources.base import (
    FromRange,
    Problem,
    SourceField,
    SourceSample,
    Stored,
    UnpackableError,
    junk_in,
    key_fault,
    log_junk,
)
from shardio.packing.sources.reader import SourceReader, in_memory, stamp_of
from shardio.packing.sources.rules import refuse_mixed_folder
from shardio.storage.local import LOCAL
from shardio.storage.location import Location, locate

if TYPE_CHECKING:
    from shardio.packing.options import PackOptions, Predicate


@dataclass(frozen=True, slots=True, kw_only=True)
class TarSource:
    """The samples of existing shards, or some of them.

    Attributes:
        catalog: the shards.
        read_labels: whether to read the class number of each sample while listing, to split by it.
        keys: keys of the samples to take; None for all.
        where: predicate that chooses among these; None for all.
        max_pixels: maximum number of pixels of an image that `where` looks at.
        junk: whether to take members of operating systems, see junk_in.
        keep: whether shards of stores are fetched into the cache, if it has room for all, since
            they are not read once, from front to back.
    """

    described: ClassVar[str] = "tars, whose members are packed as they are"
    options: ClassVar[tuple[str, ...]] = ()
    remedy: ClassVar[str] = "write the tar again without it"

    catalog: Catalog
    read_labels: bool = False
    keys: frozenset[str] | None = None
    where: Predicate | None = None
    max_pixels: int = MAX_PIXELS
    junk: bool = True
    keep: bool = False

    @classmethod
    def claims(cls, path: str, options: PackOptions) -> bool:  # noqa: ARG003  as all sources
        """See PathSource."""
        return has_tars(path)

    @classmethod
    def open(cls, path: str, options: PackOptions) -> TarSource:
        """See PathSource."""
        place = locate(path, options=options.storage_options)
        if place.is_local:
            refuse_mixed_folder(path)
        elif not _are_tars(place):
            raise SituationError(
                "of what is behind URLs only tars are packed, and none is there",
                where=place,
                remedy="fetch other files, and name their folder",
            )
        catalog = open_catalog(
            path, options=options.storage_options, allow_empty=options.allow_empty
        )
        return cls(
            catalog=catalog,
            read_labels=options.stratify,
            junk=False,
            keep=options.rereads or options.dedupe is not None,
        )

    @property
    def name(self) -> str:
        """See Source."""
        named = (Location(entry.storage, entry.name) for entry in self.catalog.shards)
        return ", ".join(sorted({str(shard.parent) for shard in named}))

    @property
    def root(self) -> str:
        """See Source; paths of shards are absolute."""
        return "/"

    @property
    def classes(self) -> tuple[str, ...] | None:
        """See Source; a manifest has them."""
        return self.catalog.classes

    @property
    def types(self) -> Mapping[str, FieldType]:
        """See Source; a manifest may record them."""
        return self.catalog.types

    @property
    def stored(self) -> Mapping[bytes, Stored]:
        """See Source; shards of local files are read by their paths."""
        stored = [each for each in self.catalog.shards if each.storage != LOCAL]
        return dict(
            zip(map(_path_of, stored), keep_shards(stored) if self.keep else stored, strict=True)
        )

    def samples(self) -> Iterator[SourceSample | Problem]:
        """Yield the samples, shard by shard, and the keys that no shard has.

        Raises:
            IndexFileError: an index is stale or damaged.
            TarError: a shard was changed after it was looked through.
            PackError: a field that the predicate looks at cannot be read, or it chooses no sample.
        """
        missing, junk, stored = set(self.keys or ()), Counter[str](), self.stored
        chosen = 0
        for entry in self.catalog.shards:
            for sample in self._of_shard(entry, junk, stored):
                if isinstance(sample, SourceSample):
                    missing.discard(sample.key)
                chosen += 1
                yield sample
        for key in sorted(missing):
            reason = "no shard has a sample with this key"
            yield Problem(path=key, reason=reason, remedy="leave the key out")
        log_junk(self.name, junk)
        held = self.catalog.shards if self.keys is None else ()
        count = sum(entry.samples for entry in held) or len(self.keys or ())
        if self.where is not None and count and not (chosen or missing):
            first = next(
                (f", as {quoted(each.load_index().key(0))}" for each in held if each.samples), ""
            )
            raise PackError(
                f"{argument('where')} was true for none of {counted(count, 'sample')}",
                where=self.name,
                remedy=in_words(
                    "look at what it is called with: a key and the decoded fields, as "
                    "fields['json']['weather'] == 'fog'",
                    f"give a pattern that is found in keys{first}",
                ),
            )

    def _of_shard(
        self, entry: ShardEntry, junk: Counter[str], stored: Mapping[bytes, Stored]
    ) -> Iterator[SourceSample | Problem]:
        index, path, stamp = entry.load_index(), _path_of(entry), _stamp_of(entry)
        entry.verify_unchanged()  # it is still the file that was looked through
        types = partial(type_of, max_pixels=self.max_pixels, given=self.types)
        with SourceReader(self.root, stored=stored) as reader:
            for number in range(len(index)):
                key = index.key(number)
                if self.keys is not None and key not in self.keys:
                    continue
                fields = _fields_of(index, number, path, stamp)
                if not self.junk and (left_out := _junk_of(key, fields)):
                    junk.update(left_out.values())
                    fields = {name: each for name, each in fields.items() if name not in left_out}
                    if not fields:
                        continue
                place = f"{entry.name}: {key}"
                if fault := key_fault(key):
                    yield Problem(path=place, reason=fault)
                    continue
                values = _LazyFields(place, fields, reader, types)
                if self.where is not None and not self.where(key, values):
                    continue
                yield SourceSample(
                    key=key,
                    path=place,
                    fields=tuple(SourceField(*field) for field in fields.items()),
                    label=_label_of(fields, reader) if self.read_labels else None,
                )


class _LazyFields(Mapping[str, Any]):
    """The decoded fields of a sample, each read when it is looked at.

    Args:
        place: shard and key of the sample, for errors.
        fields: places of their data.
        reader: reader of the data.
        types: called with the name of a field, returns its type.
    """

    def __init__(
        self,
        place: str,
        fields: Mapping[str, FromRange],
        reader: SourceReader,
        types: Callable[[str], FieldType],
    ) -> None:
        self._place = place
        self._fields = fields
        self._reader = reader
        self._types = types

    def __getitem__(self, field: str) -> Any:
        try:
            data = _read(self._fields[field], self._reader)
            return self._types(field).decode(data)
        except (UnpackableError, CodecError) as error:
            raise error.at(f"{shown(self._place)}, field {quoted(field)}", PackError) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


def _path_of(entry: ShardEntry) -> bytes:
    path = os.path.abspath(entry.path) if entry.storage == LOCAL else entry.path  # noqa: PTH100
    return os.fsencode(path)


def _stamp_of(entry: ShardEntry) -> str:
    """Describe a shard so that it differs after a change."""
    if entry.storage == LOCAL:
        return stamp_of(Path(entry.path).stat())
    return f"{entry.size} {entry.sha256 or entry.version}"


def _fields_of(index: ShardIndex, number: int, path: bytes, stamp: str) -> dict[str, FromRange]:
    """Find the fields of a sample in its shard, in their order."""
    return {
        field: FromRange(
            path,
            each.offset,
            each.size,
            each.checksum,
            stamp,
            each.offset - each.first,
            each.header or 0,
        )
        for field, each in index.members(number).items()
    }


def _junk_of(key: str, fields: Iterable[str]) -> dict[str, str]:
    """Find the members of operating systems among the fields of a sample."""
    names = {field: junk_in(join_member_name(key, field)) for field in fields}
    return {field: found for field, found in names.items() if found is not None}


def _label_of(fields: Mapping[str, FromRange], reader: SourceReader) -> int | None:
    """Read a class number; without one the sample has no class to split by."""
    with suppress(UnpackableError, CodecError, KeyError):
        return decode_cls(_read(fields[LABEL_FIELD], reader))
    return None


def _read(origin: FromRange, reader: SourceReader) -> memoryview:
    return reader.read(origin, in_memory)


def _are_tars(place: Location) -> bool:
    """Tell whether a place in a storage is that of a tar, a pattern of tars, or a folder of some.

    Where folders cannot be listed, those with a manifest are known.
    """
    if place.path.endswith(SHARD_SUFFIXES) or is_packed(place):
        return True
    return place.can_list and any(name.endswith(SHARD_SUFFIXES) for name in place.names())


def has_tars(path: str) -> bool:
    """Tell whether a path is that of a tar, a pattern of tars, or a folder with some."""
    if path.endswith(SHARD_SUFFIXES):
        return True
    if not os.path.isdir(path):  # noqa: PTH112  bytes that are not UTF-8
        return False
    with os.scandir(path) as entries:
        return any(each.name.endswith(SHARD_SUFFIXES) and each.is_file() for each in entries)
