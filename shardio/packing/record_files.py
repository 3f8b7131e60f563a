"""Writing shards as TFRecord files: one shard by a task, and the folder that holds them.

A task holds one sample at a time, and its file gets its name when it is whole. Until all are done
the folder holds a lock that says what is made, so that the same conversion again makes what is
missing, and nobody else's files are overwritten.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from shardio.codecs.basic import decode_cls
from shardio.codecs.registry import LABEL_FIELD
from shardio.errors import CodecError, PackError, SampleError, quoted, shown
from shardio.index.catalog import Catalog, ShardEntry
from shardio.packing.engine import Ticker
from shardio.packing.features import KEY
from shardio.packing.files import SourceFiles, UnreadableError, in_memory
from shardio.packing.locks import take_lock
from shardio.packing.samples import SourceSample
from shardio.packing.sources.tars import Tars
from shardio.storage.atomic import atomic_file, final_name
from shardio.tfrecord.example import Numbers, encode_example
from shardio.tfrecord.records import Buffer, frame_record

LOCK_NAME = ".converting"
RECORD_SUFFIX = ".tfrecord"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordTask:
    """A shard to write as a TFRecord file.

    Attributes:
        entry: the shard.
        path: of the file.
        names: of the features that fields become.
    """

    entry: ShardEntry
    path: str
    names: Mapping[str, str]

    def __len__(self) -> int:
        return self.entry.samples


def write_records(task: RecordTask, ticker: Ticker) -> int:
    """Write the samples of a shard as a TFRecord file, unless it is there; returns its size.

    Raises:
        SampleError: a member is not what was packed, or a class number is none.
        OSError: the shard cannot be read, or the file not written.
    """
    path = Path(task.path)
    if path.exists():
        ticker.tick(len(task))
        return path.stat().st_size
    shard = Tars(catalog=Catalog(shards=(task.entry,), fields=(), classes=None))
    with SourceFiles(shard.root) as files, atomic_file(path) as stream:
        for sample in shard.samples():
            if isinstance(sample, SourceSample):
                stream.writelines(frame_record(encode_example(_features_of(sample, task, files))))
            ticker.tick(1)
        return stream.tell()


def _features_of(
    sample: SourceSample, task: RecordTask, files: SourceFiles
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
        except (UnreadableError, CodecError) as error:
            raise SampleError(
                f"{shown(sample.name)}, field {quoted(field)}: {error}; get or pack the shard "
                "again",
                shard=task.entry.name,
                key=sample.key,
                field=field,
            ) from error
    return found


@contextmanager
def hold_record_folder(folder: Path, made: str) -> Iterator[None]:
    """Hold a folder of TFRecord files while they are made.

    After an error it is as it was, or, if files are finished, as an interrupted conversion leaves
    it: locked, and to be taken up.

    Args:
        folder: of the files.
        made: tells what is made from all else.

    Raises:
        PackError: the folder has such files, or another conversion holds it or was interrupted.
        OSError: the folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / LOCK_NAME
    with FileIO(lock, "a+") as held:
        if not take_lock(held, lock):
            raise PackError(f"{folder}: another conversion writes to this folder; wait for it")
        held.seek(0)
        before = held.read().decode("ascii", "replace")
        if before not in ("", made):
            raise PackError(
                f"{folder}: a conversion of something else into this folder was interrupted; "
                "run it again, or name another folder"
            )
        try:
            if not before:
                _refuse_files(folder)
                held.write(made.encode("ascii"))
            _remove_temporary(folder)
            yield
        except BaseException:
            if not os.fstat(held.fileno()).st_size or not any(_record_files(folder)):
                lock.unlink()
                with suppress(OSError):
                    folder.rmdir()
            raise
        lock.unlink()


def _record_files(folder: Path) -> Iterator[Path]:
    return folder.glob(f"*{RECORD_SUFFIX}")


def _refuse_files(folder: Path) -> None:
    if found := min((path.name for path in _record_files(folder)), default=None):
        raise PackError(
            f"{folder}: the folder has TFRecord files already ({found}); "
            "name another one, or remove them first"
        )


def _remove_temporary(folder: Path) -> None:
    """Remove what a conversion that was killed had not finished."""
    for path in folder.iterdir():
        if path.name != (final := final_name(path.name)) and final.endswith(RECORD_SUFFIX):
            path.unlink()
