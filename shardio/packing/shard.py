"""Writing one shard: a function from a task to files and a receipt, run anywhere.

The tar goes to disk first, then its index, then its receipt. The bytes depend on the samples and
the store alone: no clock, owner or mode enters a header. What decodes images is loaded only by a
task that decodes them.
"""

from __future__ import annotations

import hashlib
import io
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from shardio.codecs.probe import check_complete, probe_image
from shardio.codecs.registry import PIXELS_FIELD, is_mask, kind_of
from shardio.errors import CodecError, PackError, UsageError, quoted, shown
from shardio.index.build import IndexBuilder
from shardio.index.manifest import write_index
from shardio.naming import join_member_name
from shardio.packing.engine import Ticker
from shardio.packing.files import SourceFiles, UnreadableError
from shardio.packing.names import WORK_FOLDER, path_in
from shardio.packing.receipts import (
    PackedShard,
    Sources,
    find_receipt,
    packed_shard,
    write_receipt,
)
from shardio.packing.samples import Problem, SourceSample
from shardio.packing.spool import Spool
from shardio.packing.states import Versions
from shardio.packing.store import Store
from shardio.storage.folder import Folder
from shardio.tar.archive import ArchiveWriter

if TYPE_CHECKING:
    from shardio.packing.pixels import PixelWriter

_FIELD_OF_FORMAT = {"jpeg": "jpg"}
_PROBLEMS = (UnreadableError, CodecError, UsageError)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleTask:
    """Some samples, and how they are packed.

    Attributes:
        root: folder that their paths start from.
        samples: the list of them.
        store: how their images are stored.
        check: look at images, whether they are some and whole.
    """

    root: str
    samples: Spool
    store: Store
    check: bool

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShardTask(SampleTask):
    """One shard to write.

    Attributes:
        part: name of its split.
        name: file name of the shard.
    """

    part: str
    name: str

    @property
    def shard(self) -> str:
        """Path of the shard in the output folder."""
        return path_in(self.part, self.name)

    def digest(self) -> str:
        """What the task is to do, told from what others are."""
        digest = hashlib.sha256()
        settings = f"{self.root} {self.store} {self.check}\n"
        digest.update(settings.encode("utf-8", "surrogateescape"))
        digest.update(self.samples.hashes.data)
        return digest.hexdigest()


def pack_shard(task: ShardTask, ticker: Ticker) -> PackedShard:
    """Write a shard, its index and its receipt, if they are not there already.

    Args:
        task: what to write.
        ticker: hears of every sample.

    Raises:
        PackError: something of the source cannot be packed; names it.
        CancelledError: the ticker says so.
        OutputError: something else than a file or folder has a place in the output.
        OSError: the shard cannot be written.
    """
    out, digest = Path(task.samples.out), task.digest()
    with Folder.open(out, WORK_FOLDER) as work, Folder.open(out, task.part) as shards:
        found = find_receipt(work, shards, task.part, task.name, task=digest)
        if found is not None and found[1] == _look_at_sources(task, found[1].since):
            ticker.tick(len(task))
            return found[0]
        packed, sources = _write_shard(task, ticker, shards)
        write_receipt(work, shards, packed, task=digest, sources=sources)
        return packed


def _write_shard(task: ShardTask, ticker: Ticker, shards: Folder) -> tuple[PackedShard, Sources]:
    """Write a shard and its index; returns the files that it was made of, too."""
    since = time.time_ns()
    builder, versions = IndexBuilder(str(shards.path / task.name)), Versions(since)
    with (
        _maybe_decoding(task.store),
        SourceFiles(task.root, versions) as files,
        shards.write(task.name) as stream,
    ):
        packer = _Packer(stream, task, files)
        for sample in task.samples:
            try:
                packer.pack(sample, builder)
            except _PROBLEMS as error:
                raise refusal(_problem(sample, error)) from error
            ticker.tick(1)
        sha256 = packer.archive.finish()
    index = builder.build(shard_size=packer.archive.size, shard_sha256=sha256, checksums=True)
    write_index(shards, task.name, index)
    packed = packed_shard(task.part, task.name, index, packer.sizes)
    return packed, Sources(since=since, digest=versions.digest())


