"""The protocol of storage: the files of shards, indexes and manifests, wherever they lie.

A storage lists, measures, opens, publishes and removes files by their paths. A path is a text as
users write it, a local path or a whole URL such as `s3://bucket/out/shard-000000.tar`; what is
below a folder is named by the folder's path, a slash, and a name. Nothing is ever changed in
place: a file is published whole or is absent, so that a reader sees all of it or none.

A storage is a value: it pickles, since worker processes and tasks get it, and equals another that
reaches the same files. Connections are made when they are needed, for each process anew. Locks are
none of its business; those of local folders are in shardio.packing.folder.

`shardio.testing.StorageContract` tests an implementation.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from shardio.checks import is_whole, require
from shardio.errors import ShardioError, TarError
from shardio.native.checksum import crc32

_PIECE = 1 << 20  # bytes of a file that are held at once


class FileStat(NamedTuple):
    """Size and version of a file, known without reading it.

    Attributes:
        size: size in bytes.
        version: text that differs when the contents do, as an ETag or a time of change.
        sha256: hexadecimal digest of the contents, where the storage knows it; else None.
    """

    size: int
    version: str
    sha256: str | None = None


class StoredFile(Protocol):
    """An open file; safe to read from several threads, and closed when nothing refers to it."""

    @property
    def name(self) -> str:
        """Name of the file in errors."""

    @property
    def size(self) -> int:
        """Size in bytes when it was opened."""

    @property
    def version(self) -> str:
        """Version when it was opened, see FileStat."""

    def read(self, offset: int, size: int, /) -> bytes:
        """Read the bytes [offset, offset + size), all of them.

        Raises:
            TarError: the range lies outside the file (see outside_error), the file ends before it
                does (see short_error), or another has taken its place.
            OSError: the storage fails.
        """

    def read_ahead(self, start: int, end: int, /) -> None:
        """Ask for the bytes [start, end) to be at hand soon; returns at once.

        Raises:
            OSError: the storage fails; whoever asks ignores that.
        """


@runtime_checkable
class Storage(Protocol):
    """A place for files; safe to use from several threads.

    One that cannot list folders has a further attribute, `can_list = False`. It is never asked for
    names, so that files which nothing refers to are not found. One that is only read has
    `can_write = False`: it is refused as an output before anything else is done.
    """

    def names(self, folder: str, /) -> list[str]:
        """List the files and folders in a folder.

        Returns:
            Their names, sorted by code points; none where there is no such folder. A folder whose
            files were all removed may still be among them.

        Raises:
            OSError: the storage fails or refuses.
        """

    def stat(self, path: str, /) -> FileStat:
        """Measure a file.

        Raises:
            FileNotFoundError: there is none.
            OSError: it is something else than a file, or the storage fails or refuses.
        """

    def open(self, path: str, name: str, /) -> StoredFile:
        """Open a file for reading.

        Args:
            path: path of the file.
            name: name of the file in errors.

        Raises:
            FileNotFoundError: there is none.
            TarError: it is something else than a file.
            OSError: the storage fails or refuses.
        """

    def publish(self, path: str, content: bytes | Path, /, *, only_if_absent: bool = False) -> None:
        """Put a file in its place, with the folders above it: whole and durable, or not at all.

        Args:
            path: path of the file.
            content: bytes of the file, or the local file that holds them.
            only_if_absent: leave a file that is there; of several that publish at once one wins.

        Raises:
            FileExistsError: a file is there, and only_if_absent is set.
            OSError: the storage fails or refuses, or the local file cannot be read.
        """

    def remove(self, path: str, /) -> None:
        """Remove a file, if it is there.

        Raises:
            OSError: the storage fails or refuses.
        """


class StoredBytes:
    """The bytes of an open file, each read when it is asked for.

    Args:
        file: open file.

    A slice is what it is of bytes; it raises ShardioError where the file was truncated since, and
    OSError where the storage fails.
    """

    def __init__(self, file: StoredFile) -> None:
        self._file = file

    def __len__(self) -> int:
        return self._file.size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(len(self))
        try:
            return self._file.read(start, max(stop - start, 0))
        except TarError as error:  # nothing that is wrong with the tar
            raise truncated_error(self._file.name, len(self), error.offset) from error

    def crc32(self, start: int, size: int) -> int:
        """Return the CRC-32 of some of the bytes."""
        checksum = 0
        for piece in self.pieces(start, start + size):
            checksum = crc32(piece, checksum)
        return checksum

    def sha256(self) -> str:
        """Return the hexadecimal digest of all bytes."""
        digest = hashlib.sha256()
        for piece in self.pieces(0, len(self)):
            digest.update(piece)
        return digest.hexdigest()

    def find(self, text: bytes, start: int) -> int:
        """Find a text of a few bytes at or after an offset; -1 if it does not occur."""
        for first in range(start, len(self), _PIECE):
            at = self[first : first + _PIECE + len(text) - 1].find(text)
            if at >= 0:
                return first + at
        return -1

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes [start, end) in order, some at a time."""
        for first in range(start, end, _PIECE):
            yield self[first : min(first + _PIECE, end)]


def restore(shards: str = "the shard") -> str:
    """Return the advice for shards that are lost or damaged; no folder is packed a second time."""
    return (
        f"restore {shards}, or pack the same samples into a new folder and copy {shards} from there"
    )


def truncated_error(name: str, size: int, offset: int | None) -> ShardioError:
    """Make the error of a file that is shorter than it was when it was opened.

    Args:
        name: name of the file in errors.
        size: size in bytes when it was opened.
        offset: place of the bytes that are missing.
    """
    return ShardioError(
        f"the file was truncated while it was read: it had {size} bytes",
        where=name,
        remedy=restore(),
        shard=name,
        offset=offset,
    )


def outside_error(file: StoredFile, offset: int, size: int) -> TarError:
    """Make the error of a range that does not lie in a file."""
    return TarError(
        f"{size} bytes at offset {offset} lie outside the shard of {file.size} "
        "bytes, so its index was changed while it was read",
        where=file.name,
        remedy="open the dataset again, or run `shardio index` on the folder of the shard",
        shard=file.name,
        offset=offset,
    )


def short_error(file: StoredFile, offset: int, size: int, found: int) -> TarError:
    """Make the error of a file that ends before a range of it does.

    Args:
        file: open file.
        offset: first byte of the range.
        size: size of the range in bytes.
        found: number of bytes that are there.
    """
    return TarError(
        f"the file ends at byte {offset + found}, inside a member of {size} "
        f"bytes at offset {offset}, so it was truncated after it was indexed",
        where=file.name,
        remedy=restore(),
        shard=file.name,
        offset=offset,
    )


_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]?)(i?)B?", re.IGNORECASE)


def size_in_bytes(name: str, value: Any) -> int:
    """Check a size: a whole number of bytes, or a text as 512MB or 1.5GiB.

    Raises:
        UsageError: the value is neither.
    """
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is not None:
        number, unit, binary = found.groups()
        step = 1024 if binary else 1000
        return int(float(number) * step ** " KMGT".index(unit.upper() or " "))
    require(is_whole(value, least=0), name, value, "bytes, at least 0, or a size as 512MB or 1GiB")
    return int(value)
