"""The cache folder: what is derived from a user's file and can be derived again.

An entry is named after the file's absolute path, inode, size and times, so a changed file gets a
new entry: the time of its last change of any kind (ctime) tells a file that was rewritten and
given its old modification time, as rsync and tar do. The folder is $SHARDIO_CACHE, else
$XDG_CACHE_HOME/shardio, else ~/.cache/shardio; where that is not this user's own, the subfolder
`shardio-<uid>` of it (see private). Where no folder was named and the usual one cannot be used, as
in a home that cannot be written, new entries go to the temporary directory, and a warning says so.
What is found there is believed only if it is a file of this user that nobody else may write to; a
link, or a file of anybody else, is an error and stays.

Processes that miss the same entry at once each make it; the last one stays, the same as the first.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from shardio.errors import SituationError, argument
from shardio.storage.compression import decompress, find_compression
from shardio.storage.folder import atomic_file
from shardio.storage.local import refuse_url
from shardio.storage.private import entry_fault, own_folder, own_subfolder

_LOG = logging.getLogger("shardio")
_warned: list[Path] = []
"""The folder that is used in place of the usual one, once this process has said so."""


def cache_entry(source: Path, suffix: str) -> Path:
    """Return the path of the cache entry that belongs to a file; its folder exists afterwards.

    Raises:
        UsageError: the cache folder cannot be used, or the entry is there and not this user's.
    """
    status = source.stat()
    parts = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    identity = "\0".join([str(source.resolve()), *map(str, parts)])
    digest = hashlib.sha256(os.fsencode(identity)).hexdigest()[:32]
    entry = cache_folder(f"{digest}{suffix}") / f"{digest}{suffix}"
    if fault := entry_fault(entry):
        raise SituationError(
            f"this entry of the cache is not believed, since {fault}",
            where=entry,
            remedy="remove it, or set SHARDIO_CACHE to a folder of your own",
        )
    return entry


@contextmanager
def new_entry(entry: Path) -> Iterator[BinaryIO]:
    """Write a cache entry; it appears when it is whole, readable by this user only.

    Raises:
        UsageError: the cache folder cannot be written, or is full.
    """
    try:
        with atomic_file(entry) as stream:
            os.fchmod(stream.fileno(), 0o600)
            yield stream
    except OSError as error:
        if error.filename not in (None, str(entry)):  # of what is read meanwhile
            raise
        raise _unusable(entry.parent, error) from error


def plain_tar(shard: Path) -> Path:
    """Return the uncompressed tar of a shard: the shard itself, or a copy in the cache folder.

    Raises:
        TarError: a compressed shard is damaged, truncated, or larger inside than is believable.
        UsageError: the copy cannot be kept in the cache folder, or the library that decompresses
            the shard is not installed.
        OSError: the shard cannot be read.
    """
    compression = find_compression(shard)
    if compression is None:
        return shard
    copy = cache_entry(shard, ".tar")
    if not copy.exists():
        with new_entry(copy) as plain:
            decompress(shard, compression, plain)
    return copy


def fallback_folder() -> Path | None:
    """Return the folder that this process uses in place of the usual one, if it does."""
    return next(iter(_warned), None)


def cache_folder(name: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder that has an entry, or that a new one can be written to.

    Args:
        name: name of the entry.
        folder: folder that the user named; None for the usual one.

    Raises:
        UsageError: the folder cannot be used.
    """
    if named := os.fspath(folder or os.environ.get("SHARDIO_CACHE", "")):
        refuse_url(named)
        try:
            return own_folder(Path(named))
        except OSError as error:
            raise _unusable(error.filename or named, error) from error
    try:
        return _usual_folder(name)
    except OSError as error:
        try:
            folder = own_subfolder(Path(tempfile.gettempdir()))
        except OSError:
            raise _unusable(error.filename, error) from error
        if not _warned:
            _warned.append(folder)
            _LOG.warning(
                "%s: the cache folder cannot be used (%s), so indexes of tars are kept in %s; set "
                "SHARDIO_CACHE to a folder of your own",
                error.filename,
                error.strerror,
                folder,
            )
        return folder


def _usual_folder(name: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = own_folder((Path(base) if base else Path.home() / ".cache") / "shardio")
    except RuntimeError as error:  # a user without a name or a home
        raise OSError(errno.ENOENT, "this user has no home folder", "~/.cache") from error
    if not (os.access(folder, os.W_OK) or os.path.lexists(folder / name)):
        raise OSError(errno.EROFS, "it cannot be written", str(folder))
    return folder


def _unusable(folder: Path | str, error: OSError) -> SituationError:
    return SituationError(
        f"the cache folder cannot be used ({error.strerror})",
        where=folder,
        remedy=f"set SHARDIO_CACHE or {argument('cache_dir')} to a folder of your own with free "
        "space",
    )
