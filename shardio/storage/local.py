"""Local files, the storage of paths.

Bytes are read with pread, not through a memory map: a file that shrinks or a disk that fails under
a running epoch then is an error with a place, where a memory map would kill the process with
SIGBUS. Measured on 64 KB samples in the page cache: 5 µs, of about 700 µs to decode one. Rows of
equal size, of which a system call each would be most of the work, are copied from a map by the
kernel, which reports the error too; see shardio.storage.copying.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from shardio.errors import SituationError, TarError, UsageError, without_secrets
from shardio.storage.base import (
    FileStat,
    StoredBytes,
    outside_error,
    restore,
    short_error,
    truncated_error,
)
from shardio.storage.folder import atomic_file

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_PIECE = 1 << 20  # bytes that are copied at once

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/|(pipe):")


def most_open_files() -> int | None:
    """Return how many files the system lets this process open; None if it sets no limit."""
    if resource is None:
        return None
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if most == resource.RLIM_INFINITY else most


def is_out_of_files(error: OSError) -> bool:
    """Tell whether an error says that no more files can be opened."""
    return error.errno in (errno.EMFILE, errno.ENFILE)


def out_of_files(error: OSError) -> SituationError:
    """Return the error with the way out, for one of which is_out_of_files is true."""
    most = most_open_files() if error.errno == errno.EMFILE else None
    limit = "" if most is None else f" ({most} for one process)"
    return SituationError(
        f"the limit on open files{limit} is reached",
        where=error.filename,
        remedy="raise it before the start (ulimit -n 4096), or use fewer workers, threads or jobs",
    )


def url_fault(path: str) -> str | None:
    """Say why a text is not the path of a local file, but a URL or a command.

    A drive letter is no scheme. One slash is enough, since pathlib makes `s3:/bucket` of
    `s3://bucket`; a folder that is called so is `./s3:/bucket`.

    Returns:
        A sentence with the way out; None for a path.
    """
    if found := _URL.match(path):
        scheme, path = (found[1] or found[2]).lower(), without_secrets(path)
        if scheme == "file":
            return f"{path}: a path is needed, not a URL; leave out what precedes it, file://"
        if scheme == "pipe":
            return (
                f"{path}: shardio runs no commands; fetch the shards, and name their folder, or "
                "name what the command reads, as s3://bucket/a.tar"
            )
        slashes = "" if "://" in path else ", or write the URL as text, with two slashes"
        return (
            f"{path}: {scheme} storage is not read or written here; name a local path: fetch what "
            f"is to be read, upload what was written, or mount the storage{slashes}"
        )
    return None


def refuse_url(path: str | os.PathLike[str]) -> None:
    """Raise UsageError for what url_fault finds."""
    if fault := url_fault(os.fspath(path)):
        raise UsageError(fault)


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """The storage of local files; see shardio.storage.base.Storage.

    A version is the time of change. Inode and ctime take no part: chmod, or a copy that keeps the
    time of change, leaves the same file.
    """

    def names(self, folder: str, /) -> list[str]:
        """List the files and folders in a folder."""
        try:
            return sorted(os.listdir(folder))  # noqa: PTH208  text is enough
        except (FileNotFoundError, NotADirectoryError):
            return []

    def stat(self, path: str, /) -> FileStat:
        """Measure a file."""
        status = os.stat(path)  # noqa: PTH116  a Path takes as long to make
        if not stat.S_ISREG(status.st_mode):
            code = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
            raise OSError(code, os.strerror(code), path)
        return FileStat(status.st_size, version_of(status))

    def open(self, path: str, name: str, /) -> LocalShard:
        """Open a file for reading."""
        return LocalShard(path, name)

    def publish(self, path: str, content: bytes | Path, /, *, only_if_absent: bool = False) -> None:
        """Put a file in its place."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target, replace=not only_if_absent) as stream:
            if isinstance(content, bytes):
                stream.write(content)
            else:
                with content.open("rb") as source:
                    shutil.copyfileobj(source, stream, _PIECE)
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def remove(self, path: str, /) -> None:
        """Remove a file, if it is there."""
        Path(path).unlink(missing_ok=True)


