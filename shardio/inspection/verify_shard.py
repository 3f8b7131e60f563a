"""Verify one shard: a function from a task to a report, run in any process.

The headers are walked first. Then all bytes are read once, in order. Each member is compared with
the index and with what the name of its field promises; the bytes between members must be zeros; and
the SHA-256 of the whole must be that of the manifest. A compressed shard is decompressed first.

Adjacent members with one key are a run. In a sound shard each run is a sample: no key has two runs,
and no run has a field twice. Everything else is a finding.
"""

from __future__ import annotations

import errno
import hashlib
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardio.checks import whole_number
from shardio.errors import CodecError, IndexFileError, ShardioError, TarError, counted, quoted
from shardio.fields.base import FieldType
from shardio.fields.defaults import type_of
from shardio.fields.formats import IMAGE_FIELDS
from shardio.indexing.manifest import index_path
from shardio.indexing.scan import NAME_FIELDS, describe_no_samples
from shardio.indexing.shard_index import ShardIndex, read_index
from shardio.inspection.findings import Finding, Findings, ScopedShard
from shardio.naming import split_member_name
from shardio.packing.engine import Ticker
from shardio.packing.listing import hash_key
from shardio.packing.task import decoding
from shardio.storage.base import StoredBytes
from shardio.storage.compression import decompress, find_compression
from shardio.storage.local import FileBytes
from shardio.storage.location import Location
from shardio.storage.temporary import explained
from shardio.tar.header import DIRECTORY, FILE, padded
from shardio.tar.reader import Members
from shardio.tar.salvage import Gap, walk_members

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldCheck:
    """How closely the data of fields are looked at.

    Attributes:
        deep: whether they are decoded whole; otherwise only the header and the end of images
            are looked at.
        max_pixels: greatest number of pixels of an image, see shardio.fields.limits.
        types: types of a user by field name; other fields have their default types.

    Raises:
        UsageError: invalid max_pixels.
    """

    deep: bool
    max_pixels: int
    types: Mapping[str, FieldType] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole_number("max_pixels", self.max_pixels, least=1)

    def fault(self, field: str, data: memoryview) -> CodecError | None:
        """Return why the data of a field are not sound; None if they are."""
        try:
            type_of(field, self.max_pixels, self.types).check(data, deep=self.deep)
        except CodecError as error:
            return error
        except MemoryError:
            return CodecError("this machine does not have the memory to decode it")
        return None

    def is_delivered(self, field: str, data: memoryview) -> bool:
        """Tell whether readers deliver data that have their checksum and are not sound."""
        try:
            type_of(field, self.max_pixels, self.types).decode_verified(data)
        except (CodecError, MemoryError):
            return False
        return True

    def context(self) -> AbstractContextManager[None]:
        """The context of checks, which decode images if they are deep."""
        return decoding() if self.deep else nullcontext()


_GET_AGAIN = "get or pack the shard again, or write what is whole to a new folder with --fix"


