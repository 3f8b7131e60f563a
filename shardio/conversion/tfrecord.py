"""Convert shards to TFRecord files, or index them for other tools.

Each shard is converted by a task of its own, one sample at a time. A file gets its final name when
it is complete.

While TFRecord files are written, their folder holds a lock with a digest of the conversion. The
same conversion can therefore resume, and files of others are not overwritten. Existing files are
not trusted: they are read and compared with what would be written.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike, fspath
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
    argument,
    in_words,
    quoted,
    shown,
    without_secrets,
)
from shardio.fields.arrays import decode_cls
from shardio.fields.base import LABEL_FIELD
from shardio.indexing.catalog import Catalog, open_catalog
from shardio.indexing.entry import ShardEntry
from shardio.indexing.manifest import INDEX_FOLDER, INDEX_SUFFIX, index_path
from shardio.indexing.parts import SHARD_SUFFIXES, ShardPaths
from shardio.packing.engine import Engine, Ticker, make_engine
from shardio.packing.folder import open_lock
from shardio.packing.job import Progress
from shardio.packing.sources.base import SourceSample, UnpackableError
from shardio.packing.sources.reader import SourceReader, file_version, in_memory
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
from shardio.storage.base import restore
from shardio.storage.compression import LONGEST_MAGIC, compression_of
from shardio.storage.folder import Folder, final_name
from shardio.storage.local import LOCAL, url_fault
from shardio.storage.location import Options

LOCK_NAME = ".converting"
RECORD_SUFFIX = ".tfrecord"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordTask:
    """Shard to write as a TFRecord file.

    Attributes:
        entry: shard to convert.
        out: folder of the file.
        name: name of the file.
        names: feature name for each field.
    """

    entry: ShardEntry
    out: str
    name: str
    names: Mapping[str, str]

    def __len__(self) -> int:
        return self.entry.samples


def write_records(task: RecordTask, ticker: Ticker) -> int:
    """Write the samples of a shard as a TFRecord file and return its size.

    An existing file, left by an interrupted conversion, is compared with the expected contents.

    Raises:
        PackError: the existing file differs.
        SampleError: a member differs from what was packed, or a class number is invalid.
        OutputError: the name is taken by something other than a file.
        OSError: the shard cannot be read, or the file cannot be written.
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
                    raise _differs(folder, task.name)
            if stream.read(1):
                raise _differs(folder, task.name)
            return stream.tell()


def _records(task: RecordTask, ticker: Ticker) -> Iterator[Buffer]:
    """Yield the pieces of a TFRecord file, in order."""
    shard = TarSource(catalog=Catalog(shards=(task.entry,), fields=(), classes=None, types={}))
    with SourceReader(shard.root, stored=shard.stored) as files:
        for sample in shard.samples():
            if isinstance(sample, SourceSample):
                yield from frame_record(encode_example(_features_of(sample, task, files)))
            ticker.tick(1)


def _differs(folder: Folder, name: str) -> PackError:
    return PackError(
        "the file differs from what this conversion writes, so it is not replaced",
        where=folder.path / name,
        remedy="move or remove it and convert again, or name another folder",
    )


def _features_of(
    sample: SourceSample, task: RecordTask, files: SourceReader
) -> dict[str, Sequence[Buffer] | Numbers]:
    """Return the features of one sample; its members are verified against their checksums."""
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
                remedy=restore(),
                shard=task.entry.name,
                key=sample.key,
                field=field,
            ) from error
    return found


