"""Verifying one shard: a function from a task to a report, run anywhere.

The headers are walked first, then all bytes are read once, in order: each member is held against
the index and against what its field's name says, what lies between members must be zeros, and the
SHA-256 of it all is that of the manifest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardio.codecs.registry import IMAGE_FIELDS
from shardio.errors import IndexFileError, ShardioError, counted, quoted
from shardio.index.build import NAME_FIELDS, describe_no_samples
from shardio.index.manifest import index_path
from shardio.index.shard_index import ShardIndex, read_index
from shardio.packing.engine import Ticker
from shardio.packing.spool import hash_key
from shardio.packing.verification.compare import Comparison
from shardio.packing.verification.contents import FieldCheck
from shardio.packing.verification.findings import Finding, Findings
from shardio.packing.verification.grouping import Grouped, group_members
from shardio.packing.verification.plain import open_plain
from shardio.packing.verification.scope import ScopedShard
from shardio.storage.local import FileBytes
from shardio.tar.header import padded
from shardio.tar.reader import Members
from shardio.tar.salvage import Gap, walk_members

_MEGABYTE = 1 << 20
_MOST_SHAPES = 1000  # sets of fields that are told apart
_AGAIN = "get or pack it again, or write what is whole to a new folder with --fix"
_INDEX_AGAIN = "run `shardio index` on the folder of the shard"
_SORTED = "pack the shard again with its members sorted by name, or use --fix"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyTask:
    """One shard to verify.

    Attributes:
        shard: which.
        check: how closely fields are looked at.
        allow_empty: take members as they are if none is a field of a sample.
        size: of the file in bytes, as far as it is known.
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
        samples: how many.
        key: of the first.
    """

    samples: int
    key: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShardReport:
    """What was found in one shard.

    Attributes:
        members: in the shard.
        bytes: of the plain tar.
        fields: that occur.
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
        size = os.stat(shard.path).st_size  # noqa: PTH116  as Path.stat
    except OSError:
        size = 0
    return VerifyTask(shard=shard, check=check, allow_empty=allow_empty, size=size)


def verify_shard(task: VerifyTask, ticker: Ticker) -> ShardReport:
    """Verify a shard and its index.

    Args:
        task: which.
        ticker: hears of every megabyte.

    Raises:
        CancelledError: the ticker says so.
    """
    found = Findings(str(task.shard.path))
    index = _read_index(task.shard, found)
    try:
        with open_plain(task.shard.path) as (data, fault), task.check.context():
            if fault is None:
                try:
                    return _verify_data(task, data, index, found, ticker)
                except ShardioError as error:  # it was cut off
                    found.add_error(str(error))
            else:
                found.add(fault, _AGAIN)
    except OSError as error:
        found.add(f"the shard cannot be read ({error.strerror or error})", _AGAIN)
    return ShardReport(findings=found.all())


def _read_index(shard: ScopedShard, found: Findings) -> ShardIndex | None:
    """The index, held against the manifest."""
    path = index_path(shard.path)
    if not (shard.packed or path.exists()):
        return None
    try:
        index = read_index(path)
    except IndexFileError as error:
        found.add_error(str(error))
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
    task: VerifyTask, data: FileBytes, index: ShardIndex | None, found: Findings, ticker: Ticker
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
        what, _, remedy = gap.reason.rpartition("; ")
        if gap.end > gap.start:
            what += f", and {gap.end - gap.start:,} bytes from there on are in no member"
        found.add(what, remedy, offset=gap.start)


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
    data: FileBytes,
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
        if fault is not None:
            found.add(fault, _AGAIN, key=key, field=name, offset=offset)
    hashing.go_to(len(data))
    digest = hashing.finish()
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
        data: of the shard.
        ticks: megabytes to count at most.
        ticker: hears of them.
    """

    def __init__(self, data: FileBytes, ticks: int, ticker: Ticker) -> None:
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
