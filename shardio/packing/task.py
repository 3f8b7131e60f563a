"""Writing one shard: a function from a task to files and a receipt, run anywhere.

The tar goes to disk first, then its index, then its receipt. The bytes depend only on the samples
and on how images are stored: no clock, owner or mode enters a header. What decodes images is loaded
only by a task that decodes them.

A receipt, by which an interrupted pack goes on where it was, lies in the work folder beside the
list of samples. It says of which lines of that list the shard was made, and of which versions of
its source files (see shardio.packing.sources.reader). A later run of the same pack makes only the
shards whose receipts say something else, or that are not there as they were written. What is known
of a shard beyond that comes from its index.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from shardio.errors import (
    CodecError,
    IndexFileError,
    PackError,
    UsageError,
    argument,
    counted,
    quoted,
    type_argument,
)
from shardio.fields.base import PIXELS_FIELD, FieldType
from shardio.fields.defaults import IMAGE, recorded_size, size_of, type_of
from shardio.fields.formats import check_complete, find_corrupt, probe_image
from shardio.fields.geometry import Crop, View
from shardio.fields.probe import ImageInfo
from shardio.indexing.manifest import ShardReceipt, index_path, receipt_of, write_index
from shardio.indexing.scan import IndexBuilder
from shardio.indexing.shard_index import ShardIndex, read_index
from shardio.naming import join_member_name
from shardio.packing.engine import Ticker
from shardio.packing.layout import WHOLE, WORK_FOLDER, is_shard_name, path_in
from shardio.packing.listing import SampleList
from shardio.packing.plan import ImageEncoding
from shardio.packing.sources.base import (
    FromFile,
    Origin,
    Problem,
    SourceSample,
    Stored,
    UnpackableError,
    name_coco,
)
from shardio.packing.sources.reader import (
    FileVersions,
    SourceReader,
    hash_file,
    in_memory,
    keeps_ctime,
    state_of,
)
from shardio.packing.upload import publish_shard
from shardio.storage.folder import Folder, final_name
from shardio.storage.location import Location
from shardio.tar.writer import ArchiveWriter

if TYPE_CHECKING:
    from shardio.packing.images import PixelWriter

_RECEIPTS = "receipts"
_SUFFIX = ".json"
_DAMAGED = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    OverflowError,
    RecursionError,
    IndexFileError,
)
_LIMIT = 1 << 28  # bytes of a receipt; every size of the images of a shard is in it


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedShard:
    """The result of a task.

    Attributes:
        part: name of the split that the shard belongs to.
        receipt: name, counts and digest of the shard.
        fields: names of the fields of its samples.
        sizes: heights and widths of its images, if their pixels are stored.
    """

    part: str
    receipt: ShardReceipt
    fields: tuple[str, ...]
    sizes: frozenset[tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDigest:
    """The files that a shard was made of.

    Attributes:
        since: time (ns) when the first was read.
        digest: digest of their versions.
    """

    since: int
    digest: str


def _packed_shard(
    part: str, name: str, index: ShardIndex, sizes: frozenset[tuple[int, int]]
) -> PackedShard:
    return PackedShard(part=part, receipt=receipt_of(name, index), fields=index.fields, sizes=sizes)


def write_receipt(
    work: Folder, shards: Folder, packed: PackedShard, *, task: str, sources: SourceDigest
) -> None:
    """Write the receipt of a shard.

    Args:
        work: work folder.
        shards: folder of the shard.
        packed: result of the task.
        task: digest of the task.
        sources: digest of the files that it read.

    Raises:
        OSError: the receipt cannot be written.
    """
    name = packed.receipt.name
    status = shards.find_file(name)
    row = {
        "task": task,
        "since": sources.since,
        "sources": sources.digest,
        "sha256": packed.receipt.sha256,
        "state": None if status is None else state_of(status),
        "sizes": sorted(packed.sizes),
    }
    with (
        work.inside(_RECEIPTS, make=True) as every,
        every.inside(packed.part, make=True) as receipts,
        receipts.write(name + _SUFFIX) as stream,
    ):
        stream.write(json.dumps(row).encode("ascii"))


def find_receipt(
    work: Folder, shards: Folder, part: str, name: str, *, task: str
) -> tuple[PackedShard, SourceDigest] | None:
    """Find the result of the same task in an earlier run, and the digest of the files it read.

    A receipt that is damaged, or of a shard that is not as it was written, counts for nothing, and
    the shard is made again.

    Args:
        work: work folder.
        shards: folder of the shard.
        part: name of its split.
        name: file name of the shard.
        task: digest of the task.

    Raises:
        OutputError: something else than a file has the place of the shard or its receipt.
    """
    status, path = shards.find_file(name), shards.path / name
    try:
        with work.inside(_RECEIPTS) as every, every.inside(part) as receipts:
            row = json.loads(receipts.read(name + _SUFFIX, _LIMIT))
        sizes = frozenset((int(height), int(width)) for height, width in row["sizes"])
        sources = SourceDigest(since=int(row["since"]), digest=str(row["sources"]))
        index = read_index(index_path(path))
        if status is None or (row["task"], row["sha256"]) != (task, index.shard_sha256):
            return None
        is_as_written = row["state"] == state_of(status) and keeps_ctime(path)
        if not is_as_written and hash_file(path) != index.shard_sha256:
            return None
    except _DAMAGED:
        return None
    return _packed_shard(part, name, index, sizes), sources


def finished_shards(work: Folder) -> list[str]:
    """List the paths, relative to the output folder, of shards that have a receipt.

    Raises:
        OutputError: something else than a file has the place of a receipt.
    """
    return sorted(path_in(part, name) for part, name, _ in _receipts(work))


def lost_shards(work: Folder, tasks: Mapping[str, str]) -> list[str]:
    """List the finished shards that a pack does not take up.

    Args:
        work: work folder.
        tasks: digests of the tasks of the pack, by the paths of their shards.

    Returns:
        Paths relative to the output folder.

    Raises:
        OutputError: something else than a file has the place of a receipt.
    """
    lost = []
    for part, name, receipts in _receipts(work):
        shard = path_in(part, name)
        with suppress(*_DAMAGED):  # a damaged receipt tells of nothing
            if json.loads(receipts.read(name + _SUFFIX, _LIMIT))["task"] != tasks.get(shard):
                lost.append(shard)
    return lost


def remove_receipts(work: Folder, shards: Iterable[str]) -> None:
    """Forget shards, by their paths relative to the output folder."""
    unwanted = {*shards}
    for part, name, receipts in _receipts(work):
        if path_in(part, name) in unwanted:
            receipts.remove(name + _SUFFIX)


def remove_all_receipts(work: Folder) -> None:
    """Remove the receipts, and their folders if nothing else is in them."""
    for _, receipts in _folders(work):
        for name in receipts.names():
            if _is_receipt(name):
                receipts.remove(name)
    with suppress(OSError):
        with work.inside(_RECEIPTS) as every:
            for name in every.names():
                with suppress(OSError):
                    every.remove_folder(name)
        work.remove_folder(_RECEIPTS)


def check_work(work: Folder) -> None:
    """Check the work folder of an interrupted pack.

    Raises:
        OutputError: something else than files lies in it.
    """
    for name in work.names():
        if name != _RECEIPTS:
            work.find_file(name)
    finished_shards(work)


def _receipts(work: Folder) -> Iterator[tuple[str, str, Folder]]:
    """Yield the split and name of each shard with a receipt, and the folder of the receipt."""
    for part, receipts in _folders(work):
        for name in receipts.names():
            if _is_receipt(name) and receipts.find_file(name) and name == final_name(name):
                yield part, name.removesuffix(_SUFFIX), receipts


def _folders(work: Folder) -> Iterator[tuple[str, Folder]]:
    """Yield the folders of receipts with the names of their splits."""
    with suppress(FileNotFoundError), work.inside(_RECEIPTS) as every:
        yield WHOLE, every
        for name in every.names():
            if not _is_receipt(name):
                with every.inside(name) as receipts:
                    yield name, receipts


def _is_receipt(name: str) -> bool:
    """Tell whether a name is that of a receipt, or of one that is being written."""
    final = final_name(name)
    return final.endswith(_SUFFIX) and is_shard_name(final.removesuffix(_SUFFIX))


_PROBLEMS = (UnpackableError, CodecError, UsageError)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleTask:
    """Some samples, and how they are packed.

    Attributes:
        root: folder that their paths start from.
        samples: list of the samples.
        images: encoding of the images.
        check: whether to look at data: whether pictures are some and whole, and whether other
            data decode; pictures that are not images do so where their types are given.
        remedy: advice for a sample that cannot be packed.
        types: given types by field name; other fields have their default types.
        stored: files that are not read by their paths, by these.
    """

    root: str
    samples: SampleList
    images: ImageEncoding
    check: bool
    remedy: str
    types: Mapping[str, FieldType]
    stored: Mapping[bytes, Stored] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShardTask(SampleTask):
    """One shard to write.

    Attributes:
        part: name of its split.
        name: file name of the shard.
        target: folder of a storage that the shard is published to; None leaves it where it is.
    """

    part: str
    name: str
    target: Location | None = None

    @property
    def shard(self) -> str:
        """Path of the shard in the output folder."""
        return path_in(self.part, self.name)

    def digest(self) -> str:
        """Compute a digest of the task, which differs from that of any other."""
        digest = hashlib.sha256()
        # Types check the data, resize them, and find the sizes of pictures for the index.
        types = sorted((name, repr(each)) for name, each in self.types.items())
        settings = f"{self.root} {astuple(self.images)} {self.check}\n{types}\n"
        digest.update(settings.encode("utf-8", "surrogateescape"))
        digest.update(self.samples.hashes.data)
        return digest.hexdigest()


def pack_shard(task: ShardTask, ticker: Ticker) -> PackedShard:
    """Write a shard, its index and its receipt, if they are not there already.

    Args:
        task: shard to write.
        ticker: counter of the samples.

    Raises:
        PackError: something of the source cannot be packed, which it names, or another pack
            writes to the storage.
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
        if task.target is not None:
            publish_shard(task.target, task.part, shards, task.name)
        write_receipt(work, shards, packed, task=digest, sources=sources)
        return packed


