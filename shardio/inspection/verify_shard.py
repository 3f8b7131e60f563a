"""Verify one shard: a function from a task to a report, run in any process.

The headers are walked first. Then all bytes are read once, in order. Each member is compared with
the index, and its data are checked by the type of its field. The bytes between members must be
zeros, and the SHA-256 of the shard that of the manifest. A compressed shard is decompressed first.

In a sound shard, each group of adjacent members with one key is a sample: no key has two groups,
and no group has a field twice. Everything else is a finding.

A corrupt byte is one finding. A SHA-256, size or sample count that differs is a finding of its own
only if nothing else shows that the shard was changed, and members that the index lists inside a gap
are part of the finding about the gap.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardio.errors import (
    CodecError,
    IndexFileError,
    ShardioError,
    TarError,
    counted,
    in_words,
    quoted,
)
from shardio.fields.defaults import size_of
from shardio.fields.probe import PictureSize
from shardio.indexing.manifest import index_path
from shardio.indexing.publish import refuse_compressed
from shardio.indexing.scan import (
    MemberGroup,
    NoSample,
    describe_no_samples,
    group_members,
    name_fields,
)
from shardio.indexing.shard_index import ShardIndex, read_index
from shardio.inspection.contents import FieldCheck, FieldTotals, Place, Statistics
from shardio.inspection.counts import FieldSet, count_field_sets
from shardio.inspection.findings import Finding, Findings, ScopedShard
from shardio.native.checksum import crc32
from shardio.packing.engine import Ticker
from shardio.packing.listing import hash_key
from shardio.storage.base import StoredBytes, restore
from shardio.storage.compression import LONGEST_MAGIC, compression_of, decompress_file
from shardio.storage.local import FileBytes
from shardio.storage.location import Location
from shardio.storage.temporary import explained, local_copy
from shardio.tar.header import padded
from shardio.tar.reader import Members
from shardio.tar.salvage import Gap, walk_members

_INDEX_AGAIN = "run `shardio index` on the folder of the shard"


def _fix() -> str:
    return in_words("`shardio.repair`", "`shardio verify --fix`")


def keep_first() -> str:
    """Return the advice for keys that occur twice."""
    return f"rename one, or keep the first with {_fix()}"


def _save() -> str:
    return f"write the intact samples to a new folder with {_fix()}"


def _again() -> str:
    return f"{restore()}, or {_save()}"


class _Lost(NamedTuple):
    """Member that the index lists and the headers do not."""

    key: str
    field: str
    offset: int
    intact: bool  # whether its data are as in the index


class Comparison:
    """Comparison of the members of a shard with its index, one by one.

    Args:
        index: index of the shard.
        found: collection for the differences.

    Attributes:
        differences: number of differences found.
    """

    def __init__(self, index: ShardIndex, found: Findings) -> None:
        samples, numbers, cells = index.walk()
        members = zip(samples.tolist(), numbers.tolist(), cells.tolist(), strict=True)
        self._index = index
        self._found = found
        self._left = dict(zip(index.offsets.take(cells).tolist(), members, strict=True))
        self._strangers: dict[tuple[str, str], int] = {}
        self.differences = 0

    def compare(
        self, key: str, field: str, offset: int, data: memoryview, shown: PictureSize | None
    ) -> bool:
        """Compare a member, and return whether its data do not contradict the index.

        Args:
            key: key of its sample.
            field: field of the sample.
            offset: offset of its data in the shard.
            data: data of the member.
            shown: size of the picture that it is, if it is one.
        """
        row, number, cell = self._left.get(offset, (-1, -1, -1))
        if row < 0 or (self._index.key(row), self._index.fields[number]) != (key, field):
            self._strangers[key, field] = offset
            return True
        del self._left[offset]
        size, fault = self._index.sizes.item(cell), None
        if size != len(data):
            fault = f"the member has {counted(len(data), 'byte')}, but the index says {size:,}"
        elif not self._fits(cell, data):
            fault = "the data are not what was packed (CRC-32 differs)"
        if fault is not None:
            self._add(fault, key, field, offset)
            return False
        recorded = self._index.picture_size(row, field)
        if None not in (recorded, shown) and recorded != shown:
            what = f"the picture is {shown}, but the index says {recorded}"
            self._found.add(what, _INDEX_AGAIN, key=key, field=field, offset=offset)
        return True

    def finish(self, *, samples: int, data: StoredBytes, gaps: Sequence[Gap]) -> bool:
        """Add the gaps and all other differences; return whether members are missing."""
        moved, behind, lost = self._missing(data)
        if behind:
            key, field, offset = behind[0]
            others = f" and {len(behind) - 1:,} more" if len(behind) > 1 else ""
            self._add(
                f"the shard is truncated at byte {len(data):,}, before the end of this member"
                f"{others}",
                key,
                field,
                offset,
            )
            gaps = [gap for gap in gaps if gap.end < len(data)]
        self.differences += len(gaps)
        for gap in gaps:
            inside = [each for each in lost if gap.start <= each.offset <= gap.end]
            lost = [each for each in lost if each not in inside]
            _add_gap(gap, self._found, inside)
        if moved:
            key, field, offset = moved[0]
            others = f" and {counted(len(moved) - 1, 'other member')}" if len(moved) > 1 else ""
            self._add(
                f"this member{others} moved from the offset in the index, so bytes were lost, "
                "added or moved",
                key,
                field,
                offset,
            )
        for key, field, offset, intact in lost:
            still = ", though its data are intact" if intact else ""
            self._add(f"this member has no header{still}", key, field, offset)
        for (key, field), offset in self._strangers.items():
            self._add("the index does not have this member", key, field, offset)
        if not self.differences and samples != len(self._index):
            self.differences += 1
            self._found.add(
                f"the shard has {counted(samples, 'sample')}, but the index says "
                f"{len(self._index):,}",
                _again(),
            )
        return bool(behind or lost or gaps)

    def _missing(
        self, data: StoredBytes
    ) -> tuple[list[tuple[str, str, int]], list[tuple[str, str, int]], list[_Lost]]:
        """Return the members that moved, that are behind the end, and that have no header."""
        moved: list[tuple[str, str, int]] = []
        behind: list[tuple[str, str, int]] = []
        lost: list[_Lost] = []
        for offset, (row, number, cell) in self._left.items():
            key, field = self._index.key(row), self._index.fields[number]
            place = self._strangers.pop((key, field), None)
            end = offset + self._index.sizes.item(cell)
            if place is not None:
                moved.append((key, field, place))
            elif end > len(data):
                behind.append((key, field, offset))
            else:
                intact = self._fits(cell, memoryview(data[offset:end]))
                lost.append(_Lost(key, field, offset, intact))
        return moved, behind, lost

    @property
    def has_checksums(self) -> bool:
        """Whether members that `look_at` accepts have the checksums of the index."""
        return self._index.checksums is not None

    def _fits(self, cell: int, data: memoryview) -> bool:
        sums = self._index.checksums
        return sums is None or sums.item(cell) == crc32(data)

    def _add(self, what: str, key: str, field: str, offset: int) -> None:
        self.differences += 1
        self._found.add(what, _again(), key=key, field=field, offset=offset)


def _add_gap(gap: Gap, found: Findings, lost: Sequence[_Lost] = ()) -> None:
    """Add a finding about a gap and the members that the index lists in it."""
    what, first = gap.error.what, lost[0] if lost else None
    if first is not None:
        intact = sum(each.intact for each in lost)
        if len(lost) == 1:
            what += ", and tar tools do not find this member"
            what += ", though its data are intact" * intact
        else:
            what += f", and tar tools do not find this and {counted(len(lost) - 1, 'other member')}"
            what += f", though the data of {intact:,} are intact" * bool(intact)
    elif gap.end > gap.start:
        what += f", and bytes {gap.start} to {gap.end} belong to no member"
    found.add(
        what,
        f"{gap.error.remedy}, or {_save()}",
        key=first and first.key,
        field=first and first.field,
        offset=gap.start,
    )


_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def open_plain(place: Path | Location) -> Iterator[tuple[StoredBytes, TarError | None]]:
    """Open a shard, decompressed if necessary.

    Yields:
        The uncompressed tar, and the error at which decompression stopped, or None.

    Raises:
        OSError: the shard cannot be read.
        ShardioError: there is no space for the decompressed tar, or the library for its
            compression is not installed.
    """
    with _opened(place) as stream:
        compression = compression_of(os.pread(stream.fileno(), LONGEST_MAGIC, 0))
        if compression is None:
            yield FileBytes(stream, str(place)), None
            return
        with explained():
            temporary = tempfile.TemporaryFile()  # noqa: SIM115  closed below
        with temporary as plain:
            fault = None
            try:
                decompress_file(stream, compression, plain, name=str(place))
            except TarError as error:
                fault = error
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                with explained():
                    raise
            plain.flush()
            yield FileBytes(plain, str(place)), fault


def _opened(place: Path | Location) -> AbstractContextManager[BinaryIO]:
    """Open a shard; one of a store is copied to the temporary directory."""
    if isinstance(place, Location) and not place.is_local:
        return local_copy(place.copy_to)
    path = Path(place)
    if not (path.is_file() or path.is_dir()):  # opening a pipe would wait
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    return path.open("rb")


_MEGABYTE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyTask:
    """Shard to verify.

    Attributes:
        shard: shard to verify.
        check: check of the data of fields.
        allow_empty: whether to accept a shard whose members belong to no sample.
        size: size of the file in bytes; 0 if it is not known.
    """

    shard: ScopedShard
    check: FieldCheck
    allow_empty: bool
    size: int

    def __len__(self) -> int:
        """Return the number of bytes to read."""
        return self.size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShardReport:
    """Result of verifying one shard.

    Attributes:
        members: number of members in the shard.
        bytes: size of the uncompressed tar.
        complete: whether no member is missing, as far as is known.
        fields: names of the fields that occur.
        field_sets: samples by the fields they have; fields of images count as one.
        hashes: hashes of the keys, uint64 [samples].
        offsets: offset of the data of each sample's first member, int64 [samples].
        totals: totals of the fields, by name.
        findings: findings about the shard and its index.
    """

    members: int = 0
    bytes: int = 0
    complete: bool = False
    fields: frozenset[str] = frozenset()
    field_sets: Mapping[frozenset[str], FieldSet] = field(default_factory=dict)
    hashes: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    offsets: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    totals: tuple[FieldTotals, ...] = ()
    findings: tuple[Finding, ...]


def task_of(shard: ScopedShard, check: FieldCheck, *, allow_empty: bool) -> VerifyTask:
    """Return the task of a shard."""
    try:
        found = shard.path.find()
    except OSError:
        found = None
    size = 0 if found is None else found.size
    return VerifyTask(shard=shard, check=check.of(shard), allow_empty=allow_empty, size=size)


def verify_shard(task: VerifyTask, ticker: Ticker) -> ShardReport:
    """Verify a shard and its index.

    Args:
        task: shard to verify.
        ticker: progress counter, advanced by one for every megabyte.

    Raises:
        CancelledError: the ticker was cancelled.
    """
    found = Findings(str(task.shard.path))
    index = _read_index(task.shard, found)
    try:
        if task.shard.packed and task.shard.path.is_local:
            try:
                refuse_compressed(Path(task.shard.path))
            except IndexFileError as error:
                found.add(error.what, f"{error.remedy}, or {_save()}")
        with open_plain(task.shard.path) as (data, fault), task.check.context():
            if fault is None:
                try:
                    return _verify_data(task, data, index, found, ticker)
                except ShardioError as error:  # the shard was truncated just now
                    found.add_error(error)
            else:
                found.add(fault.what, f"{fault.remedy}, or {_save()}")
    except OSError as error:
        found.add(f"the shard cannot be read ({error.strerror or error})", _again())
    return ShardReport(findings=found.all())


def _read_index(shard: ScopedShard, found: Findings) -> ShardIndex | None:
    """Read the index; None if it is missing, corrupt, or that of another shard."""
    path = index_path(shard.path)
    if not (shard.packed or path.exists()):
        return None
    try:
        known = None if shard.receipt is None else shard.receipt.size
        index = read_index(path, shard_size=known)
    except IndexFileError as error:
        found.add_error(error)
        return None
    except OSError as error:
        found.add(f"the index cannot be read ({error.strerror or error})", _INDEX_AGAIN)
        return None
    receipt = shard.receipt
    if receipt is None:
        return index
    stated = (index.shard_size, len(index), index.shard_sha256)
    if stated == (receipt.size, receipt.samples, receipt.sha256):
        return index
    found.add(
        "the index is of another shard than the manifest (its SHA-256 differs)",
        _INDEX_AGAIN,
    )
    return None


def _verify_data(
    task: VerifyTask, data: StoredBytes, index: ShardIndex | None, found: Findings, ticker: Ticker
) -> ShardReport:
    walk = walk_members(data)
    if walk.members.trailer is not None and not walk.gaps:
        found.add(
            f"{len(data) - walk.members.trailer:,} bytes that are no members follow the end of "
            "the archive",
            "readers skip them; remove them if they are not needed",
            severity="note",
            offset=walk.members.trailer,
        )
    groups, others = group_members(walk.members)
    samples = _verify_names(groups, walk.members, found)
    _verify_others(others, walk.members, found)
    if len(walk.members) and not samples and not task.allow_empty:
        found.add(describe_no_samples(walk.members), name_fields())
    comparison = None if index is None else Comparison(index, found)
    contents = _Contents(task, comparison, found)
    digest, padding = _read_through(task, data, walk.members, groups, contents, ticker)
    _describe_padding(padding, task.shard, found)
    if comparison is not None:
        incomplete = comparison.finish(samples=len(samples), data=data, gaps=walk.gaps)
        changed = comparison.differences > 0
    else:
        for gap in walk.gaps:
            _add_gap(gap, found)
        incomplete = changed = bool(walk.gaps)
    if not changed and not padding:
        _compare_whole(task.shard, index, len(data), digest, len(samples), found)
    return ShardReport(
        members=len(walk.members),
        bytes=len(data),
        complete=not incomplete,
        fields=frozenset().union(*(sample.fields for sample in samples.values())),
        field_sets=count_field_sets({key: each.fields for key, each in samples.items()}),
        hashes=np.array([hash_key(key) for key in samples], np.uint64),
        offsets=np.array([sample.offset for sample in samples.values()], np.int64),
        totals=contents.statistics.totals(),
        findings=found.all(),
    )


class _Sample(NamedTuple):
    offset: int
    fields: set[str]


def _verify_names(
    groups: Sequence[MemberGroup], members: Members, found: Findings
) -> dict[str, _Sample]:
    """Check the names of members, and return the samples by key."""
    samples: dict[str, _Sample] = {}
    for group in groups:
        offset = int(members.offsets[min(group.members.values())])
        for name, number in group.repeated:
            found.add(
                "the sample has this field twice",
                f"rename one of the members, or {_save()}",
                key=group.key,
                field=name,
                offset=int(members.offsets[number]),
            )
        earlier = samples.setdefault(group.key, _Sample(offset, set()))
        if earlier.fields.isdisjoint(group.members):
            if earlier.fields:
                found.add(
                    "the members of this sample are not adjacent",
                    f"pack the shard again with its members sorted by name, or {_save()}",
                    key=group.key,
                    offset=offset,
                )
        else:
            found.add(
                f"the sample at byte {earlier.offset} has the same key",
                keep_first(),
                key=group.key,
                offset=offset,
            )
        earlier.fields.update(group.members)
    return samples


def _verify_others(others: Sequence[NoSample], members: Members, found: Findings) -> None:
    for other in others:
        if not other.is_file:
            found.add(
                f"the member {quoted(other.name)} is a link or device and has no data",
                "create the tar with `tar --dereference --hard-dereference`",
                offset=int(members.offsets[other.number]),
            )
    files = [other for other in others if other.is_file]
    if files:
        found.add(
            f"{counted(len(files), 'member')} outside any sample, the first is "
            f"{quoted(files[0].name)}",
            "readers skip them; name members key.field if they are data",
            severity="note",
            offset=int(members.offsets[files[0].number]),
        )


def _read_through(
    task: VerifyTask,
    data: StoredBytes,
    members: Members,
    groups: Sequence[MemberGroup],
    contents: _Contents,
    ticker: Ticker,
) -> tuple[str, list[int]]:
    """Read all bytes once; return the SHA-256, and the offsets of padding that is not zeros."""
    names: dict[int, tuple[MemberGroup, str]] = {}
    for group in groups:
        for name, number in (*group.members.items(), *group.repeated):
            names[number] = (group, name)
    padding: list[int] = []
    hashing = _Hashing(data, len(task), ticker)
    places = zip(members.offsets.tolist(), members.sizes.tolist(), strict=True)
    for number, (offset, size) in enumerate(places):
        hashing.go_to(offset + padded(size))
        if data[offset + size : offset + padded(size)].strip(b"\0"):
            padding.append(offset + size)
        if number in names:
            content = memoryview(data[offset : offset + size])
            contents.look_at(*names[number], offset, content)
    hashing.go_to(len(data))
    contents.finish()
    return hashing.finish(), padding


class _Contents:
    """Check of the data of members, sample by sample.

    Args:
        task: shard to verify.
        comparison: comparison with the index, if there is one.
        found: collection for the findings.

    Attributes:
        statistics: statistics of the fields.
    """

    def __init__(self, task: VerifyTask, comparison: Comparison | None, found: Findings) -> None:
        self._shard = str(task.shard.path)
        self._check = task.check
        self._comparison = comparison
        self._found = found
        self._group: MemberGroup | None = None
        self._sample = task.check.sample(())
        self._offsets: dict[str, int] = {}
        self._delivered: list[int] = []
        self.statistics = Statistics()

    def look_at(self, group: MemberGroup, name: str, offset: int, content: memoryview) -> None:
        """Check the data of a member."""
        if group is not self._group:
            self._end_sample()
            self._group, self._sample = group, self._check.sample(group.members)
        comparison = self._comparison
        if comparison is not None:
            shown = size_of(name, content, self._check.types)
            if not comparison.compare(group.key, name, offset, content, shown):
                return
        self._offsets[name] = offset
        fault = self._sample.fault(name, content)
        if fault is None:
            return
        has_sum = comparison is not None and comparison.has_checksums
        if has_sum and self._check.is_delivered(name, content):
            self._delivered.append(offset)
        else:
            self._add(fault, group.key, name, offset)

    def finish(self) -> None:
        """Check the last sample, and add what is said once for the shard."""
        self._end_sample()
        if self._delivered:
            self._found.add(
                f"{counted(len(self._delivered), 'field')} with bytes too many behind the data, as "
                "damaged ones have them, but with the checksums of what was packed",
                "they are delivered; compare them with their source if in doubt",
                severity="note",
                offset=self._delivered[0],
            )

    def _end_sample(self) -> None:
        """Check the fields of the current sample together."""
        if self._group is None:
            return
        key = self._group.key
        for name, result in self._sample.finish():
            if isinstance(result, CodecError):
                self._add(result, key, name, self._offsets[name])
            else:
                kind, place = self._check.type_of(name).name, self._offsets[name]
                self.statistics.add(name, kind, result, Place(self._shard, key, place))
        self._offsets.clear()

    def _add(self, fault: CodecError, key: str, name: str, offset: int) -> None:
        remedy = fault.remedy or _again()
        self._found.add(fault.what, remedy, key=key, field=name, offset=offset)


def _describe_padding(offsets: Sequence[int], shard: ScopedShard, found: Findings) -> None:
    if offsets:
        found.add(
            f"the padding after the data of {counted(len(offsets), 'member')} is not zero",
            "readers skip it, but no tool writes such bytes, so the shard may be corrupt; "
            f"{restore()}",
            severity="note" if shard.receipt is None else "problem",
            offset=offsets[0],
        )


class _Hashing:
    """SHA-256 of a shard, computed while it is read.

    Args:
        data: data of the shard.
        ticks: number of bytes to report; of a compressed shard more are read.
        ticker: progress counter.
    """

    def __init__(self, data: StoredBytes, ticks: int, ticker: Ticker) -> None:
        self._data = data
        self._ticks = ticks
        self._told = 0
        self._ticker = ticker
        self._digest = hashlib.sha256()
        self._position = 0

    def go_to(self, end: int) -> None:
        end = min(end, len(self._data))
        while self._position < end:
            step = min(_MEGABYTE, end - self._position)
            self._digest.update(self._data[self._position : self._position + step])
            self._position += step
            if min(self._position, self._ticks) - self._told >= _MEGABYTE:
                self._tell(min(self._position, self._ticks))

    def finish(self) -> str:
        """Report the remaining bytes, and return the hexadecimal digest."""
        self._tell(self._ticks)
        return self._digest.hexdigest()

    def _tell(self, position: int) -> None:
        self._ticker.tick(position - self._told)
        self._told = position


def _compare_whole(
    shard: ScopedShard,
    index: ShardIndex | None,
    size: int,
    digest: str,
    samples: int,
    found: Findings,
) -> None:
    """Compare size, SHA-256 and number of samples with the manifest, or else with the index."""
    receipt, intact = shard.receipt, ""
    if receipt is not None:
        expected, by = (receipt.size, receipt.sha256), "manifest"
    elif index is not None:
        expected, by = (index.shard_size, index.shard_sha256 or digest), "index"
    else:
        return
    if index is not None and index.checksums is not None:
        intact = ", though the data of all members are intact"
    if size != expected[0]:
        found.add(
            f"the shard has {counted(size, 'byte')}, but the {by} says {expected[0]:,}{intact}",
            _again(),
        )
    elif digest != expected[1]:
        found.add(f"the SHA-256 of the shard is not that in the {by}{intact}", _again())
    elif receipt is not None and samples != receipt.samples:
        found.add(
            f"the shard has {counted(samples, 'sample')}, but the manifest says "
            f"{receipt.samples:,}",
            _INDEX_AGAIN,
        )