class Comparison:
    """Takes the members of a shard one by one.

    Args:
        index: index of the shard.
        found: takes what differs.

    Attributes:
        cut: whether members are missing behind the end of the shard, known after `finish`.
    """

    def __init__(self, index: ShardIndex, found: Findings) -> None:
        rows, columns = np.nonzero(index.offsets >= 0)
        places = index.offsets[rows, columns].tolist()
        self._index = index
        self._found = found
        self._left = dict(
            zip(places, zip(rows.tolist(), columns.tolist(), strict=True), strict=True)
        )
        self._differ = 0
        self.cut = False
        self._strangers: dict[tuple[str, str], int] = {}

    def look_at(self, key: str, field: str, offset: int, data: memoryview) -> bool:
        """Compare a member; returns whether its data are what the index says, as far as it does."""
        row, column = self._left.get(offset, (-1, -1))
        if row < 0 or (self._index.key(row), self._index.fields[column]) != (key, field):
            self._strangers[key, field] = offset
            return True
        del self._left[offset]
        size, fault = int(self._index.sizes[row, column]), None
        if size != len(data):
            fault = f"the member has {counted(len(data), 'byte')}, by the index {size:,}"
        elif not self._fits(row, column, data):
            fault = "the data are not what was packed (CRC-32 differs)"
        if fault is not None:
            self._add(fault, key, field, offset)
        return fault is None

    def finish(self, *, samples: int, data: StoredBytes) -> None:
        """Say what is left over on both sides.

        Args:
            samples: in the shard.
            data: data of the shard.
        """
        moved: list[tuple[str, str, int]] = []
        behind: list[tuple[str, str, int]] = []
        for offset, (row, column) in self._left.items():
            key, field = self._index.key(row), self._index.fields[column]
            place = self._strangers.pop((key, field), None)
            if place is not None:
                moved.append((key, field, place))
                continue
            end = offset + int(self._index.sizes[row, column])
            if end > len(data):
                behind.append((key, field, offset))
                continue
            content = memoryview(data[offset:end])
            still = ", though its data are" if self._fits(row, column, content) else ""
            self._add(f"no header says that this member is there{still}", key, field, offset)
        if behind:
            self.cut = True
            key, field, offset = behind[0]
            others = f" and {len(behind) - 1:,} more" if len(behind) > 1 else ""
            self._add(
                f"the shard is cut off at byte {len(data):,}, before the end of this member"
                f"{others}",
                key,
                field,
                offset,
            )
        if moved:
            key, field, offset = moved[0]
            self._add(
                f"this and {len(moved) - 1:,} more members are not where the index says, so bytes "
                "were lost, added or moved",
                key,
                field,
                offset,
            )
        for (key, field), offset in self._strangers.items():
            self._add("the index does not have this member", key, field, offset)
        if not self._differ and samples != len(self._index):
            self._found.add(
                f"the shard has {counted(samples, 'sample')}, by the index {len(self._index):,}",
                _GET_AGAIN,
            )

    @property
    def has_checksums(self) -> bool:
        """Whether members that `look_at` accepts have the checksums of the index."""
        return self._index.checksums is not None

    def _fits(self, row: int, column: int, data: memoryview) -> bool:
        sums = self._index.checksums
        return sums is None or int(sums[row, column]) == zlib.crc32(data)

    def _add(self, what: str, key: str, field: str, offset: int) -> None:
        self._differ += 1
        self._found.add(what, _GET_AGAIN, key=key, field=field, offset=offset)


class Run(NamedTuple):
    """Adjacent members with one key.

    Attributes:
        key: key of the sample.
        members: number of the member by field; of a field that is there twice, the first.
        again: fields that are there again, and the numbers of those members.
    """

    key: str
    members: dict[str, int]
    again: list[tuple[str, int]]


class NoSample(NamedTuple):
    """A member that belongs to no sample.

    Attributes:
        number: number of the member in the shard.
        name: as text.
        is_file: False for links, devices and the like, whose data are elsewhere.
    """

    number: int
    name: str
    is_file: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouped:
    """The members of a shard by sample.

    Attributes:
        runs: in order.
        others: members of no sample, but for folders.
    """

    runs: list[Run]
    others: list[NoSample]


def group_members(members: Members) -> Grouped:
    """Group members into samples, by the one rule of names."""
    runs: list[Run] = []
    others: list[NoSample] = []
    for number, (raw, kind) in enumerate(zip(members.names, members.kinds, strict=True)):
        if kind == DIRECTORY[0]:
            continue
        name = raw.decode("utf-8", "surrogateescape")
        split = split_member_name(name)
        if split is None or kind != FILE[0]:
            others.append(NoSample(number, name, kind == FILE[0] or split is None))
            continue
        if not runs or runs[-1].key != split.key:
            runs.append(Run(split.key, {}, []))
        if runs[-1].members.setdefault(split.field, number) != number:
            runs[-1].again.append((split.field, number))
    return Grouped(runs=runs, others=others)


_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def open_plain(place: Path | Location) -> Iterator[tuple[StoredBytes, TarError | None]]:
    """Open a shard as it is now.

    Yields:
        The plain tar, and what is wrong with its compression, after which nothing follows.

    Raises:
        OSError: it cannot be read.
        ShardioError: there is no space for the decompressed tar, or what decompresses it is not
            installed.
    """
    if isinstance(place, Location) and not place.is_local:
        try:
            file = place.open()
        except TarError as error:
            raise OSError(errno.EINVAL, error.what, str(place)) from error
        yield StoredBytes(file), None
        return
    path = Path(place)
    compression = find_compression(path)
    if compression is None:
        with path.open("rb") as stream:
            yield FileBytes(stream, str(path)), None
        return
    with explained():
        temporary = tempfile.TemporaryFile()  # noqa: SIM115  closed below
    with temporary as plain:
        fault = None
        try:
            decompress(path, compression, plain)
        except TarError as error:
            fault = error
        except OSError as error:
            if error.errno not in _FULL:
                raise
            with explained():
                raise
        plain.flush()
        yield FileBytes(plain, str(path)), fault


