"""Writing one shard: a pure function from a task to files and a receipt.

The tar goes to disk first, then its index. The bytes depend on the task's samples and store
alone: no clock, owner or mode enters a header. The order of members is label, image. What decodes
images is loaded only by a task that stores pixels.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from shardio.codecs.probe import ImageInfo, check_complete, probe_image
from shardio.codecs.registry import PIXELS_FIELD
from shardio.errors import CodecError, PackError, UsageError
from shardio.index.build import IndexBuilder
from shardio.index.manifest import ShardReceipt, index_path
from shardio.index.shard_index import write_index
from shardio.naming import join_member_name
from shardio.packing.plan import ShardTask
from shardio.packing.sources import Problem, SourceSample
from shardio.packing.store import Store
from shardio.storage.atomic import atomic_file
from shardio.tar.archive import ArchiveWriter, Placed
from shardio.tar.writer import header_block

if TYPE_CHECKING:
    from shardio.packing.pixels import PixelWriter

_MAX_IMAGE_BYTES = 1 << 30
_FIELD_OF_FORMAT = {"jpeg": "jpg"}
_PROBLEMS = (OSError, CodecError, UsageError)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedShard:
    """What a task did.

    Attributes:
        receipt: of the shard.
        fields: that its samples have.
        sizes: heights and widths of its images, if their pixels are stored.
    """

    receipt: ShardReceipt
    fields: tuple[str, ...]
    sizes: frozenset[tuple[int, int]]


def pack_shard(
    task: ShardTask,
    on_sample: Callable[[], None] | None = None,
    stop: threading.Event | None = None,
) -> PackedShard:
    """Write a shard and its index.

    Args:
        task: what to write.
        on_sample: called after each sample.
        stop: set to give the shard up before its next sample.

    Raises:
        PackError: a source file cannot be packed; names it.
        CancelledError: `stop` was set.
        OSError: the shard cannot be written.
    """
    path = Path(task.out, task.name)
    root, builder = os.fsencode(task.source), IndexBuilder(str(path))
    with atomic_file(path) as stream:
        archive = ArchiveWriter(stream)
        pixels = _pixel_writer(archive, task.store)
        for sample in task.samples:
            if stop is not None and stop.is_set():
                raise CancelledError
            if sample.label is not None:
                placed = _pack_label(archive, sample, sample.label)
                builder.add(sample.key, "cls", placed)
            field, placed = _pack_image(archive, pixels, sample, root)
            builder.add(sample.key, field, placed)
            if on_sample is not None:
                on_sample()
        digest = archive.finish()
    index = builder.build(shard_size=archive.size, shard_sha256=digest, checksums=True)
    write_index(index_path(path), index)
    receipt = ShardReceipt(name=task.name, samples=len(index), size=archive.size, sha256=digest)
    sizes = frozenset(pixels.sizes if pixels else ())
    return PackedShard(receipt=receipt, fields=index.fields, sizes=sizes)


def find_problem(source: str, sample: SourceSample, store: Store) -> Problem | None:
    """Why a sample cannot be packed, or None."""
    try:
        with FileIO(os.path.join(os.fsencode(source), sample.path)) as stream:  # noqa: PTH118
            _size_of(stream.fileno())
            data = stream.read()
        info = probe_image(data)
        check_complete(data, info)
        if store.kind == "raw":
            from shardio.codecs.image import decode_image  # noqa: PLC0415  loads OpenCV

            decode_image(data, info)
        field = _image_field(sample, info, raw=store.kind == "raw")
        header_block(_member_name(sample, field), len(data))
    except _PROBLEMS as error:
        return _problem(sample, error)
    return None


def refusal(problem: Problem) -> PackError:
    """The error that stops a pack because of a file."""
    return PackError(
        f"{problem.path}: {problem.reason}; mend, rename or remove the file, "
        "or pass --on-error skip to go on without it"
    )


def _pack_label(archive: ArchiveWriter, sample: SourceSample, label: int) -> Placed:
    text = str(label).encode("ascii")
    archive.reserve(len(text))[:] = text
    try:
        return archive.commit(_member_name(sample, "cls"))
    except UsageError as error:
        raise refusal(_problem(sample, error)) from error


def _pixel_writer(archive: ArchiveWriter, store: Store) -> PixelWriter | None:
    if store.kind != "raw":
        return None
    from shardio.packing.pixels import PixelWriter  # noqa: PLC0415  loads OpenCV

    return PixelWriter(archive, store)


def _pack_image(
    archive: ArchiveWriter, pixels: PixelWriter | None, sample: SourceSample, root: bytes
) -> tuple[str, Placed]:
    try:
        descriptor = os.open(os.path.join(root, sample.path), os.O_RDONLY | os.O_CLOEXEC)  # noqa: PTH118
    except OSError as error:
        raise refusal(_problem(sample, error)) from error
    try:
        data = archive.reserve(_size_of(descriptor))
        _read(descriptor, data, sample)
    except CodecError as error:
        raise refusal(_problem(sample, error)) from error
    finally:
        os.close(descriptor)
    try:
        info = probe_image(data)
        check_complete(data, info)
        if pixels is not None:
            pixels.reserve(data, info)
        field = _image_field(sample, info, raw=pixels is not None)
        return field, archive.commit(_member_name(sample, field))
    except (CodecError, UsageError) as error:
        raise refusal(_problem(sample, error)) from error


def _size_of(descriptor: int) -> int:
    size = os.fstat(descriptor).st_size
    if size > _MAX_IMAGE_BYTES:
        raise CodecError(f"{size:,} bytes, more than the limit of 1 GiB for an image file")
    return size


def _read(descriptor: int, data: memoryview, sample: SourceSample) -> None:
    """Fill `data` with a whole file; one byte more is asked for, to see that it ends there."""
    try:
        size = os.readv(descriptor, [data, bytearray(1)])
    except OSError as error:
        raise refusal(_problem(sample, error)) from error
    if size != len(data):
        raise PackError(f"{sample.name}: the file changed while it was packed; pack again")


def _problem(sample: SourceSample, error: Exception) -> Problem:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return Problem(path=sample.name, reason=reason)


def _image_field(sample: SourceSample, info: ImageInfo, *, raw: bool) -> str:
    if raw:
        return PIXELS_FIELD
    return sample.field or _FIELD_OF_FORMAT.get(info.format, info.format)


def _member_name(sample: SourceSample, field: str) -> bytes:
    return join_member_name(sample.key, field).encode("utf-8", "surrogateescape")