def find_problems(task: SampleTask, ticker: Ticker) -> list[Problem | None]:
    """Why each sample cannot be packed, or None: they are packed into nothing."""
    problems: list[Problem | None] = []
    with _maybe_decoding(task.store), SourceFiles(task.root) as files:
        packer = _Packer(_Nowhere(), task, files)
        for sample in task.samples:
            try:
                packer.pack(sample, IndexBuilder(""))
            except _PROBLEMS as error:
                problems.append(_problem(sample, error))
            else:
                problems.append(None)
            ticker.tick(1)
    return problems


def refusal(problem: Problem) -> PackError:
    """The error that stops a pack because of a problem."""
    return PackError(
        f"{shown(problem.path)}: {problem.reason}; mend, rename or remove the file, "
        "or pass --on-error skip to go on without it"
    )


def decoding() -> AbstractContextManager[None]:
    """The context of work that decodes: the cores are the engine's to share out."""
    from shardio.codecs.opencv import one_opencv_thread  # noqa: PLC0415  loads OpenCV

    return one_opencv_thread()


def _maybe_decoding(store: Store) -> AbstractContextManager[None]:
    return decoding() if store.decodes else nullcontext()


class _Packer:
    """Appends samples to an archive.

    Args:
        stream: where the archive goes.
        task: how samples are packed.
        files: reads them.
    """

    def __init__(self, stream: BinaryIO, task: SampleTask, files: SourceFiles) -> None:
        self.archive = ArchiveWriter(stream)
        self._store = task.store
        self._check = task.check or task.store.decodes
        self._files = files
        self._pixels: PixelWriter | None = None
        if task.store.decodes:
            from shardio.packing.pixels import PixelWriter  # noqa: PLC0415  loads OpenCV

            self._pixels = PixelWriter(self.archive, task.store)

    @property
    def sizes(self) -> frozenset[tuple[int, int]]:
        """Heights and widths of the images, if their pixels are stored."""
        return frozenset(self._pixels.sizes if self._pixels else ())

    def pack(self, sample: SourceSample, builder: IndexBuilder) -> None:
        images, taken = 0, set[str]()
        for name, origin in sample.fields:
            data = self._files.read(origin, self.archive.reserve)
            field = name or ""
            kind = kind_of(field)
            if name is None or (self._check and kind == "image"):
                images += 1
                field = self._pack_image(name, data, is_only=images == 1)
            elif kind == "pixels" and self._store.decodes:
                raise UsageError(f"{name} holds pixels, and only image files can become others")
            if field in taken:
                raise UsageError(
                    f"the sample has the field {quoted(field)} twice; name one otherwise"
                )
            taken.add(field)
            member = join_member_name(sample.key, field).encode("utf-8", "surrogateescape")
            builder.add(sample.key, field, self.archive.commit(member))

    def _pack_image(self, name: str | None, data: memoryview, *, is_only: bool) -> str:
        """Look at an image in its place, or put another one there; returns its field."""
        try:
            info = probe_image(data, max_pixels=self._store.max_pixels)
        except CodecError as error:
            if name is not None:
                raise
            raise CodecError(f"{error}; files beside images are packed with --fields") from error
        check_complete(data, info)
        if self._pixels is not None:
            if not is_only:
                raise UsageError(
                    f"{name} is the second image of the sample, and only one can be resized, "
                    "encoded anew or stored as pixels"
                )
            if name is not None and is_mask(name):
                raise UsageError(
                    f"{name} holds classes as pixels, which would change if it was resized or "
                    "encoded anew; pack it as it is"
                )
            self._pixels.reserve(data, info)
            if self._store.kind == "raw":
                return PIXELS_FIELD
        return name or _FIELD_OF_FORMAT.get(info.format, info.format)


class _Nowhere(io.BytesIO):
    """Takes all that is written, and keeps none of it."""

    def write(self, data: Any, /) -> int:
        return len(data)


def _look_at_sources(task: SampleTask, since: int) -> Sources | None:
    """The files that samples are read from, as they are now; None if one cannot be looked at."""
    versions = Versions(since)
    with SourceFiles(task.root, versions) as files:
        try:
            for sample in task.samples:
                files.look_at(sample)
        except UnreadableError:
            return None
    return Sources(since=since, digest=versions.digest())


def _problem(sample: SourceSample, error: Exception) -> Problem:
    return Problem(path=sample.name, reason=str(error))
