"""Shards that others made: their indexes are found, or made on first use and kept.

Local shards answer from their index beside them, or from one that is built by a header scan on
first use and kept in the cache folder, so that later processes map it instead of scanning again. An
index in the cache that does not read is built again; one beside its shard is the user's, and an
error. What has no checksums of its data must not change between the scan and the reading: its size
and time of change are compared when it is opened and when a window begins, its headers at each
reading. Inode and ctime are not: chmod, or a copy that keeps the time of change, leaves the same
shard.

Shards of a store are read whole to be indexed, once for each version of the object (its ETag),
while they are fetched into the cache, where the first epoch finds them. Compressed ones are kept
there as plain tars. `shardio.index` writes the indexes beside them.

What identifies such shards in states is the digest of their index, which does not depend on who
made the index, or where the shards lie.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

from shardio.errors import IndexFileError, SituationError, counted
from shardio.indexing.entry import ShardEntry
from shardio.indexing.manifest import INDEX_SUFFIX, index_path
from shardio.indexing.parts import find_shards, find_stored, is_packed
from shardio.indexing.scan import index_shard
from shardio.indexing.shard_index import ShardIndex, encode_index, read_index
from shardio.processes import in_threads
from shardio.storage.base import StoredBytes, StoredFile
from shardio.storage.cache import cache_entry, new_entry, plain_tar
from shardio.storage.compression import LONGEST_MAGIC, Compression, compression_of, unpack
from shardio.storage.downloads import ComingShard, Downloads, RemoteShard
from shardio.storage.local import LOCAL, FileBytes
from shardio.storage.location import Location
from shardio.storage.remote import RemoteStorage
from shardio.storage.shard_cache import Part

_LOG = logging.getLogger("shardio")
_AT_ONCE = 16  # shards of a store that are indexed at once
_WORTH_SAYING = 1 << 30  # bytes that are fetched to be indexed


class ForeignShard(NamedTuple):
    """A shard that another program made, or one named alone.

    Attributes:
        entry: entry of the catalog.
        folder: folder of the shard.
        fields: names of its fields.
        rare_fields: names of those that few samples have.
        has_end: whether it has an end-of-archive mark, or was read whole.
    """

    entry: ShardEntry
    folder: Location
    fields: tuple[str, ...]
    rare_fields: set[str]
    has_end: bool


def open_local(part: Path) -> list[ForeignShard]:
    """Open the local shards of one part of a source.

    Raises:
        UsageError: nothing is there, or something else than files.
        IndexFileError: an index beside a shard is damaged or stale, or a pack is unfinished.
        TarError: a shard without index is damaged.
    """
    found: list[ForeignShard] = []
    for shard in find_shards(part):
        plain = plain_tar(shard)
        version = LOCAL.stat(str(plain)).version  # before the scan: a change meanwhile is noticed
        path, index = _index_of(shard, plain)
        entry = ShardEntry(
            name=str(shard),
            path=str(plain.absolute()),
            index=str(path.absolute()),
            samples=len(index),
            size=index.shard_size,
            contents=index.layout(),
            version=None if index.checksums is not None else version,
        )
        found.append(_foreign(entry, Location(LOCAL, str(shard.parent)), index))
    return found


def _foreign(entry: ShardEntry, folder: Location, index: ShardIndex) -> ForeignShard:
    has_end = index.has_end or index.shard_sha256 is not None
    return ForeignShard(entry, folder, index.fields, index.rare_fields(), has_end)


def _index_of(shard: Path, plain: Path) -> tuple[Path, ShardIndex]:
    beside = index_path(shard)
    if beside.exists():
        index = read_index(beside)
        _refuse_stale(shard, index, plain.stat().st_size)
        if index.verifies:
            return beside, index
    cached = cache_entry(plain, INDEX_SUFFIX)
    with suppress(IndexFileError):
        index = read_index(cached)
        if index.verifies:
            return cached, index
    index = index_shard(plain, name=str(shard), checksums=False, allow_empty=True)
    with new_entry(cached) as stream:
        stream.writelines(encode_index(index))
    return cached, read_index(cached)


def _refuse_stale(shard: Path | Location, index: ShardIndex, size: int) -> None:
    """Raise IndexFileError unless an index describes the bytes of an uncompressed shard."""
    if index.shard_size != size:
        raise IndexFileError(
            f"the index is stale: it describes {index.shard_size} bytes, the shard has {size}",
            where=shard,
            remedy="run `shardio index` on the shard",
        )


def open_stored(parts: Sequence[Location]) -> list[list[ForeignShard]]:
    """Open the shards of parts of a source that are in stores, those of each part in order.

    Raises:
        UsageError: nothing is there, or the cache has no room for a compressed shard.
        IndexFileError: a pack is unfinished.
        TarError: a shard is damaged.
        OSError: the store fails or refuses.
    """
    found = in_threads(_find, parts)
    stored = in_threads(_StoredShard, [shard for some in found for shard in some])
    missing = [shard for shard in stored if shard.cached() is None]
    _say_what_is_fetched(missing)
    for first in range(0, len(missing), _AT_ONCE):
        some = missing[first : first + _AT_ONCE]
        raw = some[0].raw
        with raw.cache.alone(raw.storage.patience), closing(Downloads()) as downloads:
            some = [shard for shard in some if shard.cached() is None]  # by another process
            downloads.want([shard.raw for shard in some], lambda _: None)
            in_threads(partial(_StoredShard.make, downloads=downloads), some, _AT_ONCE)
    opened = iter([shard.opened() for shard in stored])
    return [[*islice(opened, len(some))] for some in found]


def _find(part: Location) -> list[Location]:
    shards = find_stored(part)
    if not isinstance(part.storage, RemoteStorage):
        raise SituationError(
            "no packed folder is there (it has no shardio.json)",
            where=part,
            remedy="download the shards; from a storage of your own only packed folders are read",
        )
    return shards


def publish_stored(parts: Sequence[Location]) -> list[ForeignShard]:
    """Write the indexes of the shards of parts of a source beside them, in their stores.

    Raises:
        IndexFileError: a manifest describes the shards, which have indexes then.
        UsageError, TarError, OSError: see open_stored.
    """
    if part := next(filter(is_packed, parts), None):
        raise IndexFileError(
            "a packed folder of a store has its indexes, and is not indexed anew there",
            where=part,
            remedy="check it with `shardio verify`, or pack it again",
        )
    found = [shard for some in open_stored(parts) for shard in some]
    for shard in found:
        data = b"".join(encode_index(shard.entry.load_index()))
        shard.entry.storage.publish(shard.entry.index, data)
    return found


def _say_what_is_fetched(shards: Sequence[_StoredShard]) -> None:
    size = sum(shard.raw.size for shard in shards)
    if size > _WORTH_SAYING:
        _LOG.warning(
            "%s: %s without index (%.1f GB) are fetched to be indexed, once; `shardio index` on "
            "them writes the indexes beside them",
            shards[0].raw.name.rpartition("/")[0],
            counted(len(shards), "shard"),
            size / 1e9,
        )


class _StoredShard:
    """A shard of a store that another program made.

    Args:
        shard: the shard.

    Attributes:
        raw: the object as it is stored.
    """

    def __init__(self, shard: Location) -> None:
        assert isinstance(shard.storage, RemoteStorage)  # noqa: S101  open_stored checks it
        stat = shard.storage.stat(shard.path)
        self._shard = shard
        self.raw = RemoteShard(
            storage=shard.storage,
            path=shard.path,
            name=str(shard),
            size=stat.size,
            sha256=None,
            version=stat.version,
        )

    def cached(self) -> tuple[RemoteShard, ShardIndex] | None:
        """Return the plain tar and its index; None if the index is not in the cache."""
        for shard in (self.raw, replace(self.raw, stored=self.raw.size)):
            with suppress(IndexFileError):
                index = read_index(shard.cache.index_path(shard))
                if index.verifies and (shard.stored or index.shard_size == self.raw.size):
                    return replace(shard, size=index.shard_size), index
        return None

    def opened(self) -> ForeignShard:
        """Return the shard, whose index is in the cache.

        Raises:
            IndexFileError: it has just been removed.
        """
        found = self.cached()
        if found is None:
            raise IndexFileError(
                "the index was removed from the cache", where=self._shard, remedy="try again"
            )
        shard, index = found
        entry = ShardEntry(
            name=shard.name,
            path=shard.path,
            index=str(index_path(self._shard)),
            samples=len(index),
            size=index.shard_size,
            contents=index.layout(),
            version=shard.version,
            storage=shard.storage,
            stored=shard.stored,
        )
        return _foreign(entry, self._shard.parent, index)

    def make(self, downloads: Downloads) -> None:
        """Put the index into the cache: the one beside the shard, or a new one.

        Args:
            downloads: fetches the object.
        """
        file = downloads.open(self.raw)
        head = file.read(0, min(self.raw.size, LONGEST_MAGIC))
        compression = compression_of(head)
        index = self._index_beside(compression)
        shard = self.raw if compression is None else replace(self.raw, stored=self.raw.size)
        if compression is not None:
            if isinstance(file, ComingShard):
                file = file.wait_for_all() or file
            try:
                index = self._unpack(shard, file, index)
            except BaseException:  # whatever it is, half a shard must not stay in the cache
                shard.cache.discard(self.raw)
                raise
        elif index is None:
            data = StoredBytes(file)
            index = index_shard(data, name=shard.name, checksums=True, allow_empty=True)
        shard.cache.store_index(shard, b"".join(encode_index(index)))

    def _index_beside(self, compression: Compression | None) -> ShardIndex | None:
        beside = index_path(self._shard)
        if beside.find() is None:
            return None
        size = self.raw.size if compression is None else None
        index = read_index(beside, shard_size=size)
        if compression is None:
            _refuse_stale(self._shard, index, self.raw.size)
        return index if index.verifies else None

    def _unpack(
        self,
        shard: RemoteShard,
        file: StoredFile,
        index: ShardIndex | None,
    ) -> ShardIndex:
        """Keep the plain tar of a compressed object in its place, and return its index."""
        cache = shard.cache
        packed = StoredBytes(file)

        def copy_to(sink: Callable[[bytes], object]) -> None:
            for piece in packed.pieces(0, len(packed)):
                sink(piece)

        with TemporaryFile(dir=cache.folder) as plain:
            unpack(copy_to, plain, folder=cache.folder, name=shard.name)
            plain.flush()
            data = FileBytes(plain, shard.name)
            if index is None:
                index = index_shard(data, name=shard.name, checksums=True, allow_empty=True)
            else:
                _refuse_stale(self._shard, index, len(data))
            cache.discard(self.raw)
            part = cache.claim(replace(shard, size=len(data)), lambda _: None)
            if isinstance(part, Part):
                with closing(part):
                    for piece in data.pieces(0, len(data)):
                        part.write(memoryview(piece))
                    part.commit()
        return index
