"""Files of a store that is reached by requests: retries, resumption, versions, secrets.

A kind of store is a `Client`, which makes one request each, and a subclass of `RemoteStorage`,
which holds its options and makes the client. Everything else is here and the same for all:

- A request that fails for a while is made again, after a pause that doubles, with jitter, or after
  the time that the store asks for. A body that breaks off goes on at the next byte.
- An open file has a version, its ETag. Every answer is compared with it, so that no bytes of two
  objects are mixed.
- No more is read than was asked for, and a body that is too short is never taken for data.
- Clients belong to the process that made them. A forked child makes its own.
- A path never holds a secret: user name, password and query of a URL are options of the storage.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import random
import re
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import ClassVar, Literal, Protocol, TypeAlias, TypeVar

from shardio.checks import positive, whole_number
from shardio.errors import (
    RemoteChanged,
    RemoteDenied,
    RemoteError,
    RemoteMissing,
    RemoteUnreachable,
    UsageError,
    argument,
    quoted,
    shown,
)
from shardio.processes import new_lock
from shardio.storage.base import FileStat, outside_error, restore, size_in_bytes

T = TypeVar("T")

PIECE = 1 << 20
"""Bytes of a body that are read at once."""
MOST_REQUESTS = 96
"""Number of requests that a process makes at once to a store, and of the connections it keeps."""

_LOG = logging.getLogger("shardio")
_FIRST = 256 << 10  # bytes that are read when a file is opened: indexes are smaller
_SEQUENTIAL = 8 << 20  # most bytes of a request where reading goes on where it ended
_LEAST_AHEAD = 64 << 10  # bytes of the first such request; each further one has twice as many
_SKIPPED = 16 << 10  # bytes that are passed over where reading goes on, as headers and padding
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 20.0  # seconds
_LONGEST_WISH = 120.0  # seconds of a Retry-After that are waited

Reason = Literal[
    "missing",
    "denied",
    "expired",
    "untrusted",
    "unwritable",
    "exists",
    "changed",
    "busy",
    "broken",
    "unranged",
    "refused",
]
"""Why a request failed: "expired" is worth a new client, "busy" and "broken" another attempt."""


class RequestError(Exception):
    """One request that failed.

    Args:
        reason: see Reason.
        detail: message of the store or the library, without secrets.
        status: HTTP status of the answer.
        request_id: the store's own name of the request.
        retry_after: seconds that the store asks to wait.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str,
        *,
        status: int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.status = status
        self.request_id = request_id
        self.retry_after = retry_after


class Body(Protocol):
    """The bytes of an answer, as they come."""

    @property
    def total(self) -> int:
        """Size of the whole object in bytes."""

    @property
    def version(self) -> str:
        """Version of the object, see FileStat."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Read some bytes; 0 at the end.

        Raises:
            RequestError: the connection broke, or no byte came in time.
        """

    def close(self) -> None:
        """Give the connection back, or close it if bytes are left."""


class Client(Protocol):
    """What a kind of store must do: one request each, without retries; safe in several threads.

    Every method raises RequestError. A path is a URL without user, password and query.
    """

    def stat(self, path: str, /) -> FileStat:
        """Measure an object."""

    def get(self, path: str, start: int, end: int | None, version: str | None, /) -> Body:
        """Ask for the bytes [start, end) of an object; end None for all from start on.

        Args:
            path: URL of the object.
            start: first byte.
            end: end of the bytes, greater than start; None for the end of the object.
            version: version that the object must have; None for any.

        Raises:
            RequestError: also "changed" if the object has another version, and "refused" if the
                answer is not of these bytes, as where a server ignores ranges.
        """

    def names(self, folder: str, /) -> list[str]:
        """List what is in a folder, see Storage.names."""

    def put(self, path: str, content: bytes | Path, /, *, only_if_absent: bool) -> None:
        """Store an object, whole or not at all; raises "exists", see Storage.publish."""

    def delete(self, path: str, /) -> None:
        """Remove an object, if it is there."""


@contextmanager
def unlogged() -> Iterator[None]:
    """Keep what libraries log in this thread out of logs, see keep_logs_out."""
    before = getattr(_own, "asks", False)
    _own.asks = True
    try:
        yield
    finally:
        _own.asks = before


