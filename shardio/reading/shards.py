"""The shards that a reader has open, and the bytes of a field in them.

Of at most `_MOST_OPEN` shards the files are open at once, and of `_MOST_MAPPED` the indexes are
mapped; the least recently used go first. An index is checked whole when it is mapped, so it
stays when its file is closed.
"""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from typing import NamedTuple

from shardio.errors import SampleError, TarError
from shardio.index.catalog import ShardEntry
from shardio.index.shard_index import ShardIndex
from shardio.storage.local import LocalShard

_MOST_OPEN = 64
_MOST_MAPPED = 128  # Python's mmap keeps a descriptor, of which a process often has 1,024


class FieldBytes(NamedTuple):
    """One field of one sample, as stored."""

    field: str
    data: bytes


class OpenShard:
    """A shard file with its index; the file may be closed and opened again.

    Args:
        entry: of the catalog.

    Raises:
        IndexFileError: the index is missing or does not fit the shard.
    """

    def __init__(self, entry: ShardEntry) -> None:
        self.name = entry.name
        self.index: ShardIndex = entry.load_index()
        self._entry = entry
        self._columns = {name: column for column, name in enumerate(self.index.fields)}
        self._kept: LocalShard | None = None

    def open(self) -> None:
        """Open the file, and keep it open.

        Raises:
            TarError: it is missing, or not the file that was indexed.
            OSError: it cannot be opened.
        """
        self._kept = self._open()

    def close(self) -> None:
        """Let go of the file; it closes when no thread reads from it any more."""
        self._kept = None

    def read(self, index: int, alternatives: tuple[str, ...]) -> FieldBytes | None:
        """The first of the alternative fields that a sample has, or None.

        Raises:
            SampleError: the data does not have the checksum that the index recorded.
            TarError: the shard ends inside the data.
        """
        for field in alternatives:
            column = self._columns.get(field)
            if column is None:
                continue
            offset = int(self.index.offsets[index, column])
            if offset >= 0:
                size = int(self.index.sizes[index, column])
                data = self._file().read(offset, size)
                self._check(index, column, data)
                return FieldBytes(field, data)
        return None

    def present(self, index: int, alternatives: tuple[str, ...]) -> list[str]:
        """Which of the alternative fields a sample has."""
        columns = {field: self._columns.get(field) for field in alternatives}
        return [
            field
            for field, column in columns.items()
            if column is not None and self.index.offsets[index, column] >= 0
        ]

    def read_ahead(self, first: int, last: int) -> None:
        """Ask the operating system to bring some samples into the page cache, soon."""
        starts, ends = self.index.offsets[first], self.index.offsets[last] + self.index.sizes[last]
        start = int(starts[starts >= 0].min(initial=self._file().size))
        self._file().read_ahead(start, int(ends.max(initial=0)))

    def place(self, index: int, field: str) -> str:
        """Where a field is, for the beginning of an error's sentence."""
        column = self._columns.get(field)
        offset = -1 if column is None else int(self.index.offsets[index, column])
        where = f" at offset {offset}" if offset >= 0 else ""
        return f"{self.name}: sample {self.index.key(index)!r}, field {field!r}{where}"

    def _file(self) -> LocalShard:
        """The file; opened for one use if another thread has just closed it."""
        return self._kept or self._open()

    def _open(self) -> LocalShard:
        try:
            file = LocalShard(self._entry.path, self.name)
        except FileNotFoundError as error:
            raise TarError(
                f"{self.name}: the shard is missing; get or pack it again", shard=self.name
            ) from error
        if file.size != self._entry.size:
            raise TarError(
                f"{self.name}: the shard has {file.size} bytes, its index expects "
                f"{self._entry.size}; it was changed or cut off: run `shardio index` on its "
                "folder if it is whole",
                shard=self.name,
            )
        if self._entry.stamp not in (None, file.stamp):
            raise TarError(
                f"{self.name}: the shard was changed after the dataset was opened; open it again",
                shard=self.name,
            )
        return file

    def _check(self, index: int, column: int, data: bytes) -> None:
        checksums = self.index.checksums
        if checksums is not None and zlib.crc32(data) != checksums[index, column]:
            field = self.index.fields[column]
            raise SampleError(
                f"{self.place(index, field)}: the data is not what was packed (CRC-32 differs); "
                "get or make the shard again",
                shard=self.name,
                offset=int(self.index.offsets[index, column]),
                key=self.index.key(index),
                field=field,
            )


class ShardPool:
    """Opens shards when they are needed, for any number of threads; they close with it.

    Args:
        entries: of the catalog.
    """

    def __init__(self, entries: tuple[ShardEntry, ...]) -> None:
        self._entries = entries
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = threading.Lock()
        self._mapped: OrderedDict[int, OpenShard] = OrderedDict()

    def get(self, shard: int) -> OpenShard:
        """The open shard at a position of the catalog."""
        with self._lock:
            found = self._open.get(shard)
            if found is None:
                found = self._mapped.get(shard) or OpenShard(self._entries[shard])
                found.open()
                self._mapped[shard] = self._open[shard] = found
                self._mapped.move_to_end(shard)
                if len(self._open) > _MOST_OPEN:
                    self._open.popitem(last=False)[1].close()
                if len(self._mapped) > _MOST_MAPPED:
                    self._mapped.popitem(last=False)
            self._open.move_to_end(shard)
            return found
