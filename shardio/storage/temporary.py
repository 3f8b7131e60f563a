"""What processes of shardio put into the temporary directory, and its end.

Everything lies in one folder of this user, `shardio-<uid>`, and is named after the process that
it belongs to: where that runs (boot, and namespaces of process numbers and of time), its number,
and when it started, since numbers are given again. A process that was killed leaves its own
behind; the next one of the same user on the same machine takes that away when it first needs the
folder. What belongs to a process elsewhere, on another host or in another container, stays: from
here nobody can tell whether it lives.

Where the folder cannot be one's own (see private) names start with `shardio-` in the temporary
directory itself, and nothing there is taken away.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from shardio.errors import ShardioError
from shardio.storage.private import own_subfolder

_NAME = re.compile(r"([0-9a-f]{8})-([0-9]+)-([0-9a-f]+)-.+")
_MOST_LOOKED_AT = 4096  # names, so that the start of a process stays short
_ENDED = -1
_looked: set[Path] = set()
"""Folders in which this process has looked for what ended processes left."""
_locked: set[int] = set()
"""Open files whose lock this process holds or waits for."""


@dataclass
class Contents:
    """Contents of a file while its lock is held.

    Attributes:
        data: bytes of the file; what is assigned is written when the lock is let go.
    """

    data: bytes


def path_of_process(process: int, rest: str) -> Path:
    """Return the path of a file that belongs to a process.

    Args:
        process: number of a running process of this user.
        rest: end of the file's name, unique in that process.

    Raises:
        ShardioError: there is no temporary directory.
    """
    folder, start = _names_of(process)
    return folder / f"{start}{rest}"


def temporary_folder(longest: int | None = None) -> tempfile.TemporaryDirectory[str]:
    """Make a folder that belongs to this process.

    Args:
        longest: bytes of the longest path that will do; where that of a folder that shows its
            process is longer, the folder lies in the temporary directory itself.

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
    """Read a file, made if need be, and write it again, all under its lock.

    A process that is forked meanwhile, by another thread, does not hold the lock.

    Raises:
        ShardioError: the temporary directory cannot be written, or the file is another user's.
    """
    with explained():
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
    _locked.add(descriptor)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():  # who may hold the lock for ever
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
        if descriptor in _locked:  # not so in a process that was forked here
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing would leave it to copies of forks
            _locked.discard(descriptor)
            os.close(descriptor)


@contextmanager
def explained() -> Iterator[None]:
    """Turn an error of the temporary directory into a sentence.

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


def _overwrite(descriptor: int, data: bytes, size: int) -> None:
    """Write a file of JSON without making it shorter: a process killed here leaves it whole."""
    data = data.ljust(size)
    if os.pwrite(descriptor, data, 0) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _names_of(process: int) -> tuple[Path, str]:
    """Return the folder of a process's files, and what their names start with."""
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
    """Remove what ended processes of this place left in a folder of one's own."""
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
                    os.unlink(entry.path)  # noqa: PTH108  it is text already


def _runs(process: int, started: int) -> bool:
    found = _started(process)
    if found is not None:
        return found == started
    with suppress(ProcessLookupError, OverflowError):
        os.kill(process, 0)  # where /proc shows little
        return True
    return False


def _started(process: int) -> int | None:
    """Return when a process started, in ticks since boot, or _ENDED; None if nothing tells."""
    try:
        text = Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return None
    state, *numbers = text[text.rindex(b")") + 2 :].split()
    return _ENDED if state in b"ZX" else int(numbers[18])


def _place() -> str | None:
    """Return a digest of where numbers mean the same processes; None if /proc does not tell."""
    try:
        if Path("/proc/self").readlink().name != str(os.getpid()):  # /proc of other numbers
            return None
        parts = [Path("/proc/sys/kernel/random/boot_id").read_bytes()]
        spaces = Path("/proc/self/ns/pid"), Path("/proc/self/ns/time")  # "time" is newer
        parts += [bytes(space.readlink()) for space in spaces if os.path.lexists(space)]
    except OSError:
        return None
    return blake2b(b"\0".join(parts), digest_size=4).hexdigest()


def _close_in_child() -> None:
    for descriptor in _locked:
        os.close(descriptor)
    _locked.clear()


os.register_at_fork(after_in_child=_close_in_child)