def keep_logs_out(library: str) -> None:
    """Have a library log nothing about shardio's requests: it may log queries and tokens.

    Args:
        library: name of a package that is imported; what others ask of it is logged as before.
    """
    for name in [*logging.root.manager.loggerDict]:
        if name.partition(".")[0] == library:
            logging.getLogger(name).addFilter(_is_of_others)


def _is_of_others(record: logging.LogRecord) -> bool:
    del record
    return not getattr(_own, "asks", False)


_own = threading.local()


def retry_seconds(text: str | None) -> float | None:
    """Return the seconds that a header Retry-After names, by number or date; None if unknown."""
    with suppress(ValueError):
        seconds = float(text or "")
        return max(seconds, 0.0) if math.isfinite(seconds) else None
    try:
        return max(parsedate_to_datetime(text or "").timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None


_STATUSES: Mapping[int, Reason] = {
    **dict.fromkeys((401, 403, 407), "denied"),
    **dict.fromkeys((404, 410), "missing"),
    **dict.fromkeys((408, 425, 429), "busy"),
    **dict.fromkeys((501, 505), "refused"),  # and so it stays, unlike what else is from 500 on
}


def reason_of(status: int, condition: Reason) -> Reason:
    """Return why a request failed.

    Args:
        status: HTTP status of the answer.
        condition: reason of a condition that does not hold.
    """
    if status == 412:
        return condition
    return _STATUSES.get(status, "busy" if status >= 500 else "refused")


_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)", re.ASCII)


def parse_range(text: str | None) -> tuple[int, int, int]:
    """Return start and end of the bytes that a header Content-Range names, and the object's size.

    Raises:
        RequestError: it names none, since a server ignores ranges or does not know the size.
    """
    found = _RANGE.fullmatch(text or "")
    if found is None:
        raise RequestError("refused", "the server does not say which bytes it sends")
    start, last, size = map(int, found.groups())
    return start, last + 1, size


OTHER_VERSION = "it has another version"
"""Detail of a request of an object that was replaced."""


def refuse_other(version: str | None, found: str) -> None:
    """Raise RequestError if an object has another version than it must have; None is any."""
    if version not in (None, found):
        raise RequestError("changed", OTHER_VERSION)


def read_only(path: str) -> RequestError:
    """Make the error of writing to a storage that is only read."""
    return RequestError("unwritable", f"{path.partition(':')[0]} storages are read-only")


class ReadOnlyClient:
    """What a client has of a storage that is only read, see Client."""

    def put(self, path: str, content: bytes | Path, /, *, only_if_absent: bool) -> None:
        """Refuse to store."""
        del content, only_if_absent
        raise read_only(path)

    def delete(self, path: str, /) -> None:
        """Refuse to remove."""
        raise read_only(path)


def refuse_altered(
    client: Client, path: str, sent: tuple[int, str | None], stored: tuple[int, str | None]
) -> None:
    """Remove an object that is not what was sent, since a store may compare nothing.

    Args:
        client: client that has stored it.
        path: path of the object.
        sent: size and, where known, digest of what was sent.
        stored: size and, where known, digest of what is stored.

    Raises:
        RequestError: the two differ.
    """
    if any(None not in pair and pair[0] != pair[1] for pair in zip(sent, stored, strict=True)):
        client.delete(path)
        raise RequestError(
            "broken", f"{stored[0]} bytes were stored otherwise than the {sent[0]} that were sent"
        )


def split_path(path: str) -> tuple[str, str]:
    """Return bucket and key of a path."""
    bucket, _, key = path.partition("://")[2].partition("/")
    return bucket, key


def names_of_options(storage: type[RemoteStorage]) -> list[str]:
    """List the options of a kind of storage."""
    return [each.name for each in fields(storage)]


def check_options(known: Sequence[str], options: Iterable[str]) -> None:
    """Raise UsageError for an option that a storage does not have.

    Args:
        known: names of its options.
        options: names of the options that were given.
    """
    if unknown := [name for name in options if name not in known]:
        raise UsageError(
            f"there is no option {quoted(unknown[0])}",
            where=argument("storage_options"),
            remedy=f"the options here are {', '.join(known)}",
        )