@contextmanager
def hold_record_folder(path: Path, made: str) -> Iterator[Folder]:
    """Create and lock a folder for TFRecord files.

    If the block raises, an empty folder is restored to its previous state. If files have been
    finished, the lock stays, so that the same conversion can resume.

    Args:
        path: path of the folder.
        made: hexadecimal digest of the conversion.

    Raises:
        PackError: the folder already has TFRecord files, another conversion holds the lock, or
            a different conversion was interrupted.
        OutputError: a link or the like is in place of a file.
        OSError: the folder cannot be created or written.
    """
    existed = path.exists()
    path.mkdir(parents=True, exist_ok=True)
    with Folder.open(path) as folder, open_lock(folder, LOCK_NAME) as lock:
        if not lock.take():
            raise PackError(
                "another conversion is writing to this folder", where=path, remedy="wait for it"
            )
        mine, before = made.encode("ascii"), lock.read()
        if not re.fullmatch(rb"[0-9a-f]*", before) or len(before) > len(mine):
            raise PackError(
                "the file was not written by a conversion",
                where=lock.path,
                remedy="remove it if no other program needs it, or name another folder",
            )
        begun = len(before) == len(mine)  # nothing was done under a truncated digest
        if begun and before != mine:
            raise PackError(
                "a different conversion into this folder was interrupted",
                where=path,
                remedy="run that one again, or name another folder",
            )
        try:
            if not begun:
                _refuse_files(folder)
                lock.write(mine, at=0)
            else:
                _remove_temporary(folder)
            yield folder
        except BaseException:  # whatever it is, a folder without records is left as it was
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
            f"the folder already has TFRecord files ({found[0]})",
            where=folder.path,
            remedy="remove them first, or name another folder",
        )


