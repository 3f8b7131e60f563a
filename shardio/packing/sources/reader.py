"""Reading what samples are made of, and noticing when a file changes.

Size and time of modification do not tell a file from what it becomes: rsync and tar give a file
that was rewritten its old time. The time of its last change of any kind (ctime) tells if two things
hold. The file system keeps one, which is known of those listed here and of no other (FAT has none,
and what lies behind FUSE, SMB or 9p may have none). And the file was not changed so shortly before
it was read that another change could get the same time, however coarse the clock. Elsewhere the
data are hashed.

Files of a storage are opened by it. Digest or version tell one from what it becomes; they stand in
the list of samples, so that no account of such files is kept here.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import stat
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from shardio.errors import PackError
from shardio.native.checksum import crc32
from shardio.packing.sources.base import (
    FromFile,
    FromMemory,
    FromRange,
    Origin,
    SourceSample,
    Stored,
    UnpackableError,
    text_of,
)

if TYPE_CHECKING:
    from typing_extensions import Self

    from shardio.storage.base import StoredFile

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
    """Describe a file so that it differs after a change, on a file system that keeps ctime."""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def stamp_of(status: os.stat_result) -> str:
    """Describe the state of a file and what changes with its ctime alone: mode, owner, links."""
    return f"{state_of(status)} {_attributes(status)}"


def has_stamp(status: os.stat_result, stamp: str) -> bool:
    """Tell whether a file is still what a stamp was taken of, apart from its mode, owner and links.

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
    """Tell whether a file lies where the time of its last change of any kind can be trusted."""
    if sys.platform != "linux":
        return False
    found = ctypes.create_string_buffer(512)  # larger than any struct statfs; f_type comes first
    if ctypes.CDLL(None).statfs(os.fsencode(path), found):
        return False
    kind = int.from_bytes(found.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder)
    return kind & 0xFFFFFFFF in _KEEP_CTIME


def file_version(path: Path) -> str:
    """Describe a file so that it differs after a change; its data are read where only they tell.

    Raises:
        OSError: the file cannot be read.
    """
    return state_of(path.stat()) if keeps_ctime(path) else hash_file(path)


