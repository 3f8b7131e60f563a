"""What is packed: samples, each field of which comes from a file, a part of one, or memory.

A sample crosses from listing to packing as one line of JSON, so that a list of millions lies on
disk and any process, on any machine that sees the folder, reads the lines of its shard.

Telling a file from what it becomes: by its times where they can be trusted, else by its data.

Size and time of modification are not enough: rsync and tar give a file that was rewritten its old
time. The time of its last change of any kind (ctime) tells, where two things hold: the file system
keeps one, which is known of those listed here and of no other (FAT has none, and what lies behind
FUSE, SMB or 9p may have none); and the file was not changed so shortly before it was read that
another change could get the same time, however coarse the clock. Elsewhere the data are hashed.

Reading what samples come from, and noticing when it changes meanwhile.

The list of samples on disk: what a source yields goes through once and stays out of memory.

In memory a sample is some numbers: where its line starts and a hash of it, its label, whether its
key is its path, and a hash of its key, by which samples with equal keys are found. So two million
samples take some hundred megabytes. The file lies where others may be able to write, so a line
counts only if it has the hash of the one that was written.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import stat
import sys
import zlib
from array import array
from binascii import a2b_base64, b2a_base64
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shardio.errors import PackError, ShardioError, quoted, shown
from shardio.packing.names import LIST_NAME, WORK_FOLDER
from shardio.storage.folder import Folder

if TYPE_CHECKING:
    from typing_extensions import Self

_encode = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode


class FromFile(NamedTuple):
    """A whole file.

    Attributes:
        path: relative to the source folder, or absolute.
    """

    path: bytes


class FromRange(NamedTuple):
    """A part of a file.

    Attributes:
        path: of the file, see FromFile.
        offset: where the part starts, in bytes.
        size: in bytes.
        checksum: its CRC-32, if it is known.
        stamp: stamp of the file (see shardio.packing.listing) as the list was made, where nobody
            read the part for it.
        before: bytes of headers that lie just before it, where no checksum tells whether the part
            is what was listed.
        headers: their CRC-32.
    """

    path: bytes
    offset: int
    size: int
    checksum: int | None
    stamp: str | None = None
    before: int = 0
    headers: int = 0


class FromMemory(NamedTuple):
    """Bytes that were made while listing, as of a label."""

    data: bytes


Origin: TypeAlias = FromFile | FromRange | FromMemory


class SourceField(NamedTuple):
    """One field of a sample.

    Attributes:
        name: of the field; None for an image whose file name does not say what it is, so that
            the field is named after the format found in it.
        origin: of its data.
    """

    name: str | None
    origin: Origin


class SourceSample(NamedTuple):
    """One sample.

    Attributes:
        key: of the sample.
        name: of what it was found as, for errors: a path, or a place in a file.
        fields: in the order in which they are packed.
        label: position of its class, None without classes.
        renamed: the key is not simply the path without its extension.
    """

    key: str
    name: str
    fields: tuple[SourceField, ...]
    label: int | None = None
    renamed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something in a source that cannot be packed, and why."""

    path: str
    reason: str


def text_of(name: bytes) -> str:
    """A name of the file system as text, the same under every locale."""
    return name.decode("utf-8", "surrogateescape")


def to_line(sample: SourceSample) -> bytes:
    """A sample as one line of JSON, in ASCII."""
    fields = [(name, *_to_json(origin)) for name, origin in sample.fields]
    row = (sample.key, sample.name, sample.label, sample.renamed, fields)
    return _encode(row).encode("ascii") + b"\n"


def from_line(line: bytes) -> SourceSample:
    """The sample that a line was made of."""
    key, name, label, renamed, fields = json.loads(line)
    found = [SourceField(field, _from_json(*origin)) for field, *origin in fields]
    return SourceSample(key, name, tuple(found), label, renamed)


def _to_json(origin: Origin) -> tuple[Any, ...]:
    if isinstance(origin, FromMemory):
        return (b2a_base64(origin.data, newline=False).decode("ascii"), None)
    return (text_of(origin.path), *origin[1:])


