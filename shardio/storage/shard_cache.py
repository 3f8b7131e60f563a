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
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from shardio.errors import ShardioError, SituationError, argument
from shardio.processes import close_locked, new_lock, open_for_lock
from shardio.storage.cache import cache_folder
from shardio.storage.folder import atomic_file
from shardio.storage.local import LocalShard
from shardio.storage.private import entry_fault, make_private

SHARE_OF_FREE = 0.75
"""Part of the free space that shards may take, where no limit is given."""

_LOG = logging.getLogger("shardio")
_OLD = 86400.0  # seconds after which a part is left where locks do not tell
_NAME = re.compile(
    r"\.?[0-9a-f]{64}\."
    r"(?:(?P<size>[0-9]+)(-[0-9]+)*\.part|(?P<whole>tar|index)|index\.[0-9]+-[0-9]+\.tmp)"
)
_URL = "user.xdg.origin.url"  # attribute of a file, as browsers and curl name it
_DIGITS = 32  # of the sum, so that it is overwritten in place
_LONGEST_WAIT, _PAUSE = 10.0, 0.005  # seconds for the lock of the folder
_SPARE = 128  # of the limit one part is made room for at once, since listing all takes time

_warned: set[Path] = set()
"""Cache folders of which this process has said that they cannot take a shard."""


class WantedShard(Protocol):
    """What identifies a shard of a store."""

    @property
    def key(self) -> str:
        """Name in the cache: hexadecimal digits."""

    @property
    def size(self) -> int:
        """Size in bytes."""

    @property
    def path(self) -> str:
        """URL without secrets."""


class Entry(NamedTuple):
    """A file of the cache.

    Attributes:
        path: path of the file.
        size: size in bytes; of a part that of the whole shard.
        used: time of the last use, in seconds since the epoch.
        state: "shard" or "index" if it is whole, "coming" if a process fetches it, "left" if one
            was killed while it did.
        url: URL of the shard without secrets; None where the file system does not keep it.
    """

    path: Path
    size: int
    used: float
    state: str
    url: str | None


NextUse = Callable[[str], float | None]
"""Tells when a shard is next used, by its key, greater for later; None for shards of others."""


def key_of(path: str, version: str, size: int) -> str:
    """Return the key of a shard whose SHA-256 is not known."""
    return hashlib.sha256(f"{path}\0{version}\0{size}".encode()).hexdigest()