@dataclass(frozen=True, kw_only=True)
class RemoteStorage(ABC):
    """A storage that is reached by requests; see shardio.storage.base.Storage.

    Attributes:
        retries: number of further attempts after a request fails or a body breaks off.
        timeout: seconds without a byte after which a request has failed.
        cache_dir: folder for whole shards; None for the usual cache folder.
        cache_limit: bytes that they may take there; None for three quarters of the free space.
        can_list: see shardio.storage.base.Storage.
        environment: prefixes of the environment variables that a client takes into account. A
            process that changes one, as to other credentials, gets another client.
    """

    can_list: ClassVar[bool] = True
    environment: ClassVar[tuple[str, ...]] = ()

    retries: int = 6
    timeout: float = 30.0
    cache_dir: str | None = None
    cache_limit: int | None = None

    def __post_init__(self) -> None:
        whole_number("retries", self.retries, least=0)
        positive("timeout", self.timeout)
        if self.cache_limit is not None:
            limit = size_in_bytes("cache_limit", self.cache_limit)
            object.__setattr__(self, "cache_limit", limit)  # which may be a text

    @property
    def can_write(self) -> bool:
        """Whether files are published and removed, see shardio.storage.base.Storage."""
        return True

    @property
    def patience(self) -> float:
        """Seconds after which another process that gets nothing from the store has given up."""
        return (self.retries + 1) * self.timeout + self.retries * _LONGEST_PAUSE

    @abstractmethod
    def connect(self) -> Client:
        """Make a client; called once in each process, and again when credentials have expired."""

    def names(self, folder: str, /) -> list[str]:
        """List the files and folders in a folder."""
        return sorted(set(self._try(folder, lambda client: client.names(folder))))

    def stat(self, path: str, /) -> FileStat:
        """Measure a file."""
        return self._try(path, lambda client: client.stat(path))

    def open(self, path: str, name: str, /) -> RemoteFile:
        """Open a file for reading; one that is small is read at once."""
        first = bytearray()
        try:
            stat = self.download(path, 0, _FIRST, None, first.extend)
        except (RemoteMissing, RemoteDenied, RemoteUnreachable):
            raise
        except RemoteError:  # an empty file has no range, and some servers have none of any
            stat = self.stat(path)
        return RemoteFile(self, path, name, stat, bytes(first))

    def publish(self, path: str, content: bytes | Path, /, *, only_if_absent: bool = False) -> None:
        """Put a file in its place.

        An attempt that broke off may have succeeded. A later one then finds a file; whoever
        publishes with only_if_absent compares it.
        """
        self._try(path, lambda client: client.put(path, content, only_if_absent=only_if_absent))

    def remove(self, path: str, /) -> None:
        """Remove a file, if it is there."""
        self._try(path, lambda client: client.delete(path))

    def download(
        self,
        path: str,
        start: int,
        end: int | None,
        version: str | None,
        sink: Callable[[memoryview], object],
        pause: Callable[[float], object] = time.sleep,
        *,
        size: int | None = None,
    ) -> FileStat:
        """Read bytes of a file from first to last; goes on where a body breaks off.

        Args:
            path: path of the file.
            start: first byte.
            end: end of the bytes; None for the end of the file.
            version: version that the file must have; None for any, but one.
            sink: takes the bytes in order, in pieces that it must not keep.
            pause: waits some seconds before another attempt.
            size: size that the file must have, which is compared before anything is read; None
                for any.

        Returns:
            Size and version of the whole file.

        Raises:
            RemoteError: the storage fails, or the file was replaced meanwhile.
        """
        attempts = Attempts(self, path, pause)
        piece = PIECE if end is None else min(PIECE, end - start)  # new memory costs time
        buffer = memoryview(bytearray(piece))
        at = start
        for client in attempts:
            with attempts.failing():
                with closing(client.get(path, at, end, version)) as body:
                    found = FileStat(body.total, body.version)
                    refuse_other(version, found.version)
                    if size not in (None, found.size):
                        raise RequestError("changed", f"{size} bytes became {found.size}")
                    version = found.version
                    stop = body.total if end is None else min(end, body.total)
                    while at < stop:
                        came = body.readinto(buffer[: min(piece, stop - at)])
                        if not came:
                            raise RequestError("broken", f"the body ended {stop - at} bytes early")
                        sink(buffer[:came])
                        at += came
                        attempts.begin_anew()
                return found
        raise AssertionError  # they end with an error

    def _try(self, path: str, request: Callable[[Client], T]) -> T:
        attempts = Attempts(self, path)
        for client in attempts:
            with attempts.failing():
                return request(client)
        raise AssertionError  # they end with an error


