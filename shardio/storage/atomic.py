"""Published or absent: a file gets its final name only when it is whole and on disk."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY_SUFFIX = ".tmp"
_TEMPORARY = re.compile(rf"\.(.+)\.[0-9]+-[0-9]+{re.escape(TEMPORARY_SUFFIX)}", re.DOTALL)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file under a temporary name beside `path`, sync it, rename it.

    If the block raises, the temporary file is removed and `path` is as it was. What is neither a
    file nor a link stays: a device or a pipe is not replaced.

    Raises:
        OSError: the file cannot be written, synced or renamed; it names `path`.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:  # not there, or told below
        mode = stat.S_IFREG
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise FileExistsError(errno.EEXIST, "something else than a file is there", str(path))
    try:
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise at_path(error, path) from error
    try:
        with atomic_file_in(descriptor, path) as stream:
            yield stream
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file_in(folder: int, path: Path) -> Iterator[BinaryIO]:
    """Write a file as atomic_file does, into a folder that is open.

    Args:
        folder: descriptor of the folder.
        path: path of the file, for its name and for errors.

    Raises:
        OSError: the file cannot be written, synced or renamed; it names `path`.
    """
    token = int.from_bytes(os.urandom(8), "little")
    temporary = f".{path.name}.{os.getpid()}-{token}{TEMPORARY_SUFFIX}"
    try:
        with create_in(folder, temporary) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException as error:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        named = getattr(error, "filename", None) not in (None, temporary)
        if isinstance(error, OSError) and error.errno is not None and not named:
            raise at_path(error, path) from error
        raise


def create_in(folder: int, name: str) -> BinaryIO:
    """Open a file that is not there yet for writing, in a folder that is open."""
    return os.fdopen(os.open(name, _NEW, 0o666, dir_fd=folder), "wb")


def at_path(error: OSError, path: Path) -> OSError:
    """Make an error of the same kind that names a path."""
    return OSError(error.errno, error.strerror, str(path))


def final_name(name: str) -> str:
    """The name that a temporary file was to get; any other name as it is."""
    found = _TEMPORARY.fullmatch(name)
    return found[1] if found else name
