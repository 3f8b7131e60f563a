"""Files of shardio's processes in the temporary directory, and their removal.

All files are in one private folder of the user, `shardio-<uid>`. A name identifies the process that
owns the file: the place where it runs (the boot, and its namespaces of process ids and of time),
its process id, and its start time, since process ids are reused. A killed process leaves its files
behind. The next process of the same user in the same place removes them when it first needs the
folder. Files of other places, such as another host or container, are left alone, because their
processes may still be running.

If the folder cannot be private (see private), names start with `shardio-` in the temporary
directory itself, and nothing there is removed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from shardio.errors import ShardioError
from shardio.processes import close_locked, open_for_lock
from shardio.storage.private import own_subfolder

_NAME = re.compile(r"([0-9a-f]{8})-([0-9]+)-([0-9a-f]+)-.+")
_MOST_LOOKED_AT = 4096  # limits the time at the start of a process
_ENDED = -1
_looked: set[Path] = set()
"""Folders in which this process has removed the files of ended processes."""


@dataclass
class Contents:
    """Contents of a file while its lock is held.

    Attributes:
        data: bytes of the file; an assigned value is written before the lock is released.
    """

    data: bytes


def path_of_process(process: int, rest: str) -> Path:
    """Return a path for a file that belongs to a process.

    Args:
        process: id of a running process of this user.
        rest: end of the file's name, unique in that process.

    Raises:
        ShardioError: there is no temporary directory.
    """
    folder, start = _names_of(process)
    return folder / f"{start}{rest}"


def temporary_folder(longest: int | None = None) -> tempfile.TemporaryDirectory[str]:
    """Create a folder that belongs to this process.

    Args:
        longest: maximum length of the path in bytes; if the private folder would make it longer,
            the folder is created in the temporary directory itself.

    Raises:
        ShardioError: the temporary directory cannot be written.
    """
    folder, start = _names_of(os.getpid())
    if longest is not None and len(os.fsencode(folder / f"{start}12345678")) > longest:
        folder, start = Path(tempfile.gettempdir()), "shardio-"
    with explained():
        return tempfile.TemporaryDirectory(dir=folder, prefix=start, ignore_cleanup_errors=True)


@contextmanager
def locked_contents(path: Path) -> Iterator[Contents]:
    """Read a file and write it back while holding its lock; the file is created if missing.

    A process that another thread forks meanwhile does not hold the lock.

    Raises:
        ShardioError: the temporary directory cannot be written, or the file belongs to another
            user.
    """
    with explained():
        descriptor = open_for_lock(path, os.O_RDWR | os.O_CREAT)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():  # its owner could hold the lock for ever
            raise ShardioError(
                "the file belongs to another user",
                where=path,
                remedy="set TMPDIR to a folder of your own",
            )
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        status = os.fstat(descriptor)
        before = os.pread(descriptor, status.st_size, 0)
        contents = Contents(before)
        yield contents
        if contents.data != before:
            with explained():
                _overwrite(descriptor, contents.data, len(before))
    finally:
        close_locked(descriptor)


@contextmanager
def explained() -> Iterator[None]:
    """Convert an OSError of the temporary directory to a ShardioError.

    Raises:
        ShardioError: the block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        place = tempfile.tempdir or "TMPDIR"
        raise ShardioError(
            f"the temporary directory cannot be written ({error.strerror})",
            where=place,
            remedy="set TMPDIR to a folder with free space",
        ) from error


@contextmanager
def local_copy(
    copy_to: Callable[[Callable[[bytes | memoryview], object]], object],
) -> Iterator[BinaryIO]:
    """Copy bytes to a file without a name in the temporary directory, and open it.

    Args:
        copy_to: function that gives the bytes to what it is called with, in order.

    Raises:
        ShardioError: the temporary directory has no space, or cannot be written.
        Exception: any error of `copy_to`.
    """
    with explained():
        temporary = tempfile.TemporaryFile()  # noqa: SIM115  closed below
    with temporary as stream:

        def take(piece: bytes | memoryview) -> None:
            with explained():
                stream.write(piece)

        copy_to(take)
        with explained():
            stream.flush()
        yield stream


def _overwrite(descriptor: int, data: bytes, size: int) -> None:
    """Overwrite a JSON file without truncating it, so that it stays valid if killed here."""
    data = data.ljust(size)
    if os.pwrite(descriptor, data, 0) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _names_of(process: int) -> tuple[Path, str]:
    """Return the folder of a process's files, and the prefix of their names."""
    with explained():
        shared = Path(tempfile.gettempdir())
    start = f"{_place() or 'unknown'}-{process}-{max(_started(process) or 0, 0):x}-"
    try:
        folder = own_subfolder(shared)
    except OSError:
        return shared, f"shardio-{start}"
    if folder not in _looked:
        _looked.add(folder)
        _remove_of_ended(folder)
    return folder, start


def _remove_of_ended(folder: Path) -> None:
    """Remove the files of ended processes of this place from a private folder."""
    place = _place()
    with suppress(OSError), os.scandir(folder) as found:
        for entry in [*islice(found, _MOST_LOOKED_AT)]:
            name = _NAME.fullmatch(entry.name)
            if name is None or name[1] != place or _runs(int(name[2]), int(name[3], 16)):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with suppress(OSError):
                    os.unlink(entry.path)  # noqa: PTH108  the path is a string


def _runs(process: int, started: int) -> bool:
    found = _started(process)
    if found is not None:
        return found == started
    with suppress(ProcessLookupError, OverflowError):
        os.kill(process, 0)  # /proc may hide the process
        return True
    return False


def _started(process: int) -> int | None:
    """Return the start time of a process in ticks since boot, or _ENDED; None if unknown."""
    try:
        text = Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return None
    state, *numbers = text[text.rindex(b")") + 2 :].split()
    return _ENDED if state in b"ZX" else int(numbers[18])


def _place() -> str | None:
    """Return a digest of the place in which process ids are unique; None if /proc is missing."""
    try:
        if Path("/proc/self").readlink().name != str(os.getpid()):  # /proc of another namespace
            return None
        parts = [Path("/proc/sys/kernel/random/boot_id").read_bytes()]
        spaces = Path("/proc/self/ns/pid"), Path("/proc/self/ns/time")  # old kernels lack "time"
        parts += [bytes(space.readlink()) for space in spaces if os.path.lexists(space)]
    except OSError:
        return None
    return blake2b(b"\0".join(parts), digest_size=4).hexdigest()