def hash_file(path: Path) -> str:
    """Compute the hexadecimal SHA-256 of a file.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while data := stream.read(_PIECE):
            digest.update(data)
    return digest.hexdigest()


class FileVersions:
    """Digest of the versions of files, or of parts of them, in the order in which they are added.

    Args:
        since: time (ns) when the first of them was read; to compare with an earlier digest, the
            time of that one.
    """

    def __init__(self, since: int) -> None:
        self._before = since - _MARGIN
        self._digest = hashlib.sha256()
        self._keep_ctime: dict[int, bool] = {}
        self._last: os.stat_result | None = None

    def add_state(self, path: bytes, status: os.stat_result) -> bool:
        """Add a file by its state; return False, without adding it, where only its data tell.

        The status that was added last is not added again, so that parts of one file cost nothing.
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
            data: bytes that were read.
        """
        if not self.add_state(path, status):
            self._digest.update(b"%d " % len(data) + hashlib.sha256(data).digest())

    def digest(self) -> str:
        """Hexadecimal digest."""
        return self._digest.hexdigest()


_READING = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a fifo would keep others waiting
_MOST_BYTES = 1 << 30
_MOST_OPEN = 64
_MOST_STORED = 16  # each may keep some megabytes that it read ahead
_SMALL = 1 << 24


def in_memory(size: int) -> memoryview:
    """Reserve memory for data that are not written to a shard; see SourceReader.read."""
    return memoryview(bytearray(size))


def read_small(root: str, path: str, most: int = _SMALL) -> bytes:
    """Read a file that is looked at while samples are listed.

    Args:
        root: folder that relative paths start from.
        path: path of the file.
        most: maximum size in bytes.

    Raises:
        UnpackableError: it is not there, not a regular file, too large, or cannot be read.
        PackError: it changes meanwhile.
    """

    def reserve(size: int) -> memoryview:
        if size > most:
            raise UnpackableError(
                f"{size:,} bytes, more than the limit of {most:,} for such a file"
            )
        return in_memory(size)

    with SourceReader(root) as reader:
        return bytes(reader.read(FromFile(path.encode("utf-8", "surrogateescape")), reserve))


class SourceReader:
    """Reads the data of fields; as a context it closes what it has open.

    Args:
        root: folder that relative paths start from.
        versions: digest to which the versions of what is read are added; None for no digest. Parts
            of files whose data were read for the list of samples are not added: it has their
            checksums.
        stored: files of the source that are not read by their paths, by these.
    """

    def __init__(
        self,
        root: str,
        versions: FileVersions | None = None,
        stored: Mapping[bytes, Stored] = MappingProxyType({}),
    ) -> None:
        self._root = os.fsencode(root)
        self._versions = versions
        self._stored = stored
        self._stored_open: OrderedDict[bytes, StoredFile] = OrderedDict()
        self._open: OrderedDict[bytes, tuple[int, os.stat_result]] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor, _ in self._open.values():
            os.close(descriptor)
        self._open.clear()
        self._stored_open.clear()

    def look_at(self, sample: SourceSample) -> None:
        """Add the versions of a sample's files as if it had been read.

        Raises:
            UnpackableError: a file is not there, or cannot be read where its data are needed.
            PackError: a file changes meanwhile.
        """
        for _, origin in sample.fields:
            if isinstance(origin, FromMemory) or (
                isinstance(origin, FromRange)
                and (origin.stamp is None or origin.path in self._stored)
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
        """Read data into memory that the caller reserves.

        Args:
            origin: place of the data.
            reserve: function that returns memory of a size.

        Returns:
            The memory.

        Raises:
            UnpackableError: the data are too large, damaged, not there, or cannot be read.
            PackError: the file changes meanwhile.
            ShardioError: a file of a storage is not what was listed.
            OSError: there is no space, or a storage fails.
        """
        if isinstance(origin, FromMemory):
            place = reserve(len(origin.data))
            place[:] = origin.data
            return place
        if origin.path in self._stored:
            assert isinstance(origin, FromRange)  # noqa: S101  as sources promise
            return self._read_stored(origin, reserve)
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
                raise UnpackableError("it is not a regular file")
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
                raise UnpackableError(f"{text_of(path)} ends before offset {start + done}")
            done += more
        # The state and, once more, the headers: a file that is overwritten meanwhile changes there
        # before it changes in the data.
        if unverified and not has_stamp(os.fstat(descriptor), origin.stamp or ""):
            raise _changed(path)
        if origin.before and os.pread(descriptor, origin.before, start) != headers:
            raise _moved(path, origin)
        _check_range(path, origin, headers, place)
        if self._versions is not None and origin.stamp is not None:
            self._versions.add(path, status, place)
        return place

    def _read_stored(self, origin: FromRange, reserve: Callable[[int], memoryview]) -> memoryview:
        place = reserve(_limited(origin.size))
        start, whole = origin.offset - origin.before, origin.before + origin.size
        data = memoryview(self._stored_file(origin.path).read(start, whole))
        place[:] = data[origin.before :]
        _check_range(origin.path, origin, data[: origin.before], place)
        return place

    def _stored_file(self, path: bytes) -> StoredFile:
        if path not in self._stored_open:
            if len(self._stored_open) >= _MOST_STORED:
                self._stored_open.popitem(last=False)
            self._stored_open[path] = self._stored[path].open_source()
        self._stored_open.move_to_end(path)
        return self._stored_open[path]

    def _container(self, path: bytes) -> tuple[int, os.stat_result]:
        """Open a file of which parts are read, and keep it open; return its first status too."""
        if path not in self._open:
            if len(self._open) >= _MOST_OPEN:
                os.close(self._open.popitem(last=False)[1][0])
            descriptor = os.open(path, _READING)
            self._open[path] = descriptor, os.fstat(descriptor)
        self._open.move_to_end(path)
        return self._open[path]


def _limited(size: int) -> int:
    if size > _MOST_BYTES:
        raise UnpackableError(f"{size:,} bytes, more than the limit of 1 GiB for a file")
    return size


def _check_range(path: bytes, origin: FromRange, headers: memoryview, data: memoryview) -> None:
    """Compare a part of a file, and the headers before it, with what was listed."""
    if crc32(headers) != origin.headers:
        raise _moved(path, origin)
    if origin.checksum not in (None, crc32(data)):
        raise UnpackableError(
            f"the data at offset {origin.offset} of {text_of(path)} is not what was packed "
            "(CRC-32 differs)"
        )


def _moved(path: bytes, origin: FromRange) -> PackError:
    return _changed(path, f", another header lies before offset {origin.offset}")


def _changed(path: bytes, seen: str = "") -> PackError:
    return PackError(
        f"the file changed while it was packed{seen}", where=text_of(path), remedy="pack again"
    )


def _unreadable(error: OSError | ValueError) -> UnpackableError:
    return UnpackableError(getattr(error, "strerror", None) or str(error))