def _remove_temporary(folder: Folder) -> None:
    """Remove the unfinished files of a killed conversion."""
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
    """Summary of a conversion.

    Attributes:
        samples: number of samples in all shards.
        shards: number of shards read.
        files: number of files written.
        bytes: total size of these files.
        seconds: duration in seconds.
    """

    samples: int
    shards: int
    files: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexTask:
    """Shard to index for another tool.

    Attributes:
        entry: shard to index.
        out: folder of the index.
        name: file name of the index.
        to: target tool.
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
    storage_options: Options | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> ConvertSummary:
    """Convert shards to TFRecord files, or index them for other tools.

    The opposite direction, from TFRecord files to shards, is `shardio.pack`.

    Args:
        source: packed folder, folder of tars, shard, glob or pattern, or a list of these; paths or
            URLs.
        out: local folder for the files. It is required for TFRecord files and must not contain
            any. Indexes are written beside their shards by default, if these are local; a file that
            differs is not replaced.
        to: target format. "tfrecord" writes `NAME.tfrecord` for each shard `NAME.tar`, with one
            tf.train.Example per sample: each field as bytes under its name, `cls` as int64
            under `label`, and the key under `__key__`. "wids" writes one `shardindex.json`;
            "dali" writes `NAME.idx` and "energon" `NAME.tar.idx` for each shard.
        features: feature names for fields, as in ["jpg=image/encoded"], for "tfrecord" only;
            "jpg=" omits a field.
        allow_empty: whether to accept tars whose members belong to no sample.
        storage_options: settings of the store of a URL, as ShardDataset takes them.
        jobs: number of processes; by default one per core.
        progress: callback for the number of samples; it returns one for those just finished.

    Raises:
        UsageError: an argument is invalid, or the source does not exist.
        PackError: the output is already taken, or a file there differs.
        OutputError: a link or the like is in place of a file.
        SampleError: a member differs from what was packed, or a class number is invalid.
        IndexFileError: an index is missing, corrupt or stale.
        TarError: a shard is corrupt.
        OSError: a shard cannot be read, or a file cannot be written.
    """
    start = time.monotonic()
    pairs = check_arguments(out, to=to, features=features)
    engine = make_engine("local", jobs)
    _refuse_records(source)
    catalog = open_catalog(source, options=storage_options, allow_empty=allow_empty)
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
    """Check the arguments of convert, and return the pairs of fields and features.

    Raises:
        UsageError: an argument is invalid.
    """
    pairs = parse_features(features)
    if out is not None and url_fault(fspath(out)):
        raise _local_only(without_secrets(fspath(out)))
    one_of("to", to, get_args(Target))
    if to == "tfrecord" and out is None:
        raise UsageError("TFRecord files require an output folder", remedy="name one")
    if to != "tfrecord" and pairs:
        raise UsageError(
            f"{argument('features')} is for {argument('to', 'tfrecord')} only",
            remedy="leave it out",
        )
    if pair := next((pair for pair in pairs if not pair.field), None):
        raise UsageError(
            "it has no field name",
            where=argument("features", f"={pair.feature}"),
            remedy="write it as jpg=image/encoded",
        )
    return pairs


def write_index(task: IndexTask, ticker: Ticker) -> int:
    """Write an index of a shard for another tool and return its size.

    Raises:
        PackError: a different file has the name of the index.
        ShardioError: the shard is corrupt or stale, or the tool does not support it.
        OSError: the shard cannot be read, or the index cannot be written.
    """
    _, index = _INDEXES[task.to]
    data = index(task.entry)
    with Folder.open(Path(task.out)) as folder:
        _write_new(folder, task.name, data)
    ticker.tick(len(task))
    return len(data)


def _write_new(folder: Folder, name: str, data: bytes) -> None:
    """Write a file, unless it exists with the same data; one with other data is an error."""
    if folder.find_file(name) is None:
        with folder.write(name) as stream:
            stream.write(data)
    elif folder.read(name, len(data) + 1) != data:
        raise _differs(folder, name)


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
        file_version(Path(entry.name)) if entry.storage == LOCAL else entry.version
        for entry in catalog.shards
        if entry.version is not None
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
    shards = {Path(each.path).resolve() for each in catalog.shards if each.storage == LOCAL}
    indexes = {index_path(shard) for shard in shards}
    for task in tasks:
        path = Path(task.out, task.name)
        if path.resolve() in indexes or (
            path.parent.name == INDEX_FOLDER and path.name.endswith(INDEX_SUFFIX)
        ):
            raise SituationError(
                "shardio's own index has this name", where=path, remedy="name another folder for it"
            )
        if path.resolve() in shards:
            raise SituationError(
                "a shard has this name", where=path, remedy="name another folder for it"
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
        raise SituationError("the shards are in several folders", remedy="name one for the index")
    folder = folders.pop()
    folder.mkdir(parents=True, exist_ok=True)
    data = wids_index(catalog.shards, folder)
    with Folder.open(folder) as held:
        _write_new(held, WIDS_NAME, data)
        held.sync()
    return len(data)


def _refuse_records(source: ShardPaths) -> None:
    path = fspath(source) if isinstance(source, str | PathLike) else None
    if path is None or url_fault(path):
        return
    if not has_tars(path) and find_files(path) is not None:
        raise PackError(
            "the source has TFRecord files, not shards",
            where=path,
            remedy=in_words(
                f"make shards of them with shardio.pack({quoted(path)}, OUT, shards=N)",
                f"make shards of them with `shardio pack {shown(path)} OUT --shards N`",
            ),
        )


def _stem(entry: ShardEntry) -> str:
    name = Path(entry.name).name
    return name.removesuffix(next(filter(name.endswith, SHARD_SUFFIXES), ""))


def _local_only(where: str) -> UsageError:
    return UsageError(
        "records and indexes are written to local folders only",
        where=where,
        remedy="name a local folder as OUT, and upload what is in it",
    )


def _beside(entry: ShardEntry, out: str | PathLike[str] | None) -> Path:
    if out is None and entry.storage != LOCAL:
        raise _local_only(entry.name)
    return Path(entry.name).parent if out is None else Path(out)


def _plain(entry: ShardEntry) -> ShardEntry:
    file = entry.storage.open(entry.name if entry.storage == LOCAL else entry.path, entry.name)
    compression = compression_of(file.read(0, min(file.size, LONGEST_MAGIC)))
    if compression is not None:
        raise PackError(
            "other tools can index uncompressed tars only",
            where=entry.name,
            remedy=compression.way_out,
        )
    return entry


def _refuse_equal(tasks: Sequence[RecordTask | IndexTask]) -> None:
    paths = Counter(Path(task.out, task.name) for task in tasks)
    again = next((path for path, times in paths.items() if times > 1), None)
    if again is not None:
        raise SituationError(
            f"two shards would be converted to {again}",
            remedy="convert them into different folders",
        )


def _advance(catalog: Catalog, progress: Progress | None) -> Callable[[int], None] | None:
    total = sum(entry.samples for entry in catalog.shards)
    return progress(total) if progress else None
