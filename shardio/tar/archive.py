"""Writing a tar archive in large pieces, with its checksums.

Members are laid out in one reused buffer, which goes to the digest and to the file whenever it
is full: a file's data is copied once, from the page cache into its place in the archive.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import BinaryIO, NamedTuple

from shardio.tar.header import BLOCK
from shardio.tar.writer import END_OF_ARCHIVE, header_block, padding

_BUFFER = 1 << 20


class Placed(NamedTuple):
    """Where a member's data went.

    Attributes:
        offset: of the data in the archive.
        size: in bytes.
        checksum: CRC-32 (zlib) of the data.
    """

    offset: int
    size: int
    checksum: int


class ArchiveWriter:
    """Appends members to an archive.

    Args:
        stream: where the archive goes; opened for writing, unbuffered use is fine.
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
        """Bytes written so far."""
        return self._flushed + self._used

    def reserve(self, size: int) -> memoryview:
        """Where the data of the next member belongs; fill it, then commit the member.

        Args:
            size: of the data in bytes.

        Raises:
            OSError: the archive cannot be written.
        """
        self._make_room(BLOCK + size + -size % BLOCK)
        self._data = memoryview(self._buffer)[self._used + BLOCK :][:size]
        return self._data

    def commit(self, name: bytes) -> Placed:
        """Append the reserved member under a name.

        Raises:
            UsageError: tar cannot hold a member of that name or size.
        """
        size, start = len(self._data), self._used + BLOCK
        end = start + size
        self._buffer[self._used : start] = header_block(name, size)
        self._buffer[end : end + -size % BLOCK] = padding(size)
        self._used = end + -size % BLOCK
        checksum = zlib.crc32(self._data)
        return Placed(self._flushed + start, size, checksum)

    def finish(self) -> str:
        """Write the end of the archive; returns the SHA-256 of the whole, hexadecimal."""
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
