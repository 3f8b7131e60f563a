"""Shards as local files.

Encoded images are read with pread, not through a memory map: a file that shrinks or a disk that
fails under a running epoch then is an error with a place, where a memory map would kill the
process with SIGBUS. Measured on 64 KB samples in the page cache: 5 µs, of about 700 µs to decode
one. Fixed-size members, of which a system call each would be most of the work, are gathered from
a map, whose file is looked at before each copy.
"""

from __future__ import annotations

import mmap
import os
import re
import stat

import numpy as np
from numpy.typing import NDArray

from shardio.errors import TarError, UsageError

BLOCK = 512
"""Bytes that maps are made of, as tars are."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/|(pipe):")


def url_fault(path: str) -> str | None:
    """Say why a text is not the path of a local file, but a URL or a command.

    A drive letter is no scheme. One slash is enough, since pathlib makes `s3:/bucket` of
    `s3://bucket`; a folder that is called so is `./s3:/bucket`.

    Returns:
        A sentence with the way out; None for a path.
    """
    if found := _URL.match(path):
        scheme = (found[1] or found[2]).lower()
        if scheme == "file":
            return f"{path}: a path is needed, not a URL; leave out what precedes it, file://"
        if scheme == "pipe":
            return f"{path}: shardio runs no commands; fetch the shards, and name their folder"
        return (
            f"{path}: {scheme} storage is not read or written yet; name a local path: fetch what "
            "is to be read, upload what was written, or mount the storage"
        )
    return None


def refuse_url(path: str | os.PathLike[str]) -> None:
    """Raise UsageError for what url_fault finds."""
    if fault := url_fault(os.fspath(path)):
        raise UsageError(fault)


class LocalShard:
    """One open shard file; safe to read from several threads.

    Args:
        path: the file.
        name: what errors call it.

    Attributes:
        name: as given.
        size: in bytes.
        modified: time of change (ns).
    """

    __slots__ = ("_blocks", "_descriptor", "modified", "name", "size")

    def __init__(self, path: str, name: str) -> None:
        self.name = name
        # A pipe in a shard's place would keep its reader waiting.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise TarError(f"{name}: it is not a file; get or pack the shard again", shard=name)
        self.size = status.st_size
        self.modified = status.st_mtime_ns
        self._blocks: NDArray[np.void] | None = None

    def read(self, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size).

        Raises:
            TarError: the file ends earlier.
            OSError: the storage fails.
        """
        data = read_at(self._descriptor, size, offset)
        if len(data) < size:
            raise TarError(
                f"{self.name}: the file ends at byte {offset + len(data)}, inside a member "
                f"of {size} bytes at offset {offset}; it was cut off after it was indexed",
                shard=self.name,
                offset=offset,
            )
        return data

    def copy_blocks(self, starts: NDArray[np.int64], out: NDArray[np.uint8]) -> bool:
        """Copy whole blocks of 512 bytes out of a memory map.

        Args:
            starts: int64 [n], offset of the first block of each row.
            out: uint8 [n, w], where they go; w is a multiple of 512.

        Returns:
            False, with nothing copied, where a row would reach past the last whole block.

        Raises:
            TarError: the file was cut off.
        """
        if os.fstat(self._descriptor).st_size < self.size:
            raise TarError(
                f"{self.name}: the file was cut off after it was indexed; get or pack it again",
                shard=self.name,
            )
        if self._blocks is None:
            mapped = mmap.mmap(self._descriptor, self.size, prot=mmap.PROT_READ)
            self._blocks = np.frombuffer(mapped, f"V{BLOCK}", self.size // BLOCK)
        wanted = (starts // BLOCK)[:, None] + np.arange(out.shape[1] // BLOCK)
        if int(wanted[:, -1].max()) >= len(self._blocks):
            return False
        self._blocks.take(wanted, out=out.view(self._blocks.dtype), mode="clip")
        return True

    def read_ahead(self, start: int, end: int) -> None:
        """Ask the operating system to bring bytes [start, end) into the page cache, soon."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, start, end - start, os.POSIX_FADV_WILLNEED)

    def __del__(self) -> None:
        """Close the file when nothing refers to it, so that no thread still reads it."""
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Bytes of a file, as many as asked for unless it ends, however few each read gives."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size:
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def reserve(descriptor: int, size: int) -> None:
    """Give an empty file its size and the space for it.

    A process that touches a page of a memory map for which no space is left ends with SIGBUS.

    Raises:
        OSError: there is no space.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.truncate(descriptor, size)
