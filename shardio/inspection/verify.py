"""Verify shards, their indexes and their manifests.

Each shard is verified by a task of its own. The reports are then combined to find keys that several
shards have, and fields that only some samples have. A key takes 16 bytes, for a hash and an offset.
Keys with equal hashes are read again and compared.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shardio.errors import counted, shown
from shardio.fields.base import FieldType
from shardio.fields.defaults import given_types
from shardio.fields.limits import MAX_PIXELS
from shardio.indexing.manifest import MANIFEST_NAME, class_conflict, pack_with_same_classes
from shardio.indexing.parts import ShardPaths
from shardio.indexing.scan import group_members
from shardio.inspection.contents import (
    FieldCheck,
    FieldTotals,
    add_up,
    notes_of,
    statistics_of,
)
from shardio.inspection.findings import (
    Finding,
    SourcePart,
    Verification,
    find_parts,
    rewrite_manifest,
)
from shardio.inspection.verify_shard import (
    ShardReport,
    keep_first,
    open_plain,
    task_of,
    verify_shard,
)
from shardio.packing.engine import Engine, Ticker, make_engine
from shardio.packing.job import Progress
from shardio.storage.base import Storage
from shardio.storage.location import Location, Options
from shardio.tar.salvage import walk_members

_MOST = 1000  # repeated keys to list for one shard


def verify(
    source: ShardPaths,
    *,
    storage: Storage | None = None,
    storage_options: Options | None = None,
    deep: bool = False,
    fields: Mapping[str, str | FieldType] | None = None,
    allow_empty: bool = False,
    max_pixels: int = MAX_PIXELS,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Read shards completely and check them against their indexes and their manifest.

    Counts, sizes and checksums are compared if a manifest or an index has them. Tar headers, names
    of members, keys, the ends of images, stray files and the numbers of classes are always checked.

    Args:
        source: packed folder, folder of splits or tars, tar, glob or pattern, or a list of these.
        storage: storage of the source, see shardio.storage.base; None chooses it by the URL.
        storage_options: settings of the store of a URL, as ShardDataset takes them.
        deep: whether to decode every field, which detects most corruption without checksums, and
            to compare masks, depth, boxes and points with the picture of their sample.
        fields: field types, as ShardDataset takes them; other fields keep those of the folder.
        allow_empty: whether to accept tars whose members belong to no sample.
        max_pixels: maximum number of pixels of an image; see shardio.fields.limits.
        jobs: number of processes, by default one per core; does not affect the findings.
        progress: callback for the number of bytes; it returns one for those just read.

    Returns:
        Counts, findings, and statistics of the fields if `deep`.

    Raises:
        UsageError: an argument is invalid, or the source does not exist.
        OSError: a folder cannot be read.
    """
    engine = make_engine("local", jobs)
    check = FieldCheck(deep=deep, max_pixels=max_pixels, types=given_types(fields))
    parts = find_parts(source, storage, storage_options)
    shards = [[each for each in part.shards if not each.missing] for part in parts]
    tasks = [task_of(shard, check, allow_empty=allow_empty) for some in shards for shard in some]
    advance = progress(sum(map(len, tasks))) if progress else None
    reports = engine.run(verify_shard, tasks, advance)
    repeated = _repeated_keys([task.shard.path for task in tasks], reports, engine)
    findings: list[Finding] = []
    totals: list[tuple[FieldTotals, ...]] = []
    done = 0
    for part, some in zip(parts, shards, strict=True):
        own = slice(done, done + len(some))
        done += len(some)
        totals.append(add_up(each for report in reports[own] for each in report.totals))
        findings += _findings_of(part, reports[own], repeated[own], totals[-1])
    return Verification(
        shards=len(reports),
        samples=sum(len(report.hashes) for report in reports),
        members=sum(report.members for report in reports),
        bytes=sum(report.bytes for report in reports),
        findings=(*findings, *_class_conflicts(parts)),
        statistics=statistics_of(add_up(each for part in totals for each in part)),
    )


def _findings_of(
    part: SourcePart,
    reports: Sequence[ShardReport],
    repeated: Sequence[Sequence[Finding]],
    totals: Sequence[FieldTotals],
) -> Iterator[Finding]:
    """Yield the findings about a part, its shards in order, and what they hold together."""
    yield from part.findings
    for report, again in zip(reports, repeated, strict=True):
        yield from report.findings
        yield from again
    yield from _manifest_fields(part, reports)
    yield from _lacking_fields(part.path, reports)
    yield from notes_of(totals)


def _class_conflicts(parts: Sequence[SourcePart]) -> Iterator[Finding]:
    """Compare the class lists of the manifests, each with the first one."""
    named = [
        (part.path, part.manifest.classes)
        for part in parts
        if part.manifest is not None and part.manifest.classes
    ]
    for path, classes in named[1:]:
        first, others = named[0]
        if what := class_conflict(classes, path, others, first):
            yield Finding(
                shard=str(path / MANIFEST_NAME),
                what=f"{what}, so that equal labels mean different things",
                remedy=pack_with_same_classes(),
            )


