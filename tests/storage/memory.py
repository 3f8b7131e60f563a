"""A storage in memory, shared by all that one process makes of it, as a remote one would be."""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from shardio.errors import TarError
from shardio.storage.base import FileStat, StoredFile, outside_error, short_error

_lock = threading.Lock()
FILES: dict[str, dict[str, bytes]] = defaultdict(dict)
"""Contents of all files, by bucket and path."""


@dataclass(frozen=True)
class MemoryFile:
    """An open file: like an object of a store, the one that was there when it was opened."""

    name: str
    path: str
    size: int
    version: str
    files: dict[str, bytes]
    data: bytes

    def read(self, offset: int, size: int, /) -> bytes:
        if not 0 <= offset <= offset + size <= self.size:
            raise outside_error(self, offset, size)
        now = self.files.get(self.path, b"")
        if len(now) < offset + size:
            raise short_error(self, offset, size, max(len(now) - offset, 0))
        if now is not self.data:
            raise TarError("the object was changed after it was opened", where=self.name)
        return now[offset : offset + size]

    def read_ahead(self, start: int, end: int, /) -> None:
        del start, end


@dataclass(frozen=True)
class MemoryStorage:
    """Files by path; storages of one bucket have the same.

    Args:
        bucket: name of the files.
    """

    bucket: str

    @property
    def files(self) -> dict[str, bytes]:
        return FILES[self.bucket]

    def names(self, folder: str, /) -> list[str]:
        inside = folder.rstrip("/") + "/"
        below = [path for path in list(self.files) if path.startswith(inside)]
        return sorted({path.removeprefix(inside).partition("/")[0] for path in below})

    def stat(self, path: str, /) -> FileStat:
        try:
            data = self.files[path]
        except KeyError:
            raise FileNotFoundError(2, "no such object", path) from None
        return FileStat(len(data), hashlib.sha256(data).hexdigest()[:16])

    def open(self, path: str, name: str, /) -> StoredFile:
        size, version, _ = self.stat(path)
        return MemoryFile(name, path, size, version, self.files, self.files[path])

    def publish(self, path: str, content: bytes | Path, /, *, only_if_absent: bool = False) -> None:
        data = content if isinstance(content, bytes) else content.read_bytes()
        with _lock:
            if only_if_absent and path in self.files:
                raise FileExistsError(17, "the object is there", path)
            self.files[path] = data

    def remove(self, path: str, /) -> None:
        self.files.pop(path, None)