_MEGABYTE = 1 << 20
_MOST_SHAPES = 1000  # sets of fields that are told apart
_FIX = "write what is whole to a new folder with --fix"
_AGAIN = f"get or pack it again, or {_FIX}"
_INDEX_AGAIN = "run `shardio index` on the folder of the shard"
_SORTED = "pack the shard again with its members sorted by name, or use --fix"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyTask:
    """One shard to verify.

    Attributes:
        shard: shard to verify.
        check: check of the data of fields.
        allow_empty: take members as they are if none is a field of a sample.
        size: bytes of the file; 0 if they are not known.
    """

    shard: ScopedShard
    check: FieldCheck
    allow_empty: bool
    size: int

    def __len__(self) -> int:
        """Megabytes to read."""
        return (self.size + _MEGABYTE - 1) // _MEGABYTE


class Shape(NamedTuple):
    """Samples that have the same fields.

    Attributes:
        samples: number of samples.
        key: key of the first sample.
    """

    samples: int
    key: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShardReport:
    """What was found in one shard.

    Attributes:
        members: in the shard.
        bytes: size of the plain tar in bytes.
        fields: names of the fields that occur.
        shapes: samples by the fields they have; fields of images count as one.
        hashes: uint64 [samples], of their keys.
        offsets: int64 [samples], where the data of the first member of each start.
        findings: about the shard and its index.
    """

    members: int = 0
    bytes: int = 0
    fields: frozenset[str] = frozenset()
    shapes: Mapping[frozenset[str], Shape] = field(default_factory=dict)
    hashes: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    offsets: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    findings: tuple[Finding, ...]


def task_of(shard: ScopedShard, check: FieldCheck, *, allow_empty: bool) -> VerifyTask:
    """The task of a shard."""
    try:
        found = shard.path.find()
    except OSError:
        found = None
    size = 0 if found is None else found.size
    return VerifyTask(shard=shard, check=check, allow_empty=allow_empty, size=size)


def verify_shard(task: VerifyTask, ticker: Ticker) -> ShardReport:
    """Verify a shard and its index.

    Args:
        task: shard to verify, and how.
        ticker: hears of every megabyte.

    Raises:
        CancelledError: the ticker says so.
    """
    found = Findings(str(task.shard.path))
    index = _read_index(task.shard, found)
    try:
        if task.shard.packed and task.shard.path.is_local:
            _refuse_compressed(Path(task.shard.path), found)
        with open_plain(task.shard.path) as (data, fault), task.check.context():
            if fault is None:
                try:
                    return _verify_data(task, data, index, found, ticker)
                except ShardioError as error:  # it was cut off
                    found.add_error(error)
            else:
                found.add(fault.what, f"{fault.remedy}, or {_FIX}")
    except OSError as error:
        found.add(f"the shard cannot be read ({error.strerror or error})", _AGAIN)
    return ShardReport(findings=found.all())


def _refuse_compressed(path: Path, found: Findings) -> None:
    compression = find_compression(path)
    if compression is not None:
        found.add(
            f"the shard is compressed with {compression.name}, and the shards of a manifest are "
            "plain tars",
            f"decompress it with `{compression.name} -d`, or {_FIX}",
        )


def _read_index(shard: ScopedShard, found: Findings) -> ShardIndex | None:
    """The index, held against the manifest."""
    path = index_path(shard.path)
    if not (shard.packed or path.exists()):
        return None
    try:
        index = read_index(path)
    except IndexFileError as error:
        found.add_error(error)
        return None
    except OSError as error:
        found.add(f"the index cannot be read ({error.strerror or error})", _INDEX_AGAIN)
        return None
    receipt = shard.receipt
    if receipt is not None:
        told = (index.shard_size, len(index), index.shard_sha256)
        if told != (receipt.size, receipt.samples, receipt.sha256):
            found.add(
                f"the index is of another shard than the manifest: it says {told[1]:,} samples in "
                f"{told[0]:,} bytes, the manifest {receipt.samples:,} in {receipt.size:,}, or "
                "another SHA-256",
                _INDEX_AGAIN,
            )
    return index


