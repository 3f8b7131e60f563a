"""The shards that a reader has open, and the bytes of fields in them.

Of at most `_MOST_OPEN` shards the files are open at once, and of `_MOST_MAPPED` the indexes are
kept; the least recently used go first. An index is checked whole when it is opened, so it stays
when its file is closed; the file of one that is mapped is looked at before each use. Shards open
outside the pool's lock, so that on slow storage many open at once.

What is read is held against the index: data against their checksums or, where none are known,
the headers before them, which are read along, so that no bytes come under another's name.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardio.errors import SampleError, TarError, quoted
from shardio.indexing.catalog import ShardEntry
from shardio.indexing.shard_index import ShardIndex, decode_key
from shardio.processes import new_lock
from shardio.storage.base import StoredFile

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
        firsts: int64 [F, n], where their headers start; the offsets where these are not known.
        checksums: uint32 [F, n], CRC-32 of the data; None where they are not known.
        headers: uint32 [F, n], CRC-32 of the headers; None where they are not known.
    """

    fields: tuple[str, ...]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    firsts: NDArray[np.int64]
    checksums: NDArray[np.uint32] | None
    headers: NDArray[np.uint32] | None

    def each(self, pick: Callable[[NDArray[Any]], NDArray[Any]]) -> Places:
        """Apply a function to every array."""
        offsets, sums, headers = pick(self.offsets), self.checksums, self.headers
        return Places(
            self.fields,
            offsets,
            pick(self.sizes),
            offsets if headers is None else pick(self.firsts),
            None if sums is None else pick(sums),
            None if headers is None else pick(headers),
        )


class _Table(NamedTuple):
    """Where fields are in a shard's index.

    Attributes:
        columns: int64 [F, 1], columns of F fields.
        places: all places of the index, flat, under the names of these fields.
    """

    columns: NDArray[np.int64]
    places: Places