def _write_shard(
    task: ShardTask, ticker: Ticker, shards: Folder
) -> tuple[PackedShard, SourceDigest]:
    """Write a shard and its index."""
    since = time.time_ns()
    builder, versions = IndexBuilder(str(shards.path / task.name)), FileVersions(since)
    with (
        SourceReader(task.root, versions, task.stored) as files,
        SourceReader(task.root, stored=task.stored) as again,
        shards.write(task.name) as stream,
        _Packer(stream, task, files, again) as packer,
    ):
        for sample in task.samples:
            try:
                packer.pack(sample, builder)
            except _PROBLEMS as error:  # the pictures before come first
                problem = packer.find_problem() or Problem.of(sample.path, error)
                raise problem.error(task.remedy) from error
            ticker.tick(1)
        if fault := packer.find_problem():
            raise fault.error(task.remedy)
        sha256 = packer.archive.finish()
    index = builder.build(shard_size=packer.archive.size, shard_sha256=sha256, checksums=True)
    write_index(shards, task.name, index)
    packed = _packed_shard(task.part, task.name, index, packer.sizes)
    return packed, SourceDigest(since=since, digest=versions.digest())


def find_problems(task: SampleTask, ticker: Ticker) -> list[Problem | None]:
    """Find out why each sample cannot be packed, or None, by packing it into nothing."""
    problems: list[Problem | None] = []
    with (
        SourceReader(task.root, stored=task.stored) as files,
        _Packer(_Nowhere(), task, files, files) as packer,
    ):
        for sample in task.samples:
            try:
                packer.pack(sample, IndexBuilder(""))
            except _PROBLEMS as error:
                problems.append(packer.find_problem() or Problem.of(sample.path, error))
            else:
                problems.append(packer.find_problem())
            ticker.tick(1)
    return problems


