"""From a source to a packed folder: list, divide, run, publish.

The same input gives the same bytes, whatever runs the tasks. The list of samples and the receipts
of finished shards lie in a work folder until all is done; a pack that is run again lists anew,
and makes what has no receipt. The manifest comes last, so a folder without it is not packed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardio.errors import (
    PackError,
    ShardioError,
    SituationError,
    UsageError,
    argument,
    counted,
    quoted,
    shown,
)
from shardio.fields.base import PIXELS_FIELD, FieldType
from shardio.fields.defaults import combined_types, type_of
from shardio.fields.formats import IMAGE_FIELDS
from shardio.fields.pictures import Pixels
from shardio.fields.recorded import describe_type, record_type, types_to_record
from shardio.indexing.manifest import (
    INDEX_FOLDER,
    Manifest,
    class_conflict,
    pack_with_same_classes,
    read_manifest,
    write_manifest,
)
from shardio.indexing.parts import find_splits
from shardio.packing.dedupe import Dedupe, FingerprintTask, fingerprint, group_alike, hamming
from shardio.packing.engine import Advance, Engine
from shardio.packing.folder import Ended, Output, hold_folder, remove_others
from shardio.packing.layout import DUPLICATES_NAME, RENAMED_NAME, SKIPPED_NAME, WHOLE
from shardio.packing.listing import Listing
from shardio.packing.plan import ImageEncoding, Sharding, Splits, plan_shards, split_samples
from shardio.packing.sources.base import Source, remedy_for, types_of
from shardio.packing.task import (
    PackedShard,
    SampleTask,
    ShardTask,
    find_problems,
    lost_shards,
    pack_shard,
)
from shardio.packing.upload import claim_storage, publish_rest, refuse_others
from shardio.storage.base import Storage
from shardio.storage.folder import Folder
from shardio.storage.location import Location, Options, locate

Progress = Callable[[int], Advance]
"""Called with the number of samples; returns a callback for the number done since its last call.

