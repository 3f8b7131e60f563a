"""Where a file or folder is: a storage and a path in it.

URLs choose their storage by their scheme, from a table with one line each; other texts are paths
of local files. A storage that a caller passes takes the place of this choice. What is secret in a
URL, as a user's password or a signed query, becomes part of the storage and not of the path.
"""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shardio.errors import SituationError, UsageError, argument, quoted, without_secrets
from shardio.storage.base import FileStat, Storage, StoredBytes, StoredFile
from shardio.storage.local import LOCAL, refuse_url
from shardio.storage.remote import RemoteStorage, read_only, remote_error

Options = Mapping[str, Any]
"""Settings of a store by name: anon, endpoint_url, the cache_dir and cache_limit of its shards, and
others. Credentials are better left to environment variables."""


def refuse_both(options: Options, arguments: Mapping[str, str]) -> None:
    """Refuse options that are given as arguments, too.

    Args:
        options: options of a store.
        arguments: names of options that arguments give, and the names of these arguments.

    Raises:
        UsageError: one is given twice.
    """
    if twice := next((name for name in arguments if name in options), None):
        where = argument("storage_options")
        raise UsageError(
            f"{quoted(twice)} in {where} and {argument(arguments[twice])} are the same setting",
            remedy="give one of them",
        )


OpenUrl = Callable[[str, Options], tuple[Storage, str]]
"""Makes the storage of a URL, and the path there, from the URL and options."""


def _in_module(name: str) -> OpenUrl:
    """Return a function that calls open_url of a module, which is imported when it is needed."""

    def open_url(url: str, options: Options) -> tuple[Storage, str]:
        module = import_module(f"shardio.storage.{name}")
        found: tuple[Storage, str] = module.open_url(url, options)
        return found

    return open_url


STORAGES: Mapping[str, OpenUrl] = MappingProxyType(
    {
        "s3": _in_module("s3"),
        "http": _in_module("http"),
        "https": _in_module("http"),
        "hf": _in_module("hub"),
        **dict.fromkeys(("gs", "gcs", "az", "abfs", "abfss"), _in_module("fsspec")),
    }
)
"""What makes the storage of a URL, by scheme; local paths have none."""


def _find_storage(scheme: str) -> OpenUrl | None:
    """Return what makes the storage of a scheme's URLs, by the table or as fsspec knows it."""
    if scheme in STORAGES:
        return STORAGES[scheme]
    from shardio.storage.fsspec import is_known  # noqa: PLC0415  loads fsspec

    return _in_module("fsspec") if is_known(scheme) else None


_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_NO_FILE = (errno.EISDIR, errno.EINVAL)  # but something else; see LocalFiles.stat


@dataclass(frozen=True, slots=True)
class Location:
    """A file or folder of a storage.

    Attributes:
        storage: storage of the file.
        path: path of the file there.
    """

    storage: Storage
    path: str

    @property
    def name(self) -> str:
        """Last part of the path."""
        return posixpath.basename(self.path.rstrip("/"))

    @property
    def parent(self) -> Location:
        """Folder of the file."""
        return Location(self.storage, posixpath.dirname(self.path.rstrip("/")) or ".")

    @property
    def is_local(self) -> bool:
        """Whether it is on a local file system."""
        return self.storage == LOCAL

    @property
    def can_list(self) -> bool:
        """Whether the storage can list folders."""
        return bool(getattr(self.storage, "can_list", True))

    def for_writing(self) -> Location:
        """Return the same place, where files can be published.

        Raises:
            RemoteDenied: its storage is only read.
        """
        if not getattr(self.storage, "can_write", True):
            raise remote_error(read_only(self.path), self.path)
        return self

    def absolute(self) -> Location:
        """Return the same place by a path that does not depend on the current folder."""
        if not self.is_local:
            return self
        return Location(self.storage, str(Path(self.path).absolute()))

    def __truediv__(self, name: str) -> Location:
        folder = "" if self.path == "." else self.path.rstrip("/") + "/"
        return Location(self.storage, folder + name)

    def __str__(self) -> str:
        return self.path

    def __fspath__(self) -> str:
        """Return the path of a local file.

        Raises:
            UsageError: it is none.
        """
        if not self.is_local:
            raise SituationError(
                "only local files are read here", where=self, remedy="fetch them, and name the copy"
            )
        return self.path

    def names(self) -> list[str]:
        """List what is in the folder; see Storage.names."""
        return self.storage.names(self.path)

    def find(self) -> FileStat | None:
        """Measure the file; None if there is none.

        Raises:
            OSError: it is something else than a file, or the storage fails or refuses.
        """
        try:
            return self.storage.stat(self.path)
        except ValueError:  # a local path with a zero byte
            return None
        except OSError as error:
            if error.errno not in _ABSENT and not isinstance(error, FileNotFoundError):
                raise
            return None

    def is_file(self) -> bool:
        """Tell whether there is such a file."""
        try:
            return self.find() is not None
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            return False

    def exists(self) -> bool:
        """Tell whether there is such a file, or a local folder or device."""
        try:
            return self.find() is not None
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            return True

    def is_folder(self) -> bool:
        """Tell whether there is such a folder; where storage has none, whether files are in it.

        Where folders cannot be listed, there is none.
        """
        if self.is_local:
            return os.path.isdir(self.path)  # noqa: PTH112  text is enough
        return self.can_list and bool(self.names())

    def open(self, name: str | None = None) -> StoredFile:
        """Open the file; see Storage.open.

        Args:
            name: name of the file in errors; by default its path.
        """
        return self.storage.open(self.path, name or self.path)

    def copy_to(self, sink: Callable[[bytes | memoryview], object]) -> None:
        """Read the whole file, by one request where the storage takes some.

        Args:
            sink: takes the bytes in order, in pieces that it must not keep.

        Raises:
            ShardioError: the file was truncated while it was read.
            OSError: there is none, or the storage fails or refuses.
        """
        if isinstance(self.storage, RemoteStorage):
            self.storage.download(self.path, 0, None, None, sink)
            return
        file = self.open()
        for piece in StoredBytes(file).pieces(0, file.size):
            sink(piece)


def locate(
    path: str | os.PathLike[str] | Location,
    storage: Storage | None = None,
    options: Options | None = None,
) -> Location:
    """Return where a path or URL is.

    Args:
        path: path, URL or Location.
        storage: storage of the path; None chooses it by the scheme.
        options: options of a storage that the scheme chooses, by name.

    Raises:
        UsageError: the URL is of a scheme that no storage is for, storage is none, or an option
            is invalid.
    """
    if isinstance(path, Location):
        return path
    if not isinstance(storage, Storage | None):
        raise UsageError(
            "it must have the methods of shardio.Storage", where=argument("storage", storage)
        )
    if not isinstance(options, Mapping | None):
        raise UsageError("it must be a mapping", where=argument("storage_options"))
    text = os.fspath(path)
    if storage is not None and storage != LOCAL:
        return Location(storage, text.rstrip("/"))
    scheme, mark, _ = text.partition("://")
    open_url = _find_storage(scheme.lower()) if mark else None
    if open_url is not None:
        if without_secrets(text).startswith(f"{scheme}://…"):
            raise UsageError(
                "the URL is not valid",
                where=f"{scheme}://…",
                remedy="check its host and port, and write special characters of a password as %XX",
            )
        chosen, place = open_url(text, options or {})
        return Location(chosen, place.rstrip("/"))
    if not isinstance(path, Path):
        refuse_url(text)
    return Location(LOCAL, str(Path(text)))
