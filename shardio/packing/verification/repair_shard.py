"""Finding the samples of one shard that are whole, whatever happened to it.

An index that belongs to the shard says what its samples were, and CRC-32s tell whether their data
are still there: where the index says, though headers may be damaged, or where a header says, as
bytes before may be lost. Without such an index the headers that are left say what there is, and
samples of which a part may be lost are not whole.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardio.errors import IndexFileError, ShardioError, quoted
from shardio.index.manifest import index_path
from shardio.index.shard_index import ShardIndex, read_index
from shardio.naming import split_member_name
from shardio.packing.engine import Ticker
from shardio.packing.names import WORK_FOLDER
from shardio.packing.samples import FromRange, Problem, SourceField, SourceSample
from shardio.packing.spool import Spool, SpoolWriter
from shardio.packing.verification.contents import FieldCheck
from shardio.packing.verification.grouping import Grouped, Run, group_members
from shardio.packing.verification.plain import decompress, is_compressed, open_plain
from shardio.packing.verification.scope import ScopedShard
from shardio.packing.verification.verify_shard import alike
from shardio.storage.folder import Folder
from shardio.storage.local import FileBytes
from shardio.tar.salvage import Walk, walk_members


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairTask:
    """One shard to look for whole samples in.

    Attributes:
        shard: which.
        check: how closely fields are looked at.
        out: output folder, in whose work folder the files lie.
        lines: name of the file that the samples go to, a line each.
        plain: name of the file that the tar goes to if it has to be decompressed.
    """

    shard: ScopedShard
    check: FieldCheck
    out: Path
    lines: str
    plain: str

    def __len__(self) -> int:
        return 1


def find_whole(task: RepairTask, ticker: Ticker) -> tuple[Spool, list[Problem]]:
    """List the samples that are whole in the task's file, in their order.

    Args:
        task: which shard.
        ticker: hears of every sample.

    Returns:
        The samples, and what is lost, and why.

    Raises:
        CancelledError: the ticker says so.
        OSError: the file cannot be written.
    """
    problems: list[Problem] = []
    with (
        Folder.open(task.out, WORK_FOLDER) as work,
        work.create(task.lines) as stream,
        task.check.context(),
    ):
        writer = SpoolWriter(stream)
        for found in _find(task, work):
            ticker.tick(1)
            if isinstance(found, Problem):
                problems.append(found)
            else:
                writer.write(found)
        return writer.spool(work, task.lines), problems


def _find(task: RepairTask, work: Folder) -> Iterator[SourceSample | Problem]:
    name, path = str(task.shard.path), task.shard.path
    index = _open_index(task.shard)
    try:
        if is_compressed(path):
            with work.create(task.plain) as stream:
                fault = decompress(path, stream)
            path = work.path / task.plain
            if fault is not None:
                yield Problem(path=name, reason=f"{fault}; what was there before it is looked at")
        with open_plain(path) as (data, _):
            try:
                yield from _Shard(task, path, data).find(index)
            except ShardioError as error:
                raise OSError(str(error)) from error  # it was cut off
    except OSError as error:
        reason = f"the shard cannot be read ({error.strerror or error})"
        yield Problem(path=name, reason=reason)
        keys = () if index is None else map(index.key, range(len(index)))
        for key in keys:
            yield Problem(path=f"{name}: {key}", reason=reason)


def _open_index(shard: ScopedShard) -> ShardIndex | None:
    """The index of a shard, if it reads."""
    with suppress(IndexFileError, OSError):
        return read_index(index_path(shard.path))
    return None


class _Field(NamedTuple):
    """A field of a sample, and where its data are."""

    name: str
    place: FromRange


class _Shard:
    """One shard.

    Args:
        task: what to look for.
        path: of the plain tar.
        data: of it.
    """

    def __init__(self, task: RepairTask, path: Path, data: FileBytes) -> None:
        self._check = task.check
        self._shard = task.shard
        self._path = os.fsencode(path.absolute())
        self._data = data
        self._walk: Walk = walk_members(data)
        self._grouped: Grouped = group_members(self._walk.members)

    def find(self, index: ShardIndex | None) -> Iterator[SourceSample | Problem]:
        if index is not None and index.checksums is not None and self._trusts(index):
            yield from self._by_index(index, index.checksums)
        else:
            yield from self._by_names()

    def _trusts(self, index: ShardIndex) -> bool:
        """Whether an index is of this shard, as it was before it was damaged."""
        receipt = self._shard.receipt
        if receipt is not None:
            return index.shard_sha256 == receipt.sha256
        return index.shard_size == len(self._data) or bool(self._walk.gaps)

    def _by_index(
        self, index: ShardIndex, checksums: NDArray[np.uint32]
    ) -> Iterator[SourceSample | Problem]:
        elsewhere: dict[tuple[str, str], list[int]] = defaultdict(list)
        for run in self._grouped.runs:
            for name, number in (*run.members.items(), *run.again):
                elsewhere[run.key, name].append(int(self._walk.members.offsets[number]))
        for row in range(len(index)):
            key = index.key(row)
            offsets = index.offsets[row].tolist()
            columns = sorted((each, column) for column, each in enumerate(offsets) if each >= 0)
            fields, reason = list[_Field](), None
            for offset, column in columns:
                name, size = index.fields[column], int(index.sizes[row, column])
                checksum = int(checksums[row, column])
                places = (offset, *elsewhere.pop((key, name), ()))
                right = next((at for at in places if self._checksum(at, size) == checksum), None)
                if right is None:
                    reason = (
                        f"the data of field {quoted(name)} at byte {offset} are not what was packed"
                    )
                    break
                fields.append(_Field(name, FromRange(self._path, right, size, checksum)))
            for _, column in columns:
                elsewhere.pop((key, index.fields[column]), None)
            yield self._judge(key, fields, reason)
        for (key, name), (offset, *_) in elsewhere.items():
            yield self._problem(
                key,
                f"the index does not have the field {quoted(name)} at byte {offset}, so it is no "
                "part",
            )

    def _by_names(self) -> Iterator[SourceSample | Problem]:
        yield from self._losses()
        broken = self._broken_keys()
        samples: dict[str, Run] = {}
        for run in self._grouped.runs:
            self._take(samples.setdefault(run.key, Run(run.key, {}, [])), run, broken)
        self._find_torn(samples, broken)
        for key, run in samples.items():
            numbers = sorted(run.members.items(), key=lambda item: item[1])
            fields = [_Field(name, self._place(number)) for name, number in numbers]
            yield self._judge(key, fields, broken.get(key))
            for name, number in run.again:
                yield self._problem(
                    key,
                    f"another sample at byte {self._walk.members.offsets[number]} has this key "
                    f"and a field {quoted(name)} with other data; the first is kept",
                )

    def _losses(self) -> Iterator[Problem]:
        receipt = self._shard.receipt
        if receipt is not None and self._data.sha256() != receipt.sha256:
            yield Problem(
                path=str(self._shard.path),
                reason="the shard is not what was packed, and no index tells which samples still "
                "are; those that look whole are kept",
            )
        for gap in self._walk.gaps:
            what = gap.reason.rpartition("; ")[0]
            yield Problem(
                path=str(self._shard.path),
                reason=f"bytes {gap.start} to {gap.end} are in no member that is whole: {what}",
            )
        files = [other.name for other in self._grouped.others if other.is_file]
        if files:
            yield Problem(
                path=str(self._shard.path),
                reason=f"{len(files)} members belong to no sample, the first is {quoted(files[0])}",
            )

    def _broken_keys(self) -> dict[str, str]:
        """Samples that have a member without sound data, and why."""
        broken = {}
        for other in self._grouped.others:
            split = split_member_name(other.name)
            if split is not None and not other.is_file:
                broken[split.key] = (
                    f"its field {quoted(split.field)} is a link or device, without data"
                )
        for run in self._grouped.runs:
            for name, number in run.members.items():
                if number in self._walk.doubtful:
                    broken[run.key] = (
                        f"its field {quoted(name)} lies before bytes that are no header"
                    )
        return broken

    def _take(self, sample: Run, run: Run, broken: dict[str, str]) -> None:
        """Put the members of a run to those of its key that came before."""
        for name, number in run.members.items():
            if not self._are_equal(sample.members.get(name, number), number):
                sample.again.append((name, number))
                return
        for name, number in run.again:
            if not self._are_equal(run.members[name], number):
                broken[run.key] = f"it has the field {quoted(name)} twice, with different data"
        for name, number in run.members.items():
            sample.members.setdefault(name, number)

    def _are_equal(self, number: int, other: int) -> bool:
        """Whether two members have the same data."""
        return number == other or self._place(number)[2:] == self._place(other)[2:]

    def _find_torn(self, samples: dict[str, Run], broken: dict[str, str]) -> None:
        """Find samples beside a gap that lack a field which most have."""
        counts = Counter(alike(name) for run in samples.values() for name in run.members)
        common = {name for name, count in counts.items() if count * 2 > len(samples)}
        keys = {number: run.key for run in self._grouped.runs for number in run.members.values()}
        offsets = self._walk.members.offsets
        for gap in self._walk.gaps:
            after = int(offsets.searchsorted(gap.end, side="left"))
            before = int(offsets.searchsorted(gap.start, side="right")) - 1
            for number in (before, after):
                key = keys.get(number)
                if key is not None and not common <= {alike(name) for name in samples[key].members}:
                    broken.setdefault(
                        key, f"members of it may have been in bytes {gap.start} to {gap.end}"
                    )

    def _place(self, number: int) -> FromRange:
        members = self._walk.members
        offset, size = int(members.offsets[number]), int(members.sizes[number])
        return FromRange(self._path, offset, size, self._checksum(offset, size))

    def _checksum(self, offset: int, size: int) -> int | None:
        """CRC-32 of some bytes; None if they are not all there."""
        if offset + size > len(self._data):
            return None
        return self._data.crc32(offset, size)

    def _judge(self, key: str, fields: list[_Field], reason: str | None) -> SourceSample | Problem:
        """The sample, if its fields are sound."""
        for name, place in fields if reason is None else ():
            data = self._data[place.offset : place.offset + place.size]
            fault = self._check.fault(name, memoryview(data))
            if fault is not None:
                reason = f"field {quoted(name)} at byte {place.offset}: {fault}"
                break
        if reason is not None:
            return self._problem(key, reason)
        return SourceSample(
            key=key,
            name=f"{self._shard.path}: {key}",
            fields=tuple(SourceField(*field) for field in fields),
        )

    def _problem(self, key: str, reason: str) -> Problem:
        return Problem(path=f"{self._shard.path}: {key}", reason=reason)