def decoding() -> AbstractContextManager[None]:
    """Return the context of work that decodes: the engine alone shares out the cores."""
    from shardio.fields.image import one_opencv_thread  # noqa: PLC0415  loads OpenCV

    return one_opencv_thread()


class _Packer(ExitStack):
    """Appends samples to an archive; as a context it may have OpenCV work in one thread.

    Args:
        stream: file of the archive.
        task: task of the samples.
        files: reader of their data.
        again: reader of data that were or will be read, of which no account is kept.
    """

    def __init__(
        self, stream: BinaryIO, task: SampleTask, files: SourceReader, again: SourceReader
    ) -> None:
        super().__init__()
        self.archive = ArchiveWriter(stream, self._check_before_writing)
        self._pictures: list[_Picture] = []
        self._problem: Problem | None = None
        self._encoding = task.images
        self._check = task.check or task.images.decodes
        self._types = task.types
        self._type_of = partial(type_of, max_pixels=task.images.limit, given=task.types)
        self._files, self._again = files, again
        self._pixels: PixelWriter | None = None
        self._decodes = False
        if task.images.decodes:
            self._begin_to_decode()
            from shardio.packing.images import PixelWriter  # noqa: PLC0415  loads OpenCV

            self._pixels = PixelWriter(self.archive, task.images)

    @property
    def sizes(self) -> frozenset[tuple[int, int]]:
        """Heights and widths of the images, if their pixels are stored."""
        return frozenset(self._pixels.sizes if self._pixels else ())

    def pack(self, sample: SourceSample, builder: IndexBuilder) -> None:
        images, taken = 0, set[str]()
        for name, origin in sample.fields:
            data = self._files.read(origin, self.archive.reserve)
            field = name or ""
            type_, info, unchecked = self._type_of(field), None, None
            try:
                if name is None or (self._check and type_.image_file):
                    images += 1
                    field, info, unchecked = self._pack_image(
                        name, data, is_only=images == 1, is_file=isinstance(origin, FromFile)
                    )
                    type_ = self._type_of(field)
                elif self._check:
                    self._check_data(name, type_, data)
                    if type_.geometry and self._encoding.decodes:
                        self._follow(name, type_, data, sample)
            except CodecError as error:
                is_image = name is None or type_.image_file
                raise _of_field(error, sample, name, origin, is_image=is_image) from error
            if field in taken:
                raise UsageError(
                    f"the sample has the field {quoted(field)} twice", remedy="name one otherwise"
                )
            taken.add(field)
            member = join_member_name(sample.key, field).encode("utf-8", "surrogateescape")
            placed = self.archive.commit(member)
            if unchecked is not None:
                self._pictures.append(_Picture(self.archive.data, unchecked, sample, name, origin))
            if info is not None and type_.sized:
                size = recorded_size(info)
            else:
                size = size_of(field, self.archive.data, self._types)
            builder.add(sample.key, field, placed, size)

    def find_problem(self) -> Problem | None:
        """Find the first of the pictures since the last call whose data are corrupt."""
        found, self._problem = self._problem, None
        if self._pictures:
            corrupt = find_corrupt([(each.data, each.info) for each in self._pictures])
            if corrupt is not None and found is None:
                _, _, sample, name, origin = self._pictures[corrupt[0]]
                error = _of_field(corrupt[1], sample, name, origin, is_image=True)
                found = Problem.of(sample.path, error)
            self._pictures.clear()
        return found

    def _check_before_writing(self) -> None:
        self._problem = self.find_problem()
        if self._problem is not None:
            raise UnpackableError(self._problem.reason)

    def _begin_to_decode(self) -> None:
        if not self._decodes:
            self._decodes = True
            self.enter_context(decoding())

    def _check_data(self, name: str, type_: FieldType, data: memoryview) -> None:
        """Check data other than an image file: decode them, except for pictures by name alone."""
        deep = name in self._types or not type_.sized
        if deep and type_.sized:
            self._begin_to_decode()
        try:
            type_.check(data, deep=deep)
        except NotImplementedError:
            return  # a user's type that encodes alone
        except UsageError as error:  # as of a package that is missing: no fault of this sample
            raise PackError(
                f"the field {quoted(name)}: {error.what}", remedy=error.remedy
            ) from error
        except CodecError as error:
            if not data and not error.remedy:
                raise CodecError(
                    "it is empty",
                    remedy="write what it says, or remove it where samples may lack it, as by "
                    f"{argument('fields', 'jpg,x?')}",
                ) from error
            kept = type_argument(name, "Bytes()")
            remedy = f"fix the data, save text as UTF-8, or keep bytes as they are with {kept}"
            raise CodecError(error.what, remedy=error.remedy or remedy) from error

    def _probe(self, field: str, data: memoryview) -> ImageInfo | None:
        """Read the header of an image file by the type of its field, which must take it."""
        try:
            return self._type_of(field).probe(data)
        except CodecError as error:
            probe_image(data, max_pixels=self._encoding.limit)  # refuses what is no sound image
            raise CodecError(
                error.what,
                remedy=f"say what it is: {type_argument(field, 'Image(bits=8)')} takes the "
                "high byte of each channel, Depth() or Mask(dtype='int32') in its place the values "
                "of one channel, and Bytes() the file as it is",
            ) from error

    def _follow(self, name: str, type_: FieldType, data: memoryview, sample: SourceSample) -> None:
        """Put what belongs to the picture as it is stored in the place of a field's data."""
        if type_.geometry == "leads":
            raise UsageError(f"{name} holds pixels, and only image files can become others")
        try:
            made = type_.resized(data, self._view(name, sample))
        except NotImplementedError:
            raise UsageError(
                f"{name} belongs to the picture as it is, which would be resized",
                remedy=f"pack without an option that resizes, or give {type(type_).__name__} a "
                "method resized",
            ) from None
        if made is not None:
            self.archive.reserve(len(made))[:] = made

    def _view(self, field: str, sample: SourceSample) -> View:
        """Look at the header of the picture of a sample, and choose what is stored of it."""
        for name, origin in sample.fields:
            if name is None or type_of(name, given=self._types).image_file:
                info = probe_image(
                    self._again.read(origin, in_memory), max_pixels=self._encoding.limit
                )
                cut, size = self._encoding.crop(*info.size[:2]), info.size[:2]
                if cut == (0, 0, *size, size):
                    return View.of(info, name or info.format)
                crop = Crop(cut.top, cut.left, cut.height, cut.width)
                return View.of(info, name or info.format, cut.size, crop)
        raise UsageError(
            f"{field} belongs to a picture, and the sample has none",
            remedy="pack it as it is, without an option that resizes pictures",
        )

    def _pack_image(
        self, name: str | None, data: memoryview, *, is_only: bool, is_file: bool
    ) -> tuple[str, ImageInfo | None, ImageInfo | None]:
        """Look at an image in its place, or put another one there.

        Returns:
            Its field; what the type of the field says of the header, if that is still known; and
            what its header says, if its data are still to be checked.
        """
        field = name or IMAGE.name_of(data) or ""
        try:
            found = self._probe(field, data)
            info = found or probe_image(data, max_pixels=self._encoding.limit)
        except CodecError as error:
            if name is not None or not is_file or error.remedy:
                raise
            raise CodecError(
                error.what,
                remedy=f"rename or remove it, or name the files of a sample with "
                f"{argument('fields')}, or the type of such files, as "
                f"{type_argument('wav', 'Audio()')}"
                + (f", or {name_coco()}" if data[:1].tobytes() == b"{" else ""),
            ) from error
        check_complete(data, info)
        if self._pixels is None:
            return field, found, info
        if not is_only:
            raise UsageError(
                f"{name} is the second image of the sample, and only one can be resized, "
                "encoded anew or stored as pixels"
            )
        channels = self._type_of(field).channels
        if self._encoding.store == "raw":
            stored = self._type_of(PIXELS_FIELD).channels
            if channels != stored:
                raise UsageError(
                    f"{field} has {counted(channels, 'channel')}, and other images of the pack "
                    f"{stored}",
                    remedy="give all images that become pixels the same channels, as by "
                    f"{type_argument('jpg', 'Image(channels=1)')}",
                )
        self._pixels.reserve(data, info, channels)
        return PIXELS_FIELD if self._encoding.store == "raw" else field, None, None


