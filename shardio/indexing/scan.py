"""Build an index from the members of a tar, or member by member while packing.

Adjacent members with the same key are a sample. Anything that would silently lose data is an error:
a link or another member without data in place of a field, a repeated field, or a key whose fields
are not adjacent. A tar whose members belong to no sample is an error too, unless the user allows
it, because the wrong file was named or its members have wrong names. An archive without any
members, as a writer leaves if nothing is added, is a shard without samples.

An index is a table of samples and fields. Where names have dots before their extensions, each
sample has fields of its own, and the table would grow with the square of the members. So where it
would have far more cells than members, the fields that few samples have are kept apart from it.
Many fields with one extension are a warning, and so are many that few samples have.
"""

from __future__ import annotations

import logging
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardio.errors import TarError, argument, counted, quoted, shown
from shardio.fields.base import FieldType
from shardio.fields.defaults import is_sized, size_of
from shardio.fields.probe import PictureSize
from shardio.indexing.shard_index import ShardIndex, make_rare
from shardio.naming import MemberName, split_member_name, why_no_sample
from shardio.native.checksum import crc32
from shardio.storage.base import StoredBytes
from shardio.storage.location import Location, locate
from shardio.tar.reader import MISSING_END, Members, scan_members
from shardio.tar.writer import Placed

_KINDS = {
    "1": "a hard link",
    "2": "a symbolic link",
    "3": "a device",
    "4": "a device",
    "6": "a fifo",
}
_FILE = ord("0")
_DIRECTORY = ord("5")
_MOST_CELLS = 64  # of the table, a member; of a column, a sample that has the field
_FEW_CELLS = 1 << 18  # which any index may have
_MANY_ALIKE = 16  # fields with one extension
WITHOUT_DOTS = (
    "name members KEY.FIELD without other dots in their last part, or unpack them and run "
    "`shardio pack`, which puts underscores in place of such dots"
)
"""Advice where names with dots are meant to have one field."""
_MOST_NAMED = 10  # shards without an end mark to list one by one
_MOST_PROBED = 1 << 28  # bytes of a picture whose size is recorded; it is read whole
_LOG = logging.getLogger("shardio")
_warned: set[str] = set()


