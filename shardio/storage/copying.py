"""Rows of files, copied by the kernel.

A process that touches a mapped page ends with SIGBUS if the file was cut off before that page, or
if the disk fails. The kernel, told to write the page somewhere, reports an error instead. So rows
are never touched in the map: one call writes up to 1,024 of them into a file in memory that belongs
to this process alone, and from there they are read. That takes as long as a gather from the map; a
pread for each row takes twice as long, and hands over the interpreter's lock each time.

Where files in memory are not to be had, a file is not local, or the kernel reports an error, rows
are read one by one, which says what is wrong.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from shardio.storage.base import StoredFile
from shardio.storage.local import LocalShard

_AT_ONCE = 1024  # pieces in one call: IOV_MAX
_MOST_BYTES = 1 << 23  # of rows that the kernel copies; the calls for larger ones are few


class RowCopier:
    """Copies rows of shards into one block of memory; for one thread at a time."""

    def __init__(self) -> None:
        self._descriptor = self._process = -1
        self._memory = self._plain = np.empty(0, np.uint8)

    def copy(
        self,
        files: Sequence[StoredFile],
        counts: Sequence[int],
        starts: NDArray[np.int64],
        width: int,
    ) -> NDArray[np.uint8] | None:
        """Copy rows.

        Args:
            files: open shards.
            counts: number of rows of each shard; they follow one another.
            starts: int64 [n], offset of each row in its shard.
            width: bytes of a row.

        Returns:
            uint8 [n, width], valid until the next call; None where a row would reach out of its
            shard as it was when it was opened.

        Raises:
            TarError: a shard was cut off.
            OSError: the storage fails.
        """
        size = len(starts) * width
        ends = np.repeat([file.size - width for file in files], counts)
        if (starts < 0).any() or (starts > ends).any():
            return None
        local = [file for file in files if isinstance(file, LocalShard)]
        mappable = len(local) == len(files) and size <= _MOST_BYTES
        places = _places(local, counts, starts, width) if mappable else None
        if (
            places is not None
            and self._reserve(size)
            and self._write(places)
            # Behind a cut the rest of its page reads as zeros, so sizes are looked at afterwards.
            and all(file.is_whole() for file in local)
        ):
            return self._memory[:size].reshape(len(starts), width)
        if size > self._plain.size:
            self._plain = np.empty(size, np.uint8)
        rows = self._plain[:size].reshape(len(starts), width)
        shards = np.repeat(np.arange(len(files)), counts).tolist()
        for row, shard, start in zip(rows, shards, starts.tolist(), strict=True):
            row[:] = np.frombuffer(files[shard].read(start, width), np.uint8)
        return rows

    def _reserve(self, size: int) -> bool:
        """Have a file in memory of that size; False if there is none."""
        # That of the parent process is shared with it.
        if size > len(self._memory) or self._process != os.getpid():
            self._close()
            try:
                self._descriptor = os.memfd_create("shardio", os.MFD_CLOEXEC)
                os.truncate(self._descriptor, size)
                mapped = mmap.mmap(self._descriptor, size, prot=mmap.PROT_READ)
            except (AttributeError, OSError):
                self._close()
                return False
            self._memory, self._process = np.frombuffer(mapped, np.uint8), os.getpid()
        return True

    def _write(self, places: NDArray[np.uintp]) -> bool:
        """Have the kernel write what lies at some places of memory; False if it does not all."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        for first in range(0, len(places), _AT_ONCE):
            some = places[first : first + _AT_ONCE]
            address = ctypes.c_void_p(some.ctypes.data)
            written = _libc().writev(self._descriptor, address, len(some))
            if written != int(some[:, 1].sum()):
                return False
        return True

    def _close(self) -> None:
        self._memory = np.empty(0, np.uint8)
        self.__del__()
        self._descriptor = -1

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self._descriptor >= 0:  # the interpreter may end, and global names be gone
            close(self._descriptor)


def _places(
    files: Sequence[LocalShard], counts: Sequence[int], starts: NDArray[np.int64], width: int
) -> NDArray[np.uintp] | None:
    """Where rows lie in memory, as the kernel's `struct iovec`: address and size, uintp [n, 2].

    Returns:
        None where a file cannot be mapped.
    """
    mapped = [address for file in files if (address := file.address()) is not None]
    if len(mapped) < len(files):
        return None
    places = np.empty((len(starts), 2), np.uintp)
    places[:, 0] = starts
    places[:, 0] += np.repeat(np.array(mapped, np.uintp), counts)
    places[:, 1] = width
    return places


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.writev.argtypes = ctypes.c_int, ctypes.c_void_p, ctypes.c_int
    libc.writev.restype = ctypes.c_ssize_t
    return libc