It is called anew for each pass over the samples: one that looks for bad ones or duplicates, if
that is wanted, and the one that packs.
"""

_LOG = logging.getLogger("shardio")
_CHUNK = 256  # samples that are checked by one task


@dataclass(frozen=True, slots=True, kw_only=True)
class PackJob:
    """The specification of a pack: what to make of the samples of a source.

    Attributes:
        sharding: number or size of the shards.
        splits: parts that samples are divided into; None for one.
        named_splits: names of the splits where the source says that of each sample.
        shuffle: whether to order the samples at random; otherwise they stay in the source's order.
        seed: seed of the order and the splits.
        images: encoding of the images.
        check: whether to look at data, see SampleTask.
        types: types of a user by field name; other fields have those that the source records, or
            their default types.
        named: names of fields that the samples must have, as the user named them.
        skip: whether to leave out what cannot be packed, instead of stopping.
        dedupe: treatment of duplicates; None does not look for any.
        engine: engine that runs the tasks.
        progress: callback for each pass over the samples; None for no reports.
        ledger: name of the file in the output that lists what was left out.
        storage: storage of the output; None chooses it by the scheme of a URL.
        storage_options: settings of the store of a URL.

    Raises:
        UsageError: the sizes of samples are not known before they are encoded.
    """

    sharding: Sharding
    splits: Splits | None
    shuffle: bool
    seed: int
    images: ImageEncoding
    check: bool
    skip: bool
    dedupe: Dedupe | None
    engine: Engine
    progress: Progress | None
    ledger: str = SKIPPED_NAME
    storage: Storage | None = None
    storage_options: Options | None = field(default=None, repr=False)
    types: Mapping[str, FieldType] = field(default_factory=dict)
    named: frozenset[str] = frozenset()
    named_splits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.sharding.shard_size is not None and self.images.decodes:
            raise UsageError(
                "it needs to know what samples take before they are encoded",
                where=argument("shard_size"),
                remedy=f"give {argument('samples_per_shard')}",
            )

    @property
    def parts(self) -> Sequence[str]:
        """Names of the splits; WHOLE for none."""
        return self.named_splits or (*(self.splits.fractions if self.splits else (WHOLE,)),)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackSummary:
    """Summary of a pack.

    Attributes:
        samples: number of samples in all shards.
        shards: number of shards.
        bytes: bytes of all shards.
        classes: number of classes that have names; None without.
        fields: types of the fields by name, in words as those of shardio.info.
        splits: number of samples by split; None without splits.
        skipped: number of problems, each listed in the ledger.
        duplicates: number of samples that are the same as one before, each listed in
            duplicates.jsonl; None if nobody looked.
        renamed: number of samples whose key is not their path, listed in renamed.jsonl.
        image_sizes: number of different sizes of stored pixels; None for image files.
        seconds: duration of the pack.
    """

    samples: int
    shards: int
    bytes: int
    classes: int | None
    fields: Mapping[str, str]
    splits: Mapping[str, int] | None
    skipped: int
    duplicates: int | None
    renamed: int
    image_sizes: int | None
    seconds: float


def run_job(
    out: str | PathLike[str] | Location, job: PackJob, open_source: Callable[[Folder], Source]
) -> PackSummary:
    """Make a packed folder.

    Args:
        out: folder that is new, empty, or that of the same job interrupted; as a path, one in the
            job's storage.
        job: specification of the pack.
        open_source: function that opens the source; called with the work folder.

    Raises:
        PackError: something of the source cannot be packed, or the folder is taken.
        OutputError, UsageError: the folder holds a link in the place of a file, or is a URL.
        OSError: the folder cannot be written.
    """
    start = time.monotonic()
    target = locate_output(out, job)
    if target.is_local:
        plan, ended = _pack(Path(target), None, job, open_source)
    elif job.engine.elsewhere:
        raise UsageError(
            "it writes to a folder that all machines see, and not to a storage",
            where=argument("engine", "ray"),
            remedy="leave it out, or pack into a folder and copy it",
        )
    else:
        with claim_storage(target, job.parts) as folder:
            plan, ended = _pack(folder, target, job, open_source)
    return _summarize(plan, ended, seconds=time.monotonic() - start)


def locate_output(out: str | PathLike[str] | Location, job: PackJob) -> Location:
    """Return where a packed folder goes.

    Raises:
        PackError: the name is empty.
        UsageError: it is a URL of a scheme that no storage is for.
        RemoteDenied: its storage is only read.
    """
    if not isinstance(out, Location) and not os.fspath(out):
        raise PackError("the name of the output folder is empty", remedy="name a folder")
    return locate(out, job.storage, job.storage_options).for_writing()


def _pack(
    folder: Path,
    target: Location | None,
    job: PackJob,
    open_source: Callable[[Folder], Source],
) -> tuple[_Plan, Ended]:
    """Pack into a local folder."""
    names = job.parts
    with hold_folder(folder, names) as output:
        source = open_source(output.work)
        if target is None and WHOLE in names:
            _warn_of_packed_inside(folder)
            if source.classes:
                _warn_of_other_classes(folder, source.classes)
        types = combined_types(types_of(source), job.types)
        job = replace(job, types=types | _type_of_pixels(types, job.images))
        plan = _plan(output, job, source, target)
        made = plan.digest(job)
        ended = output.ended
        if ended is None:
            _discard_others(output, plan.tasks)
            if target is not None:
                refuse_others(target, names, {task.shard for task in plan.tasks})
            packed = job.engine.run(pack_shard, plan.tasks, _advance(plan.listing, job))
            _publish(output.folder, job.ledger, plan, packed)
            if target is not None:
                publish_rest(target, folder, names)
            ended = Ended(
                made=made,
                bytes=sum(shard.receipt.size for shard in packed),
                image_sizes=len({size for shard in packed for size in shard.sizes}) or None,
                fields=sorted({field for shard in packed for field in shard.fields}),
            )
            output.end(ended)
    if ended.made != made:
        raise PackError(
            "an earlier pack, of something else, has just been found to be finished",
            where=folder,
            remedy="use the folder, or name another one",
        )
    return plan, ended


def _warn_of_packed_inside(folder: Path) -> None:
    """Log packed folders in this one, as splits of an earlier pack, which others would overlook."""
    if inside := [found.name for found in find_splits(folder)]:
        _LOG.warning(
            "%s: it holds packed folders already, %s, which stay as they are; the shards of this "
            "pack come beside them, and whoever reads the folder reads these alone",
            folder,
            ", ".join(map(shown, inside)),
        )


def _warn_of_other_classes(folder: Path, classes: Sequence[str]) -> None:
    """Log a packed folder beside this one that numbers the same classes differently."""
    for other in find_splits(folder.absolute().parent):
        with suppress(ShardioError, OSError):
            named = None if other.name == folder.name else read_manifest(other).classes
            if what := class_conflict(classes, folder, named or (), folder.with_name(other.name)):
                way = pack_with_same_classes("both")
                _LOG.warning("%s, beside it; if they are splits of one dataset, %s", what, way)
                return


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Plan:
    """The shards that a job makes of a source.

    Attributes:
        listing: the samples.
        parts: numbers of samples by split.
        tasks: tasks that write the shards.
        classes: names of the classes; None without.
        duplicates: number of duplicates that were found; None if nobody looked.
        types: types of fields by name; other fields have their default types.
    """

    listing: Listing
    parts: Mapping[str, NDArray[np.int64]]
    tasks: Sequence[ShardTask]
    classes: tuple[str, ...] | None
    duplicates: int | None
    types: Mapping[str, FieldType]

    def digest(self, job: PackJob) -> str:
        """Compute a digest of what is made, which differs from that of other packs."""
        tasks = [(task.shard, task.digest()) for task in self.tasks]
        problems = [(each.path, each.reason) for each in self.listing.problems]
        made = f"{tasks} {self.classes} {problems} {job.dedupe} {job.ledger} {[*self.parts]}"
        if recorded := types_to_record(sorted(self.types), self.types):
            made += f" {[record_type(*each) for each in recorded.items()]}"
        return hashlib.sha256(made.encode("utf-8", "surrogateescape")).hexdigest()


def _plan(output: Output, job: PackJob, source: Source, target: Location | None) -> _Plan:
    """List the samples and divide them into shards."""
    output.work.remove(DUPLICATES_NAME)
    listing = Listing(output.work, source, sized=job.sharding.shard_size is not None)
    _check(listing, source, job)
    groups = _find_duplicates(listing, source, job, job.dedupe) if job.dedupe else None
    parts = listing.by_split(job.named_splits) or split_samples(
        len(listing),
        job.splits,
        seed=job.seed,
        labels=listing.labels,
        groups=groups.heads if groups else None,
    )
    planned = plan_shards(
        parts, job.sharding, seed=job.seed if job.shuffle else None, sizes=listing.sizes
    )
    tasks = [
        ShardTask(
            **_of_samples(source, listing, job, shard.numbers),
            part=shard.part,
            name=shard.name,
            target=target,
        )
        for shard in planned
    ]
    return _Plan(
        listing=listing,
        parts=parts,
        tasks=tasks,
        classes=source.classes,
        duplicates=None if groups is None else groups.again,
        types=job.types,
    )


def _type_of_pixels(types: Mapping[str, FieldType], images: ImageEncoding) -> dict[str, FieldType]:
    """Return the type of images that are stored as pixels of other channels than RGB's."""
    others = {each.channels for each in types.values() if each.image_file} - {3}
    if images.store != "raw" or not others:
        return {}
    return {PIXELS_FIELD: Pixels(channels=min(others))}