def _from_json(text: str, *rest: Any) -> Origin:
    if rest == (None,):
        return FromMemory(a2b_base64(text))
    path = text.encode("utf-8", "surrogateescape")
    return FromRange(path, *rest) if rest else FromFile(path)


_KEEP_CTIME = {
    0xEF53: "ext2, ext3, ext4",
    0x58465342: "XFS",
    0x9123683E: "Btrfs",
    0xCA451A4E: "bcachefs",
    0xF2F52010: "F2FS",
    0x2FC12FC1: "ZFS",
    0x01021994: "tmpfs",
    0x794C7630: "overlayfs",
    0x6969: "NFS",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0x00C36400: "CephFS",
}
_MARGIN = 2_000_000_000  # ns, twice the coarsest ctime of these
_PIECE = 1 << 20


def state_of(status: os.stat_result) -> str:
    """What tells a file, on a file system that keeps ctime, from what it becomes."""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def stamp_of(status: os.stat_result) -> str:
    """State of a file, and what changes with its ctime alone: mode, owner and links."""
    return f"{state_of(status)} {_attributes(status)}"


def has_stamp(status: os.stat_result, stamp: str) -> bool:
    """Whether a file is what a stamp was taken of, but perhaps for its mode, owner or links.

    Size and time of modification must be the same. Another ctime alone tells of an edit after which
    the time of modification was put back, unless a change of mode, owner or links explains it.
    """
    size, modified, changed, *attributes = stamp.split(" ")
    now = state_of(status).split(" ")
    if now[:2] != [size, modified]:
        return False
    return now[2] == changed or " ".join(attributes) != _attributes(status)


def _attributes(status: os.stat_result) -> str:
    return f"{status.st_mode} {status.st_uid} {status.st_gid} {status.st_nlink}"


def keeps_ctime(path: Path | bytes) -> bool:
    """Whether a file lies where the time of its last change of any kind can be trusted."""
    if sys.platform != "linux":
        return False
    found = ctypes.create_string_buffer(512)  # larger than any struct statfs; f_type comes first
    if ctypes.CDLL(None).statfs(os.fsencode(path), found):
        return False
    kind = int.from_bytes(found.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder)
    return kind & 0xFFFFFFFF in _KEEP_CTIME


def version_of(path: Path) -> str:
    """What tells a file from what it becomes; the file is read where only its data do.

    Raises:
        OSError: the file cannot be read.
    """
    return state_of(path.stat()) if keeps_ctime(path) else hash_file(path)


def hash_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while data := stream.read(_PIECE):
            digest.update(data)
    return digest.hexdigest()


class Versions:
    """Digest of the versions of files, or of parts of them, in the order in which they are added.

    Args:
        since: time (ns) when the first of them was read, or, to compare with an earlier digest,
            the time that one was made with.
    """

    def __init__(self, since: int) -> None:
        self._before = since - _MARGIN
        self._digest = hashlib.sha256()
        self._keep_ctime: dict[int, bool] = {}
        self._last: os.stat_result | None = None

    def add_state(self, path: bytes, status: os.stat_result) -> bool:
        """Add a file by its state; False, and it is not added, where only its data tell.

        A status that was added last is not added again, so that parts of one file cost nothing.
        """
        if status is self._last:
            return True
        if status.st_ctime_ns >= self._before:
            return False
        keep = self._keep_ctime.get(status.st_dev)
        if keep is None:
            keep = self._keep_ctime[status.st_dev] = keeps_ctime(path)
        if keep:
            self._last = status
            self._digest.update(b"%s\n" % state_of(status).encode("ascii"))
        return keep

    def add(self, path: bytes, status: os.stat_result, data: memoryview) -> None:
        """Add a file, or a part of one, that was read.

        Args:
            path: path of the file.
            status: status of the file.
            data: what was read.
        """
        if not self.add_state(path, status):
            self._digest.update(b"%d " % len(data) + hashlib.sha256(data).digest())

    def digest(self) -> str:
        """Hexadecimal digest."""
        return self._digest.hexdigest()


