"""Reading what samples come from, and noticing when it changes meanwhile."""

from __future__ import annotations

import os
import stat
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from shardio.errors import PackError
from shardio.packing.samples import FromFile, FromMemory, FromRange, Origin, SourceSample, text_of
from shardio.packing.states import Versions, has_stamp, stamp_of

if TYPE_CHECKING:
    from typing_extensions import Self

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a fifo would keep others waiting
_MOST_BYTES = 1 << 30
_MOST_OPEN = 64


class UnreadableError(Exception):
    """Why something cannot be read, for a sentence that names it."""


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
            descriptor = os.open(path, _READ)
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
            descriptor = os.open(path, _READ)
            self._open[path] = descriptor, os.fstat(descriptor)
        self._open.move_to_end(path)
        return self._open[path]


def _limited(size: int) -> int:
    if size > _MOST_BYTES:
        raise UnreadableError(f"{size:,} bytes, more than the limit of 1 GiB for a file")
    return size


def _changed(path: bytes, seen: str = "") -> PackError:
    return PackError(f"{text_of(path)}: the file changed while it was packed{seen}; pack again")


def _unreadable(error: OSError | ValueError) -> UnreadableError:
    return UnreadableError(getattr(error, "strerror", None) or str(error))