def _discard_others(output: Output, tasks: Sequence[ShardTask]) -> None:
    """Remove what an interrupted pack left that this one will not make, and log finished shards."""
    lost = lost_shards(output.work, {task.shard: task.digest() for task in tasks})
    remove_others(output, {task.shard for task in tasks})
    if lost:
        _LOG.warning(
            "%s: this pack starts afresh, since its samples or options differ from those of the "
            "interrupted one, which had finished %s",
            output.folder.path,
            counted(len(lost), "shard"),
        )


def _summarize(plan: _Plan, ended: Ended, *, seconds: float) -> PackSummary:
    parts = {name: len(numbers) for name, numbers in plan.parts.items()}
    return PackSummary(
        samples=len(plan.listing),
        shards=len(plan.tasks),
        bytes=ended.bytes,
        classes=len(plan.classes) if plan.classes else None,
        fields={name: describe_type(type_of(name, given=plan.types)) for name in ended.fields},
        splits=None if WHOLE in parts else parts,
        skipped=len(plan.listing.problems),
        duplicates=plan.duplicates,
        renamed=int(plan.listing.renamed.sum()),
        image_sizes=ended.image_sizes,
        seconds=seconds,
    )


def _check(listing: Listing, source: Source, job: PackJob) -> None:
    """Stop because of the first problem, or leave out all of them."""
    if not job.skip and listing.problems:
        raise listing.problems[0].error(remedy_for(source))
    _check_names(listing, source, job)
    if job.skip:
        tasks = [SampleTask(**some) for some in _in_chunks(source, listing, job)]
        checked = job.engine.run(find_problems, tasks, _advance(listing, job))
        found = [each for some in checked for each in some]
        listing.leave_out({number: each for number, each in enumerate(found) if each is not None})
    if not len(listing):
        if listing.problems:
            first = listing.problems[0]
            raise PackError(
                f"none of its samples can be packed; the first is {first.path}: {first.reason}",
                where=source.name,
                remedy=first.remedy,
            )
        raise PackError(
            "nothing in it can be packed, or was chosen",
            where=source.name,
            remedy="name a source of samples",
        )
    if job.splits is not None and job.splits.stratify and (listing.labels < 0).all():
        raise SituationError("stratify needs labels, and no sample has one", remedy="leave it out")