class IndexBuilder:
    """Builder of the index of one shard, from its members in order.

    Args:
        shard: name of the shard in errors.
    """

    def __init__(self, shard: str) -> None:
        self._shard = shard
        self._keys: list[str] = []
        self._columns: dict[str, int] = {}
        self._rows, self._places, self._cells = array("q"), array("q"), array("q")
        self._pictures: dict[str, array[int]] = {}  # row and size of each picture
        self._fields_of_sample: set[str] = set()
        self._fields_of_key: dict[str, frozenset[str]] = {}
        self._shapes: dict[frozenset[str], frozenset[str]] = {}  # shared, since few differ

    def add(self, key: str, field: str, placed: Placed, size: PictureSize | None = None) -> None:
        """Add a member.

        Args:
            key: key of its sample.
            field: field of the sample.
            placed: location and checksum of its data.
            size: size of the picture that it is, if it is one.

        Raises:
            TarError: the sample already has that field, or an earlier sample has the same key.
        """
        offset = placed.offset
        if not self._keys or key != self._keys[-1]:
            self._close_sample(offset)
            self._keys.append(key)
        elif field in self._fields_of_sample:
            raise TarError(
                f"sample {quoted(key)} has the field {quoted(field)} twice, the second "
                f"time at byte {offset}",
                where=self._shard,
                remedy="rename one of the members",
                shard=self._shard,
                offset=offset,
                key=key,
                field=field,
            )
        self._fields_of_sample.add(field)
        self._rows.append(len(self._keys) - 1)
        self._places.append(self._columns.setdefault(field, len(self._columns)))
        self._cells.extend(placed)
        if size is not None:
            known = self._pictures.setdefault(field, array("q"))
            known.extend((len(self._keys) - 1, *size))

    def build(self, *, shard_size: int, shard_sha256: str | None, checksums: bool) -> ShardIndex:
        """Build the index.

        Args:
            shard_size: size of the shard in bytes.
            shard_sha256: digest of the shard, or None if unknown.
            checksums: whether the checksums of the members are known.

        Raises:
            TarError: an earlier sample has the same key as the last one.
        """
        self._close_sample(shard_size)
        fields = tuple(sorted(self._columns))
        number = {field: position for position, field in enumerate(fields)}
        places = np.array([number[field] for field in self._columns], np.int64)
        samples, numbers = np.asarray(self._rows), places[np.asarray(self._places)]
        is_rare = self._are_rare(np.bincount(numbers, minlength=len(fields)))
        width, columns = int((~is_rare).sum()), np.cumsum(~is_rare) - 1
        cells = samples * width + columns[numbers]
        others = np.flatnonzero(is_rare[numbers])
        others = others[np.lexsort((numbers[others], samples[others]))]
        cells[others] = len(self._keys) * width + np.arange(len(others))
        flat = np.zeros((3, len(self._keys) * width + len(others)), np.int64)
        flat[0] = -1
        flat[:, cells] = np.asarray(self._cells).reshape(-1, 3).T
        rare = make_rare(fields, samples[others], numbers[others]) if len(others) else None
        table = flat.reshape(3, len(self._keys), width) if rare is None else flat
        keys = [key.encode("utf-8", "surrogateescape") for key in self._keys]
        return ShardIndex(
            shard_size=shard_size,
            shard_sha256=shard_sha256,
            fields=fields,
            rare=rare,
            offsets=table[0],
            sizes=table[1],
            checksums=table[2].astype(np.uint32) if checksums else None,
            key_ends=np.cumsum([0, *map(len, keys)], dtype=np.int64),
            keys=np.frombuffer(b"".join(keys), dtype=np.uint8),
            **self._build_pictures({*(fields if rare is None else rare.columns)}),
        )

    def _are_rare(self, counts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which fields are kept apart: none, if the table of all is not too large.

        Args:
            counts: number of samples that have each field.
        """
        samples = len(self._keys)
        if samples * len(counts) <= max(_MOST_CELLS * len(self._rows), _FEW_CELLS):
            return np.zeros(len(counts), np.bool_)
        return counts * _MOST_CELLS < samples

    def _build_pictures(self, columns: set[str]) -> dict[str, Any]:
        pictures = tuple(sorted(columns & self._pictures.keys()))
        if not pictures:
            return {}
        table = np.zeros((3, len(self._keys), len(pictures)), np.uint32)
        for column, field in enumerate(pictures):
            known = np.frombuffer(self._pictures[field], np.int64).reshape(-1, 4)
            table[:, known[:, 0], column] = known[:, 1:].T
        heights, widths, orientations = table
        return {
            "pictures": pictures,
            "heights": heights,
            "widths": widths,
            "orientations": orientations.astype(np.uint8),
        }

    def _close_sample(self, offset: int) -> None:
        if not self._keys:
            return
        key, fields = self._keys[-1], self._fields_of_sample
        earlier = self._fields_of_key.get(key, frozenset())
        if earlier and fields.isdisjoint(earlier):
            raise TarError(
                f"the members of sample {quoted(key)} are not adjacent; some are just before "
                f"byte {offset}",
                where=self._shard,
                remedy="repack the shard with its members sorted by name",
                shard=self._shard,
                offset=offset,
                key=key,
            )
        shape = earlier | fields
        self._fields_of_key[key] = self._shapes.setdefault(shape, shape)
        self._fields_of_sample = set()


def index_shard(
    tar: Path | Location | StoredBytes,
    *,
    name: str,
    checksums: bool,
    allow_empty: bool = False,
    types: Mapping[str, FieldType] | None = None,
) -> ShardIndex:
    """Index a tar.

    Args:
        tar: path or bytes of an uncompressed tar.
        name: name of the tar in errors.
        checksums: whether to read the data for checksums of the members and the shard, and for
            the sizes of pictures; if False, only headers are read, and only they get checksums.
        allow_empty: whether to accept a tar whose members belong to no sample.
        types: types of fields by name; other fields have their default types.

    Raises:
        TarError: the tar is corrupt or empty, or its members do not form samples.
        ShardioError: the file was truncated while it was read.
        OSError: the file cannot be read.
    """
    data = tar if isinstance(tar, StoredBytes) else StoredBytes(locate(tar).open(name))
    index, members = _index_bytes(data, name=name, checksums=checksums, types=types)
    if len(members) and not len(index) and not allow_empty:
        raise TarError(describe_no_samples(members), where=name, remedy=name_fields(), shard=name)
    return index


def name_fields() -> str:
    """Return the advice for a tar whose members belong to no sample."""
    return (
        "name members KEY.FIELD, such as 0001.jpg, leave the shard out, or allow it with "
        f"{argument('allow_empty', True)}"
    )


def describe_no_samples(members: Members) -> str:
    """Describe members that form no sample: how many there are, and why none is a field."""
    why: Counter[str] = Counter()
    first = ""
    for raw, kind in zip(members.names, members.kinds, strict=True):
        name = raw.decode("utf-8", "surrogateescape")
        why["that are folders" if kind == _DIRECTORY else why_no_sample(name)] += 1
        first = first or name
    reasons = ", ".join(f"{count:,} {which}" for which, count in why.most_common())
    return (
        f"it has {counted(len(members), 'member')} but no field of a sample: {reasons}, such as "
        f"{quoted(first)}"
    )


def warn_of_dots(where: object, fields: Iterable[str], rare: set[str]) -> None:
    """Log a warning, once per process and place, if names have dots that split samples apart.

    Args:
        where: shard or folder.
        fields: names of all fields there.
        rare: names of those that few samples have, so that an index keeps them apart.
    """
    inner = sorted(field for field in fields if "." in field)
    alike = Counter(field.rpartition(".")[2] for field in inner)
    end, count = max(alike.items(), key=lambda item: item[1], default=("", 0))
    if max(count, len(rare)) <= _MANY_ALIKE or f"{where}, dots" in _warned:
        return
    _warned.add(f"{where}, dots")
    if count > _MANY_ALIKE:
        first = next(field for field in inner if field.endswith(f".{end}"))
        what = f"{count:,} different fields end in {quoted(f'.{end}')}"
    else:
        first = min(rare)
        what = f"few samples have any of {len(rare):,} different fields"
    _LOG.warning(
        "%s: %s; a field begins at the first dot of a name, so that 'KEY.%s' is the field %s of "
        "the sample 'KEY'; if that is not meant, %s",
        where,
        what,
        shown(first),
        quoted(first),
        WITHOUT_DOTS,
    )


def warn_of_missing_ends(shards: Iterable[str]) -> None:
    """Log a warning for shards without an end-of-archive mark, once per process and shard.

    Args:
        shards: names of the shards.
    """
    new = [shard for shard in dict.fromkeys(shards) if shard not in _warned]
    _warned.update(new)
    if len(new) > _MOST_NAMED:
        _LOG.warning("%s and %s other shards: %s", new[0], f"{len(new) - 1:,}", MISSING_END)
        return
    for shard in new:
        _LOG.warning("%s: %s", shard, MISSING_END)


def _index_bytes(
    data: StoredBytes, *, name: str, checksums: bool, types: Mapping[str, FieldType] | None
) -> tuple[ShardIndex, Members]:
    members = scan_members(data, shard=name)
    builder = IndexBuilder(name)
    places = zip(members.offsets.tolist(), members.sizes.tolist(), strict=True)
    for raw, kind, (offset, size) in zip(members.names, members.kinds, places, strict=True):
        split = split_member_name(raw.decode("utf-8", "surrogateescape"))
        if split is None or kind == _DIRECTORY:
            continue
        if kind != _FILE:
            raise _no_file(name, split, kind, offset)
        checksum, shown = 0, None
        if checksums:
            checksum, shown = _look_at(data, split.field, offset, size, types)
        builder.add(*split, Placed(offset, size, checksum), shown)
    digest = data.sha256() if checksums else None
    index = builder.build(shard_size=len(data), shard_sha256=digest, checksums=checksums)
    if not checksums:
        index = _with_headers(index, members, data)
    return replace(index, has_end=members.has_end), members


def _look_at(
    data: StoredBytes,
    field: str,
    offset: int,
    size: int,
    types: Mapping[str, FieldType] | None,
) -> tuple[int, PictureSize | None]:
    """Return the checksum of a member and, if it is a picture, its size."""
    if size > _MOST_PROBED or not is_sized(field, types):
        return data.crc32(offset, size), None
    content = data[offset : offset + size]
    return crc32(content), size_of(field, content, types)


def _with_headers(index: ShardIndex, members: Members, data: StoredBytes) -> ShardIndex:
    """Add the offsets and checksums of the headers of each field."""
    there = index.offsets >= 0
    ends: NDArray[np.int64] = index.offsets[there]
    starts = index.offsets.copy()
    starts[there] = members.starts[np.searchsorted(members.offsets, ends)]
    headers = np.zeros(index.offsets.shape, np.uint32)
    spans = zip(starts[there].tolist(), ends.tolist(), strict=True)
    headers[there] = [zlib.crc32(data[start:end]) for start, end in spans]
    return replace(index, starts=starts, headers=headers)


def _no_file(shard: str, name: MemberName, kind: int, offset: int) -> TarError:
    what = _KINDS.get(chr(kind))
    reason = (
        f"has the type {chr(kind)!r} and is not a regular file; pack the shard again"
        if what is None
        else f"is {what} and has no data; make the tar with `tar --dereference --hard-dereference`"
    )
    return TarError(
        f"field {quoted(name.field)} of sample {quoted(name.key)}, before byte {offset}, {reason}",
        where=shard,
        shard=shard,
        offset=offset,
        key=name.key,
        field=name.field,
    )


class MemberGroup(NamedTuple):
    """Adjacent members with one key.

    Attributes:
        key: key of the sample.
        members: number of the member by field; the first one if there are several.
        repeated: fields that occur again, and the numbers of those members.
    """

    key: str
    members: dict[str, int]
    repeated: list[tuple[str, int]]


class NoSample(NamedTuple):
    """Member that belongs to no sample.

    Attributes:
        number: number of the member in the shard.
        name: name of the member as text.
        is_file: whether the member has data; False for links and devices.
    """

    number: int
    name: str
    is_file: bool


def group_members(members: Members) -> tuple[list[MemberGroup], list[NoSample]]:
    """Group the members of a shard into samples.

    Returns:
        The groups in order, and the members that belong to no sample, without folders.
    """
    groups: list[MemberGroup] = []
    others: list[NoSample] = []
    for number, (raw, kind) in enumerate(zip(members.names, members.kinds, strict=True)):
        if kind == _DIRECTORY:
            continue
        name = raw.decode("utf-8", "surrogateescape")
        split = split_member_name(name)
        if split is None or kind != _FILE:
            others.append(NoSample(number, name, kind == _FILE or split is None))
            continue
        if not groups or groups[-1].key != split.key:
            groups.append(MemberGroup(split.key, {}, []))
        if groups[-1].members.setdefault(split.field, number) != number:
            groups[-1].repeated.append((split.field, number))
    return groups, others
