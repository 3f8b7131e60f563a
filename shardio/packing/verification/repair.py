"""Repairing shards: what is whole goes to a new packed folder, byte for byte.

The shards are looked through first, each a task, and then their samples are packed as any others
are, so that the new folder is published or absent, and an interrupted repair goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

from shardio.codecs.limits import MAX_PIXELS
from shardio.errors import PackError
from shardio.index.manifest import MANIFEST_NAME
from shardio.packing.engine import Engine
from shardio.packing.job import Job, PackSummary, Progress, run_job
from shardio.packing.names import DROPPED_NAME
from shardio.packing.options import make_engine
from shardio.packing.plan import Shape
from shardio.packing.samples import Problem, SourceSample
from shardio.packing.store import Store
from shardio.packing.verification.contents import FieldCheck
from shardio.packing.verification.repair_shard import RepairTask, find_whole
from shardio.packing.verification.scope import Part, find_parts
from shardio.storage.folder import Folder


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
        max_pixels: greatest number of pixels of an image, see shardio.codecs.limits.
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
    several = len(parts) > 1
    parts = [part for part in parts if part.shards]
    if not parts:
        raise PackError(f"{fspath(source)}: no shards are left in it; get or pack them again")
    done = [
        _repair_part(
            part,
            out / part.path.name if several else out,
            Shape(shards=shards or len(part.shards), or_fewer=shards is None),
            check=check,
            engine=engine,
            progress=progress,
        )
        for part in parts
    ]
    return RepairSummary(
        samples=sum(each.samples for each in done),
        shards=sum(each.shards for each in done),
        bytes=sum(each.bytes for each in done),
        dropped=sum(each.skipped for each in done),
    )


def _refuse_inside(out: Path, parts: Sequence[Part]) -> None:
    folders = {part.path.resolve() for part in parts}
    if not folders.isdisjoint((out.resolve(), *out.resolve().parents)):
        raise PackError(f"{out}: the output lies inside the source; name a folder outside it")


def _repair_part(
    part: Part,
    out: Path,
    shape: Shape,
    *,
    check: FieldCheck,
    engine: Engine,
    progress: Progress | None,
) -> PackSummary:
    job = Job(
        shape=shape,
        splits=None,
        shuffle=False,
        seed=0,
        store=Store(),
        check=False,
        skip=True,
        dedupe=None,
        measure=None,
        engine=engine,
        progress=progress,
        ledger=DROPPED_NAME,
    )
    return run_job(out, job, lambda work: _Whole(part, work, engine, check))


class _Whole:
    """The samples of a part that are whole; see shardio.packing.job.Source.

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
        for spool, problems in self._engine.run(find_whole, self._tasks, None):
            yield from problems
            for sample in spool:
                empty = False
                yield sample
        if empty:
            raise PackError(
                f"{self._part.path}: no sample in it is whole; get or pack the shards again"
            )