def _check_names(listing: Listing, source: Source, job: PackJob) -> None:
    """Raise SituationError if no sample has a field whose type the user gave."""
    found = {name for name in listing.fields if name is not None}
    unnamed = IMAGE_FIELDS if None in listing.fields else frozenset[str]()  # until they are read
    if lacking := sorted(job.named - found - unnamed):
        raise SituationError(
            f"types: no sample has the field {quoted(lacking[0])}",
            where=source.name,
            remedy=f"name one of {', '.join(map(shown, sorted(found | unnamed)))}",
        )


class _Duplicates(NamedTuple):
    """Samples that are the same.

    Attributes:
        heads: lowest number in the group of each sample, int64 [n].
        again: number of samples beside the first of each group.
    """

    heads: NDArray[np.int64]
    again: int


def _find_duplicates(listing: Listing, source: Source, job: PackJob, dedupe: Dedupe) -> _Duplicates:
    """List the samples that are the same as one before, and leave them out if so wanted."""
    perceptual = dedupe.likeness == "perceptual"
    tasks = [
        FingerprintTask(**some, perceptual=perceptual) for some in _in_chunks(source, listing, job)
    ]
    prints = _fingerprints(listing, source, job, tasks)
    heads = group_alike(prints, dedupe.distance if perceptual else None)
    again = np.flatnonzero(heads != np.arange(len(heads)))
    chosen = (listing.samples.choose(numbers) for numbers in (again, heads[again]))
    pairs = zip(*chosen, strict=True)
    distances = hamming(prints[again, 2], prints[heads[again], 2]).tolist()
    rows = (
        {"path": one.path, "key": one.key, "label": one.label, "distance": distance}
        | {"of": first.path, "of_label": first.label}
        for (one, first), distance in zip(pairs, distances, strict=True)
    )
    write_ledger(listing.work, DUPLICATES_NAME, rows)
    if dedupe.keep:
        return _Duplicates(heads, len(again))
    listing.keep(heads == np.arange(len(heads)))
    return _Duplicates(np.arange(len(listing)), len(again))


