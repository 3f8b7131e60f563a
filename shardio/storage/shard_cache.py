"""Whole shards of stores on local disk, bounded, shared by all processes of a machine.

    <cache folder>/remote/ab/<key>.tar           a whole shard, verified when it came
    <cache folder>/remote/ab/<key>.index         the index of a shard
    <cache folder>/remote/ab/<key>.<size>.part   a shard that comes, or that came until a kill
    <cache folder>/remote/usage                  bytes of all shards, and of those that come

The key is the SHA-256 of the shard where a manifest records it, so that equal shards of any URL are
kept once; else a digest of URL, version and size. No name of an object is ever a path here.

Who wants to fetch a shard creates its part, which reserves the room, and locks it (flock): the lock
elects one process of the machine, and ends with it. Where the file system has no locks, each
process has a part of its own, and the last one stays, equal to the first. A part is written from
front to back, so that its length tells all processes which bytes are there. It is renamed when it
is whole. A part that nobody locks is left of a killed process, and is removed.

Readers keep a file open; it may be removed under them, and what has vanished is fetched again. If
there is no room, what nobody has used longest goes first, then the shards of this dataset whose
next use is farthest, as the plan knows. If all of them are needed sooner than the new one, there is
no room, and the shard is read by ranges. Nobody ever waits for room.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol
from weakref import WeakSet

from shardio.errors import SituationError, argument
from shardio.storage.cache import cache_folder
from shardio.storage.local import LocalShard
from shardio.storage.private import entry_fault

SHARE_OF_FREE = 0.75
"""Part of the free space that shards may take, where no limit is given."""

_UNLOCKABLE = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_OLD = 86400.0  # seconds after which a part is left where locks do not tell
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NAME = re.compile(r"([0-9a-f]{64})\.(?:([0-9]+)(?:-[0-9]+-[0-9]+)?\.(part)|(tar|index))")
_OPEN_OR_NEW = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_LONGEST_WAIT, _PAUSE = 10.0, 0.005  # seconds for the lock of the folder
_SPARE = 128  # of the limit one part is made room for at once, since listing all takes time


class WantedShard(Protocol):
    """What identifies a shard of a store."""

    @property
    def key(self) -> str:
        """Name in the cache: hexadecimal digits."""

    @property
    def size(self) -> int:
        """Size in bytes."""


class Entry(NamedTuple):
    """A file of the cache.

    Attributes:
        path: path of the file.
        size: size in bytes; of a part that of the whole shard.
        used: time of the last use, in seconds since the epoch.
        state: "shard" or "index" if it is whole, "coming" if a process fetches it, "left" if one
            was killed while it did.
    """

    path: Path
    size: int
    used: float
    state: str


NextUse = Callable[[str], float | None]
"""Tells when a shard is next used, by its key, greater for later; None for shards of others."""


def key_of(path: str, version: str, size: int) -> str:
    """Return the key of a shard whose SHA-256 is not known."""
    return hashlib.sha256(f"{path}\0{version}\0{size}".encode()).hexdigest()


class Part:
    """A shard that comes, elected to be fetched by this process.

    Attributes:
        size: number of bytes that have been written.
    """

    def __init__(self, cache: ShardCache, wanted: WantedShard, path: Path, descriptor: int) -> None:
        self.size = 0
        self._cache = cache
        self._wanted = wanted
        self._path = path
        self._descriptor = descriptor
        self._process = os.getpid()
        _parts.add(self)

    def fileno(self) -> int:
        """Return the descriptor of the file."""
        return self._descriptor

    def write(self, data: memoryview) -> None:
        """Append bytes.

        Raises:
            OSError: the disk is full, or fails.
        """
        while data:
            written = os.write(self._descriptor, data)
            self.size += written
            data = data[written:]

    def restart(self) -> None:
        """Throw away what was written."""
        os.truncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self.size = 0

    def commit(self) -> None:
        """Make it a whole shard.

        Raises:
            OSError: the cache was removed, or the disk fails.
        """
        try:
            self._path.rename(self._cache.path(self._wanted))
        finally:
            self._release()

    def abandon(self) -> None:
        """Remove it, and give its room back."""
        with suppress(OSError):
            self._path.unlink()
        self._release()
        self._cache.give_back(self._wanted)

    def _release(self) -> None:
        _unlock(self._descriptor)
        self.forget()

    def forget(self) -> None:
        """Close the descriptor, without a change to the file."""
        _parts.discard(self)
        os.close(self._descriptor)


_parts: WeakSet[Part] = WeakSet()
"""Parts of this process; a forked child must not keep their locks alive."""


def _forget_parts() -> None:
    for part in [*_parts]:
        part.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parts)


class ShardCache:
    """The cache of shards below a folder; safe in several threads and processes.

    Args:
        folder: folder of the user; None for the usual cache folder.
        limit: bytes that shards may take; None for SHARE_OF_FREE of the free space.

    Attributes:
        folder: folder of the shards.
        limit: bytes that shards may take.

    Raises:
        UsageError: the folder cannot be used.
    """

    def __init__(self, folder: Path | None, limit: int | None) -> None:
        self.folder = cache_folder("remote", folder) / "remote"
        self._locks = True
        try:
            with self._accounts() as accounts:
                accounts.bytes = self._tidy()
                free = os.statvfs(self.folder)
                available = free.f_bavail * free.f_frsize + accounts.bytes
        except OSError as error:
            raise SituationError(
                f"the cache folder cannot be used ({error.strerror})",
                where=self.folder,
                remedy=f"name one of your own with free space by {argument('cache_dir')}",
            ) from error
        self.limit = int(available * SHARE_OF_FREE) if limit is None else limit

    def path(self, wanted: WantedShard) -> Path:
        """Return the path of a whole shard, whether it is there or not."""
        return self.folder / wanted.key[:2] / f"{wanted.key}.tar"

    def index_path(self, wanted: WantedShard) -> Path:
        """Return the path of the index of a shard; its folder exists afterwards."""
        path = self.path(wanted).with_suffix(".index")
        self._make_folder(path.parent)
        return path

    def part_path(self, wanted: WantedShard) -> Path:
        """Return the path of a shard that comes."""
        return self.path(wanted).with_suffix(f".{wanted.size}.part")

    def open(self, wanted: WantedShard, name: str) -> LocalShard | None:
        """Open a whole shard; None if it is not there.

        Args:
            wanted: shard.
            name: name of the shard in errors.

        Raises:
            UsageError: something else than a file of this user has its name.
        """
        path = self.path(wanted)
        try:
            file = LocalShard(str(path), name)
        except FileNotFoundError:
            return None
        if fault := entry_fault(path):
            raise SituationError(
                f"this entry of the cache is not believed, since {fault}",
                where=path,
                remedy="remove it",
            )
        if file.size != wanted.size:  # of a machine that stopped before its disk had it all
            self.discard(wanted)
            return None
        with suppress(OSError):
            os.utime(path)
        return file

    def claim(self, wanted: WantedShard, next_use: NextUse) -> Part | bool:
        """Begin to fetch a shard, if no other process does.

        Args:
            wanted: shard, which is not there.
            next_use: see NextUse.

        Returns:
            The part; True if the shard is there or comes by another process, False if there is no
            room for it.

        Raises:
            OSError: the cache cannot be written.
        """
        path = self.part_path(wanted)
        if not self._locks:
            path = path.with_suffix(f"-{os.getpid()}-{time.monotonic_ns()}.part")
        part: Part | None = None
        room = False
        try:
            with self._accounts() as accounts:
                if self.path(wanted).exists():
                    return True
                if self._is_left(path):
                    path.unlink()
                    accounts.bytes -= wanted.size
                self._make_folder(path.parent)
                try:
                    descriptor = os.open(path, _NEW, 0o600)
                except FileExistsError:
                    return True
                part = Part(self, wanted, path, descriptor)
                accounts.bytes += wanted.size
                self._lock(descriptor)
                room = self._make_room(wanted, accounts, next_use)
        finally:
            if part is not None and not room:
                part.abandon()
        return part if room and part is not None else False

    def give_back(self, wanted: WantedShard) -> None:
        """Note that a shard does not come after all."""
        with suppress(OSError), self._accounts() as accounts:
            accounts.bytes -= wanted.size

    def discard(self, wanted: WantedShard) -> None:
        """Remove a shard, as one that is damaged."""
        with suppress(OSError):
            self.path(wanted).unlink()
            self.give_back(wanted)

    def entries(self) -> Iterator[Entry]:
        """List all files of the cache."""
        for folder in sorted(self.folder.glob("[0-9a-f][0-9a-f]")):
            for path in sorted(folder.iterdir()):
                found = _NAME.fullmatch(path.name)
                with suppress(FileNotFoundError):  # it was just renamed or removed
                    status = path.lstat()
                    if found is None or not stat.S_ISREG(status.st_mode):
                        continue
                    size, state = status.st_size, {"tar": "shard", "index": "index"}.get(found[4])
                    if state is None:
                        size, state = int(found[2]), "left" if self._is_left(path) else "coming"
                    yield Entry(path, size, status.st_mtime, state)

    def prune(self, limit: int) -> list[Entry]:
        """Remove what a killed process left, then shards, the longest unused first.

        Args:
            limit: bytes that may stay.

        Returns:
            What was removed.

        Raises:
            OSError: the cache cannot be written.
        """
        with self._accounts() as accounts:
            entries = sorted(self.entries(), key=lambda entry: entry.used)
            accounts.bytes = sum(entry.size for entry in entries)
            removed: list[Entry] = []
            for entry in sorted(entries, key=lambda entry: entry.state != "left"):
                over = accounts.bytes > limit and entry.state != "coming"
                if entry.state == "left" or over:
                    entry.path.unlink(missing_ok=True)
                    accounts.bytes -= entry.size
                    removed.append(entry)
        return removed

    def _tidy(self) -> int:
        """Remove what killed processes left; returns the bytes of the rest."""
        total = 0
        for entry in self.entries():
            if entry.state == "left":
                entry.path.unlink(missing_ok=True)
            else:
                total += entry.size
        return total

    def _make_room(self, wanted: WantedShard, accounts: _Accounts, next_use: NextUse) -> bool:
        """Remove shards until the limit holds, if that can be."""
        if accounts.bytes <= self.limit:
            return True
        if wanted.size > self.limit:
            return False
        entries = [*self.entries()]
        accounts.bytes = sum(entry.size for entry in entries)
        due = next_use(wanted.key)
        order: list[tuple[float, float, Entry]] = []
        for entry in entries:
            use = next_use(entry.path.name.partition(".")[0])
            if use is None and entry.state in ("shard", "index"):
                order.append((0, entry.used, entry))
            elif use is not None and entry.state == "shard" and (due is None or use > due):
                order.append((1, -use, entry))
        spare = self.limit // _SPARE
        for _, _, entry in sorted(order):
            if accounts.bytes <= self.limit - spare:
                break
            if accounts.bytes <= self.limit and accounts.bytes - entry.size < self.limit - spare:
                break
            entry.path.unlink(missing_ok=True)
            accounts.bytes -= entry.size
        return accounts.bytes <= self.limit

    def _is_left(self, path: Path) -> bool:
        """Tell whether a part is there, and nobody writes to it."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            if self._locks and not self._try_lock(descriptor):
                return False
            return self._locks or time.time() - os.fstat(descriptor).st_mtime > _OLD
        finally:
            os.close(descriptor)

    def _try_lock(self, descriptor: int) -> bool:
        """Lock a file where the file system has locks; False if another has locked it."""
        if self._locks:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno not in _UNLOCKABLE:
                    raise
                self._locks = False
        return True

    def _lock(self, descriptor: int) -> None:
        """Lock a file when another lets go of it; go on without if that takes too long."""
        latest = time.monotonic() + _LONGEST_WAIT
        while not self._try_lock(descriptor) and time.monotonic() < latest:
            time.sleep(_PAUSE)

    def _make_folder(self, folder: Path) -> None:
        """Make a folder of the cache, which somebody may have removed."""
        for each in (self.folder.parent, self.folder, folder):
            each.mkdir(0o700, exist_ok=True)

    @contextmanager
    def _accounts(self) -> Iterator[_Accounts]:
        """Hold the lock of the folder, and change its sum."""
        self._make_folder(self.folder)
        descriptor = os.open(self.folder / "usage", _OPEN_OR_NEW, 0o600)
        try:
            self._lock(descriptor)
            text = os.pread(descriptor, 32, 0).strip()
            accounts = _Accounts(int(text) if text.isdigit() else 0)
            yield accounts
            os.pwrite(descriptor, b"%-32d" % max(accounts.bytes, 0), 0)
        finally:
            _unlock(descriptor)
            os.close(descriptor)


def _unlock(descriptor: int) -> None:
    """Free the lock of a file, also where a forked child has the descriptor too."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)


@dataclass
class _Accounts:
    """Bytes of all shards, and of those that come, while the folder is locked."""

    bytes: int
