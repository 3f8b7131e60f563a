"""The cache folder: what is derived from a user's file and can be derived again.

An entry is named after the file's absolute path, inode, size and times, so a changed file gets a
new entry: the time of its last change of any kind (ctime) tells a file that was rewritten and
given its old modification time, as rsync and tar do. The folder is $SHARDIO_CACHE, else
$XDG_CACHE_HOME/shardio, else ~/.cache/shardio.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tempfile
import zlib
from pathlib import Path

from shardio.errors import TarError, UsageError
from shardio.storage.atomic import atomic_file
from shardio.storage.local import refuse_url

GZIP_SUFFIXES = (".tar.gz", ".tgz")
_CHUNK = 1 << 20


def cache_entry(source: Path, suffix: str) -> Path:
    """The path of the cache entry that belongs to a file; its folder exists afterwards.

    Raises:
        UsageError: the cache folder cannot be written.
    """
    status = source.stat()
    parts = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    identity = "\0".join([str(source.resolve()), *map(str, parts)])
    digest = hashlib.sha256(os.fsencode(identity)).hexdigest()[:32]
    folder = _cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UsageError(
            f"{folder}: the cache folder cannot be written ({error.strerror}); "
            "set SHARDIO_CACHE to a folder that can"
        ) from error
    return folder / f"{digest}{suffix}"


def plain_tar(shard: Path) -> Path:
    """The uncompressed tar of a shard: the shard itself, or a copy in the cache folder.

    Raises:
        TarError: a gzip shard that is damaged or cut off.
    """
    if not shard.name.endswith(GZIP_SUFFIXES):
        return shard
    copy = cache_entry(shard, ".tar")
    if copy.exists():
        return copy
    try:
        with gzip.open(shard) as packed, atomic_file(copy) as plain:
            shutil.copyfileobj(packed, plain, _CHUNK)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TarError(
            f"{shard}: the gzip data is damaged or cut off ({error}); get or make the shard again",
            shard=str(shard),
        ) from error
    return copy


def _cache_folder() -> Path:
    if own := os.environ.get("SHARDIO_CACHE"):
        refuse_url(own)
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "shardio"
