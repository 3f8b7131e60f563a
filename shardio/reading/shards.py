"""The shards that a reader has open, and the bytes of fields in them.

Of at most `_MOST_OPEN` shards the files are open at once, and of `_MOST_MAPPED` the indexes are
mapped; the least recently used go first. An index is checked whole when it is mapped, so it
stays when its file is closed. Shards open outside the pool's lock, so that on slow storage many
open at once.
"""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from operator import add
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardio.errors import SampleError, quoted
from shardio.index.catalog import ShardEntry
from shardio.index.shard_index import ShardIndex, decode_key
from shardio.storage.local import LocalShard

_MOST_OPEN = 64
_MOST_MAPPED = 128  # Python's mmap keeps a descriptor, of which a process often has 1,024
_MOST_TEXT = 1 << 15  # bytes of keys that are kept as text
GAP = 2048
"""Bytes of headers and padding that are read along to get a further field with the same call."""

Alternatives = tuple[str, ...]
Wanted = tuple[Alternatives, ...]


class FieldBytes(NamedTuple):
    """One field of one sample, as stored.

    Attributes:
        field: its name.
        data: its bytes.
        verified: the index knows their checksum, and they have it.
    """

    field: str
    data: bytes | memoryview
    verified: bool


class Places(NamedTuple):
    """Where F fields of n samples of a shard are.

    Attributes:
        fields: their names.
        offsets: int64 [F, n], -1 where a sample lacks the field.
        sizes: int64 [F, n].
        checksums: uint32 [F, n], CRC-32; None where they are not known.
    """

    fields: tuple[str, ...]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    checksums: NDArray[np.uint32] | None

    def within(self, samples: slice) -> Places:
        """Those of some of the samples."""
        sums = None if self.checksums is None else self.checksums[:, samples]
        return Places(self.fields, self.offsets[:, samples], self.sizes[:, samples], sums)


class _Table(NamedTuple):
    """Where fields are in a shard's index.

    Attributes:
        fields: names of F of them.
        columns: int64 [F, 1], their columns.
        offsets: of the index, flat; sizes and checksums likewise.
    """

    fields: tuple[str, ...]
    columns: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    checksums: NDArray[np.uint32] | None