class Attempts:
    """The attempts of one request, each with a client; ends with an error.

    Args:
        storage: storage of the file.
        path: path of the file.
        pause: waits some seconds.
    """

    def __init__(
        self, storage: RemoteStorage, path: str, pause: Callable[[float], object] = time.sleep
    ) -> None:
        self._storage = storage
        self._path = path
        self._wait = pause
        self._failed = 0
        self._renewed = False

    def __iter__(self) -> Iterator[Client]:
        while True:
            yield _client_of(self._storage)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Wait after a failure that may pass, so that another attempt follows.

        Raises:
            RemoteError: the failure does not pass, or there have been enough attempts.
            FileExistsError: the file is there, and must not be.
        """
        try:
            yield
        except RequestError as error:
            if error.reason == "expired" and not self._renewed:
                self._renewed = True
                _forget_client(self._storage)
            elif error.reason in ("busy", "broken") and self._failed < self._storage.retries:
                self._wait(self._pause(error))
                self._failed += 1
            else:
                raise remote_error(error, self._path, self._failed) from None  # it says all

    def begin_anew(self) -> None:
        """Count attempts from here, since bytes have come."""
        self._failed = 0
        self._renewed = False

    def _pause(self, error: RequestError) -> float:
        if error.retry_after is not None:
            return min(error.retry_after, _LONGEST_WISH) + random.uniform(0, _FIRST_PAUSE)  # noqa: S311
        longest = min(_FIRST_PAUSE * 2**self._failed, _LONGEST_PAUSE)
        return random.uniform(longest / 2, longest)  # noqa: S311  no secret


def remote_error(error: RequestError, path: str, failed: int = 0) -> OSError:
    """Make the error of a request that finally failed.

    Args:
        error: failure of the last attempt.
        path: path of the file, which becomes the location.
        failed: number of attempts before.
    """
    if error.reason == "exists":
        return FileExistsError(errno.EEXIST, "a file is there", path)
    kind, what, remedy = _MEANINGS[error.reason]
    again = f", {failed + 1} times in a row" if failed else ""
    known = [f"HTTP {error.status}" if error.status else "", error.detail.rstrip(". ")]
    if error.request_id:
        known.append(f"request {error.request_id}")
    told = ", ".join(shown(each) for each in known if each)
    way = remedy and remedy.format(options=argument("storage_options"))
    found = kind(f"{what}{again} ({told})", where=path, remedy=way)
    found.status, found.request_id = error.status, error.request_id
    return found


@contextmanager
def as_shard() -> Iterator[None]:
    """Say of an object that is missing that it was there, as a shard of a dataset."""
    try:
        yield
    except RemoteMissing as error:
        what = f"{error.what}, though the dataset has this shard"
        found = RemoteMissing(what, where=error.where, remedy=f"{restore()}, then resume")
        found.status, found.request_id = error.status, error.request_id
        raise found from None


_CREDENTIALS = "check the credentials in the environment or in {options}"
_MEANINGS: Mapping[Reason, tuple[type[RemoteError], str, str | None]] = {
    "missing": (RemoteMissing, "no such object", "check the URL"),
    "denied": (RemoteDenied, "the store denies access", _CREDENTIALS),
    "expired": (RemoteDenied, "the credentials have expired", "renew them, and run it again"),
    "untrusted": (
        RemoteDenied,
        "the server's certificate is not trusted",
        "check the URL; ca_bundle in {options} can name the certificates to trust",
    ),
    "unwritable": (
        RemoteDenied,
        "nothing is written there",
        "write to a local folder, and upload it",
    ),
    "changed": (
        RemoteChanged,
        "the object was replaced while it was read",
        "open the dataset again",
    ),
    "busy": (RemoteUnreachable, "the store refuses for the time being", "run it again later"),
    "broken": (
        RemoteUnreachable,
        "the store does not answer as it should",
        "check network and endpoint, or raise timeout or retries in {options}",
    ),
    "unranged": (
        RemoteError,
        "parts of a file cannot be read",
        "serve the files with a server that answers ranges, such as nginx",
    ),
    "refused": (RemoteError, "the store does not do what is needed", None),
}


class RemoteFile:
    """An open file of a storage; safe to read from several threads.

    Where reading goes on from where it ended, more is asked for at once, the longer the more.

    Args:
        storage: storage of the file.
        path: path of the file.
        name: name of the file in errors.
        stat: size and version; without a version, that of the first answer counts.
        first: first bytes of the file, if they are known.

    Attributes:
        name: name of the file in errors.
        size: size in bytes.
        version: see shardio.storage.base.FileStat.
    """

    def __init__(
        self, storage: RemoteStorage, path: str, name: str, stat: FileStat, first: bytes = b""
    ) -> None:
        self.name = name
        self.size, self.version = stat.size, stat.version
        self._storage = storage
        self._path = path
        self._ahead = 0, first  # where some bytes lie, and what they are
        self._end = -1 - _SKIPPED
        self._more = 0

    def read(self, offset: int, size: int, /) -> bytes:
        """Read the bytes [offset, offset + size).

        Raises:
            TarError: they lie outside the file.
            RemoteError: the storage fails, or the file was replaced.
        """
        if not 0 <= offset <= offset + size <= self.size:
            raise outside_error(self, offset, size)
        if not size:  # stores take no empty range
            return b""
        first, known = self._ahead
        if first <= offset and offset + size <= first + len(known):
            self._end = offset + size
            return known[offset - first : offset - first + size]
        sequential, self._end = 0 <= offset - self._end <= _SKIPPED, offset + size
        self._more = min(max(2 * self._more, _LEAST_AHEAD), _SEQUENTIAL) if sequential else 0
        if size >= self._more:
            return self._fetch(offset, offset + size)
        found = self._fetch(offset, min(offset + self._more, self.size))
        self._ahead = offset, found
        return found[:size]

    def read_ahead(self, start: int, end: int, /) -> None:
        """Do nothing: what is read is asked for when it is."""

    def copy_to(self, sink: Callable[[memoryview], object]) -> None:
        """Read the whole file by one request.

        Args:
            sink: takes the bytes in order, in pieces that it must not keep.

        Raises:
            RemoteError: the storage fails, or the file was replaced.
        """
        self._download(0, None, sink)

    def _fetch(self, start: int, end: int) -> bytes:
        found = bytearray()
        last = None if (start, end) == (0, self.size) else end  # not every server has ranges
        self._download(start, last, found.extend)
        return bytes(found)

    def _download(self, start: int, end: int | None, sink: Callable[[memoryview], object]) -> None:
        known = self.version or None
        stat = self._storage.download(self._path, start, end, known, sink, size=self.size)
        self.version = stat.version


class _Connection:
    """A client, which connects when it is first asked for; others do not wait for that."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._client: Client | None = None

    def client(self, storage: RemoteStorage) -> Client:
        with self._lock:
            self._client = self._client or storage.connect()
            return self._client


_MOST_CLIENTS = 16
_Key: TypeAlias = tuple[int, RemoteStorage, tuple[tuple[str, str], ...]]
_clients: OrderedDict[_Key, _Connection] = OrderedDict()
"""Clients of this process, and, unused, of the process that it was forked from."""
_lock = new_lock()


def _key_of(storage: RemoteStorage) -> _Key:
    names = storage.environment
    found = [each for each in os.environ.items() if each[0].startswith(names)] if names else []
    return os.getpid(), storage, tuple(sorted(found))


def _client_of(storage: RemoteStorage) -> Client:
    key = _key_of(storage)
    with _lock:
        found = _clients.setdefault(key, _Connection())
        _clients.move_to_end(key)
        if len(_clients) > _MOST_CLIENTS:
            _clients.popitem(last=False)
    return found.client(storage)


def _forget_client(storage: RemoteStorage) -> None:
    with _lock:
        _clients.pop(_key_of(storage), None)