def _verify_data(
    task: VerifyTask, data: StoredBytes, index: ShardIndex | None, found: Findings, ticker: Ticker
) -> ShardReport:
    walk = walk_members(data)
    last = [gap for gap in walk.gaps[-1:] if gap.end == len(data)]
    _add_gaps(walk.gaps[: len(walk.gaps) - len(last)], found)
    if walk.members.trailer is not None and not walk.gaps:
        found.add(
            f"{len(data) - walk.members.trailer:,} bytes that are no members follow the end of "
            "the archive",
            "readers pass over them; cut them off if they are not wanted",
            severity="note",
            offset=walk.members.trailer,
        )
    grouped = group_members(walk.members)
    samples = _verify_names(grouped, walk.members, found)
    if len(walk.members) and not samples and not task.allow_empty:
        found.add(describe_no_samples(walk.members), NAME_FIELDS)
    comparison = None if index is None else Comparison(index, found)
    digest = _read_through(task, data, walk.members, grouped, comparison, found, ticker)
    if comparison is not None:
        comparison.finish(samples=len(samples), data=data)
    if comparison is None or not comparison.cut:  # which is told, with what was lost
        _add_gaps(last, found)
        _compare_whole(task.shard, index, len(data), digest, len(samples), found)
    return ShardReport(
        members=len(walk.members),
        bytes=len(data),
        fields=frozenset().union(*(sample.fields for sample in samples.values())),
        shapes=_shapes(samples),
        hashes=np.array([hash_key(key) for key in samples], np.uint64),
        offsets=np.array([sample.offset for sample in samples.values()], np.int64),
        findings=found.all(),
    )


def _add_gaps(gaps: Sequence[Gap], found: Findings) -> None:
    for gap in gaps:
        what = gap.error.what
        if gap.end > gap.start:
            what += f", and {gap.end - gap.start:,} bytes from there on are in no member"
        found.add(what, gap.error.remedy or "", offset=gap.start)


class _Sample(NamedTuple):
    offset: int
    fields: set[str]


def _verify_names(grouped: Grouped, members: Members, found: Findings) -> dict[str, _Sample]:
    """Hold the names of members against the rules; returns the samples by key."""
    samples: dict[str, _Sample] = {}
    for run in grouped.runs:
        offset = int(members.offsets[min(run.members.values())])
        for name, number in run.again:
            found.add(
                "the sample has this field twice",
                "give one of the members another name, or use --fix",
                key=run.key,
                field=name,
                offset=int(members.offsets[number]),
            )
        earlier = samples.setdefault(run.key, _Sample(offset, set()))
        if earlier.fields.isdisjoint(run.members):
            if earlier.fields:
                found.add("its members are not adjacent", _SORTED, key=run.key, offset=offset)
        else:
            found.add(
                f"its key is that of another sample, at byte {earlier.offset}",
                "rename one, or use --fix to keep the first",
                key=run.key,
                offset=offset,
            )
        earlier.fields.update(run.members)
    _verify_others(grouped, members, found)
    return samples


def _verify_others(grouped: Grouped, members: Members, found: Findings) -> None:
    for other in grouped.others:
        if not other.is_file:
            found.add(
                f"the member {quoted(other.name)} is a link or device and has no data",
                "make the tar with `tar --dereference --hard-dereference`",
                offset=int(members.offsets[other.number]),
            )
    passed = [other for other in grouped.others if other.is_file]
    if passed:
        found.add(
            f"{len(passed):,} members belong to no sample, by their names; the first is "
            f"{quoted(passed[0].name)}",
            "readers pass over them; name members key.field if they are data",
            severity="note",
            offset=int(members.offsets[passed[0].number]),
        )