class OpenShard:
    """A shard file with its index; opened when first needed, and again after `close`.

    Args:
        entry: of the catalog.

    Attributes:
        name: of the shard.
        index: of the shard, once it is open.
        bad: samples that were found not to be deliverable, so that none of them is tried again as a
            substitute.
    """

    index: ShardIndex

    def __init__(self, entry: ShardEntry) -> None:
        self.name = entry.name
        self.bad: set[int] = set()
        self._entry = entry
        self._indexing, self._opening = new_lock(), new_lock()
        self._kept: StoredFile | None = None
        self._is_compared = self._is_indexed = False
        self._known: dict[Wanted, list[list[tuple[str, int]]]] = {}
        self._tables: dict[Wanted, _Table | None] = {}
        self._text = ""  # all keys, if they are ASCII and not too many

    def open(self) -> None:
        """Open the file and map the index, if they are not.

        Raises:
            IndexFileError: the index is missing, does not fit the shard, or was changed since.
            TarError: the shard is missing, or not the file that was indexed.
            OSError: it cannot be opened.
        """
        if not self._is_indexed:
            with self._indexing:
                if not self._is_indexed:
                    self._load()
        if self.index.file is not None:
            self.index.file.verify_unchanged()
        self.open_file()

    def open_file(self) -> None:
        """Open the file alone, if it is not, or compare it anew where a window began since.

        Raises:
            TarError, OSError: see open.
        """
        if self._kept is None or not self._is_compared:
            with self._opening:
                if self._kept is None:
                    self._kept = self._entry.open_file()
                elif not self._is_compared:
                    self._entry.verify_unchanged()
                self._is_compared = True

    def compare_anew(self) -> None:
        """Have the file compared with what was indexed before it is next read."""
        self._is_compared = False

    def close(self) -> None:
        """Let go of the file; it closes when no thread reads from it any more."""
        self._kept = None

    def read(self, sample: int, wanted: Wanted) -> list[FieldBytes | None]:
        """Of each of the wanted fields the first alternative that a sample has, or None.

        Raises:
            SampleError: the data does not have the checksum that the index recorded.
            TarError: the shard ends inside the data, or another member lies there.
        """
        found = self._find(sample, wanted)
        spans = [
            (self._firsts[place], self._offsets[place] + self._sizes[place])
            for _, place in filter(None, found)
        ]
        if not spans:
            return [None] * len(found)
        file, (firsts, ends) = self.file(), zip(*spans, strict=True)
        start, end = min(firsts), max(ends)
        whole = None
        if len(spans) > 1 and end - start <= sum(ends) - sum(firsts) + GAP * len(spans):
            whole = memoryview(file.read(start, end - start))
        stored: list[FieldBytes | None] = []
        checksums, headers = self._checksums, self._headers
        left = iter(spans)
        for named in found:
            if named is None:
                stored.append(None)
                continue
            (field, place), (first, last) = named, next(left)
            data = (
                file.read(first, last - first)
                if whole is None
                else whole[first - start : last - start]
            )
            if headers is not None:
                size = self._offsets[place] - first
                # Of what was read at once the foremost header is read anew, after the data:
                # whoever overwrites the shard meanwhile meets it first.
                anew = whole is None or first == start
                if zlib.crc32(file.read(first, size) if anew else data[:size]) != headers[place]:
                    raise self._changed(sample, field, first + size)
                data = memoryview(data)[size:]
            if checksums is not None and zlib.crc32(data) != checksums[place]:
                raise self._damaged(sample, field, self._offsets[place])
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
        return table.places.each(lambda array: array.take(at))

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
        """Where runs of samples start and end in the file, int64 [n] both.

        Args:
            firsts: int64 [n], the first sample of each run.
            lasts: int64 [n], the last one.
        """
        starts, ends = self.index.firsts[firsts], self.index.offsets[lasts]
        starts = np.where(starts < 0, self._entry.size, starts).min(axis=1)
        return starts, (ends + self.index.sizes[lasts]).max(axis=1)

    def place(self, sample: int, field: str) -> str:
        """Where a field is, for the beginning of an error's sentence."""
        (columns,) = self._columns(((field,),))
        offset = self._offsets[sample, columns[0][1]] if columns else -1
        where = f" at offset {offset}" if offset >= 0 else ""
        return f"{self.name}: sample {quoted(self.index.key(sample))}, field {quoted(field)}{where}"

    def file(self) -> StoredFile:
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
        index = self.index
        tables = index.offsets, index.sizes, index.firsts, index.checksums, index.headers
        flat = Places(fields, *tables).each(lambda array: array.reshape(-1))
        return _Table(np.array(columns)[:, None], flat)

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
            "the data is not what was packed (CRC-32 differs)",
            where=self.place(sample, field),
            remedy="get or make the shard again",
            shard=self.name,
            offset=offset,
            key=self.index.key(sample),
            field=field,
        )

    def _changed(self, sample: int, field: str, offset: int) -> TarError:
        return TarError(
            "another header lies before it than was indexed, so the shard was changed "
            "after the dataset was opened",
            where=self.place(sample, field),
            remedy="open it again",
            shard=self.name,
            offset=offset,
            key=self.index.key(sample),
            field=field,
        )

    def _load(self) -> None:
        self.index = index = self._entry.load_index()
        self._offsets, self._sizes = index.offsets.data, index.sizes.data
        self._firsts = index.firsts.data
        self._ends, self._keys = index.key_ends.data, index.keys.data
        if len(index.keys) <= _MOST_TEXT and not (index.keys & 0x80).any():
            self._text = str(self._keys, "ascii")
        self._checksums = None if index.checksums is None else index.checksums.data
        self._headers = None if index.headers is None else index.headers.data
        self._is_indexed = True


class ShardPool:
    """Opens shards when they are needed, for any number of threads; they close with it.

    Args:
        entries: of the catalog.
    """

    def __init__(self, entries: tuple[ShardEntry, ...]) -> None:
        self._entries = entries
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = new_lock()
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

    def compare_anew(self) -> None:
        """Have each open shard compared with what was indexed before it is next read."""
        with self._lock:
            for shard in self._open.values():
                shard.compare_anew()

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
