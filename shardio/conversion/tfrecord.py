"""Writing shards as TFRecord files: one shard by a task, and the folder that holds them.

A task holds one sample at a time, and its file gets its name when it is whole. Until all are done
the folder holds a lock that says what is made, so that the same conversion again makes what is
missing, and nobody else's files are overwritten. Neither lock nor files are believed: what is there
already is read, and compared with what would be written.

Shards for other tools: TFRecord files made of them, and the indexes that others need.

Each shard becomes one file, by a task of its own; a file gets its name when it is whole.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from shardio.checks import one_of
from shardio.conversion.indexes import dali_index, energon_index, wids_index
from shardio.errors import (
    CodecError,
    PackError,
    SampleError,
    SituationError,
    UsageError,
    quoted,
    shown,
)
from shardio.fields.arrays import decode_cls
from shardio.fields.base import LABEL_FIELD
from shardio.indexing.catalog import (
    SHARD_SUFFIXES,
    Catalog,
    ShardEntry,
    ShardPaths,
    open_catalog,
)
from shardio.indexing.manifest import INDEX_FOLDER, INDEX_SUFFIX, index_path
from shardio.packing.engine import Engine, Ticker, make_engine
from shardio.packing.folder import open_lock
from shardio.packing.job import Progress
from shardio.packing.sources.base import SourceSample, UnpackableError
from shardio.packing.sources.reader import SourceReader, in_memory, version_of
from shardio.packing.sources.records import (
    Buffer,
    Numbers,
    encode_example,
    frame_record,
    load_checksum,
)
from shardio.packing.sources.rules import KEY, FeaturePair, parse_features
from shardio.packing.sources.tars import TarSource, has_tars
from shardio.packing.sources.tfrecord import find_files, name_features
from shardio.storage.compression import find_compression
from shardio.storage.folder import Folder, final_name
from shardio.storage.local import refuse_url

LOCK_NAME = ".converting"
RECORD_SUFFIX = ".tfrecord"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordTask:
    """A shard to write as a TFRecord file.

    Attributes:
        entry: the shard.
        out: folder of the file.
        name: name of the file.
        names: of the features that fields become.
    """

    entry: ShardEntry
    out: str
    name: str
    names: Mapping[str, str]

    def __len__(self) -> int:
        return self.entry.samples


def write_records(task: RecordTask, ticker: Ticker) -> int:
    """Write the samples of a shard as a TFRecord file; returns its size.

    A file that is there, of a conversion that was interrupted, is held against what it should be.

    Raises:
        PackError: another file is there.
        SampleError: a member is not what was packed, or a class number is none.
        OutputError: something else than a file has the name.
        OSError: the shard cannot be read, or the file not written.
    """
    with Folder.open(Path(task.out)) as folder:
        if folder.find_file(task.name) is None:
            with folder.write(task.name) as stream:
                for data in _records(task, ticker):
                    stream.write(data)
                return stream.tell()
        with folder.open_file(task.name) as stream:
            for data in _records(task, ticker):
                if stream.read(len(data)) != data:
                    raise _other_file(folder, task)
            if stream.read(1):
                raise _other_file(folder, task)
            return stream.tell()


def _records(task: RecordTask, ticker: Ticker) -> Iterator[Buffer]:
    """The pieces of a TFRecord file, in order."""
    shard = TarSource(catalog=Catalog(shards=(task.entry,), fields=(), classes=None))
    with SourceReader(shard.root) as files:
        for sample in shard.samples():
            if isinstance(sample, SourceSample):
                yield from frame_record(encode_example(_features_of(sample, task, files)))
            ticker.tick(1)


def _other_file(folder: Folder, task: RecordTask) -> PackError:
    return PackError(
        f"it is not what the conversion of {task.entry.name} makes",
        where=folder.path / task.name,
        remedy="move it away, or remove it, and run the conversion again",
    )


def _features_of(
    sample: SourceSample, task: RecordTask, files: SourceReader
) -> dict[str, Sequence[Buffer] | Numbers]:
    """The features of one sample, its members read and held against their checksums."""
    found: dict[str, Sequence[Buffer] | Numbers] = {}
    if KEY in task.names:
        found[task.names[KEY]] = [sample.key.encode("utf-8", "surrogateescape")]
    for field, origin in sample.fields:
        if field is None or field not in task.names:
            continue
        try:
            data = files.read(origin, in_memory)
            found[task.names[field]] = (
                np.array([decode_cls(data)], np.int64) if field == LABEL_FIELD else [data]
            )
        except (UnpackableError, CodecError) as error:
            raise error.at(
                f"{shown(sample.path)}, field {quoted(field)}",
                SampleError,
                remedy="get or pack the shard again",
                shard=task.entry.name,
                key=sample.key,
                field=field,
            ) from error
    return found


@contextmanager
def hold_record_folder(path: Path, made: str) -> Iterator[Folder]:
    """Hold a folder of TFRecord files while they are made.

    After an error it is as it was, or, if files are finished, as an interrupted conversion leaves
    it: locked, and to be taken up.

    Args:
        path: path of the folder.
        made: hexadecimal digest of what is made.

    Raises:
        PackError: the folder has such files, or another conversion holds it or was interrupted.
        OutputError: a link or the like lies where a file of the conversion belongs.
        OSError: the folder cannot be made or written.
    """
    existed = path.exists()
    path.mkdir(parents=True, exist_ok=True)
    with Folder.open(path) as folder, open_lock(folder, LOCK_NAME) as lock:
        if not lock.take():
            raise PackError(
                "another conversion writes to this folder", where=path, remedy="wait for it"
            )
        mine, before = made.encode("ascii"), lock.read()
        if not re.fullmatch(rb"[0-9a-f]*", before) or len(before) > len(mine):
            raise PackError(
                "it is no lock that a conversion wrote",
                where=lock.path,
                remedy="remove it if no other program needs it, or name another folder",
            )
        begun = len(before) == len(mine)  # what was cut off was never acted on
        if begun and before != mine:
            raise PackError(
                "a conversion of something else into this folder was interrupted",
                where=path,
                remedy="run it again, or name another folder",
            )
        try:
            if not begun:
                _refuse_files(folder)
                lock.write(mine, at=0)
            _remove_temporary(folder)
            yield folder
        except BaseException:
            if lock.read() != mine or not _record_files(folder):
                lock.release()
                if not existed:
                    with suppress(OSError):
                        path.rmdir()
            raise
        lock.release()


def _record_files(folder: Folder) -> list[str]:
    return [name for name in folder.names() if name.endswith(RECORD_SUFFIX)]


def _refuse_files(folder: Folder) -> None:
    if found := _record_files(folder):
        raise PackError(
            f"the folder has TFRecord files already ({found[0]})",
            where=folder.path,
            remedy="name another one, or remove them first",
        )


def _remove_temporary(folder: Folder) -> None:
    """Remove what a conversion that was killed had not finished."""
    for name in folder.names():
        if name != (final := final_name(name)) and final.endswith(RECORD_SUFFIX):
            folder.remove(name)


Target = Literal["tfrecord", "wids", "dali", "energon"]

WIDS_NAME = "shardindex.json"
_INDEXES: Mapping[Target, tuple[str, Callable[[ShardEntry], bytes]]] = {
    "dali": (".idx", dali_index),
    "energon": (".tar.idx", energon_index),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertSummary:
    """What was converted.

    Attributes:
        samples: in all shards.
        shards: that were read.
        files: that are written.
        bytes: of these files.
        seconds: it took.
    """

    samples: int
    shards: int
    files: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexTask:
    """A shard to index for another tool.

    Attributes:
        entry: the shard.
        out: folder of the index.
        name: file name of the index.
        to: the tool.
    """

    entry: ShardEntry
    out: str
    name: str
    to: Target

    def __len__(self) -> int:
        return self.entry.samples


def convert(
    source: ShardPaths,
    out: str | PathLike[str] | None = None,
    *,
    to: Target,
    features: Sequence[str] = (),
    allow_empty: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> ConvertSummary:
    """Make TFRecord files of shards, or indexes of shards for other tools.

    From TFRecord files to shards is `shardio.pack`.

    Args:
        source: a packed folder, a folder of tars, a shard, a glob, a pattern, or a list of these.
        out: folder for the files. TFRecord files need one without such files in it; indexes lie
            beside their shards by default.
        to: "tfrecord" writes `NAME.tfrecord` for each shard `NAME.tar`, a tf.train.Example a
            sample: each field as bytes under its name, `cls` as int64 under `label`, the key under
            `__key__`. "wids" writes one `shardindex.json`, "dali" `NAME.idx` and "energon"
            `NAME.tar.idx` for each shard.
        features: of "tfrecord", names for fields, as ["jpg=image/encoded"]; "jpg=" leaves a field
            out.
        allow_empty: take tars that have members, none of which is a field of a sample.
        jobs: processes; by default one a core.
        progress: called with the number of samples; what it returns is called with how many more
            are done.

    Raises:
        UsageError: an argument cannot be meant, or nothing is at the source.
        PackError: the output is taken.
        OutputError: a link or the like lies where a file belongs.
        SampleError: a member is not what was packed, or a class number is none.
        IndexFileError: an index is missing, damaged or stale.
        TarError: a shard is damaged.
        OSError: a shard cannot be read, or a file not written.
    """
    start = time.monotonic()
    pairs = check_arguments(out, to=to, features=features)
    engine = make_engine("local", jobs)
    _refuse_records(source)
    catalog = open_catalog(source, allow_empty=allow_empty)
    if to == "tfrecord" and out is not None:
        sizes = _write_records(catalog, Path(out), pairs, engine, progress)
    elif to == "wids":
        sizes = [_write_wids(catalog, out)]
    else:
        sizes = _write_indexes(catalog, out, to, engine, progress)
    return ConvertSummary(
        samples=sum(entry.samples for entry in catalog.shards),
        shards=len(catalog.shards),
        files=len(sizes),
        bytes=sum(sizes),
        seconds=time.monotonic() - start,
    )


def check_arguments(
    out: str | PathLike[str] | None, *, to: Target, features: Sequence[str]
) -> tuple[FeaturePair, ...]:
    """The pairs of fields and features that arguments of convert say.

    Raises:
        UsageError: an argument cannot be meant.
    """
    pairs = parse_features(features)
    if out is not None:
        refuse_url(out)
    one_of("to", to, get_args(Target))
    if to == "tfrecord" and out is None:
        raise UsageError("TFRecord files need a folder of their own", remedy="name it as OUT")
    if to != "tfrecord" and pairs:
        raise UsageError("features are of TFRecord files", remedy="leave them out")
    if pair := next((pair for pair in pairs if not pair.field), None):
        raise UsageError(
            f"features: '={pair.feature}' names no field", remedy="write it as jpg=image/encoded"
        )
    return pairs


def write_index(task: IndexTask, ticker: Ticker) -> int:
    """Write an index of a shard for another tool; returns its size.

    Raises:
        ShardioError: the shard is damaged or stale, or the tool cannot read it.
        OSError: the shard cannot be read, or the index not written.
    """
    _, index = _INDEXES[task.to]
    data = index(task.entry)
    with Folder.open(Path(task.out)) as folder, folder.write(task.name) as stream:
        stream.write(data)
    ticker.tick(len(task))
    return len(data)


def _write_records(
    catalog: Catalog,
    out: Path,
    pairs: Sequence[FeaturePair],
    engine: Engine,
    progress: Progress | None,
) -> list[int]:
    load_checksum()
    names = name_features(catalog.fields, pairs)
    tasks = [
        RecordTask(entry=entry, out=str(out), name=_stem(entry) + RECORD_SUFFIX, names=names)
        for entry in catalog.shards
    ]
    _refuse_equal(tasks)
    versions = [
        version_of(Path(entry.name)) for entry in catalog.shards if entry.version is not None
    ]
    files = [task.name for task in tasks]
    made = f"{catalog.digest()} {versions} {sorted(names.items())} {files}"
    with hold_record_folder(
        out, hashlib.sha256(made.encode("utf-8", "surrogateescape")).hexdigest()
    ) as folder:
        sizes = engine.run(write_records, tasks, _advance(catalog, progress))
        folder.sync()
    return sizes


def _write_indexes(
    catalog: Catalog,
    out: str | PathLike[str] | None,
    to: Target,
    engine: Engine,
    progress: Progress | None,
) -> list[int]:
    suffix, _ = _INDEXES[to]
    tasks = [
        IndexTask(entry=entry, out=str(_beside(entry, out)), name=_stem(entry) + suffix, to=to)
        for entry in map(_plain, catalog.shards)
    ]
    _refuse_equal(tasks)
    shards = {Path(entry.path).resolve() for entry in catalog.shards}
    for task in tasks:
        path = Path(task.out, task.name)
        if path.resolve() == index_path(Path(task.entry.path).resolve()) or (
            path.parent.name == INDEX_FOLDER and path.name.endswith(INDEX_SUFFIX)
        ):
            raise SituationError(
                "shardio's own index lies there", where=path, remedy="name another folder as OUT"
            )
        if path.resolve() in shards:
            raise SituationError(
                "a shard has the name of the index", where=path, remedy="name a folder as OUT"
            )
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
    sizes = engine.run(write_index, tasks, _advance(catalog, progress))
    for each in {task.out for task in tasks}:
        with Folder.open(Path(each)) as folder:
            folder.sync()
    return sizes


def _write_wids(catalog: Catalog, out: str | PathLike[str] | None) -> int:
    folders = {_beside(_plain(entry), out) for entry in catalog.shards}
    if len(folders) > 1:
        raise SituationError(
            "the shards lie in several folders", remedy="name one for the index as OUT"
        )
    folder = folders.pop()
    folder.mkdir(parents=True, exist_ok=True)
    data = wids_index(catalog.shards, folder)
    with Folder.open(folder) as held:
        with held.write(WIDS_NAME) as stream:
            stream.write(data)
        held.sync()
    return len(data)


def _refuse_records(source: ShardPaths) -> None:
    path = os.fspath(source) if isinstance(source, str | PathLike) else None
    if path is not None and not has_tars(path) and find_files(path) is not None:
        raise PackError(
            "these are TFRecord files",
            where=path,
            remedy=f"`shardio pack {path} OUT --shards N` makes shards of them",
        )


def _stem(entry: ShardEntry) -> str:
    name = Path(entry.name).name
    return name.removesuffix(next(filter(name.endswith, SHARD_SUFFIXES), ""))


def _beside(entry: ShardEntry, out: str | PathLike[str] | None) -> Path:
    return Path(entry.name).parent if out is None else Path(out)


def _plain(entry: ShardEntry) -> ShardEntry:
    compression = find_compression(Path(entry.name))
    if compression is not None:
        raise PackError(
            "other tools find samples in uncompressed tars only",
            where=entry.name,
            remedy=f"decompress it with `{compression.name} -d`",
        )
    return entry


def _refuse_equal(tasks: Sequence[RecordTask | IndexTask]) -> None:
    paths = Counter(Path(task.out, task.name) for task in tasks)
    again = next((path for path, times in paths.items() if times > 1), None)
    if again is not None:
        raise SituationError(
            f"two shards would become {again}", remedy="convert them into different folders"
        )


def _advance(catalog: Catalog, progress: Progress | None) -> Callable[[int], None] | None:
    total = sum(entry.samples for entry in catalog.shards)
    return progress(total) if progress else None
