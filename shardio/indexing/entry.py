"""One shard of a dataset: where it lies, what its index must say, and how both are opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass

from shardio.errors import IndexFileError, TarError
from shardio.indexing.shard_index import ShardIndex, fetch_index, read_index
from shardio.storage.base import FileStat, Storage, StoredBytes, StoredFile, restore
from shardio.storage.downloads import ComingShard, Downloads, RemoteShard
from shardio.storage.local import LOCAL, FileBytes
from shardio.storage.location import Location
from shardio.storage.remote import RemoteFile, RemoteStorage
from shardio.storage.shard_cache import ShardCache
from shardio.storage.temporary import local_copy


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One shard of a dataset.

    Attributes:
        name: path as the user knows it; errors use it.
        path: path of the uncompressed tar, absolute if it is local.
        index: path of its index file, likewise.
        storage: storage of both.
        samples: number of samples.
        size: bytes of the uncompressed tar.
        contents: hexadecimal digest of it, or of its index where nobody has read it whole.
        sha256: hexadecimal digest of the tar, where a manifest records it.
        stored: size of the compressed object of a store; None for a plain tar.
        version: version of the tar when it was indexed, see shardio.storage.base.FileStat; None
            where checksums of the data tell.
    """

    name: str
    path: str
    index: str
    samples: int
    size: int
    contents: str
    version: str | None = None
    storage: Storage = LOCAL
    sha256: str | None = None
    stored: int | None = None

    @property
    def remote(self) -> RemoteShard | None:
        """The shard as one of a store, whose shards are fetched; None for any other."""
        if not isinstance(self.storage, RemoteStorage):
            return None
        return RemoteShard(
            storage=self.storage,
            path=self.path,
            name=self.name,
            size=self.size,
            sha256=self.sha256,
            version=self.version,
            stored=self.stored,
        )

    def load_index(self) -> ShardIndex:
        """Map the shard's index, which is fetched if the shard is one of a store.

        Raises:
            IndexFileError: it is missing, damaged, or of another shard.
        """
        remote = self.remote
        if remote is None:
            return self._check(read_index(Location(self.storage, self.index)))
        cache, there = remote.cache, Location(self.storage, self.index)
        with suppress(IndexFileError, OSError):
            return self._check(read_index(cache.index_path(remote)))
        try:
            index, content = self._fetch_index(there)
        except FileNotFoundError as error:
            raise IndexFileError(
                "the index is neither beside the shard nor in the cache",
                where=self.name,
                remedy="open the dataset again, or run `shardio index` on the shard",
            ) from error
        with suppress(IndexFileError, OSError):  # the cache may be full, or vanish
            return self._check(read_index(cache.store_index(remote, content)))
        return index

    def _fetch_index(self, there: Location) -> tuple[ShardIndex, bytes]:
        """Fetch the index, anew if it comes damaged; nothing else gets into the cache."""
        with suppress(IndexFileError):
            index, content = fetch_index(there, self.size)
            return self._check(index), content
        index, content = fetch_index(there, self.size)
        return self._check(index), content

    def _check(self, index: ShardIndex) -> ShardIndex:
        """Return an index that is of this shard.

        Raises:
            IndexFileError: it is of another.
        """
        samples = len(index)
        if index.shard_size != self.size or samples != self.samples:
            raise IndexFileError(
                f"the index is stale: it describes {samples} samples in "
                f"{index.shard_size} bytes, expected {self.samples} in {self.size}",
                where=self.name,
                remedy="run `shardio index` on the folder of the shard",
            )
        if self.version is None and index.checksums is None:
            raise IndexFileError(
                "the index has no checksums, which that of a packed shard has",
                where=self.name,
                remedy="run `shardio index` on the folder of the shard",
            )
        if self.contents != (index.contents() if self.sha256 else index.layout()):
            raise IndexFileError(
                "the index is of other contents: the shard was changed after the dataset "
                "was opened",
                where=self.name,
                remedy="open it again, or run `shardio index`",
            )
        return index

    def open_file(self) -> StoredFile:
        """Open the shard's file.

        Raises:
            TarError: it is missing, or not the file that was indexed.
            OSError: it cannot be opened.
        """
        try:
            file = self.storage.open(self.path, self.name)
        except FileNotFoundError as error:
            raise self._missing() from error
        self._compare(file.size, file.version)
        return file

    def open_source(self) -> StoredFile:
        """Open what reads the uncompressed shard from front to back, each byte once.

        A shard of a store is read from the cache if it is there. Otherwise it is read from the
        store, which is asked for nothing yet, and is not kept; a compressed one is fetched into the
        cache.

        Raises:
            TarError: a shard that is no store's is missing, or not the file that was indexed.
            UsageError: the cache cannot be used, or has no room for a compressed shard.
            OSError: it cannot be opened or fetched.
        """
        remote = self.remote
        if remote is None:
            return self.open_file()
        if remote.stored is not None:
            return _fetch(remote)
        return remote.cache.open(remote, self.name) or _in_store(remote)

    @contextmanager
    def data(self) -> Iterator[StoredBytes]:
        """Give the bytes of the uncompressed shard, to be read in any order.

        A shard of a store that is not in the cache is copied to the temporary directory.

        Raises:
            ShardioError: there is no space for a copy; see also open_source.
            OSError: see open_source.
        """
        file = self.open_source()
        if not isinstance(file, RemoteFile):
            yield StoredBytes(file)
            return
        with local_copy(file.copy_to) as copy:
            yield FileBytes(copy, self.name)

    def verify_unchanged(self) -> None:
        """Compare the file that lies at the path now, where checksums do not tell.

        Raises:
            TarError: it is missing, or not the file that was indexed.
            OSError: it cannot be looked at.
        """
        if self.version is None or self.remote is not None:  # each answer of a store is compared
            return
        try:
            found = self.storage.stat(self.path)
        except FileNotFoundError as error:
            raise self._missing() from error
        self._compare(found.size, found.version)

    def _missing(self) -> TarError:
        return TarError(
            "the shard is missing",
            where=self.name,
            remedy=restore(),
            shard=self.name,
        )

    def _compare(self, size: int, version: str) -> None:
        if size != self.size:
            raise TarError(
                f"the shard has {size} bytes, its index expects {self.size}, so it was changed or "
                "truncated",
                where=self.name,
                remedy=f"{restore()}, or run `shardio index` on its folder if it is whole",
                shard=self.name,
            )
        if self.version not in (None, version):
            raise TarError(
                "the shard was changed after the dataset was opened",
                where=self.name,
                remedy="open it again",
                shard=self.name,
            )


