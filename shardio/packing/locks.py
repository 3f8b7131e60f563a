"""Lock files: who writes to a folder holds the lock of its file."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from shardio.storage.folder import Folder

LOCK_LIMIT = 1 << 20
"""Bytes; a lock with more in it was not written by shardio."""

_PATIENCE = 2.0  # seconds in which the processes of somebody who was killed end


@contextmanager
def open_lock(folder: Folder, name: str) -> Iterator[Lock]:
    """Open the lock file of a folder, and make it if it is not there.

    Raises:
        OutputError: the file is none that shardio writes to.
        OSError: the file cannot be opened.
    """
    with folder.open_lock(name) as held:
        yield Lock(held, folder, name)


class Lock:
    """An open lock file.

    Args:
        held: the open file.
        folder: folder that it lies in.
        name: name of the file.
    """

    def __init__(self, held: FileIO, folder: Folder, name: str) -> None:
        self._held = held
        self._folder = folder
        self._name = name

    @property
    def path(self) -> Path:
        """Path of the file, for errors."""
        return self._folder.path / self._name

    def take(self) -> bool:
        """Lock the file; False if another has it, or removed it after it was opened here."""
        end = time.monotonic() + _PATIENCE
        while not (ours := self._try()) and time.monotonic() < end:
            time.sleep(0.02)
        return ours and self._is_there()

    def read(self) -> bytes:
        """What is in the file, up to a byte more than LOCK_LIMIT."""
        return os.pread(self._held.fileno(), LOCK_LIMIT + 1, 0)

    def write(self, data: bytes, *, at: int | None = None) -> None:
        """Write to the file, and sync it.

        Args:
            data: bytes to append.
            at: size that the file is cut to before; None leaves what is there.
        """
        if at is not None:
            os.ftruncate(self._held.fileno(), at)
        while data:  # less is written where the disk is full
            data = data[self._held.write(data) :]
        os.fsync(self._held.fileno())

    def release(self) -> None:
        """Remove the file, unless another took its place."""
        if self._is_there():
            self._folder.remove(self._name)

    def _is_there(self) -> bool:
        there = self._folder.status(self._name)
        return there is not None and os.path.samestat(os.fstat(self._held.fileno()), there)

    def _try(self) -> bool:
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