class Part:
    """A shard that comes, elected to be fetched by this process; may be abandoned in any thread.

    Attributes:
        size: number of bytes that have been written.
        grown: monotonic time of the latest.
    """

    def __init__(self, cache: ShardCache, wanted: WantedShard, path: Path, descriptor: int) -> None:
        self.size = 0
        self.grown = time.monotonic()
        self._cache = cache
        self._wanted = wanted
        self._path = path
        self._descriptor: int | None = descriptor
        self._lock = new_lock()

    def fileno(self) -> int:
        """Return the descriptor of the file."""
        return self._open()

    def write(self, data: memoryview) -> None:
        """Append bytes.

        Raises:
            OSError: the disk is full, or fails.
            ValueError: it was abandoned.
        """
        while data:
            with self._lock:
                written = os.write(self._open(), data)
            self.size += written
            self.grown = time.monotonic()
            data = data[written:]

    def touch(self) -> None:
        """Tell other processes that it comes, though nothing is written to it yet.

        Raises:
            ValueError: it was abandoned.
        """
        with self._lock:
            os.utime(self._open())
        self.grown = time.monotonic()

    def restart(self) -> None:
        """Throw away what was written."""
        with self._lock:
            os.truncate(self._open(), 0)
            os.lseek(self._open(), 0, os.SEEK_SET)
        self.size = 0

    def commit(self) -> None:
        """Make it a whole shard.

        Raises:
            OSError: the cache was removed, or the disk fails.
            ValueError: it was abandoned.
        """
        with self._lock:
            self._cache.put(self._wanted, self._path, self._open())
            self._close()

    def close(self) -> None:
        """Remove it, and give its room back, unless it is whole."""
        with self._lock:
            if self._descriptor is not None:
                self._cache.give_back(self._wanted, self._path, self._descriptor)
                self._close()

    def _open(self) -> int:
        if self._descriptor is None:
            raise ValueError(f"{self._path} was abandoned")
        return self._descriptor

    def _close(self) -> None:
        close_locked(self._open())
        self._descriptor = None


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
                free = os.statvfs(self.folder)
                available = free.f_bavail * free.f_frsize + accounts.bytes
        except OSError as error:
            raise SituationError(
                f"the cache folder cannot be used ({error.strerror})",
                where=self.folder,
                remedy=f"name one of your own with free space by {argument('cache_dir')}",
            ) from error
        self.limit = int(available * SHARE_OF_FREE) if limit is None else limit
        raised = f"raise {argument('cache_limit')}"
        roomier = f"free some space, name another folder by {argument('cache_dir')}, or {raised}"
        self._limited = (
            (f"by default its limit is {self.limit:,}, a part of the free space", roomier)
            if limit is None
            else (f"its limit is {self.limit:,}", raised)
        )

    def path(self, wanted: WantedShard) -> Path:
        """Return the path of a whole shard, whether it is there or not."""
        return self.folder / wanted.key[:2] / f"{wanted.key}.tar"

    def index_path(self, wanted: WantedShard) -> Path:
        """Return the path of the index of a shard, whether it is there or not.

        Raises:
            UsageError: something else than a file of this user has its name.
        """
        return self._believed(self.path(wanted).with_suffix(".index"))

    def store_index(self, wanted: WantedShard, content: bytes) -> Path:
        """Write the index of a shard, which always has room, and return its path.

        Raises:
            OSError: the cache cannot be written.
        """
        path = self.index_path(wanted)
        with self._accounts() as accounts:
            self._make_folders(path.parent)
            before = _size_of(path)
            if before == len(content) and path.read_bytes() == content:
                return path  # another process was faster
            with atomic_file(path, durable=False) as stream:  # it has a checksum
                os.fchmod(stream.fileno(), 0o600)
                _keep_url(stream.fileno(), wanted)
                stream.write(content)
            accounts.bytes += len(content) - before
        return path

    @contextmanager
    def alone(self, longest: float) -> Iterator[None]:
        """Keep other processes out of what one does for all, or go on after some seconds."""
        self._make_folders(self.folder)
        descriptor, locks = open_for_lock(self.folder, os.O_RDONLY | os.O_DIRECTORY), self._locks
        try:
            self._lock(descriptor, longest)
            self._locks = locks  # that a folder has none says nothing of files
            yield
        finally:
            close_locked(descriptor)

    def part_path(self, wanted: WantedShard) -> Path:
        """Return the path of a shard that comes."""
        return self.path(wanted).with_suffix(f".{wanted.size}.part")

    def open_part(self, wanted: WantedShard, name: str) -> LocalShard | None:
        """Open a shard that comes; None if none comes. See open."""
        try:
            return LocalShard(str(self._believed(self.part_path(wanted))), name)
        except FileNotFoundError:
            return None

    def open(self, wanted: WantedShard, name: str) -> LocalShard | None:
        """Open a whole shard; None if it is not there.

        Args:
            wanted: shard.
            name: name of the shard in errors.

        Raises:
            UsageError: something else than a file of this user has its name.
        """
        path = self._believed(self.path(wanted))
        try:
            file = LocalShard(str(path), name)
        except FileNotFoundError:
            return None
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
        with self._accounts() as accounts:
            if self.path(wanted).exists():
                return True
            if not self._locks:
                path = path.with_name(f"{path.stem}-{os.getpid()}-{time.monotonic_ns()}.part")
            if self._is_left(path):
                path.unlink()
                accounts.bytes -= wanted.size
            elif path.exists():
                return True
            if not self._make_room(wanted, accounts, next_use):
                return False
            self._make_folders(path.parent)
            descriptor = open_for_lock(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            accounts.bytes += wanted.size
            _keep_url(descriptor, wanted)
            self._lock(descriptor)
            return Part(self, wanted, path, descriptor)

    def warn_of_no_room(self, wanted: WantedShard, name: str, error: OSError | None = None) -> None:
        """Warn, once in a process, that a shard is read by ranges.

        Args:
            wanted: shard.
            name: name of the shard.
            error: error of the disk; None if the limit leaves no room.
        """
        if self.folder in _warned:
            return
        _warned.add(self.folder)
        why, way = self._limited
        fault = f"has no room left for a shard of {wanted.size:,} bytes ({why})"
        if error is not None:
            fault = f"cannot take a shard of {wanted.size:,} bytes ({error.strerror or error})"
            way = f"free some space, or name another folder by {argument('cache_dir')}"
        _LOG.warning(
            "%s: the cache in %s %s, so that samples are read one by one, with a request for "
            "each; %s",
            name,
            self.folder,
            fault,
            way,
        )

    def cannot_keep(
        self, wanted: WantedShard, name: str, compressed: bool, error: OSError | None
    ) -> ShardioError:
        """Make the error of a shard that is not here, and cannot be read otherwise.

        Args:
            wanted: shard.
            name: name of the shard.
            compressed: whether its object is compressed.
            error: error of the disk, if there was one.
        """
        why, remedy = "another process fetches it, and does not go on", "end that process"
        if error is not None:
            why, remedy = str(error.strerror or error), "free some space"
        elif wanted.size > self.limit:
            why, remedy = self._limited
        return SituationError(
            f"the cache has no room for this shard, which has {wanted.size:,} bytes"
            f"{' without its compression' * compressed} ({why}), and "
            f"{'compressed shards are' if compressed else 'its store is'} not read by ranges",
            where=name,
            remedy=remedy + ", or decompress the shards" * compressed,
        )

    def put(self, wanted: WantedShard, path: Path, descriptor: int) -> None:
        """Give a part that is whole the name of its shard.

        Args:
            wanted: shard.
            path: path of the part.
            descriptor: descriptor of the part.

        Raises:
            OSError: it is not there any more, or the disk fails.
        """
        with self._accounts() as accounts:
            if not _is_file_of(descriptor, path):
                raise FileNotFoundError(errno.ENOENT, "the cache was removed", str(path))
            before = _size_of(self.path(wanted))
            path.rename(self.path(wanted))
            accounts.bytes -= before

    def give_back(self, wanted: WantedShard, path: Path, descriptor: int) -> None:
        """Remove a part that does not become whole; see put."""
        with suppress(OSError), self._accounts() as accounts:
            if _is_file_of(descriptor, path):
                path.unlink()
                accounts.bytes -= wanted.size

    def discard(self, wanted: WantedShard) -> None:
        """Remove a shard, as one that is damaged."""
        with suppress(OSError), self._accounts() as accounts:
            size = _size_of(self.path(wanted))
            self.path(wanted).unlink()
            accounts.bytes -= size

    def entries(self) -> Iterator[Entry]:
        """List all files of the cache."""
        for folder in sorted(self.folder.glob("[0-9a-f][0-9a-f]")):
            if folder.is_symlink():
                continue
            with suppress(FileNotFoundError):  # it was just removed
                for path in sorted(folder.iterdir()):
                    with suppress(FileNotFoundError):
                        yield from self._entry(path)

    def prune(self, limit: int | None = None) -> list[Entry]:
        """Remove what a killed process left, then shards, the longest unused first.

        Args:
            limit: bytes that may stay; None for all that nobody left.

        Returns:
            What was removed.

        Raises:
            OSError: the cache cannot be written.
        """
        removed: list[Entry] = []
        with self._accounts() as accounts:
            entries = sorted(self.entries(), key=lambda entry: (entry.state != "left", entry.used))
            accounts.bytes = sum(entry.size for entry in entries)
            for entry in entries:
                over = limit is not None and accounts.bytes > limit
                if entry.state == "left" or (over and entry.state != "coming"):
                    entry.path.unlink(missing_ok=True)
                    accounts.bytes -= entry.size
                    removed.append(entry)
            if removed:
                self._remove_empty({entry.path.parent for entry in removed})
        return removed

    def _remove_empty(self, folders: set[Path]) -> None:
        """Remove folders that nothing is in any more, and with the last of them the sum."""
        for folder in folders:
            with suppress(OSError):  # others are in it
                folder.rmdir()
        usage = self.folder / "usage"
        with suppress(OSError):
            if [*self.folder.iterdir()] == [usage]:
                usage.unlink()
                self.folder.rmdir()

    def _entry(self, path: Path) -> Iterator[Entry]:
        """Describe a file, if it is one of the cache."""
        status = path.lstat()
        found = _NAME.fullmatch(path.name)
        if found is None or not stat.S_ISREG(status.st_mode):
            return
        size, kind = status.st_size, found["whole"]
        if found["size"] is not None:
            size, kind = int(found["size"]), "left" if self._is_left(path) else "coming"
        elif kind is None:  # of an index, which is written while the folder is locked
            is_new = not self._locks and time.time() - status.st_mtime < _OLD
            kind = "coming" if is_new else "left"
        state = {"tar": "shard"}.get(kind, kind)
        yield Entry(path, size, status.st_mtime, state, _url_of(path))

    def _make_room(self, wanted: WantedShard, accounts: _Accounts, next_use: NextUse) -> bool:
        """Remove shards until another has room, if that can be."""
        if self._excess(wanted, accounts) <= 0:
            return True
        if wanted.size > self.limit:
            return False
        entries = [*self.entries()]
        accounts.bytes = sum(entry.size for entry in entries)
        excess, due = self._excess(wanted, accounts), next_use(wanted.key)
        order: list[tuple[float, float, Entry]] = []
        for entry in entries:
            use = next_use(entry.path.name.partition(".")[0])
            if entry.state == "left":
                order.append((0, entry.used, entry))
            elif use is None and entry.state == "shard":
                order.append((1, entry.used, entry))
            elif use is not None and entry.state == "shard" and (due is None or use > due):
                order.append((2, -use, entry))
            elif use is None and entry.state == "index":  # small, and dear to make again
                order.append((3, entry.used, entry))
        if sum(entry.size for _, _, entry in order) < excess:
            return False
        most, removed = excess + self.limit // _SPARE, 0
        for _, _, entry in sorted(order):
            if removed >= excess and removed + entry.size > most:
                break
            entry.path.unlink(missing_ok=True)
            accounts.bytes -= entry.size
            removed += entry.size
        return True

    def _excess(self, wanted: WantedShard, accounts: _Accounts) -> int:
        """Count the bytes that must be removed before another shard has room."""
        status = os.statvfs(self.folder)
        free = status.f_bavail * status.f_frsize
        return max(accounts.bytes + wanted.size - self.limit, wanted.size - free)

    def _is_left(self, path: Path) -> bool:
        """Tell whether a part is there, and nobody writes to it."""
        try:
            descriptor = open_for_lock(path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            if self._locks and not self._try_lock(descriptor):
                return False
            return self._locks or time.time() - os.fstat(descriptor).st_mtime > _OLD
        finally:
            close_locked(descriptor)

    def _try_lock(self, descriptor: int) -> bool:
        """Lock a file where the file system has locks; False if another has locked it."""
        if self._locks:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError:  # ENOLCK, EOPNOTSUPP and others: the file system has no locks
                self._locks = False
        return True

    def _lock(self, descriptor: int, longest: float = _LONGEST_WAIT) -> None:
        """Lock a file when another lets go of it; go on without if that takes too long."""
        latest = time.monotonic() + longest
        while not self._try_lock(descriptor) and time.monotonic() < latest:
            time.sleep(_PAUSE)

    def _believed(self, path: Path) -> Path:
        """Return the path of an entry.

        Raises:
            UsageError: something else than a file of this user is there.
        """
        fault = "its folder is a symbolic link" if path.parent.is_symlink() else entry_fault(path)
        if fault:
            raise SituationError(
                f"this entry of the cache is not believed, since {fault}",
                where=path,
                remedy="remove it",
            )
        return path

    def _make_folders(self, folder: Path) -> None:
        """Make folders of the cache, which somebody may have removed."""
        if not self.folder.parent.exists():
            self.folder.parent.mkdir(0o700, exist_ok=True)
        make_private(self.folder)
        if folder != self.folder:
            make_private(folder)

    @contextmanager
    def _accounts(self) -> Iterator[_Accounts]:
        """Hold the lock of the folder, and change its sum, which is counted where it is lost."""
        descriptor = self._open_usage()
        try:
            text = os.pread(descriptor, _DIGITS, 0).strip()
            accounts = _Accounts(int(text) if text.isdigit() else self._count())
            try:
                yield accounts
            finally:
                try:
                    os.pwrite(descriptor, b"%-*d" % (_DIGITS, max(accounts.bytes, 0)), 0)
                except OSError:  # the disk is full
                    os.truncate(descriptor, 0)
        finally:
            close_locked(descriptor)

    def _open_usage(self) -> int:
        """Open and lock the file with the sum, also if others remove it meanwhile."""
        path = self.folder / "usage"
        latest = time.monotonic() + _LONGEST_WAIT
        while True:
            try:
                self._make_folders(self.folder)
                descriptor = open_for_lock(path, os.O_RDWR | os.O_CREAT)
            except FileNotFoundError:
                if time.monotonic() < latest and self.folder.parent.parent.exists():
                    continue
                raise
            is_there = False
            try:
                self._lock(descriptor)
                is_there = _is_file_of(descriptor, path)
                if is_there:
                    return descriptor
            finally:
                if not is_there:
                    close_locked(descriptor)

    def _count(self) -> int:
        return sum(entry.size for entry in self.entries())


def _keep_url(descriptor: int, wanted: WantedShard) -> None:
    """Note where a file came from, for whoever lists it."""
    with suppress(OSError, AttributeError):  # the system or file system has no such attributes
        os.setxattr(descriptor, _URL, wanted.path.encode("utf-8", "surrogateescape"))


def _url_of(path: Path) -> str | None:
    with suppress(OSError, AttributeError):
        return os.getxattr(path, _URL, follow_symlinks=False).decode("utf-8", "surrogateescape")
    return None


def _is_file_of(descriptor: int, path: Path) -> bool:
    """Tell whether an open file still has its path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _size_of(path: Path) -> int:
    """Return the size of a file; 0 if there is none."""
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


@dataclass
class _Accounts:
    """Bytes of all shards, and of those that come, while the folder is locked."""

    bytes: int