@dataclass(frozen=True, slots=True)
class KeptShard:
    """A shard of a store that is fetched into the cache where it is read, in any order.

    Attributes:
        remote: the shard.
    """

    remote: RemoteShard

    def open_source(self) -> StoredFile:
        """Open the shard in the cache, to which one process of the machine fetches it.

        Raises:
            TarError: it is not what was packed.
            UsageError: the cache cannot be used.
            RemoteError: the store fails or refuses.
        """
        return _fetch(self.remote)


def keep_shards(entries: Iterable[ShardEntry]) -> list[ShardEntry | KeptShard]:
    """Have shards of stores kept where they are read, if the caches have room for all of them."""
    shards = [*entries]
    remotes = [each.remote for each in shards]
    room: Counter[ShardCache] = Counter()
    for each in remotes:
        if each is not None:
            room[each.cache] += each.size
    fits = all(size <= cache.limit for cache, size in room.items())
    return [
        KeptShard(remote) if fits and remote is not None else shard
        for shard, remote in zip(shards, remotes, strict=True)
    ]


def _fetch(remote: RemoteShard) -> StoredFile:
    """Open a shard in the cache, once it is there; without room, one that is read by ranges."""
    with closing(Downloads()) as downloads:
        downloads.want([remote], lambda _: None)
        file: StoredFile | None = downloads.open(remote)
        if isinstance(file, ComingShard):
            coming, file = file, file.wait_for_all()
            if file is None and remote.stored is not None:
                coming.read(0, 1)  # says that there is no room
    return remote.cache.open(remote, remote.name) or file or _in_store(remote)


def _in_store(remote: RemoteShard) -> RemoteFile:
    """Return what reads a shard from its store, which is asked for nothing yet."""
    stat = FileStat(remote.size, remote.version or "")
    return RemoteFile(remote.storage, remote.path, remote.name, stat)