LOCAL = LocalFiles()
"""The storage of paths that are no URLs."""


def version_of(status: os.stat_result) -> str:
    """Return the version of a local file, see FileStat."""
    return str(status.st_mtime_ns)


class LocalShard:
    """One open file; safe to read from several threads.

    Args:
        path: path of the file.
        name: name of the file in errors.

    Attributes:
        name: name of the file in errors.
        size: size in bytes.
        version: see version_of.
    """

    __slots__ = ("_address", "_descriptor", "_mapped", "name", "size", "version")

    def __init__(self, path: str, name: str) -> None:
        self.name = name
        # A pipe in a shard's place would keep its reader waiting.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise TarError(
                "it is not a file",
                where=name,
                remedy=restore(),
                shard=name,
            )
        self.size = status.st_size
        self.version = version_of(status)
        self._mapped: mmap.mmap | None = None
        self._address: int | None = None

    @property
    def descriptor(self) -> int:
        """Descriptor of the open file, valid as long as this object."""
        return self._descriptor

    def read(self, offset: int, size: int) -> bytes:
        """Read the bytes [offset, offset + size).

        Raises:
            TarError: the file ends earlier, or no such bytes can be in it.
            OSError: the storage fails.
        """
        if not 0 <= offset <= offset + size <= self.size:
            raise outside_error(self, offset, size)
        data = read_at(self._descriptor, size, offset)
        if len(data) < size:
            raise short_error(self, offset, size, len(data))
        return data

    def address(self) -> int | None:
        """Return where the file is mapped, for the kernel alone to read from; None if it cannot be.

        Touching the memory ends the process with SIGBUS if the file was truncated.
        """
        if self._mapped is None:
            try:
                mapped = self.map()
            except (ValueError, OSError):  # it was truncated, or its file system maps no files
                return None
            self._address, self._mapped = np.frombuffer(mapped, np.uint8).ctypes.data, mapped
        return self._address

    def map(self) -> mmap.mmap:
        """Map the file, for all processes of a machine to share.

        Raises:
            ValueError: it was truncated.
            OSError: its file system maps no files.
        """
        return mmap.mmap(self._descriptor, self.size, prot=mmap.PROT_READ)

    def status(self) -> os.stat_result:
        """Return the status of the open file as it is now."""
        return os.fstat(self._descriptor)

    def is_whole(self) -> bool:
        """Tell whether the file still is as long as it was when it was opened."""
        return os.fstat(self._descriptor).st_size >= self.size

    def read_ahead(self, start: int, end: int) -> None:
        """Ask the operating system to bring bytes [start, end) into the page cache, soon."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, start, end - start, os.POSIX_FADV_WILLNEED)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        """Close the file when nothing refers to it, so that no thread still reads it.

        At the end of the interpreter global names may be gone, so what it calls is an argument.
        """
        if hasattr(self, "_descriptor"):
            close(self._descriptor)


class FileBytes(StoredBytes):
    """The bytes of a file that somebody else opened and closes.

    Args:
        stream: open file.
        name: name of the file in errors.

    See StoredBytes for slices.
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._descriptor = stream.fileno()
        self._name = name
        self._size = os.fstat(self._descriptor).st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        size = max(stop - start, 0)
        data = read_at(self._descriptor, size, start)
        if len(data) < size:
            raise truncated_error(self._name, self._size, start + len(data))
        return data


def sha256_of(path: Path) -> str:
    """Return the hexadecimal digest of a local file."""
    with path.open("rb") as stream:
        return FileBytes(stream, str(path)).sha256()


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Read bytes of a file, all that are asked for unless it ends before."""
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