def _fingerprints(
    listing: Listing, source: Source, job: PackJob, tasks: Sequence[FingerprintTask]
) -> NDArray[np.uint64]:
    """Fingerprint all samples; those whose images do not decode are left out, or an error."""
    done = job.engine.run(fingerprint, tasks, _advance(listing, job))
    prints = np.concatenate([some.prints for some in done])
    starts = range(0, len(listing), _CHUNK)
    problems = {
        start + number: problem
        for start, some in zip(starts, done, strict=True)
        for number, problem in some.problems.items()
    }
    if not problems:
        return prints
    if not job.skip:
        raise problems[min(problems)].error(remedy_for(source))
    listing.leave_out(problems)
    return np.delete(prints, [*problems], axis=0)


def _path(path: str | Path, job: PackJob) -> str:
    """Return a path as tasks find it."""
    return os.path.abspath(path) if job.engine.elsewhere else str(path)  # noqa: PTH100  text


def _advance(listing: Listing, job: PackJob) -> Advance | None:
    return job.progress(len(listing)) if job.progress else None


def _in_chunks(source: Source, listing: Listing, job: PackJob) -> Iterator[dict[str, Any]]:
    """Yield what tasks of all samples are made of, some samples at a time."""
    for start in range(0, len(listing), _CHUNK):
        numbers = np.arange(start, min(start + _CHUNK, len(listing)))
        yield _of_samples(source, listing, job, numbers)


def _of_samples(
    source: Source, listing: Listing, job: PackJob, numbers: NDArray[np.int64]
) -> dict[str, Any]:
    """Return what a task of these samples is made of."""
    return {
        "root": _path(source.root, job),
        "samples": listing.samples.choose(numbers, out=_path(listing.samples.out, job)),
        "images": job.images,
        "check": job.check,
        "remedy": remedy_for(source),
        "types": job.types,
        "stored": listing.stored(numbers),
    }


def _publish(folder: Folder, ledger: str, plan: _Plan, packed: Sequence[PackedShard]) -> None:
    """Write what belongs to the shards, the manifests last."""
    listing = plan.listing
    problems = sorted(listing.problems, key=lambda problem: problem.path)
    rows = ({k: v for k, v in asdict(each).items() if v is not None} for each in problems)
    write_ledger(folder, ledger, rows)
    with suppress(FileNotFoundError):
        listing.work.move(DUPLICATES_NAME, folder)
    renamed = listing.samples.choose(listing.renamed)
    write_ledger(folder, RENAMED_NAME, ({"key": each.key, "path": each.path} for each in renamed))
    folder.sync()
    for part in dict.fromkeys(shard.part for shard in packed):
        shards = [shard for shard in packed if shard.part == part]
        fields = sorted({field for shard in shards for field in shard.fields})
        manifest = Manifest(
            shards=tuple(shard.receipt for shard in shards),
            fields=tuple(fields),
            classes=plan.classes,
            types=types_to_record(fields, plan.types),
        )
        with folder.inside(part) as inside:
            with inside.inside(INDEX_FOLDER) as indexes:
                indexes.sync()
            inside.sync()
            write_manifest(inside, manifest)
            inside.sync()


def write_ledger(folder: Folder, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as lines of JSON; nothing if there are none.

    Args:
        folder: folder of the file.
        name: name of the file.
        rows: values to write, a line each.

    Raises:
        OutputError: something else than a file has the name.
        OSError: the file cannot be written.
    """
    lines = (json.dumps(row).encode("ascii") + b"\n" for row in rows)
    first = next(lines, None)
    if first is not None:
        with folder.write(name) as stream:
            stream.write(first)
            stream.writelines(lines)
