"""Shards of stores, fetched whole, many at once, before they are needed.

Whoever reads ahead says which shards its windows need, and in which order. Threads fetch them into
the cache of the machine (see shard_cache) with one request each, and hash them as they come. Where
fewer shards than connections are due, each is fetched in several pieces at once. A sample is read
from the file as soon as its bytes have come, whichever process fetches them.

The samples of the first batches do not wait for their shards: they are asked for by ranges, all at
once, and nothing else is fetched until they have come. Later samples wait, since a request for each
would cost more than the shard. A shard for which the cache has no room is read by ranges, too.

Nothing waits for ever: a shard that another process fetches, and that does not grow, is read by
ranges, and one whose process has ended is fetched here. Nothing waits for the threads either: they
may hear late from a store, so a loop that is left takes their claimed parts from them.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from shardio.errors import RemoteError, ShardioError, TarError
from shardio.processes import Daemons, new_lock, outside_collection
from shardio.storage.base import FileStat, StoredFile, outside_error, restore
from shardio.storage.compression import unpack
from shardio.storage.local import LocalShard
from shardio.storage.remote import (
    MOST_REQUESTS,
    OTHER_VERSION,
    RemoteStorage,
    RequestError,
    as_shard,
    remote_error,
)
from shardio.storage.shard_cache import NextUse, Part, ShardCache, key_of

T = TypeVar("T")
_MOST_ASKED = 64  # ranges of a shard whose bytes are kept until they are read
_SPLIT = 8 << 20  # bytes of a piece of a shard
_POLL = 0.01  # seconds between looks at a file that another process writes
_STILL = 2.0  # seconds without growth, after which another process may have ended
_LONGEST_WAIT = 5.0  # seconds that shards wait for ranges, and an end for claims
_NOW = -1.0  # next use of a shard, sooner than that of any other
_LONGEST_END = 1.0  # seconds in which threads may end by themselves
CONNECTIONS = 16  # shards that a process fetches at once


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteShard:
    """A shard of a store.

    Attributes:
        storage: storage of the shard.
        path: URL of the shard.
        name: name of the shard in errors.
        size: size in bytes.
        sha256: hexadecimal digest of the shard, where a manifest records it.
        version: version of the object, see FileStat; None for any, where the digest tells.
        stored: size of the object if it is compressed; None for a plain tar.
        key: name in the cache.
    """

    storage: RemoteStorage
    path: str
    name: str
    size: int
    sha256: str | None
    version: str | None
    stored: int | None = None
    key: str = field(init=False)

    def __post_init__(self) -> None:
        place = self.path if self.stored is None else f"{self.path} without its compression"
        key = self.sha256 or key_of(place, self.version or "", self.stored or self.size)
        object.__setattr__(self, "key", key)

    def versions(self) -> set[str]:
        """Return a new set of the version, or empty if any will do."""
        return set() if self.version is None else {self.version}

    def cannot_keep(self, error: OSError | None = None) -> ShardioError:
        """Make the error of a shard that is not in the cache, see ShardCache.cannot_keep."""
        return self.cache.cannot_keep(self, self.name, self.stored is not None, error)

    @property
    def cache(self) -> ShardCache:
        """Cache of the shard.

        Raises:
            UsageError: its folder cannot be used.
        """
        return _cache(self.storage.cache_dir, self.storage.cache_limit)


@lru_cache(maxsize=16)
def _cache(folder: str | None, limit: int | None) -> ShardCache:
    cache = ShardCache(None if folder is None else Path(folder), limit)
    with suppress(OSError):  # whoever writes there meets it again
        cache.prune()
    return cache


@dataclass(eq=False)
class _Task:
    """A shard that is to be fetched.

    Attributes:
        shard: the shard.
        state: "waiting", "coming" here, "done" or another fetches it, "no room", "failed".
        error: why it failed.
        is_needed: whether it must come whatever leaves the cache, see Downloads.need.
    """

    shard: RemoteShard
    state: str = "waiting"
    error: Exception | None = None
    is_needed: bool = False

    def next_use(self, known: NextUse) -> NextUse:
        """Return a function that tells of a shard that is needed that it is used at once."""
        if not self.is_needed:
            return known
        return lambda key: _NOW if key == self.shard.key else known(key)


class Downloads:
    """The shards that a loop of this process has fetched, in threads; safe in several threads.

    Attributes:
        waits: whether samples wait for their shards.
    """

    def __init__(self) -> None:
        self.waits = True
        self.process = os.getpid()
        self._next_use: NextUse = lambda _: None
        self._tasks: dict[str, _Task] = {}
        self._queue: deque[_Task] = deque()
        self._changed = threading.Condition(new_lock())
        self._running = 0
        self._closed = self._is_held = False
        self._fetching = Daemons("fetch", CONNECTIONS)
        self._pieces = Daemons("piece", CONNECTIONS)
        self._ranging = Daemons("range", MOST_REQUESTS - 2 * CONNECTIONS)
        self._asking = Daemons("ask", MOST_REQUESTS - 2 * CONNECTIONS)
        self._ranges: set[Future[bytes]] = set()
        self._parts: set[Part] = set()
        self._claiming = 0

    def close(self) -> None:
        """Fetch nothing more, and throw away what came; a process that was forked does nothing."""
        if self.process == os.getpid():
            outside_collection(self._close)

    def _close(self) -> None:
        with self._changed:
            longest = 0.0 if self._closed else _LONGEST_END
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()
        for threads in (self._ranging, self._pieces, self._asking):
            threads.end(_EndedError("the loop has ended"))
        with self._changed:
            self._changed.wait_for(lambda: not self._running, longest)
            self._changed.wait_for(lambda: not self._claiming, _LONGEST_WAIT)
            parts = [*self._parts]
        for part in parts:
            part.close()

    def finish(self) -> None:
        """Wait for shards that come, as long as they do: other processes may need more of them."""
        grown = time.monotonic()  # a thread that runs may have no part yet
        with self._changed:
            while self._running and not self._closed and self.process == os.getpid():
                grown = max([grown, *(part.grown for part in self._parts)])
                if time.monotonic() - grown > _STILL:
                    return
                self._changed.wait(_POLL)

    def want(self, shards: Sequence[RemoteShard], next_use: NextUse, *, waits: bool = True) -> None:
        """Fetch shards in this order; forget those that are not among them.

        Args:
            shards: shards of the windows that are due, those needed first in front.
            next_use: tells which shards stay in the cache, see shard_cache.
            waits: whether samples wait for their shards; False to read them by ranges meanwhile.
        """
        with self._changed:
            if self._closed:
                return
            self._next_use = next_use
            self.waits = waits
            tasks = {shard.key: self._tasks.get(shard.key) for shard in shards}
            self._queue.clear()
            self._tasks = {}
            for shard in shards:
                task = tasks[shard.key] or _Task(shard)
                self._tasks[shard.key] = task
                if task.state in ("waiting", "no room"):
                    task.state = "waiting"
                    self._queue.append(task)
            new = min(len(self._queue), CONNECTIONS - self._running)
            self._running += new
        self._start(new)

    def open(self, shard: RemoteShard) -> StoredFile:
        """Open a shard: the file of the cache, or what reads it while it comes, or by ranges.

        Raises:
            UsageError: the cache folder cannot be used.
        """
        return shard.cache.open(shard, shard.name) or ComingShard(shard, self)

    def renew(self, shard: RemoteShard, *, discard: bool) -> StoredFile:
        """Open a shard past the cache, or fetched anew if it cannot be read by ranges.

        Args:
            shard: the shard.
            discard: remove it from the cache, since it is damaged there.
        """
        if discard:
            shard.cache.discard(shard)
        return ShardRanges(shard, self) if shard.stored is None else ComingShard(shard, self)

    def read(self, shard: RemoteShard, start: int, end: int, versions: set[str]) -> Future[bytes]:
        """Read a range of a shard, in a thread.

        Args:
            shard: the shard.
            start: first byte.
            end: end of the bytes.
            versions: version that the shard must have, or none, to which the one found is added.

        Returns:
            The bytes. The error is RemoteError if the storage fails or the shard was replaced,
            TarError if it has another size.
        """
        return self._ranging.submit(self._read_range, shard, start, end, versions)

    def ask(self, work: Callable[[], T]) -> T:
        """Call a function that asks a store, in a thread; close ends the wait with an error."""
        return self._asking.submit(work).result()

    def fetch_after(self, range_: Future[bytes]) -> None:
        """Have a range come before shards do that are not yet being fetched."""
        with self._changed:
            self._ranges = {each for each in self._ranges if not each.done()} | {range_}

    def wait_for_ranges(self) -> None:
        """Wait for the ranges that come before shards, though not for ever."""
        wait(self._ranges, timeout=_LONGEST_WAIT)

    def hold(self, *, on: bool = True) -> None:
        """Fetch no whole shard until that is off, as it is where somebody waits for one."""
        with self._changed:
            self._is_held = on
            self._changed.notify_all()

    def state_of(self, shard: RemoteShard) -> str | None:
        """Tell what is done about a shard, and put one that waits in front; None for nothing.

        Raises:
            RemoteError, TarError: it could not be fetched.
        """
        with self._changed:
            self._refuse_closed()
            task = self._tasks.get(shard.key)
            if task is None or self.process != os.getpid():
                return None
            if task.error is not None:
                raise task.error
            if task in self._queue:
                self._queue.remove(task)
                self._queue.appendleft(task)
            return None if task.state == "waiting" and not self._running else task.state

    def wait(self) -> None:
        """Wait until something may have come."""
        with self._changed:
            self._changed.wait(_POLL)

    def try_again(self, shard: RemoteShard) -> None:
        """Fetch a shard here that another process seemed to fetch."""
        with self._changed:
            task = self._tasks.get(shard.key)
            if task is None or task.state != "done" or self._closed:
                return
            more = self._put_first(task)
        self._start(more)

    def need(self, shard: RemoteShard) -> bool:
        """Fetch a shard that cannot be read by ranges, whatever leaves the cache for it.

        Returns:
            False if it does not come, since the cache is too small or the loop has ended.
        """
        with self._changed:
            if self._closed or self.process != os.getpid() or shard.size > shard.cache.limit:
                return False
            task = self._tasks.setdefault(shard.key, _Task(shard))
            is_new, task.is_needed = not task.is_needed, True
            if task.state != "no room" and not (is_new and task.state == "waiting"):
                return True
            more = self._put_first(task)
        self._start(more)
        return True

    def _put_first(self, task: _Task) -> int:
        """Have a shard fetched next, and return how many threads to start; the lock is held."""
        task.state = "waiting"
        with suppress(ValueError):
            self._queue.remove(task)
        self._queue.appendleft(task)
        more = int(self._running < CONNECTIONS)
        self._running += more
        return more

    def _start(self, count: int) -> None:
        """Start threads, which are counted already."""
        try:
            while count:
                self._fetching.submit(self._work)
                count -= 1
        except RuntimeError:  # this process may have no more
            with self._changed:
                self._running -= count

    def _work(self) -> None:
        """Fetch shards until none waits."""
        self.wait_for_ranges()
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._is_held, _LONGEST_WAIT)
        while True:
            with self._changed:
                if not self._queue or self._closed:
                    self._running -= 1
                    self._changed.notify_all()
                    return
                task = self._queue.popleft()
                due = len(self._queue) + self._running
            state, error = "failed", None
            try:
                state = self._fetch(task, max(1, CONNECTIONS // due))
            except Exception as failure:  # whatever it is, the loop must not wait
                error = failure
            with self._changed:
                task.state, task.error = state, error
                self._changed.notify_all()

    def _fetch(self, task: _Task, connections: int) -> str:
        """Fetch a shard, and return the new state of its task."""
        shard = task.shard
        try:
            part = self._claim(shard, task.next_use(self._next_use))
            if not isinstance(part, Part):
                return "done" if part else _without_room(shard)
            task.state = "coming"
            try:
                return self._fill(part, shard, connections)
            finally:
                part.close()
                with self._changed:
                    self._parts.discard(part)
        except RemoteError:
            raise
        except OSError as error:
            if shard.stored is not None:
                raise shard.cannot_keep(error) from error
            return _without_room(shard, error)

    def _claim(self, shard: RemoteShard, next_use: NextUse) -> Part | bool:
        """Begin a part, see ShardCache.claim; who closes waits until it is known here."""
        with self._changed:
            self._refuse_closed()
            self._claiming += 1
        part: Part | bool = False
        try:
            part = shard.cache.claim(shard, next_use)
        finally:
            with self._changed:
                if isinstance(part, Part):
                    self._parts.add(part)
                self._claiming -= 1
                self._changed.notify_all()
        return part

    def _fill(self, part: Part, shard: RemoteShard, connections: int) -> str:
        for _ in range(2):
            part.restart()
            digest = self._receive(shard, part, connections)
            if shard.sha256 in (None, digest):
                part.commit()
                return "done"
        raise TarError(
            "the object is not what was packed (SHA-256 differs, and did when it was fetched anew)",
            where=shard.name,
            remedy=restore(),
            shard=shard.name,
        )

    def _receive(self, shard: RemoteShard, part: Part, connections: int) -> str:
        """Fetch the bytes of a shard, and return their SHA-256."""
        digest = hashlib.sha256()

        def take(data: memoryview) -> None:
            if part.size + len(data) > shard.size:
                raise _misfit(shard, part.size + len(data))
            part.write(data)
            digest.update(data)

        if shard.stored is not None:
            self._receive_compressed(shard, take, part)
            return digest.hexdigest()
        if connections > 1 and shard.size > _SPLIT:
            try:
                self._receive_pieces(shard, take, connections)
            except RemoteError as error:
                if type(error) is not RemoteError:
                    raise
                part.restart()  # the store has no ranges
                digest = hashlib.sha256()
            else:
                return digest.hexdigest()
        stat = self._download(shard, 0, None, shard.version, take)
        if stat.size != shard.size:
            raise _misfit(shard, stat.size)
        return digest.hexdigest()

    def _receive_compressed(
        self, shard: RemoteShard, take: Callable[[memoryview], None], part: Part
    ) -> None:
        """Fetch a compressed object, and give its plain data."""

        def copy_to(sink: Callable[[memoryview], object]) -> None:
            def keep(data: memoryview) -> None:
                sink(data)
                part.touch()

            self._download(shard, 0, None, shard.version, keep, size=shard.stored)

        unpack(copy_to, _Taker(part, take), folder=shard.cache.folder, name=shard.name)
        if part.size != shard.size:
            raise _misfit(shard, part.size)

    def _receive_pieces(
        self, shard: RemoteShard, take: Callable[[memoryview], None], connections: int
    ) -> None:
        versions = shard.versions()

        def read(start: int) -> bytes:
            return self._read_range(shard, start, min(start + _SPLIT, shard.size), versions)

        starts = iter(range(0, shard.size, _SPLIT))
        coming = deque([self._pieces.submit(read, next(starts))])
        coming[0].exception()  # so that all others ask for its version
        while coming:
            for start in starts:
                coming.append(self._pieces.submit(read, start))
                if len(coming) >= connections:
                    break
            take(memoryview(coming.popleft().result()))

    def _read_range(self, shard: RemoteShard, start: int, end: int, versions: set[str]) -> bytes:
        found = bytearray()
        expected = next(iter([*versions]), None)
        stat = self._download(shard, start, end, expected, found.extend)
        if stat.size != shard.size:
            raise _misfit(shard, stat.size)
        versions.add(stat.version)
        if len(versions) > 1:
            raise remote_error(RequestError("changed", OTHER_VERSION), shard.path)
        return bytes(found)

    def _download(
        self,
        shard: RemoteShard,
        start: int,
        end: int | None,
        version: str | None,
        take: Callable[[memoryview], object],
        size: int | None = None,
    ) -> FileStat:
        """Read bytes of a shard from the store, until the loop ends."""

        def sink(data: memoryview) -> None:
            self._refuse_closed()
            take(data)

        def pause(seconds: float) -> None:
            with self._changed:
                self._changed.wait_for(lambda: self._closed, seconds)
            self._refuse_closed()

        with as_shard():
            return shard.storage.download(shard.path, start, end, version, sink, pause, size=size)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise _EndedError("the loop has ended")


def _without_room(shard: RemoteShard, error: OSError | None = None) -> str:
    shard.cache.warn_of_no_room(shard, shard.name, error)
    return "no room"


class _Taker(NamedTuple):
    """Gives plain data on; see shardio.storage.compression.Plain."""

    part: Part
    take: Callable[[memoryview], None]

    def fileno(self) -> int:
        return self.part.fileno()

    def write(self, data: bytes) -> None:
        self.take(memoryview(data))


class _EndedError(ShardioError):
    """The loop has ended while a shard came."""


def _misfit(shard: RemoteShard, size: int) -> TarError:
    return TarError(
        f"the shard has {size} bytes or more, its index expects {shard.size}, so it was changed",
        where=shard.name,
        remedy="open the dataset again, or upload the shard again",
        shard=shard.name,
    )


class ShardRanges:
    """A shard of a store, read past the cache; safe in several threads.

    Args:
        shard: the shard.
        downloads: reads the ranges.

    Attributes:
        name: name of the shard in errors.
        size: size in bytes.
        version: version of the object; empty where the digest of the shard tells.
    """

    def __init__(self, shard: RemoteShard, downloads: Downloads) -> None:
        self.name = shard.name
        self.size = shard.size
        self.version = shard.version or ""
        self._shard = shard
        self._downloads = downloads
        self._versions = shard.versions()

    def read(self, offset: int, size: int, /) -> bytes:
        """Read the bytes [offset, offset + size).

        Raises:
            TarError: they lie outside the shard, or it has another size.
            RemoteError: the storage fails, or the shard was replaced.
        """
        if not 0 <= offset <= offset + size <= self.size:
            raise outside_error(self, offset, size)
        return self._ask(offset, offset + size).result() if size else b""

    def read_ahead(self, start: int, end: int, /) -> None:
        """Do nothing: what is read is asked for when it is."""

    def _ask(self, start: int, end: int) -> Future[bytes]:
        return self._downloads.read(self._shard, start, end, self._versions)


class ComingShard(ShardRanges):
    """A shard of a store that is not in the cache, or not yet; safe in several threads.

    Args:
        shard: the shard.
        downloads: fetches it, or not.
    """

    def __init__(self, shard: RemoteShard, downloads: Downloads) -> None:
        super().__init__(shard, downloads)
        self._asked: list[tuple[int, int, Future[bytes]]] = []
        self._coming: LocalShard | None = None
        self._whole: LocalShard | None = None
        storage = shard.storage  # what is not read by ranges is waited for longer
        self._patience = storage.timeout if shard.stored is None else storage.patience

    @property
    def whole(self) -> LocalShard | None:
        """The file in the cache, once all of it is there."""
        if self._whole is None:
            self._whole = self._shard.cache.open(self._shard, self.name)
            if self._whole is not None:
                self._asked = []
        return self._whole

    def read(self, offset: int, size: int, /) -> bytes:
        """Read the bytes [offset, offset + size), when they have come.

        Raises:
            TarError: they lie outside the shard, or it is not what was packed.
            RemoteError: the storage fails.
        """
        if self._whole is not None:
            return self._whole.read(offset, size)
        if not 0 <= offset <= offset + size <= self.size or not size:
            return super().read(offset, size)
        for start, end, asked in self._asked:
            if start <= offset and offset + size <= end:
                with suppress(ShardioError, OSError):  # which is met again
                    return asked.result()[offset - start : offset - start + size]
        file = self._wait_for(offset + size)
        if file is None and self._shard.stored is None:
            try:
                return super().read(offset, size)
            except RemoteError as error:
                if type(error) is not RemoteError:  # else the store has no ranges
                    raise
        file = file or self._fetched(offset + size)
        if file is None:
            raise self._shard.cannot_keep()
        return file.read(offset, size)

    @property
    def lacks_room(self) -> bool:
        """Whether it does not come, since the cache has no room for it."""
        return self._downloads.state_of(self._shard) == "no room"

    def wait_for_all(self) -> LocalShard | None:
        """Wait until the whole shard is in the cache; None if it does not come.

        Raises:
            TarError: it is not what was packed.
            RemoteError: the storage fails.
        """
        return self._wait_for(self.size)

    def read_ahead(self, start: int, end: int, /) -> None:
        """Ask for a range, before shards are fetched, unless it is there."""
        if self.whole is None and end > start and self._shard.stored is None:
            asked = self._ask(start, end)
            self._downloads.fetch_after(asked)
            self._asked = [*self._asked[-_MOST_ASKED:], (start, end, asked)]

    def _wait_for(self, end: int) -> LocalShard | None:
        """Wait until the first bytes of the shard are in the cache; None if they do not come."""
        grown, latest, known = time.monotonic(), 0.0, (-1, 0)
        self._downloads.hold(on=False)
        while True:
            state = self._downloads.state_of(self._shard)
            file = self.whole or self._come()
            if file is not None and (file is self._whole or file.status().st_size >= end):
                return file
            waits = self._downloads.waits or self._shard.stored is not None
            if state in (None, "no room") or not waits:
                return None
            now, status = time.monotonic(), None if file is None else file.status()
            size = (-1, 0) if status is None else (status.st_size, status.st_mtime_ns)
            if size != known or state in ("waiting", "coming"):  # whose end this process notes
                grown, known = now, size
            if now - grown > self._patience:
                return None
            if state == "done" and (file is None or now - max(grown, latest) > _STILL):
                latest = now
                self._downloads.try_again(self._shard)
            self._downloads.wait()

    def _fetched(self, end: int) -> LocalShard | None:
        """Wait for the first bytes of a shard that cannot be read by ranges; None if none come."""
        if self._downloads.process != os.getpid():  # those of the process that this is forked from
            self._downloads = Downloads()
        latest = time.monotonic() + self._patience
        while self._downloads.need(self._shard):
            file = self._wait_for(end)
            if file is not None or time.monotonic() > latest:
                return file
            self._downloads.wait()
        return None

    def _come(self) -> LocalShard | None:
        """Return the file of the cache that is being written, if there is one."""
        file = self._coming
        if file is None or not file.status().st_nlink:  # whoever wrote to it gave it up
            file = self._shard.cache.open_part(self._shard, self.name)
            if file is not None:
                file.size = self.size
            self._coming = file
        return file
