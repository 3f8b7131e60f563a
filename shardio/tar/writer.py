"""Write tar archives deterministically, in large pieces, with checksums.

The same members always give the same bytes: headers depend on name and size alone, with constant
owner, time and mode. Headers are plain USTAR (POSIX.1-1988), because every tool reads them. Only a
member whose name does not fit gets a PAX header (POSIX.1-2001) before it, with the name.

Members are assembled in one reused buffer. Whenever it is full, it is hashed and written to the
file. A member's data are thus copied once, from the page cache to their place in the archive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from shardio.errors import UsageError, quoted
from shardio.native.checksum import crc32
from shardio.tar.header import (
    BLOCK,
    FILE,
    HEADER_PARTS,
    LONGEST_EXTENSION,
    PAX,
    USTAR_MAGIC,
    checksum,
    padded,
)

END_OF_ARCHIVE = bytes(2 * BLOCK)

_LONGEST_NAME = 255
_SIZE_LIMIT = 8**11
_MODE_UID_GID = b"%07o\0%07o\0%07o\0" % (0o644, 0, 0)
_MTIME = b"%011o\0" % 0
# Last byte of the link target, magic and version, user and group names, device numbers.
_BEFORE_PREFIX = b"\0" + USTAR_MAGIC + b"00" + bytes(64) + b"%07o\0%07o\0" % (0, 0)
_PAX_NAME = b"././@PaxHeader"  # as Python's tarfile names them


def header_block(name: bytes, size: int) -> bytes:
    """Create the header of a regular file with mode 0644, owner 0 and time 0.

    Args:
        name: name of the member; split at a slash if longer than 100 bytes.
        size: size of the data in bytes, below 8 GiB.

    Returns:
        Header of 512 bytes; if the name does not fit into it, a PAX header and the records with the
        name come before it.

    Raises:
        UsageError: the name is none of a file or longer than readers accept, or the size does not
            fit.
    """
    if not name or b"\0" in name or name.endswith(b"/"):
        raise UsageError(
            f"{quoted(name)} is not a valid member name",
            remedy="use a name that is not empty, has no NUL and does not end in a slash",
        )
    if not 0 <= size < _SIZE_LIMIT:
        raise UsageError(
            f"the member {quoted(name)} has {size:,} bytes, and a tar header allows 0 to "
            f"{_SIZE_LIMIT - 1:,}",
            remedy="split the file",
        )
    split = _split_name(name)
    if split is not None:
        return _block(*split, size, FILE)
    record = _pax_record(b"path", name)
    if len(record) > LONGEST_EXTENSION:
        raise UsageError(
            f"the member name {quoted(name)} has {len(name):,} bytes", remedy="shorten it"
        )
    pax = _block(b"", _PAX_NAME, len(record), PAX) + record + padding(len(record))
    # For programs that ignore PAX headers; without a slash at its end, which a folder would have.
    short = name[:100].rstrip(b"/") or _PAX_NAME
    return pax + _block(b"", short, size, FILE)


def header_size(name: bytes) -> int:
    """Return the size in bytes of what header_block creates for a name."""
    if _split_name(name) is not None:
        return BLOCK
    return 2 * BLOCK + padded(len(_pax_record(b"path", name)))


def padding(size: int) -> bytes:
    """Return the zeros between `size` bytes of data and the next block."""
    return bytes(-size % BLOCK)


def _block(prefix: bytes, name: bytes, size: int, kind: bytes) -> bytes:
    before = name.ljust(100, b"\0") + _MODE_UID_GID + b"%011o\0" % size + _MTIME
    after, rest = kind.ljust(100, b"\0"), (_BEFORE_PREFIX + prefix).ljust(256, b"\0")
    stated = b"%06o\0 " % checksum(before, after, rest)
    return HEADER_PARTS.pack(before, stated, after, rest)


def _split_name(name: bytes) -> tuple[bytes, bytes] | None:
    """Split a name into prefix and rest, at the first slash after which the rest fits."""
    if len(name) <= 100:
        return b"", name
    cut = name.find(b"/", max(1, len(name) - 101), 156)
    if cut < 0 or len(name) > _LONGEST_NAME:
        return None
    return name[:cut], name[cut + 1 :]


def _pax_record(keyword: bytes, value: bytes) -> bytes:
    """Create a PAX record, which starts with its own length."""
    rest = b" " + keyword + b"=" + value + b"\n"
    length = len(rest)
    while length != (more := len(rest) + len(str(length))):
        length = more
    return b"%d" % length + rest


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
        before_write: callback before members are written; until then their data stay in place.
    """

    def __init__(self, stream: BinaryIO, before_write: Callable[[], None] | None = None) -> None:
        self._stream = stream
        self._before_write = before_write
        self._digest = hashlib.sha256()
        self._buffer = bytearray(_BUFFER)
        self._used = 0
        self._flushed = 0
        self._data = memoryview(b"")

    @property
    def size(self) -> int:
        """Number of bytes written so far."""
        return self._flushed + self._used

    @property
    def data(self) -> memoryview:
        """Data of the last member, until another is reserved."""
        return self._data

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
            UsageError: a tar cannot hold the name or the size.
            OSError: the archive cannot be written.
        """
        size = len(self._data)
        header = header_block(name, size)
        if len(header) > BLOCK:  # the data lie where the header ends otherwise
            data = bytes(self._data)
            self._make_room(len(header) + padded(size))
            self._data = memoryview(self._buffer)[self._used + len(header) :][:size]
            self._data[:] = data
        start = self._used + len(header)
        end = start + size
        self._buffer[self._used : start] = header
        self._buffer[end : end + -size % BLOCK] = padding(size)
        self._used = end + -size % BLOCK
        return Placed(self._flushed + start, size, crc32(self._data))

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
        if self._before_write is not None:
            self._before_write()
        with memoryview(self._buffer)[: self._used] as piece:
            self._digest.update(piece)
            self._stream.write(piece)
        self._flushed += self._used
        self._used = 0
