"""The cache folder: what is derived from a user's file and can be derived again.

An entry is named after the file's absolute path, inode, size and times, so a changed file gets a
new entry: the time of its last change of any kind (ctime) tells a file that was rewritten and
given its old modification time, as rsync and tar do. The folder is $SHARDIO_CACHE, else
$XDG_CACHE_HOME/shardio, else ~/.cache/shardio; where that is not this user's own, the subfolder
`shardio-<uid>` of it (see private). What is found there is believed only if it is a file of this
user that nobody else may write to; a link, or a file of anybody else, is an error and stays.

Processes that miss the same entry at once each make it; the last one stays, the same as the first.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from shardio.errors import SituationError, TarError
from shardio.storage.atomic import atomic_file
from shardio.storage.compression import Expansion
from shardio.storage.local import refuse_url
from shardio.storage.private import entry_fault, own_folder

GZIP_SUFFIXES = (".tar.gz", ".tgz")
_CHUNK = 1 << 20


def cache_entry(source: Path, suffix: str) -> Path:
    """Return the path of the cache entry that belongs to a file; its folder exists afterwards.

    Raises:
        UsageError: the cache folder cannot be used, or the entry is there and not this user's.
    """
    status = source.stat()
    parts = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    identity = "\0".join([str(source.resolve()), *map(str, parts)])
    digest = hashlib.sha256(os.fsencode(identity)).hexdigest()[:32]
    wanted = _cache_folder()
    try:
        folder = own_folder(wanted)
    except OSError as error:
        raise _unusable(error.filename or wanted, error) from error
    entry = folder / f"{digest}{suffix}"
    if fault := entry_fault(entry):
        raise SituationError(
            f"{entry}: this entry of the cache is not believed, since {fault}; remove it, or set "
            "SHARDIO_CACHE to a folder of your own"
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
        TarError: a gzip shard that is damaged, cut off, or larger inside than is believable.
        UsageError: the copy cannot be kept in the cache folder.
        OSError: the shard cannot be read.
    """
    if not shard.name.endswith(GZIP_SUFFIXES):
        return shard
    copy = cache_entry(shard, ".tar")
    if copy.exists():
        return copy
    with new_entry(copy) as plain:
        limits = Expansion(shard, plain.fileno())
        for piece in _decompressed(shard):
            if fault := limits.grow(len(piece)):
                raise TarError(f"{shard}: {fault}", shard=str(shard))
            plain.write(piece)
    return copy


def _decompressed(shard: Path) -> Iterator[bytes]:
    try:
        with gzip.open(shard) as packed:
            while piece := packed.read(_CHUNK):
                yield piece
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TarError(
            f"{shard}: the gzip data is damaged or cut off ({error}); get or make the shard again",
            shard=str(shard),
        ) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(shard)) from error


def _cache_folder() -> Path:
    if own := os.environ.get("SHARDIO_CACHE"):
        refuse_url(own)
        return Path(own)
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:  # a user without a name or a home
        raise SituationError(
            "this user has no home folder; set SHARDIO_CACHE to a folder"
        ) from error
    return Path(base) / "shardio"


def _unusable(folder: Path | str, error: OSError) -> SituationError:
    return SituationError(
        f"{folder}: the cache folder cannot be used ({error.strerror}); set SHARDIO_CACHE to a "
        "folder of your own with free space"
    )
