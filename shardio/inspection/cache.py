"""The cache of shards of stores, as its user sees it: what is in it, and how to make room.

Listed are the shards of stores and their indexes, as shardio.storage.shard_cache keeps them. Only
what is listed is removed; a dataset that is being read fetches again what it misses. The indexes
of local shards, which the cache folder has too, stay.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shardio.errors import SituationError
from shardio.storage.base import size_in_bytes
from shardio.storage.local import refuse_url
from shardio.storage.shard_cache import Entry, ShardCache


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """A file of the cache.

    Attributes:
        path: path of the file.
        bytes: size in bytes; of a shard that comes that of the whole.
        used: time of the last use, in seconds since 1970.
        state: "shard" or "index" if it is whole, "coming" if a process fetches it, "left" if a
            process was killed while it did.
        url: URL of the shard without secrets, where it came from first; None where the file system
            does not keep it.
    """

    path: str
    bytes: int
    used: float
    state: str
    url: str | None


@dataclass(frozen=True, kw_only=True)
class CacheContents:
    """What the cache holds.

    Attributes:
        folder: folder of the cache.
        limit: bytes that it may take where no cache_limit is given, of the space that is free now.
        shards: number of whole shards.
        bytes: bytes of all entries.
        entries: all files, by URL; those of unknown URLs come last, the last used first.
    """

    folder: str
    limit: int
    shards: int
    bytes: int
    entries: tuple[CacheEntry, ...]


@dataclass(frozen=True, kw_only=True)
class CacheRemoval:
    """What was removed from the cache.

    Attributes:
        folder: folder of the cache.
        removed: files that were removed, in that order.
        bytes: bytes of them.
        kept: bytes of all that stays.
    """

    folder: str
    removed: tuple[CacheEntry, ...]
    bytes: int
    kept: int


def list_cache(*, cache_dir: str | os.PathLike[str] | None = None) -> CacheContents:
    """List the shards of stores in the cache.

    Args:
        cache_dir: cache folder, by default the usual one.

    Raises:
        UsageError: the folder is missing or cannot be used.
    """
    cache = _open(cache_dir)
    entries = _described(sorted(cache.entries(), key=_by_url))
    return CacheContents(
        folder=str(cache.folder),
        limit=cache.limit,
        shards=sum(entry.state == "shard" for entry in entries),
        bytes=sum(entry.bytes for entry in entries),
        entries=entries,
    )


def prune_cache(
    limit: int | str | None = None, *, cache_dir: str | os.PathLike[str] | None = None
) -> CacheRemoval:
    """Remove from the cache what killed processes left, then what nobody has used longest.

    Args:
        limit: bytes that may stay, or a size such as "100GB"; by default all.
        cache_dir: cache folder, by default the usual one.

    Raises:
        UsageError: the limit is not a size, or the folder is missing or cannot be used.
        OSError: the folder cannot be written.
    """
    most = None if limit is None else size_in_bytes("limit", limit)
    cache = _open(cache_dir)
    removed = _described(cache.prune(most))
    return CacheRemoval(
        folder=str(cache.folder),
        removed=removed,
        bytes=sum(entry.bytes for entry in removed),
        kept=sum(entry.size for entry in cache.entries()),
    )


def clear_cache(*, cache_dir: str | os.PathLike[str] | None = None) -> CacheRemoval:
    """Remove all shards of stores from the cache, except those that are being fetched.

    Args:
        cache_dir: cache folder, by default the usual one.

    Raises:
        UsageError: the folder is missing or cannot be used.
        OSError: the folder cannot be written.
    """
    return prune_cache(0, cache_dir=cache_dir)


def _open(cache_dir: str | os.PathLike[str] | None) -> ShardCache:
    if cache_dir is not None:
        refuse_url(cache_dir)
    folder = None if cache_dir is None else Path(cache_dir)
    if folder is not None and not folder.is_dir():
        raise SituationError("there is no such folder", where=folder, remedy="check the path")
    return ShardCache(folder, None)


def _by_url(entry: Entry) -> tuple[bool, str, float]:
    return entry.url is None, entry.url or "", -entry.used


def _described(entries: Sequence[Entry]) -> tuple[CacheEntry, ...]:
    return tuple(
        CacheEntry(
            path=str(entry.path),
            bytes=entry.size,
            used=entry.used,
            state=entry.state,
            url=entry.url,
        )
        for entry in entries
    )