_READING = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a fifo would keep others waiting
_MOST_BYTES = 1 << 30
_MOST_OPEN = 64


class UnreadableError(ShardioError):
    """Why something cannot be read; whoever knows the sample adds the place."""


def in_memory(size: int) -> memoryview:
    """A place for data that are only looked at; see SourceFiles.read."""
    return memoryview(bytearray(size))


class SourceFiles:
    """Reads the data of fields. As a context it closes what it has open.

    Args:
        root: folder that relative paths start from.
        versions: digest that the versions of what is read are added to; None for no digest. Parts
            of files whose data were read for the list of samples are not added: it has their
            checksums.
    """

    def __init__(self, root: str, versions: Versions | None = None) -> None:
        self._root = os.fsencode(root)
        self._versions = versions
        self._open: OrderedDict[bytes, tuple[int, os.stat_result]] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor, _ in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def look_at(self, sample: SourceSample) -> None:
        """Add the versions of a sample's files as if it had been read.

        Raises:
            UnreadableError: a file is not there, or cannot be read where its data are needed.
            PackError: a file changes meanwhile.
        """
        for _, origin in sample.fields:
            if isinstance(origin, FromMemory) or (
                isinstance(origin, FromRange) and origin.stamp is None
            ):
                continue
            path = self._path(origin.path)
            try:
                status = (
                    self._container(path)[1] if isinstance(origin, FromRange) else os.stat(path)  # noqa: PTH116  bytes
                )
            except (OSError, ValueError) as error:
                raise _unreadable(error) from error
            if self._versions is not None and not self._versions.add_state(path, status):
                self.read(origin, in_memory)

    def read(self, origin: Origin, reserve: Callable[[int], memoryview]) -> memoryview:
        """Read data to where it belongs.

        Args:
            origin: of the data.
            reserve: gives the place for data of a size.

        Raises:
            UnreadableError: it is too large, damaged, not there, or cannot be read.
            PackError: the file changes meanwhile.
            OSError: there is no place.
        """
        if isinstance(origin, FromMemory):
            place = reserve(len(origin.data))
            place[:] = origin.data
            return place
        path = self._path(origin.path)
        if isinstance(origin, FromFile):
            return self._read_file(path, reserve)
        return self._read_range(path, origin, reserve)

    def _path(self, path: bytes) -> bytes:
        return os.path.join(self._root, path)  # noqa: PTH118  bytes

    def _read_file(self, path: bytes, reserve: Callable[[int], memoryview]) -> memoryview:
        try:
            descriptor = os.open(path, _READING)
        except (OSError, ValueError) as error:
            raise _unreadable(error) from error
        try:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise UnreadableError("it is no regular file")
            place = reserve(_limited(before.st_size))
            try:
                size = os.readv(descriptor, [place, bytearray(1)])  # a byte more, to see the end
                while 0 < size < len(place):
                    more = os.readv(descriptor, [place[size:], bytearray(1)])
                    size += more if more else len(place) + 1
                after = os.fstat(descriptor)
            except OSError as error:
                raise _unreadable(error) from error
        finally:
            os.close(descriptor)
        if size != len(place) or not has_stamp(after, stamp_of(before)):
            raise _changed(path)
        if self._versions is not None:
            self._versions.add(path, before, place)
        return place

    def _read_range(
        self, path: bytes, origin: FromRange, reserve: Callable[[int], memoryview]
    ) -> memoryview:
        try:
            descriptor, status = self._container(path)
        except (OSError, ValueError) as error:
            raise _unreadable(error) from error
        unverified = origin.checksum is None and origin.stamp is not None
        place, headers = reserve(_limited(origin.size)), memoryview(bytearray(origin.before))
        start, done = origin.offset - origin.before, 0
        while done < origin.before + origin.size:
            rest = [headers[done:], place[max(done - origin.before, 0) :]]
            try:
                more = os.preadv(descriptor, rest, start + done)
            except OSError as error:
                raise _unreadable(error) from error
            if not more and unverified:
                raise _changed(path, f", it ends before offset {start + done}")
            if not more:
                raise UnreadableError(f"{text_of(path)} ends before offset {start + done}")
            done += more
        # The state and, once more, the headers: a file that is overwritten meanwhile changes there
        # before it changes in the data.
        if unverified and not has_stamp(os.fstat(descriptor), origin.stamp or ""):
            raise _changed(path)
        if zlib.crc32(headers) != origin.headers or (
            origin.before and os.pread(descriptor, origin.before, start) != headers
        ):
            raise _changed(path, f", another header lies before offset {origin.offset}")
        if origin.checksum not in (None, zlib.crc32(place)):
            raise UnreadableError(
                f"the data at offset {origin.offset} of {text_of(path)} is not what was packed "
                "(CRC-32 differs)"
            )
        if self._versions is not None and origin.stamp is not None:
            self._versions.add(path, status, place)
        return place

    def _container(self, path: bytes) -> tuple[int, os.stat_result]:
        """A file of which parts are read, kept open, and its status when it was opened."""
        if path not in self._open:
            if len(self._open) >= _MOST_OPEN:
                os.close(self._open.popitem(last=False)[1][0])
            descriptor = os.open(path, _READING)
            self._open[path] = descriptor, os.fstat(descriptor)
        self._open.move_to_end(path)
        return self._open[path]


