"""Write tar archives deterministically, in large pieces, with checksums.

The same members always give the same bytes: headers depend on name and size alone, with constant
owner, time and mode. Only plain USTAR headers (POSIX.1-1988) are written, because every tool reads
them. Members that do not fit are an error.

Members are assembled in one reused buffer. Whenever it is full, it is hashed and written to the
file. A member's data are thus copied once, from the page cache to their place in the archive.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import BinaryIO, NamedTuple

from shardio.errors import UsageError, quoted
from shardio.tar.header import BLOCK, FILE, HEADER_PARTS, USTAR_MAGIC, checksum

END_OF_ARCHIVE = bytes(2 * BLOCK)

_LONGEST_NAME = 255
_SIZE_LIMIT = 8**11
_MODE_UID_GID = b"%07o\0%07o\0%07o\0" % (0o644, 0, 0)
_MTIME = b"%011o\0" % 0
_AFTER_CHECKSUM = FILE.ljust(100, b"\0")
# Last byte of the link target, magic and version, user and group names, device numbers.
_BEFORE_PREFIX = b"\0" + USTAR_MAGIC + b"00" + bytes(64) + b"%07o\0%07o\0" % (0, 0)


def header_block(name: bytes, size: int) -> bytes:
    """Create the header of a regular file with mode 0644, owner 0 and time 0.

    Args:
        name: name of the member, 1 to 255 bytes; split at a slash if longer than 100 bytes.
        size: size of the data in bytes, below 8 GiB.

    Returns:
        Header of 512 bytes.

    Raises:
        UsageError: USTAR cannot hold the name or the size.
    """
    if not 0 <= size < _SIZE_LIMIT:
        raise UsageError(
            f"the member {quoted(name)} has {size:,} bytes, and a tar header allows 0 to "
            f"{_SIZE_LIMIT - 1:,}",
            remedy="split the file",
        )
    prefix, last = _split_name(name)
    before = last.ljust(100, b"\0") + _MODE_UID_GID + b"%011o\0" % size + _MTIME
    rest = (_BEFORE_PREFIX + prefix).ljust(256, b"\0")
    stated = b"%06o\0 " % checksum(before, _AFTER_CHECKSUM, rest)
    return HEADER_PARTS.pack(before, stated, _AFTER_CHECKSUM, rest)


def padding(size: int) -> bytes:
    """Return the zeros between `size` bytes of data and the next block."""
    return bytes(-size % BLOCK)


def _split_name(name: bytes) -> tuple[bytes, bytes]:
    """Split a name into prefix and rest, at the first slash after which the rest fits."""
    if not name or b"\0" in name or name.endswith(b"/"):
        raise UsageError(
            f"{quoted(name)} is not a valid member name",
            remedy="use a name that is not empty, has no NUL and does not end in a slash",
        )
    if len(name) <= 100:
        return b"", name
    cut = name.find(b"/", max(1, len(name) - 101), 156)
    if cut < 0 or len(name) > _LONGEST_NAME:
        raise UsageError(
            f"the member name {quoted(name)} has {len(name)} bytes, too many for a tar header",
            remedy=f"shorten it to 100 bytes, or to {_LONGEST_NAME} bytes with folders in it",
        )
    return name[:cut], name[cut + 1 :]


_BUFFER = 1 << 20


class Placed(NamedTuple):
    """Location and checksum of a member's data.

    Attributes:
        offset: offset of the data in the archive.
        size: size of the data in bytes.
        checksum: CRC-32 (zlib) of the data.
    """

    offset: int
    size: int
    checksum: int


class ArchiveWriter:
    """Writer of one archive.

    Args:
        stream: binary stream open for writing; need not be buffered.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self._buffer = bytearray(_BUFFER)
        self._used = 0
        self._flushed = 0
        self._data = memoryview(b"")

    @property
    def size(self) -> int:
        """Number of bytes written so far."""
        return self._flushed + self._used

    def reserve(self, size: int) -> memoryview:
        """Reserve memory for the next member; fill it, then call commit.

        Args:
            size: size of the data in bytes.

        Returns:
            Writable memory of that size.

        Raises:
            OSError: the archive cannot be written.
        """
        self._make_room(BLOCK + size + -size % BLOCK)
        self._data = memoryview(self._buffer)[self._used + BLOCK :][:size]
        return self._data

    def commit(self, name: bytes) -> Placed:
        """Append the reserved member under a name.

        Raises:
            UsageError: the name or the size does not fit into a tar header.
        """
        size, start = len(self._data), self._used + BLOCK
        end = start + size
        self._buffer[self._used : start] = header_block(name, size)
        self._buffer[end : end + -size % BLOCK] = padding(size)
        self._used = end + -size % BLOCK
        checksum = zlib.crc32(self._data)
        return Placed(self._flushed + start, size, checksum)

    def finish(self) -> str:
        """Write the end of the archive and return its SHA-256 in hexadecimal."""
        self._make_room(len(END_OF_ARCHIVE))
        start, self._used = self._used, self._used + len(END_OF_ARCHIVE)
        self._buffer[start : self._used] = END_OF_ARCHIVE
        self._flush()
        return self._digest.hexdigest()

    def _make_room(self, size: int) -> None:
        if self._used + size > len(self._buffer):
            self._flush()
        if size > len(self._buffer):
            self._buffer = bytearray(size)

    def _flush(self) -> None:
        with memoryview(self._buffer)[: self._used] as piece:
            self._digest.update(piece)
            self._stream.write(piece)
        self._flushed += self._used
        self._used = 0
