"""Writing shards as TFRecord files: one shard by a task, and the folder that holds them.

A task holds one sample at a time, and its file gets its name when it is whole. Until all are done
the folder holds a lock that says what is made, so that the same conversion again makes what is
missing, and nobody else's files are overwritten. Neither lock nor files are believed: what is there
already is read, and compared with what would be written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shardio.codecs.basic import decode_cls
from shardio.codecs.registry import LABEL_FIELD
from shardio.errors import CodecError, PackError, SampleError, quoted, shown
from shardio.index.catalog import Catalog, ShardEntry
from shardio.packing.engine import Ticker
from shardio.packing.features import KEY
from shardio.packing.files import SourceFiles, UnreadableError, in_memory
from shardio.packing.locks import open_lock
from shardio.packing.samples import SourceSample
from shardio.packing.sources.tars import Tars
from shardio.storage.atomic import final_name
from shardio.storage.folder import Folder
from shardio.tfrecord.example import Numbers, encode_example
from shardio.tfrecord.records import Buffer, frame_record

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
    shard = Tars(catalog=Catalog(shards=(task.entry,), fields=(), classes=None))
    with SourceFiles(shard.root) as files:
        for sample in shard.samples():
            if isinstance(sample, SourceSample):
                yield from frame_record(encode_example(_features_of(sample, task, files)))
            ticker.tick(1)


def _other_file(folder: Folder, task: RecordTask) -> PackError:
    return PackError(
        f"{folder.path / task.name}: it is not what the conversion of {task.entry.name} makes; "
        "move it away, or remove it, and run the conversion again"
    )


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
            raise PackError(f"{path}: another conversion writes to this folder; wait for it")
        mine, before = made.encode("ascii"), lock.read()
        if not re.fullmatch(rb"[0-9a-f]*", before) or len(before) > len(mine):
            raise PackError(
                f"{lock.path}: it is no lock that a conversion wrote; remove it if no other "
                "program needs it, or name another folder"
            )
        begun = len(before) == len(mine)  # what was cut off was never acted on
        if begun and before != mine:
            raise PackError(
                f"{path}: a conversion of something else into this folder was interrupted; "
                "run it again, or name another folder"
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
            f"{folder.path}: the folder has TFRecord files already ({found[0]}); "
            "name another one, or remove them first"
        )


def _remove_temporary(folder: Folder) -> None:
    """Remove what a conversion that was killed had not finished."""
    for name in folder.names():
        if name != (final := final_name(name)) and final.endswith(RECORD_SUFFIX):
            folder.remove(name)