def _limited(size: int) -> int:
    if size > _MOST_BYTES:
        raise UnreadableError(f"{size:,} bytes, more than the limit of 1 GiB for a file")
    return size


def _changed(path: bytes, seen: str = "") -> PackError:
    return PackError(
        f"the file changed while it was packed{seen}", where=text_of(path), remedy="pack again"
    )


def _unreadable(error: OSError | ValueError) -> UnreadableError:
    return UnreadableError(getattr(error, "strerror", None) or str(error))


_NO_LABEL = -1
_LINE_BYTES = 1024  # bytes; most lines are shorter
_HASH = 16  # bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spool:
    """Samples in a file of a work folder, a line each; any process reads them by iterating.

    Attributes:
        out: output folder, in which the work folder lies.
        name: name of the file.
        offsets: int64 [n], start of each line.
        hashes: uint8 [n, 16], BLAKE2b of each line.
    """

    out: str
    name: str
    offsets: NDArray[np.int64]
    hashes: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.offsets)

    def __iter__(self) -> Iterator[SourceSample]:
        """Read the samples.

        Raises:
            PackError: a line is not what was written.
            OutputError: something else than a file has the name.
            OSError: the file cannot be read.
        """
        with (
            Folder.open(Path(self.out), WORK_FOLDER) as work,
            work.open_file(self.name, buffering=_LINE_BYTES) as stream,
        ):
            for offset, wanted in zip(self.offsets.tolist(), self.hashes, strict=True):
                stream.seek(offset)
                line = stream.readline()
                if _hash_line(line) != wanted.tobytes():
                    raise PackError(
                        f"the list of samples was changed while it was packed, at byte {offset}",
                        where=work.path / self.name,
                        remedy="let nobody else write to the output folder, and pack again",
                    )
                yield from_line(line)

    def choose(self, numbers: NDArray[np.int64] | NDArray[np.bool_], *, out: str = "") -> Spool:
        """Choose some of the samples.

        Args:
            numbers: their numbers, or a mask of all.
            out: path of the output folder for those who read them; by default the same.
        """
        return Spool(
            out=out or self.out,
            name=self.name,
            offsets=self.offsets[numbers],
            hashes=self.hashes[numbers],
        )


