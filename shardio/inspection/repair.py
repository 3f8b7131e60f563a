"""Repair shards: copy every intact sample, byte for byte, to a new packed folder.

Each shard is searched for intact samples by a task of its own. The samples found are then packed
like those of any other source. The new folder is therefore complete or absent, and an interrupted
repair can resume.

An index that belongs to the shard lists its samples, and CRC-32s show whether their data are still
there. The data may be at the offset in the index, even if headers are corrupt, or at the offset of
a header, if earlier bytes are lost. Without such an index, the remaining headers tell what is
there, and a sample is not intact if a part of it may be lost.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from os import PathLike, fspath
from pathlib import Path
from typing import NamedTuple

from shardio.errors import (
    CodecError,
    IndexFileError,
    PackError,
    RemoteError,
    RemoteMissing,
    ShardioError,
    TarError,
    counted,
    quoted,
)
from shardio.fields.limits import MAX_PIXELS
from shardio.fields.recorded import merge_types
from shardio.indexing.manifest import MANIFEST_NAME, index_path
from shardio.indexing.scan import MemberGroup, group_members
from shardio.indexing.shard_index import ShardIndex, read_index
from shardio.inspection.contents import FieldCheck, TooLargeError
from shardio.inspection.counts import general_name
from shardio.inspection.findings import ScopedShard, SourcePart, find_parts
from shardio.naming import split_member_name
from shardio.packing.engine import Engine, Ticker, make_engine
from shardio.packing.job import PackJob, Progress, run_job
from shardio.packing.layout import DROPPED_NAME, WORK_FOLDER
from shardio.packing.listing import SampleList, SampleListWriter
from shardio.packing.plan import ImageEncoding, Sharding
from shardio.packing.sources.base import FromRange, Problem, Source, SourceField, SourceSample
from shardio.storage.base import StoredBytes
from shardio.storage.compression import decompress, find_compression
from shardio.storage.folder import Folder, refuse_inside
from shardio.storage.local import FileBytes
from shardio.storage.location import Location, Options, locate
from shardio.tar.salvage import Walk, walk_members


@dataclass(frozen=True, slots=True)
class LostSample(Problem):
    """Problem because of which a sample is left out; others are of shards and single members."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairTask:
    """Shard to search for intact samples.

    Attributes:
        shard: shard to search.
        check: check of the fields.
        out: output folder, whose work folder holds the files.
        lines: name of the file for the samples, one per line.
        fetched: name of the file for the copy of a shard that is not local.
        plain: name of the file for the decompressed tar, if needed.
    """

    shard: ScopedShard
    check: FieldCheck
    out: Path
    lines: str
    fetched: str
    plain: str

    def __len__(self) -> int:
        return 1


