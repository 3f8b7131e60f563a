"""Finding the samples of one shard that are whole, whatever happened to it.

An index that belongs to the shard says what its samples were, and CRC-32s tell whether their data
are still there: where the index says, though headers may be damaged, or where a header says, as
bytes before may be lost. Without such an index the headers that are left say what there is, and
samples of which a part may be lost are not whole.

Repairing shards: what is whole goes to a new packed folder, byte for byte.

The shards are looked through first, each a task, and then their samples are packed as any others
are, so that the new folder is published or absent, and an interrupted repair goes on.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardio.errors import IndexFileError, PackError, ShardioError, TarError, quoted
from shardio.fields.limits import MAX_PIXELS
from shardio.indexing.manifest import MANIFEST_NAME, index_path
from shardio.indexing.shard_index import ShardIndex, read_index
from shardio.inspection.findings import Part, ScopedShard, find_parts
from shardio.inspection.verify_shard import (
    FieldCheck,
    Grouped,
    Run,
    alike,
    group_members,
)
from shardio.naming import split_member_name
from shardio.packing.engine import Engine, Ticker, make_engine
from shardio.packing.job import PackJob, PackSummary, Progress, run_job
from shardio.packing.layout import DROPPED_NAME, WORK_FOLDER
from shardio.packing.listing import SampleList, SampleListWriter
from shardio.packing.plan import ImageEncoding, Sharding
from shardio.packing.sources.base import FromRange, Problem, SourceField, SourceSample
from shardio.storage.base import StoredBytes
from shardio.storage.compression import decompress, find_compression
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


def find_whole(task: RepairTask, ticker: Ticker) -> tuple[SampleList, list[Problem]]:
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
        writer = SampleListWriter(stream)
        for found in _find(task, work):
            ticker.tick(1)
            if isinstance(found, Problem):
                problems.append(found)
            else:
                writer.write(found)
        return writer.finish(work, task.lines), problems


def _find(task: RepairTask, work: Folder) -> Iterator[SourceSample | Problem]:
    name, path = str(task.shard.path), Path(task.shard.path)
    index = _open_index(task.shard)
    try:
        compression = find_compression(path)
        if compression is not None:
            try:
                with work.create(task.plain) as plain:
                    decompress(path, compression, plain)
            except TarError as error:
                reason = f"{error.what}; what was there before it is looked at"
                yield Problem(path=name, reason=reason)
            path = work.path / task.plain
        with path.open("rb") as stream:
            try:
                yield from _Shard(task, path, FileBytes(stream, str(path))).find(index)
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

    def __init__(self, task: RepairTask, path: Path, data: StoredBytes) -> None:
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
            yield Problem(
                path=str(self._shard.path),
                reason=f"bytes {gap.start} to {gap.end} are in no member that is whole: "
                + gap.error.what,
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
            path=f"{self._shard.path}: {key}",
            fields=tuple(SourceField(*field) for field in fields),
        )

    def _problem(self, key: str, reason: str) -> Problem:
        return Problem(path=f"{self._shard.path}: {key}", reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairSummary:
    """What was repaired.

    Attributes:
        samples: that are whole.
        shards: written.
        bytes: of these.
        dropped: entries of the ledgers dropped.jsonl: samples that are not whole, and bytes and
            members of which no sample is known.
    """

    samples: int
    shards: int
    bytes: int
    dropped: int


def repair(
    source: str | PathLike[str],
    new: str | PathLike[str],
    *,
    shards: int | None = None,
    deep: bool = False,
    max_pixels: int = MAX_PIXELS,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> RepairSummary:
    """Write every sample that is whole to a new packed folder.

    Data are never encoded anew. Members of a sample that are not adjacent are put together; where
    headers are damaged, what follows is found again; indexes and manifest are made anew. What is
    dropped is listed in dropped.jsonl, with the reason. Of samples with one key the first is kept;
    a key in two splits stays, as only its owner knows where it belongs.

    Args:
        source: see verify; the parts of a folder of splits become folders in `new`.
        new: a new or empty folder outside the source. The same call again finishes a repair that
            was interrupted; of a folder of splits, repair those that are left one by one.
        shards: how many to write in each part; by default as many as it has.
        deep: drop samples with a field that does not decode, too.
        max_pixels: greatest number of pixels of an image, see shardio.fields.limits.
        jobs: processes; by default one a core.
        progress: called with the number of samples of a part; what it returns is called with how
            many more are written.

    Raises:
        UsageError: nothing is at the source, or an argument cannot be meant.
        PackError: no sample of a part is whole, or the output is taken or inside the source.
        OSError: the output cannot be written.
    """
    engine = make_engine("local", jobs)
    check = FieldCheck(deep=deep, max_pixels=max_pixels)
    parts = find_parts(fspath(source))
    out = Path(new)
    _refuse_inside(out, parts)
    done = [
        _repair_part(
            part,
            out / part.path.name if len(parts) > 1 else out,
            Sharding(shards=shards or len(part.shards), or_fewer=shards is None),
            check=check,
            engine=engine,
            progress=progress,
        )
        for part in parts
        if part.shards
    ]
    if not done:
        raise PackError(
            "no shards are left in it", where=fspath(source), remedy="get or pack them again"
        )
    return RepairSummary(
        samples=sum(each.samples for each in done),
        shards=sum(each.shards for each in done),
        bytes=sum(each.bytes for each in done),
        dropped=sum(each.skipped for each in done),
    )


def _refuse_inside(out: Path, parts: Sequence[Part]) -> None:
    folders = {Path(part.path).resolve() for part in parts}
    if not folders.isdisjoint((out.resolve(), *out.resolve().parents)):
        raise PackError(
            "the output lies inside the source", where=out, remedy="name a folder outside it"
        )


def _repair_part(
    part: Part,
    out: Path,
    sharding: Sharding,
    *,
    check: FieldCheck,
    engine: Engine,
    progress: Progress | None,
) -> PackSummary:
    job = PackJob(
        sharding=sharding,
        splits=None,
        shuffle=False,
        seed=0,
        images=ImageEncoding(),
        check=False,
        skip=True,
        dedupe=None,
        engine=engine,
        progress=progress,
        ledger=DROPPED_NAME,
    )
    return run_job(out, job, lambda work: _Whole(part, work, engine, check))


class _Whole:
    """The samples of a part that are whole; see shardio.packing.sources.base.Source.

    Args:
        part: to look through.
        work: work folder, for lists of samples.
        engine: runs the tasks.
        check: how closely fields are looked at.

    Attributes:
        name: what errors call it.
        root: where relative paths would start; those of shards are absolute.
        classes: names of the classes, if the manifest reads.
    """

    def __init__(self, part: Part, work: Folder, engine: Engine, check: FieldCheck) -> None:
        self.name = str(part.path)
        self.root = "/"
        self.classes = part.manifest.classes if part.manifest is not None else None
        self._part = part
        self._engine = engine
        self._tasks = [
            RepairTask(
                shard=shard,
                check=check,
                out=work.path.parent,
                lines=f"whole-{number:06d}.jsonl",
                plain=f"plain-{number:06d}.tar",
            )
            for number, shard in enumerate(part.shards)
        ]

    def samples(self) -> Iterator[SourceSample | Problem]:
        """All samples that are whole, shard by shard, and what is lost.

        Raises:
            PackError: none is whole.
        """
        manifest = self._part.path / MANIFEST_NAME
        if self._part.manifest is None and manifest.exists():
            reason = "the manifest is damaged, so names of classes in it are lost"
            yield Problem(path=str(manifest), reason=reason)
        empty = True
        for samples, problems in self._engine.run(find_whole, self._tasks, None):
            yield from problems
            for sample in samples:
                empty = False
                yield sample
        if empty:
            raise PackError(
                "no sample in it is whole",
                where=self._part.path,
                remedy="get or pack the shards again",
            )