class SpoolWriter:
    """Writes samples to a file as they come.

    Args:
        stream: the file, new.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._offsets, self._hashes, self._end = array("q"), bytearray(), 0

    def write(self, sample: SourceSample) -> None:
        """Add a sample."""
        line = to_line(sample)
        self._offsets.append(self._end)
        self._hashes += _hash_line(line)
        self._end += self._stream.write(line)

    def spool(self, work: Folder, name: str) -> Spool:
        """All samples so far.

        Args:
            work: work folder of the file.
            name: name of the file.
        """
        return Spool(
            out=str(work.path.parent),
            name=name,
            offsets=np.frombuffer(self._offsets, np.int64),
            hashes=np.frombuffer(self._hashes, np.uint8).reshape(-1, _HASH),
        )


def _hash_line(line: bytes) -> bytes:
    return blake2b(line, digest_size=_HASH).digest()


class Listing:
    """The samples of a source, in order, and what it had that cannot be packed.

    Args:
        work: work folder, in which the list is made anew.
        found: what a source yields.
        measure: bytes that a sample will take in a shard, if they matter.

    Attributes:
        work: as given.
        problems: in the order in which they were met.
        spool: the samples.
        labels: int64 [n], -1 for samples without one.
        renamed: bool [n], the key is not simply the path without its extension.
        sizes: int64 [n], what `measure` said; zeros without it.
    """

    def __init__(
        self,
        work: Folder,
        found: Iterable[SourceSample | Problem],
        measure: Callable[[SourceSample], int] | None = None,
    ) -> None:
        self.work = work
        self.problems: list[Problem] = []
        labels, sizes = array("q"), array("q")
        renamed, keys = bytearray(), array("Q")
        with work.create(LIST_NAME) as stream:
            writer = SpoolWriter(stream)
            for sample in found:
                if isinstance(sample, Problem):
                    self.problems.append(sample)
                    continue
                labels.append(_NO_LABEL if sample.label is None else sample.label)
                renamed.append(sample.renamed)
                if measure is not None:
                    sizes.append(measure(sample))
                keys.append(hash_key(sample.key))
                writer.write(sample)
        self.spool = writer.spool(work, LIST_NAME)
        self.labels = np.frombuffer(labels, np.int64)
        self.renamed = np.frombuffer(renamed, np.bool_)
        self.sizes = np.frombuffer(sizes, np.int64) if sizes else np.zeros(len(self), np.int64)
        self._leave_out_equal_keys(np.frombuffer(keys, np.uint64))

    def __len__(self) -> int:
        return len(self.spool)

    def samples(self, numbers: NDArray[np.int64]) -> Iterator[SourceSample]:
        """Samples by number, [n] int64."""
        return iter(self.spool.choose(numbers))

    def leave_out(self, problems: Mapping[int, Problem]) -> None:
        """Take samples out, because of problems by their numbers."""
        self.problems += [problems[number] for number in sorted(problems)]
        kept = np.ones(len(self), np.bool_)
        kept[[*problems]] = False
        self.keep(kept)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Keep some of the samples alone.

        Args:
            kept: bool [n], which.
        """
        self.spool, self.labels = self.spool.choose(kept), self.labels[kept]
        self.renamed, self.sizes = self.renamed[kept], self.sizes[kept]

    def _leave_out_equal_keys(self, hashes: NDArray[np.uint64]) -> None:
        """Keep the first of the samples with one key."""
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        again = np.flatnonzero(hashes[1:] == hashes[:-1])
        suspects = np.array(sorted({*order[again].tolist(), *order[again + 1].tolist()}), np.int64)
        first: dict[str, SourceSample] = {}
        problems: dict[int, Problem] = {}
        for number, sample in zip(suspects.tolist(), self.samples(suspects), strict=True):
            holder = first.setdefault(sample.key, sample)
            if holder is not sample:
                reason = f"its key would be {quoted(sample.key)}, as that of {shown(holder.name)}"
                if holder.name == sample.name:
                    reason += (
                        ": it comes twice, and all of a sample must be in one row of a table, or "
                        "side by side in one tar"
                    )
                problems[number] = Problem(path=sample.name, reason=reason)
        if problems:
            self.leave_out(problems)


def hash_key(key: str) -> int:
    """64 bits, by which keys that may be equal are found."""
    data = key.encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