def _read_through(
    task: VerifyTask,
    data: StoredBytes,
    members: Members,
    grouped: Grouped,
    comparison: Comparison | None,
    found: Findings,
    ticker: Ticker,
) -> str:
    """Read all bytes once; returns the SHA-256."""
    names: dict[int, tuple[str, str]] = {}
    for run in grouped.runs:
        for name, number in (*run.members.items(), *run.again):
            names[number] = (run.key, name)
    padding: list[int] = []
    delivered: list[int] = []
    has_sums = comparison is not None and comparison.has_checksums
    hashing = _Hashing(data, len(task), ticker)
    places = zip(members.offsets.tolist(), members.sizes.tolist(), strict=True)
    for number, (offset, size) in enumerate(places):
        hashing.go_to(offset + padded(size))
        if data[offset + size : offset + padded(size)].strip(b"\0"):
            padding.append(offset + size)
        if number not in names:
            continue
        key, name = names[number]
        content = memoryview(data[offset : offset + size])
        if comparison is not None and not comparison.look_at(key, name, offset, content):
            continue
        fault = task.check.fault(name, content)
        if fault is not None and has_sums and task.check.is_delivered(name, content):
            delivered.append(offset)
        elif fault is not None:
            remedy = fault.remedy or _AGAIN
            found.add(fault.what, remedy, key=key, field=name, offset=offset)
    hashing.go_to(len(data))
    digest = hashing.finish()
    if delivered:
        found.add(
            f"{counted(len(delivered), 'field')} with bytes too many behind the data, as damaged "
            "ones have them, but with the checksums of what was packed",
            "they are delivered; compare them with their source if in doubt",
            severity="note",
            offset=delivered[0],
        )
    if padding:
        found.add(
            f"what follows the data of {len(padding):,} members up to the next header is not zero",
            "readers pass over it, but tools write zeros, so the shard may be damaged",
            severity="note" if task.shard.receipt is None else "problem",
            offset=padding[0],
        )
    return digest


class _Hashing:
    """The SHA-256 of a shard as far as it was read.

    Args:
        data: data of the shard.
        ticks: megabytes to count at most.
        ticker: hears of them.
    """

    def __init__(self, data: StoredBytes, ticks: int, ticker: Ticker) -> None:
        self._data = data
        self._left = ticks
        self._ticker = ticker
        self._digest = hashlib.sha256()
        self._position = 0

    def go_to(self, end: int) -> None:
        """Read on up to an offset."""
        end = min(end, len(self._data))
        while self._position < end:
            step = min(_MEGABYTE, end - self._position)
            self._digest.update(self._data[self._position : self._position + step])
            before = self._position // _MEGABYTE
            self._position += step
            if self._position // _MEGABYTE > before and self._left:
                self._tick(1)

    def finish(self) -> str:
        """Count what is left; returns the digest, hexadecimal."""
        self._tick(self._left)
        return self._digest.hexdigest()

    def _tick(self, count: int) -> None:
        self._left -= count
        self._ticker.tick(count)


def _compare_whole(
    shard: ScopedShard,
    index: ShardIndex | None,
    size: int,
    digest: str,
    samples: int,
    found: Findings,
) -> None:
    """Hold size, SHA-256 and count against the manifest, or else the index."""
    if shard.receipt is not None:
        told, by = (shard.receipt.size, shard.receipt.sha256), "manifest"
    elif index is not None:
        told, by = (index.shard_size, index.shard_sha256 or digest), "index"
    else:
        return
    if size != told[0]:
        found.add(f"the shard has {counted(size, 'byte')}, by the {by} {told[0]:,}", _AGAIN)
    elif digest != told[1]:
        found.add(f"the SHA-256 of the shard is not that in the {by}", _AGAIN)
    if shard.receipt is not None and samples != shard.receipt.samples:
        found.add(
            f"the shard has {counted(samples, 'sample')}, by the manifest "
            f"{shard.receipt.samples:,}",
            _AGAIN,
        )


def _shapes(samples: Mapping[str, _Sample]) -> dict[frozenset[str], Shape]:
    shapes: dict[frozenset[str], Shape] = {}
    for key, sample in samples.items():
        names = frozenset(map(alike, sample.fields))
        if names in shapes or len(shapes) < _MOST_SHAPES:
            before = shapes.get(names, Shape(0, key))
            shapes[names] = Shape(before.samples + 1, before.key)
    return shapes


def alike(name: str) -> str:
    """The name of a field, the same for all formats of an image."""
    head, dot, last = name.rpartition(".")
    return f"{head}{dot}image" if last in IMAGE_FIELDS else name