def find_whole(task: RepairTask, ticker: Ticker) -> tuple[SampleList, list[Problem]]:
    """Write the intact samples of a shard to the task's file, in their order.

    Args:
        task: shard to search.
        ticker: progress counter, advanced by one for every sample.

    Returns:
        Intact samples, and a problem for everything that is lost.

    Raises:
        CancelledError: the ticker was cancelled.
        RemoteError: a store fails or refuses.
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
    place, name = task.shard.path, str(task.shard.path)
    index = _open_index(task.shard)
    if place.is_local:
        path = Path(place)
    else:
        try:
            path = _fetch(task, work)
        except FileNotFoundError:
            yield from _unreadable(name, index, "the shard is missing")
            return
    try:
        compression = find_compression(path)
        if compression is not None:
            try:
                with work.create(task.plain) as plain:
                    decompress(path, compression, plain)
            except TarError as error:
                reason = f"{error.what}; the data before that are searched"
                yield Problem(path=name, reason=reason)
            path = work.path / task.plain
            work.remove(task.fetched)
        with path.open("rb") as stream:
            try:
                yield from _Shard(task, path, FileBytes(stream, str(path))).find(index)
            except ShardioError as error:  # the shard was truncated just now
                yield from _unreadable(name, index, error.what)
    except OSError as error:
        yield from _unreadable(name, index, f"the shard cannot be read ({error.strerror or error})")


def _fetch(task: RepairTask, work: Folder) -> Path:
    """Copy a shard that is not local to the work folder; its bytes are read there several times."""
    with work.create(task.fetched) as stream:
        task.shard.path.copy_to(stream.write)
    return work.path / task.fetched


def _unreadable(name: str, index: ShardIndex | None, reason: str) -> Iterator[Problem]:
    """Yield a problem for a shard and for each sample of its index."""
    yield Problem(path=name, reason=reason)
    for key in () if index is None else map(index.key, range(len(index))):
        yield LostSample(path=f"{name}: {key}", reason=reason)


def _open_index(shard: ScopedShard) -> ShardIndex | None:
    """Return the index of a shard, or None if it is missing or unreadable."""
    try:
        return read_index(index_path(shard.path))
    except RemoteError as error:  # what a store does not give now is not lost
        if not isinstance(error, RemoteMissing):
            raise
    except (IndexFileError, OSError):
        pass
    return None


class _Field(NamedTuple):
    """Field of a sample, and the location of its data."""

    name: str
    place: FromRange


class _Shard:
    """Search of one shard.

    Args:
        task: shard to search.
        path: path of the uncompressed tar.
        data: contents of the uncompressed tar.
    """

    def __init__(self, task: RepairTask, path: Path, data: StoredBytes) -> None:
        self._check = task.check
        self._shard = task.shard
        self._path = os.fsencode(path.absolute())
        self._data = data
        self._walk: Walk = walk_members(data)
        self._groups, self._others = group_members(self._walk.members)

    def find(self, index: ShardIndex | None) -> Iterator[SourceSample | Problem]:
        if index is not None and index.checksums is not None and self._trusts(index):
            yield from self._by_index(index)
        else:
            yield from self._by_names()

    def _trusts(self, index: ShardIndex) -> bool:
        """Return whether an index belongs to this shard as it was before the corruption."""
        receipt = self._shard.receipt
        if receipt is not None:
            return index.shard_sha256 == receipt.sha256
        return index.shard_size == len(self._data) or bool(self._walk.gaps)

    def _by_index(self, index: ShardIndex) -> Iterator[SourceSample | Problem]:
        elsewhere: dict[tuple[str, str], list[int]] = defaultdict(list)
        for group in self._groups:
            for name, number in (*group.members.items(), *group.repeated):
                elsewhere[group.key, name].append(int(self._walk.members.offsets[number]))
        for row in range(len(index)):
            key = index.key(row)
            members = index.members(row)
            fields, reason = list[_Field](), None
            for name, (offset, size, _, checksum, _) in members.items():
                places = (offset, *elsewhere.pop((key, name), ()))
                right = next((at for at in places if self._checksum(at, size) == checksum), None)
                if right is None:
                    reason = f"the data of field {quoted(name)} at byte {offset} were changed"
                    break
                fields.append(_Field(name, FromRange(self._path, right, size, checksum)))
            for name in members:
                elsewhere.pop((key, name), None)
            yield self._judge(key, fields, reason, verified=True)
        for (key, name), (offset, *_) in elsewhere.items():
            yield Problem(
                path=self._place_of(key),
                reason=f"the index does not list the field {quoted(name)} at byte {offset}, so it "
                "is left out",
            )

    def _by_names(self) -> Iterator[SourceSample | Problem]:
        yield from self._losses()
        broken = self._broken_keys()
        samples: dict[str, MemberGroup] = {}
        for group in self._groups:
            self._take(samples.setdefault(group.key, MemberGroup(group.key, {}, [])), group, broken)
        self._find_torn(samples, broken)
        for key, group in samples.items():
            numbers = sorted(group.members.items(), key=lambda item: item[1])
            fields = [_Field(name, self._place(number)) for name, number in numbers]
            yield self._judge(key, fields, broken.get(key))
            for name, number in group.repeated:
                yield LostSample(
                    path=self._place_of(key),
                    reason=f"another sample at byte {self._walk.members.offsets[number]} has this "
                    f"key and different data in the field {quoted(name)}; the first is kept",
                )

    def _losses(self) -> Iterator[Problem]:
        receipt = self._shard.receipt
        if receipt is not None and self._data.sha256() != receipt.sha256:
            yield Problem(
                path=str(self._shard.path),
                reason="the shard differs from the one packed, and no index shows which samples "
                "are intact; those that seem intact are kept",
            )
        for gap in self._walk.gaps:
            yield Problem(
                path=str(self._shard.path),
                reason=f"bytes {gap.start} to {gap.end} belong to no intact member: "
                + gap.error.what,
            )
        files = [other.name for other in self._others if other.is_file]
        if files:
            yield Problem(
                path=str(self._shard.path),
                reason=f"{counted(len(files), 'member')} outside any sample, the first is "
                f"{quoted(files[0])}",
            )

    def _broken_keys(self) -> dict[str, str]:
        """Return the samples with a member whose data are missing or corrupt, and the reasons."""
        broken = {}
        for other in self._others:
            split = split_member_name(other.name)
            if split is not None and not other.is_file:
                broken[split.key] = (
                    f"its field {quoted(split.field)} is a link or device and has no data"
                )
        for group in self._groups:
            for name, number in group.members.items():
                if number in self._walk.doubtful:
                    broken[group.key] = f"no valid header follows its field {quoted(name)}"
        return broken

    def _take(self, sample: MemberGroup, group: MemberGroup, broken: dict[str, str]) -> None:
        """Add the members of a group to the earlier ones with the same key."""
        for name, number in group.members.items():
            if not self._are_equal(sample.members.get(name, number), number):
                sample.repeated.append((name, number))
                return
        for name, number in group.repeated:
            if not self._are_equal(group.members[name], number):
                broken[group.key] = f"it has the field {quoted(name)} twice, with different data"
        for name, number in group.members.items():
            sample.members.setdefault(name, number)

    def _are_equal(self, number: int, other: int) -> bool:
        """Return whether two members have the same data."""
        return number == other or self._place(number)[2:] == self._place(other)[2:]

    def _find_torn(self, samples: dict[str, MemberGroup], broken: dict[str, str]) -> None:
        """Find samples beside a gap that lack a field most other samples have."""
        counts = Counter(general_name(name) for group in samples.values() for name in group.members)
        common = {name for name, count in counts.items() if count * 2 > len(samples)}
        keys = {number: group.key for group in self._groups for number in group.members.values()}
        offsets = self._walk.members.offsets
        for gap in self._walk.gaps:
            after = int(offsets.searchsorted(gap.end, side="left"))
            before = int(offsets.searchsorted(gap.start, side="right")) - 1
            for number in (before, after):
                key = keys.get(number)
                if key is not None and not common <= {
                    general_name(name) for name in samples[key].members
                }:
                    broken.setdefault(
                        key,
                        f"some of its members may have been in bytes {gap.start} to {gap.end}",
                    )

    def _place(self, number: int) -> FromRange:
        members = self._walk.members
        offset, size = int(members.offsets[number]), int(members.sizes[number])
        return FromRange(self._path, offset, size, self._checksum(offset, size))

    def _checksum(self, offset: int, size: int) -> int | None:
        """Return the CRC-32 of some bytes; None if the tar ends before them."""
        if offset + size > len(self._data):
            return None
        return self._data.crc32(offset, size)

    def _judge(
        self, key: str, fields: list[_Field], reason: str | None, *, verified: bool = False
    ) -> SourceSample | Problem:
        """Return the sample if its fields are valid, otherwise the problem."""
        if reason is None:
            reason = self._fault(fields, verified=verified)
        if reason is not None:
            return LostSample(path=self._place_of(key), reason=reason)
        return SourceSample(
            key=key,
            path=self._place_of(key),
            fields=tuple(SourceField(*field) for field in fields),
        )

    def _fault(self, fields: list[_Field], *, verified: bool) -> str | None:
        """Return why readers refuse a sample, or None."""
        sample = self._check.sample(name for name, _ in fields)
        offsets = {name: place.offset for name, place in fields}
        for name, place in fields:
            data = memoryview(self._data[place.offset : place.offset + place.size])
            fault = sample.fault(name, data)
            if fault is not None and not (verified and self._check.is_delivered(name, data)):
                return f"field {quoted(name)} at byte {place.offset}: {_reason(fault)}"
        for name, result in sample.finish():
            if isinstance(result, CodecError):
                return f"field {quoted(name)} at byte {offsets[name]}: {_reason(result)}"
        return None

    def _place_of(self, key: str) -> str:
        return f"{self._shard.path}: {key}"


def _reason(fault: CodecError) -> str:
    """Return why readers refuse data; raise MemoryError if they may be sound."""
    if isinstance(fault, TooLargeError):
        raise MemoryError  # noqa: TRY004  it is the machine
    return fault.what


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairSummary:
    """Summary of a repair.

    Attributes:
        samples: number of intact samples.
        shards: number of shards written.
        bytes: total size of these shards.
        dropped: number of entries in the dropped.jsonl files: samples that are not intact, and
            bytes and members of no known sample.
        lost: number of samples left out; of those that no index and no header tells of any more,
            as many as a manifest counts.
        damaged: number of shards of which something is left out.
    """

    samples: int
    shards: int
    bytes: int
    dropped: int
    lost: int
    damaged: int


def repair(
    source: str | PathLike[str],
    new: str | PathLike[str],
    *,
    shards: int | None = None,
    deep: bool = False,
    max_pixels: int = MAX_PIXELS,
    storage_options: Options | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> RepairSummary:
    """Copy every intact sample to a new packed folder.

    Data are never re-encoded. Members of a sample that are not adjacent are moved together, samples
    after corrupt headers are found again, and indexes and manifest are rebuilt. Everything dropped
    is listed in dropped.jsonl, with the reason. Of several samples with one key, the first is kept.
    A key in two splits stays in both, because only the owner knows where it belongs. The same call
    resumes an interrupted repair; for a folder of splits, repair the remaining ones one by one.

    Args:
        source: source as for verify; each split of a folder of splits becomes a folder in `new`.
        new: path or URL of a new or empty folder outside the source.
        shards: number of shards to write for each split; by default as many as it has.
        deep: whether to drop samples with a field that cannot be decoded.
        max_pixels: maximum number of pixels of an image; see shardio.fields.limits.
        storage_options: settings of the store of a URL, as ShardDataset takes them.
        jobs: number of processes; by default one per core.
        progress: callback for the number of samples of a split; it returns one for those written.

    Raises:
        UsageError: an argument is invalid, or the source does not exist.
        PackError: a split has no intact samples, or the output is taken or inside the source.
        MemoryError: this machine has too little memory to tell whether a sample is intact.
        OSError: the output cannot be written.
    """
    engine = make_engine("local", jobs)
    check = FieldCheck(deep=deep, max_pixels=max_pixels)
    name = fspath(source)
    out = locate(fspath(new), options=storage_options).for_writing()
    parts = find_parts(name, options=storage_options)
    if out.is_local:
        refuse_inside(Path(out), (Path(part.path) for part in parts if part.path.is_local))
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
        raise PackError("no shards are left", where=name, remedy="fetch or pack them again")
    names = [each.name for each in fields(RepairSummary)]
    return RepairSummary(**{name: sum(getattr(each, name) for each in done) for name in names})


def _repair_part(
    part: SourcePart,
    out: Location,
    sharding: Sharding,
    *,
    check: FieldCheck,
    engine: Engine,
    progress: Progress | None,
) -> RepairSummary:
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
    opened = list[_Whole]()

    def open_source(work: Folder) -> Source:
        opened.append(_Whole(part, work, engine, check))
        return opened[0]

    packed, whole = run_job(out, job, open_source), opened[0]
    return RepairSummary(
        samples=packed.samples,
        shards=packed.shards,
        bytes=packed.bytes,
        dropped=packed.skipped,
        lost=whole.lost + packed.skipped - whole.told,  # others have the key of one before
        damaged=whole.damaged,
    )


class _Whole:
    """The samples of a part that are whole; see shardio.packing.sources.base.Source.

    Args:
        part: shards to search.
        work: work folder for lists of samples.
        engine: engine for the tasks.
        check: check of the fields.

    Attributes:
        name: name of the source in errors.
        root: base of relative paths; unused, since paths of shards are absolute.
        classes: class names; None if the manifest is missing or unreadable.
        types: types of fields that manifests record.
        told: number of problems found, once all samples are taken.
        lost: number of samples among these.
        damaged: number of shards with a problem.
    """

    def __init__(self, part: SourcePart, work: Folder, engine: Engine, check: FieldCheck) -> None:
        self.name = str(part.path)
        self.root = "/"
        self.classes = part.manifest.classes if part.manifest is not None else None
        named = {field for shard in part.shards for field in shard.types}
        self.types = merge_types((str(each.path.parent), named, each.types) for each in part.shards)
        self.told = self.lost = self.damaged = 0
        self._part = part
        self._engine = engine
        self._tasks = [
            RepairTask(
                shard=shard,
                check=check.of(shard),
                out=work.path.parent,
                lines=f"whole-{number:06d}.jsonl",
                fetched=f"fetched-{number:06d}.tar",
                plain=f"plain-{number:06d}.tar",
            )
            for number, shard in enumerate(part.shards)
        ]

    def samples(self) -> Iterator[SourceSample | Problem]:
        """Yield all intact samples, shard by shard, and a problem for everything that is lost.

        Raises:
            PackError: no sample is intact.
        """
        manifest = self._part.path / MANIFEST_NAME
        if self._part.manifest is None and manifest.exists():
            reason = "the manifest is corrupt, so its class names and field types are lost"
            yield Problem(path=str(manifest), reason=reason)
            self.told += 1
        empty = True
        found = self._engine.run(find_whole, self._tasks, None)
        for shard, (samples, problems) in zip(self._part.shards, found, strict=True):
            yield from problems
            lost = sum(isinstance(each, LostSample) for each in problems)
            packed = len(samples) + lost if shard.receipt is None else shard.receipt.samples
            self.told += len(problems)
            self.lost += max(lost, packed - len(samples)) if problems else 0
            self.damaged += bool(problems)
            for sample in samples:
                empty = False
                yield sample
        if empty:
            raise PackError(
                "no sample is intact",
                where=self._part.path,
                remedy="fetch or pack the shards again",
            )
