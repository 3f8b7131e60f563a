"""Published or absent: a file gets its final name only when it is whole and on disk."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

TEMPORARY_SUFFIX = ".tmp"
_TEMPORARY = re.compile(rf"\.(.+)\.[0-9]+-[0-9]+{re.escape(TEMPORARY_SUFFIX)}", re.DOTALL)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file under a temporary name beside `path`, sync it, rename it.

    If the block raises, the temporary file is removed and `path` is as it was.

    Raises:
        OSError: the file cannot be written, synced or renamed; it names `path`.
    """
    owner = f"{os.getpid()}-{threading.get_ident()}"
    temporary = path.with_name(f".{path.name}.{owner}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        named = getattr(error, "filename", None) not in (None, str(temporary))
        if isinstance(error, OSError) and error.errno is not None and not named:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def sync_folder(folder: Path) -> None:
    """Make the renames inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def final_name(name: str) -> str:
    """The name that a temporary file was to get; any other name as it is."""
    found = _TEMPORARY.fullmatch(name)
    return found[1] if found else name