def _manifest_fields(part: SourcePart, reports: Sequence[ShardReport]) -> Iterable[Finding]:
    """Compare the fields of a manifest with those of its shards, if these have no findings."""
    fields = sorted({field for report in reports for field in report.fields})
    whole = len(reports) == len(part.shards) and not any(report.findings for report in reports)
    if part.manifest is not None and whole and fields != [*part.manifest.fields]:
        yield Finding(
            shard=str(part.path),
            what=f"the manifest lists the fields {', '.join(map(shown, part.manifest.fields))}, "
            f"but the shards have {', '.join(map(shown, fields))}",
            remedy=rewrite_manifest("on the folder"),
        )


def _lacking_fields(path: Location, reports: Sequence[ShardReport]) -> Iterable[Finding]:
    """Count the samples that lack a field of other samples, in shards without missing members."""
    samples: Counter[frozenset[str]] = Counter()
    first: dict[frozenset[str], str] = {}
    for report in reports:
        for fields, (count, key) in report.field_sets.items() if report.complete else ():
            samples[fields] += count
            first.setdefault(fields, key)
    scope = "" if all(report.complete for report in reports) else " in complete shards"
    for field in sorted({field for fields in samples for field in fields}):
        lacking = [fields for fields in samples if field not in fields]
        if lacking:
            yield Finding(
                severity="note",
                shard=str(path),
                key=first[lacking[0]],
                field=field,
                what=f"{sum(samples[fields] for fields in lacking):,} of "
                f"{counted(samples.total(), 'sample')}{scope} lack this field, this one first",
                remedy="readers of this field raise an error for such a sample, or skip it",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _KeysTask:
    """Samples whose keys are to be read.

    Attributes:
        path: path of their shard.
        offsets: offsets of their first members' data.
    """

    path: Location
    offsets: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.offsets)


def _read_keys(task: _KeysTask, ticker: Ticker) -> list[str]:
    with open_plain(task.path) as (data, _):
        members = walk_members(data).members
        keys: dict[int, str] = {}
        for group in group_members(members)[0]:
            keys[int(members.offsets[min(group.members.values())])] = group.key
    ticker.tick(len(task))
    return [keys[offset] for offset in task.offsets]


def _repeated_keys(
    names: Sequence[Location], reports: Sequence[ShardReport], engine: Engine
) -> list[list[Finding]]:
    """Find keys that occur in an earlier shard.

    Returns:
        Findings of each shard, the later one of two.
    """
    pairs = _equal_hashes(reports)
    wanted: dict[int, set[int]] = defaultdict(set)
    for one, other in pairs:
        wanted[one[0]].add(one[1])
        wanted[other[0]].add(other[1])
    tasks = [
        _KeysTask(path=names[shard], offsets=tuple(sorted(offsets)))
        for shard, offsets in wanted.items()
    ]
    keys = {
        (shard, offset): key
        for shard, task, some in zip(
            wanted, tasks, engine.run(_read_keys, tasks, None), strict=True
        )
        for offset, key in zip(task.offsets, some, strict=True)
    }
    found: list[list[Finding]] = [[] for _ in reports]
    for first, again in pairs:
        if keys[first] == keys[again]:
            found[again[0]].append(
                Finding(
                    shard=str(names[again[0]]),
                    key=keys[again],
                    offset=again[1],
                    what=f"a sample in {names[first[0]]} has the same key",
                    remedy=keep_first(),
                )
            )
    return found


_Place = tuple[int, int]  # number of the shard, offset of the first member's data


def _equal_hashes(reports: Sequence[ShardReport]) -> list[tuple[_Place, _Place]]:
    """Return pairs of samples with equal hashes, the first and a later one, up to the limit."""
    if not reports:
        return []
    hashes = np.concatenate([report.hashes for report in reports])
    offsets = np.concatenate([report.offsets for report in reports])
    shards = np.repeat(np.arange(len(reports)), [len(report.hashes) for report in reports])
    order = np.argsort(hashes, kind="stable")
    starts = np.flatnonzero(np.diff(hashes[order], prepend=hashes[order[:1]] ^ 1) != 0)
    lengths = np.diff(starts, append=len(order))
    many = lengths > 1
    told: Counter[int] = Counter()
    pairs = []
    for start, length in zip(starts[many].tolist(), lengths[many].tolist(), strict=True):
        first, *again = order[start : start + length].tolist()
        for number in again:
            shard = int(shards[number])
            told[shard] += 1
            if told[shard] <= _MOST:
                places = [(int(shards[each]), int(offsets[each])) for each in (first, number)]
                pairs.append((places[0], places[1]))
    return pairs