class _Picture(NamedTuple):
    """A picture in the buffer of an archive whose data are still to be checked."""

    data: memoryview
    info: ImageInfo
    sample: SourceSample
    name: str | None
    origin: Origin


def _of_field(
    error: CodecError, sample: SourceSample, name: str | None, origin: Origin, *, is_image: bool
) -> CodecError:
    """Name the field of an error, unless the error of its sample names the file of an image."""
    if name is None or (is_image and _is_named(sample, origin)):
        return error
    return CodecError(f"its field {quoted(name)}: {error.what}", remedy=error.remedy)


def _is_named(sample: SourceSample, origin: object) -> bool:
    """Tell whether an error of a sample names the file that a field is from."""
    path = sample.path.encode("utf-8", "surrogateescape")
    return len(sample.fields) == 1 or (isinstance(origin, FromFile) and origin.path == path)


class _Nowhere(io.BytesIO):
    """Takes all that is written, and keeps none of it."""

    def write(self, data: Any, /) -> int:
        return len(data)


def _look_at_sources(task: SampleTask, since: int) -> SourceDigest | None:
    """Digest the files of samples as they are now; None if one cannot be looked at."""
    versions = FileVersions(since)
    with SourceReader(task.root, versions, task.stored) as files:
        try:
            for sample in task.samples:
                files.look_at(sample)
        except UnpackableError:
            return None
    return SourceDigest(since=since, digest=versions.digest())
