"""Objects of Google Cloud Storage, of Azure, and of whatever else fsspec knows.

fsspec's file systems bring credentials, sessions and the thread of their event loop; each process
makes one of its own, since none is safe across a fork. Bytes are asked for in ranges of at most
8 MiB, because fsspec holds an answer whole.

Requests to Google and Azure are in shardio.storage.google and shardio.storage.azure, over the
session of gcsfs and the client of adlfs: what these ask themselves has no condition on the version,
and attempts of their own, which would multiply with those of shardio.storage.remote. So a range is
of one version, and an object is stored only where none is, as whoever publishes wants. Other file
systems compare the version before and after each range, and are read only.
"""

from __future__ import annotations

import asyncio
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple, TypeVar

from shardio.errors import SituationError, UsageError, argument, shown
from shardio.storage.base import FileStat
from shardio.storage.remote import (
    Client,
    ReadOnlyClient,
    Reason,
    RemoteStorage,
    RequestError,
    check_options,
    reason_of,
    refuse_other,
    remote_error,
)

T = TypeVar("T")

_PIECE = 8 << 20  # bytes of one request
_EXTRAS = {"gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}
"""Extra that installs what a scheme needs; all others are read only."""
_REFUSED = frozenset(
    {
        *("file", "local", "memory", "asynclocal", "async_wrapper", "generic", "dir", "data"),
        *("blockcache", "cached", "filecache", "simplecache", "reference", "dask", "jlab"),
        *("jupyter", "git", "libarchive", "tar", "zip", "root"),
        *("http", "https", "hf", "s3", "s3a"),
        "ftp",  # whose one connection no two threads may use
    }
)
"""Protocols of fsspec that are no stores, that chain others or run code, or that others serve."""
_OPTIONS: Mapping[str, Collection[str]] = {
    "gs": ("project", "token", "anon", "requester_pays", "endpoint_url"),
    "az": (
        *("account_name", "account_key", "sas_token", "connection_string", "credential", "anon"),
        *("client_id", "client_secret", "tenant_id", "account_host"),
    ),
}
"""Arguments of gcsfs and adlfs that make a difference here."""
_OWN = [each.name for each in fields(RemoteStorage)]  # options of every storage


def is_known(scheme: str) -> bool:
    """Tell whether a scheme is one of a store that fsspec knows."""
    try:
        import fsspec  # noqa: PLC0415  not needed for local files
    except ImportError:
        return False
    known = scheme in fsspec.available_protocols() or scheme in fsspec.registry
    return known and scheme not in _REFUSED


def open_url(url: str, options: Mapping[str, Any]) -> tuple[FsspecStorage, str]:
    """Make the storage of a URL; what is secret in it becomes an option.

    Args:
        url: URL.
        options: arguments of fsspec's file system, and attributes of RemoteStorage.

    Raises:
        UsageError: the URL or an option is invalid.
        SituationError: the package that the scheme needs is not installed.
    """
    scheme, _, place = url.partition("://")
    scheme = scheme.lower()
    host, slash, rest = place.partition("/")
    if "::" in place:
        raise UsageError(f"{scheme} URLs joined by '::' are not read", remedy="name one of them")
    kind = _file_system(scheme)
    rest, found = _without_query(scheme, rest)
    before, at, after = host.rpartition("@")
    if _EXTRAS.get(scheme) == "az":
        account = (after if at else "").partition(".")[0]
        host = before if at else host
        found |= {"account_name": account} if account else {}
    elif at:
        found |= kind._get_kwargs_from_urls(f"{scheme}://{host}/")
        host = after
    path = f"{scheme}://{host}{slash}{rest}"
    if not host or "@" in host:
        raise UsageError("the URL has no host or bucket", where=f"{scheme}://")
    own = {name: options[name] for name in _OWN if name in options}
    given = {name: value for name, value in {**found, **options}.items() if name not in own}
    _check_names(scheme, given)
    if _EXTRAS.get(scheme) == "gs" and given.pop("anon", False):
        given["token"] = "anon"  # noqa: S105  no secret
    return FsspecStorage(scheme=scheme, options=tuple(sorted(given.items())), **own), path


def _without_query(scheme: str, rest: str) -> tuple[str, dict[str, Any]]:
    """Take the signature of Azure off a path; a query of another kind is refused."""
    name, mark, query = rest.rpartition("?")
    if not mark or "=" not in query:
        return rest, {}
    if _EXTRAS.get(scheme) == "az" and any(part.startswith("sig=") for part in query.split("&")):
        return name, {"sas_token": query}
    raise UsageError(
        "the URL has a query",
        where=f"{scheme}://",
        remedy=f"pass what it says in {argument('storage_options')}",
    )


def _file_system(scheme: str) -> Any:
    """Return the class of a scheme's file systems."""
    try:
        import fsspec  # noqa: PLC0415  not needed for local files

        return fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        raise SituationError(
            f"{scheme}:// needs a package that is not installed",
            remedy=f"pip install 'shardio[{extra}]'" if extra else shown(str(error)),
        ) from error


def _check_names(scheme: str, options: Mapping[str, Any]) -> None:
    """Refuse an option that gcsfs or adlfs would ignore; what others take is their own affair."""
    known = _OPTIONS.get(_EXTRAS.get(scheme, ""))
    if known is not None:
        check_options([*known, *_OWN], options)


@dataclass(frozen=True, kw_only=True)
class FsspecStorage(RemoteStorage):
    """Objects of a store that fsspec knows; see shardio.storage.base.Storage.

    Attributes:
        scheme: scheme of the URLs.
        options: arguments of fsspec's file system, by name.
    """

    environment: ClassVar[tuple[str, ...]] = ("AZURE_", "GOOGLE_", "STORAGE_EMULATOR_")

    scheme: str
    options: tuple[tuple[str, Any], ...] = field(default=(), repr=False, hash=False)

    @property
    def can_write(self) -> bool:
        """Whether files are published and removed: in Google's and Azure's stores."""
        return self.scheme in _EXTRAS

    def connect(self) -> Client:
        """Make a client, with a file system of its own.

        Raises:
            UsageError: the file system refuses its options.
            RemoteUnreachable: it connects at once, and cannot.
        """
        kind = _file_system(self.scheme)
        options = {**dict(self.options), "skip_instance_cache": True}
        if kind.async_impl:
            options["asynchronous"] = False
        if _EXTRAS.get(self.scheme) == "gs":
            # Bytes as they are stored, also of objects that say that they are compressed.
            options["session_kwargs"] = {
                **options.get("session_kwargs", {}),
                "auto_decompress": False,
            }
        try:
            system = kind(**options)
        except OSError as error:  # some connect at once
            broken = RequestError("broken", self.harmless(error))
            raise remote_error(broken, f"{self.scheme}://") from None
        except Exception as error:  # of whatever library is below
            raise UsageError(
                f"{self.scheme} storage cannot be opened ({self.harmless(error)})",
                remedy=f"check {argument('storage_options')} and the store's environment variables",
            ) from None  # the error itself may show a secret
        return _client(self, system)

    def harmless(self, error: object) -> str:
        """Return the text of an error on one line, without the values of options."""
        text = " ".join(f"{type(error).__name__}: {error}".split())
        for value in _texts([value for _, value in self.options]):
            text = text.replace(value, "…")
        return text


def _client(storage: FsspecStorage, system: Any) -> Client:
    extra = _EXTRAS.get(storage.scheme)
    if extra is None:
        return OtherClient(storage, system)
    if extra == "gs":
        from shardio.storage.google import GoogleClient  # noqa: PLC0415  they import this module

        return GoogleClient(storage, system)
    from shardio.storage.azure import AzureClient  # noqa: PLC0415

    return AzureClient(storage, system)


def _texts(values: object) -> Iterator[str]:
    """Yield the texts in options that may be secrets."""
    if isinstance(values, str) and len(values) > 5:
        yield values
    elif isinstance(values, Mapping):
        yield from _texts([*values.values()])
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _texts(value)


class Piece(NamedTuple):
    """Some bytes of an object.

    Attributes:
        data: the bytes.
        total: size of the whole object.
        version: version of the object.
    """

    data: bytes
    total: int
    version: str


class FsspecBody:
    """The bytes of an object, asked for piece by piece; see shardio.storage.remote.Body.

    Args:
        fetch: function that asks for the bytes [start, end) of a version.
        first: the first bytes.
        start: place of the first bytes.
        end: end of the bytes.

    Attributes:
        total: size of the whole object in bytes.
        version: version of the object.
    """

    def __init__(
        self, fetch: Callable[[int, int, str], Piece], first: Piece, start: int, end: int
    ) -> None:
        self.total, self.version = first.total, first.version
        self._fetch = fetch
        self._data = memoryview(first.data)
        self._at = start + len(first.data)
        self._end = end

    def readinto(self, buffer: memoryview, /) -> int:
        """Read some bytes; 0 at the end."""
        if not self._data and self._at < self._end:
            found = self._fetch(self._at, min(self._at + _PIECE, self._end), self.version)
            self._data = memoryview(found.data)
            self._at += len(found.data)
        size = min(len(buffer), len(self._data))
        buffer[:size] = self._data[:size]
        self._data = self._data[size:]
        return size

    def close(self) -> None:
        """Forget the bytes."""
        self._data = memoryview(b"")


class FsspecClient(ABC):
    """Requests by a file system of fsspec; see shardio.storage.remote.Client.

    Args:
        storage: options of the requests.
        system: file system.
    """

    def __init__(self, storage: FsspecStorage, system: Any) -> None:
        self._storage = storage
        self._system = system

    @abstractmethod
    def stat(self, path: str, /) -> FileStat:
        """Measure an object."""

    @abstractmethod
    def fetch(self, path: str, start: int, end: int, version: str | None) -> Piece:
        """Read the bytes [start, end) of an object, or those of them that it has."""

    @abstractmethod
    def names(self, folder: str, /) -> list[str]:
        """List what is in a folder."""

    def get(self, path: str, start: int, end: int | None, version: str | None, /) -> FsspecBody:
        """Ask for the bytes [start, end) of an object."""

        def fetch(first: int, stop: int, wanted: str | None) -> Piece:
            found = self.fetch(path, first, stop, wanted)
            refuse_other(wanted, found.version)
            if len(found.data) != min(stop, found.total) - first:
                raise RequestError("refused", "other bytes were given than were asked for")
            return found

        most = start + _PIECE
        try:
            piece = fetch(start, most if end is None else min(end, most), version)
        except RequestError as error:
            if error.status != 416 or start:
                raise
            size, found, _ = self.stat(path)
            if size:
                raise
            piece = Piece(b"", 0, found)
        return FsspecBody(fetch, piece, start, piece.total if end is None else end)

    def _run(self, coroutine: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a request in the thread of fsspec's loop."""
        from fsspec.asyn import sync  # noqa: PLC0415  loaded by now

        found: T = sync(self._system.loop, coroutine)
        return found


class OtherClient(ReadOnlyClient, FsspecClient):
    """Requests that any file system of fsspec answers; read only."""

    def stat(self, path: str, /) -> FileStat:
        """Measure an object."""
        with self._explained():
            found = self._system.info(path)
        if found.get("type") != "file" or found.get("size") is None:
            raise RequestError("missing", "it is no file, or has no known size")
        return FileStat(int(found["size"]), _version_of(found))

    def fetch(self, path: str, start: int, end: int, version: str | None) -> Piece:
        """Read the bytes [start, end) of an object, of one version as far as can be told."""
        before = self.stat(path)
        refuse_other(version, before.version)
        end = min(end, before.size)
        with self._explained():
            data = self._system.cat_file(path, start=start, end=end) if start < end else b""
        refuse_other(before.version, self.stat(path).version)
        return Piece(bytes(data), before.size, before.version)

    def names(self, folder: str, /) -> list[str]:
        """List what is in a folder."""
        try:
            with self._explained():
                found = self._system.ls(folder, detail=True)
        except RequestError as error:
            if error.reason == "missing":
                return []
            raise
        place = self._system._strip_protocol(folder).rstrip("/")
        names = [each["name"].rstrip("/") for each in found]
        return [name.rpartition("/")[2] for name in names if name != place]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except RequestError:
            raise
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RequestError("missing", type(error).__name__) from None
        except PermissionError as error:
            raise RequestError("denied", self._storage.harmless(error)) from None
        except (OSError, EOFError, asyncio.TimeoutError) as error:
            raise RequestError("broken", self._storage.harmless(error)) from None
        except MemoryError:  # which no store is to blame for
            raise
        except Exception as error:  # of whatever library is below
            raise RequestError("refused", self._storage.harmless(error)) from None


def _version_of(found: Mapping[str, Any]) -> str:
    """Return what tells versions apart, of what a file system says of a file."""
    for name in ("etag", "ETag", "generation", "md5", "md5Hash", "content_md5", "checksum"):
        if found.get(name):
            return str(found[name])
    for name in ("mtime", "modified", "LastModified", "last_modified", "updated", "modify"):
        if found.get(name):
            return f"{found[name]} {found['size']}"
    return str(found["size"])


@contextmanager
def opened(content: bytes | Path) -> Iterator[BinaryIO]:
    """Open what is to be stored."""
    if isinstance(content, bytes):
        yield io.BytesIO(content)
        return
    with content.open("rb") as stream:
        yield stream


def reason_of_store(status: int, condition: Reason) -> Reason:
    """Return why a request to Google or Azure failed; see shardio.storage.remote.reason_of."""
    return "expired" if status == 401 else reason_of(status, condition)