class OpenShard:
    """A shard file with its index; opened when first needed, and again after `close`.

    Args:
        entry: of the catalog.

    Attributes:
        name: of the shard.
        index: of the shard, once it is open.
    """

    index: ShardIndex

    def __init__(self, entry: ShardEntry) -> None:
        self.name = entry.name
        self._entry = entry
        self._indexing, self._opening = threading.Lock(), threading.Lock()
        self._kept: LocalShard | None = None
        self._is_indexed = False
        self._known: dict[Wanted, list[list[tuple[str, int]]]] = {}
        self._tables: dict[Wanted, _Table | None] = {}
        self._text = ""  # all keys, if they are ASCII and not too many

    def open(self) -> None:
        """Open the file and map the index, if they are not.

        Raises:
            IndexFileError: the index is missing or does not fit the shard.
            TarError: the shard is missing, or not the file that was indexed.
            OSError: it cannot be opened.
        """
        if not self._is_indexed:
            with self._indexing:
                if not self._is_indexed:
                    self._load()
        self.open_file()

    def open_file(self) -> None:
        """Open the file alone, if it is not.

        Raises:
            TarError, OSError: see open.
        """
        if self._kept is None:
            with self._opening:
                if self._kept is None:
                    self._kept = self._entry.open_file()

    def close(self) -> None:
        """Let go of the file; it closes when no thread reads from it any more."""
        self._kept = None

    def read(self, sample: int, wanted: Wanted) -> list[FieldBytes | None]:
        """Of each of the wanted fields the first alternative that a sample has, or None.

        Raises:
            SampleError: the data does not have the checksum that the index recorded.
            TarError: the shard ends inside the data.
        """
        found = self._find(sample, wanted)
        places = [place for _, place in filter(None, found)]
        if not places:
            return [None] * len(found)
        file, offsets = self.file(), [self._offsets[place] for place in places]
        sizes = [self._sizes[place] for place in places]
        start, end = min(offsets), max(map(add, offsets, sizes))
        whole = None
        if len(places) > 1 and end - start <= sum(sizes) + GAP * len(places):
            whole = memoryview(file.read(start, end - start))
        stored: list[FieldBytes | None] = []
        checksums = self._checksums
        for named in found:
            if named is None:
                stored.append(None)
                continue
            field, place = named
            offset, size = self._offsets[place], self._sizes[place]
            begin = offset - start
            data = file.read(offset, size) if whole is None else whole[begin : begin + size]
            if checksums is not None and zlib.crc32(data) != checksums[place]:
                raise self._damaged(sample, field, offset)
            stored.append(FieldBytes(field, data, checksums is not None))
        return stored

    def places(self, samples: NDArray[np.int64], wanted: Wanted) -> Places | None:
        """Where fields of several samples are; None if the shard has several alternatives."""
        if wanted not in self._tables:
            self._tables[wanted] = self._table(wanted)
        table = self._tables[wanted]
        if table is None:
            return None
        at = samples * len(self.index.fields) + table.columns
        sums = table.checksums
        checksums = None if sums is None else sums.take(at)
        return Places(table.fields, table.offsets.take(at), table.sizes.take(at), checksums)

    def keys(self, samples: NDArray[np.int64]) -> list[str]:
        """The keys of several samples."""
        ends = self.index.key_ends
        spans = zip(ends.take(samples).tolist(), ends.take(samples + 1).tolist(), strict=True)
        if self._text:
            text = self._text
            return [text[start:end] for start, end in spans]
        return [decode_key(self._keys[start:end]) for start, end in spans]

    def key(self, sample: int) -> str:
        """The key of a sample."""
        start, end = self._ends[sample], self._ends[sample + 1]
        return self._text[start:end] if self._text else decode_key(self._keys[start:end])

    def present(self, sample: int, alternatives: Alternatives) -> list[str]:
        """Which of the alternative fields a sample has."""
        (columns,) = self._columns((alternatives,))
        return [field for field, column in columns if self._offsets[sample, column] >= 0]

    def extents(
        self, firsts: NDArray[np.int64], lasts: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the data of runs of samples start and end in the file, int64 [n] both.

        Args:
            firsts: int64 [n], the first sample of each run.
            lasts: int64 [n], the last one.
        """
        starts, ends = self.index.offsets[firsts], self.index.offsets[lasts]
        starts = np.where(starts < 0, self._entry.size, starts).min(axis=1)
        return starts, (ends + self.index.sizes[lasts]).max(axis=1)

    def place(self, sample: int, field: str) -> str:
        """Where a field is, for the beginning of an error's sentence."""
        (columns,) = self._columns(((field,),))
        offset = self._offsets[sample, columns[0][1]] if columns else -1
        where = f" at offset {offset}" if offset >= 0 else ""
        return f"{self.name}: sample {quoted(self.index.key(sample))}, field {quoted(field)}{where}"

    def file(self) -> LocalShard:
        """The file; opened for one use if another thread has just closed it."""
        return self._kept or self._entry.open_file()

    def _columns(self, wanted: Wanted) -> list[list[tuple[str, int]]]:
        """Name and column of those of the alternatives that occur in the shard."""
        columns = self._known.get(wanted)
        if columns is None:
            names = self.index.fields
            columns = [
                [(name, names.index(name)) for name in alternatives if name in names]
                for alternatives in wanted
            ]
            self._known[wanted] = columns
        return columns

    def _table(self, wanted: Wanted) -> _Table | None:
        found = self._columns(wanted)
        if any(len(columns) != 1 for columns in found):
            return None
        fields, columns = zip(*(some[0] for some in found), strict=True)
        index, sums = self.index, self.index.checksums
        return _Table(
            fields,
            np.array(columns)[:, None],
            index.offsets.reshape(-1),
            index.sizes.reshape(-1),
            None if sums is None else sums.reshape(-1),
        )

    def _find(self, sample: int, wanted: Wanted) -> list[tuple[str, tuple[int, int]] | None]:
        """Of each of the wanted fields the first alternative that a sample has, and its place."""
        found: list[tuple[str, tuple[int, int]] | None] = []
        for columns in self._columns(wanted):
            for field, column in columns:
                if self._offsets[sample, column] >= 0:
                    found.append((field, (sample, column)))
                    break
            else:
                found.append(None)
        return found

    def _damaged(self, sample: int, field: str, offset: int) -> SampleError:
        return SampleError(
            f"{self.place(sample, field)}: the data is not what was packed (CRC-32 differs); "
            "get or make the shard again",
            shard=self.name,
            offset=offset,
            key=self.index.key(sample),
            field=field,
        )

    def _load(self) -> None:
        self.index = index = self._entry.load_index()
        self._offsets, self._sizes = index.offsets.data, index.sizes.data
        self._ends, self._keys = index.key_ends.data, index.keys.data
        if len(index.keys) <= _MOST_TEXT and not (index.keys & 0x80).any():
            self._text = str(self._keys, "ascii")
        self._checksums = None if index.checksums is None else index.checksums.data
        self._is_indexed = True


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
        """The shard at a position of the catalog, open.

        Raises:
            IndexFileError, TarError, OSError: see OpenShard.open.
        """
        found = self._find(shard)
        found.open()
        return found

    def open_file(self, shard: int) -> None:
        """Open a shard's file, while others may read its index."""
        self._find(shard).open_file()

    def _find(self, shard: int) -> OpenShard:
        with self._lock:
            found = self._open.get(shard)
            if found is None:
                found = self._mapped.get(shard) or OpenShard(self._entries[shard])
                self._mapped[shard] = self._open[shard] = found
                self._mapped.move_to_end(shard)
                if len(self._open) > _MOST_OPEN:
                    self._open.popitem(last=False)[1].close()
                if len(self._mapped) > _MOST_MAPPED:
                    self._mapped.popitem(last=False)
            self._open.move_to_end(shard)
        return found
