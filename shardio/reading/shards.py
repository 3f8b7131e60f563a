"""The shards that a reader has open, and the bytes of fields in them.

Of at most `_MOST_OPEN` shards the files are open at once, and of `_MOST_MAPPED` the indexes are
kept, or fewer where a process may open few files; the least recently used go first. When no file
can be opened, since many loops have some open, all pools of the process let go of theirs. An index
is checked whole when it is opened, so it stays when its file is closed; the file of one that is
mapped is looked at before each use. Shards open outside the pool's lock, so that on slow storage
many open at once.

What is read is held against the index: data against their checksums or, where none are known,
the headers before them, which are read along, so that no bytes come under another's name.
"""

from __future__ import annotations

import os
import sys
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from itertools import chain
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from shardio.errors import RemoteError, SampleError, ShardioError, TarError, quoted
from shardio.indexing.entry import ShardEntry
from shardio.indexing.shard_index import ShardIndex, decode_key
from shardio.processes import new_lock
from shardio.storage.base import StoredFile, restore
from shardio.storage.downloads import ComingShard, Downloads
from shardio.storage.local import LOCAL, LocalShard, is_out_of_files, most_open_files, out_of_files
from shardio.storage.shard_cache import NextUse

T = TypeVar("T")
_Renew = Callable[..., StoredFile]  # with the keyword discard, see Downloads.renew

_MOST_OPEN = 64
_MOST_MAPPED = 128  # Python's mmap keeps a descriptor, of which a process often has 1,024
_OPEN_PART, _MAPPED_PART = 1 / 8, 1 / 4  # of the limit on open files, where that is lower
_MOST_TEXT = 1 << 15  # bytes of keys that are kept as text
_MOST_SIZES = 1 << 13  # samples of a shard whose pictures' sizes are kept as a table
GAP = 2048
"""Bytes of headers and padding that are read along to get a further field with the same call."""

Alternatives = tuple[str, ...]
"""Fields that may fill one entry of a sample, the preferred one first."""
Entries = tuple[Alternatives, ...]


class FieldBytes(NamedTuple):
    """One field of one sample, as stored.

    Attributes:
        field: name of the field.
        data: bytes of the field.
        verified: whether the bytes have the checksum that the index recorded.
    """

    field: str
    data: bytes | memoryview
    verified: bool


class Places(NamedTuple):
    """Places of F fields of n samples in a shard.

    Attributes:
        fields: names of the fields.
        offsets: int64 [F, n], -1 where a sample lacks the field.
        sizes: int64 [F, n].
        firsts: int64 [F, n], offsets of the headers; those of the data if headers are not known.
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
    """Fields in a shard's index.

    Attributes:
        columns: int64 [F, 1], columns of F fields; 0 for those that are no columns.
        lacking: numbers of the fields that are no columns.
        places: places of all cells of the index, under the names of these fields.
    """

    columns: NDArray[np.int64]
    lacking: list[int]
    places: Places


@lru_cache(maxsize=256)
def _columns(entries: Entries, names: tuple[str, ...]) -> list[list[tuple[str, int]]]:
    """Find name and column of the alternatives of each entry that occur in a shard."""
    return [[(name, names.index(name)) for name in some if name in names] for some in entries]


class OpenShard:
    """A shard file with its index; opened when first needed, and again after `close`.

    A sample is named by its position in the shard.

    Args:
        entry: entry of the catalog.
        load_index: loads the index of the shard.
        open_file: opens the file of the shard.
        renew: opens a shard of a store past the cache, where it may be damaged; None for others.

    Attributes:
        name: name of the shard.
        index: index of the shard, once it is open.
        bad: samples found not to be deliverable, so that none is tried again as a substitute.
    """

    index: ShardIndex

    def __init__(
        self,
        entry: ShardEntry,
        load_index: Callable[[], ShardIndex],
        open_file: Callable[[], StoredFile],
        renew: _Renew | None = None,
    ) -> None:
        self.name = entry.name
        self._load_index, self._open_file, self._renew = load_index, open_file, renew
        self._is_renewed = False
        self.bad: set[int] = set()
        self._entry = entry
        self._indexing, self._opening = new_lock(), new_lock()
        self._kept: StoredFile | None = None
        self._is_compared = self._is_indexed = False
        self._alike: dict[Entries, Alternatives | None] = {}
        self._tables: dict[Alternatives, _Table] = {}
        self._pictures: dict[Alternatives, NDArray[np.int64]] = {}
        self._found: dict[Entries, list[list[tuple[str, int]]] | None] = {}
        self._text = ""  # all keys, if they are ASCII and not too many

    def open(self, *, index_only: bool = False) -> None:
        """Open the file and map the index, if they are not.

        Args:
            index_only: leave the file closed.

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
        if not index_only and (self._kept is None or not self._is_compared):
            self.open_file()

    def open_file(self) -> None:
        """Open the file alone, if it is not, or compare it anew if a window began since.

        Raises:
            TarError, OSError: see open.
        """
        with self._opening:
            if self._kept is None:
                self._kept = _opened(self._open_file)
            elif not self._is_compared:
                self._entry.verify_unchanged()
            self._is_compared = True

    def compare_anew(self) -> None:
        """Have the file compared with what was indexed before it is next read."""
        self._is_compared = False

    def open_local_file(self) -> LocalShard | None:
        """Return the file, if it is a local one that is open and need not be compared.

        Raises:
            IndexFileError, OSError: the index was changed since it was opened.
        """
        if self.index.file is not None:
            self.index.file.verify_unchanged()
        file = self._kept
        return file if type(file) is LocalShard and self._is_compared else None

    def close(self) -> None:
        """Let go of the file; it closes when no thread reads from it any more."""
        self._kept = None

    def read(self, sample: int, entries: Entries) -> list[FieldBytes | None]:
        """Read the first alternative that a sample has for each entry; None if it has none.

        What the cache does not have as it was packed is read from the store once more.

        Raises:
            SampleError: the data does not have the checksum that the index recorded.
            TarError: the shard ends inside the data, or another member lies there.
            RemoteError: the store fails.
        """
        file = self._kept
        try:
            return self._read(sample, entries, file if type(file) is LocalShard else self.file())
        except (SampleError, TarError, OSError) as error:
            if self._renew is None or not _may_be_of_cache(error):
                raise
        discard, self._is_renewed = not self._is_renewed, True
        if discard:
            self._kept = None
        return self._read(sample, entries, self._renew(discard=discard))

    def _read(self, sample: int, entries: Entries, file: StoredFile) -> list[FieldBytes | None]:
        firsts, offsets, sizes = self._firsts, self._offsets, self._sizes
        found: list[tuple[str, int] | None] = []
        starts, ends = [], []
        row = sample * self._width
        for columns in self._found.get(entries) or self._columns_of(sample, entries):
            for field, column in columns:
                cell = row + column
                if offsets[cell] >= 0:
                    found.append((field, cell))
                    starts.append(firsts[cell])
                    ends.append(offsets[cell] + sizes[cell])
                    break
            else:
                found.append(None)
        if not starts:
            return [None] * len(found)
        start, end = min(starts), max(ends)
        whole = None
        if len(starts) > 1 and end - start <= sum(ends) - sum(starts) + GAP * len(starts):
            whole = memoryview(file.read(start, end - start))
        stored: list[FieldBytes | None] = []
        checksums, headers = self._checksums, self._headers
        spans = zip(starts, ends, strict=True)
        for named in found:
            if named is None:
                stored.append(None)
                continue
            (field, cell), (first, last) = named, next(spans)
            data = (
                file.read(first, last - first)
                if whole is None
                else whole[first - start : last - start]
            )
            if headers is not None:
                size = offsets[cell] - first
                # After a read of several fields, the foremost header is read anew: whoever
                # overwrites the shard meanwhile meets it first.
                anew = whole is None or first == start
                if zlib.crc32(file.read(first, size) if anew else data[:size]) != headers[cell]:
                    raise self._changed(sample, field, first + size)
                data = memoryview(data)[size:]
            if checksums is not None and zlib.crc32(data) != checksums[cell]:
                raise self._damaged(sample, field, offsets[cell])
            stored.append(FieldBytes(field, data, checksums is not None))
        return stored

    def places(self, samples: NDArray[np.int64], entries: Entries) -> Places | None:
        """Find the places of several samples' fields; None if an entry has several alternatives."""
        if entries not in self._alike:
            self._alike[entries] = self._only_fields(entries)
        fields = self._alike[entries]
        return None if fields is None else self.places_of(samples, fields)

    def places_of(self, samples: NDArray[np.int64], fields: Alternatives) -> Places:
        """Find the places of fields of several samples; fields that are no columns have none."""
        table = self._tables.get(fields)
        if table is None:
            table = self._tables[fields] = self._table(fields)
        at = samples * self._width + table.columns
        found = table.places.each(lambda array: array.take(at))
        for row in table.lacking:
            found.offsets[row], found.sizes[row] = -1, 0
        return found

    def have_rare(self, samples: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which samples have members in fields that are no columns, bool [s]."""
        rare = self.index.rare
        return np.zeros(len(samples), np.bool_) if rare is None else np.isin(samples, rare.samples)

    def keys(self, samples: NDArray[np.int64]) -> list[str]:
        """Return the keys of several samples."""
        ends = self.index.key_ends
        spans = zip(ends.take(samples).tolist(), ends.take(samples + 1).tolist(), strict=True)
        if self._text:
            text = self._text
            return [text[start:end] for start, end in spans]
        return [decode_key(self._keys[start:end]) for start, end in spans]

    def key(self, sample: int) -> str:
        """Return the key of a sample."""
        start, end = self._ends[sample], self._ends[sample + 1]
        return self._text[start:end] if self._text else decode_key(self._keys[start:end])

    def present(self, sample: int, alternatives: Alternatives) -> list[str]:
        """List those of the alternatives that a sample has."""
        (columns,) = self._columns_of(sample, (alternatives,))
        row = sample * self._width
        return [field for field, column in columns if self._offsets[row + column] >= 0]

    def picture_sizes(
        self, samples: NDArray[np.int64], alternatives: Alternatives
    ) -> NDArray[np.int64]:
        """Return the sizes of the first alternatives that some samples have.

        Args:
            samples: int64 [s], samples.
            alternatives: fields that hold pictures, the preferred one first.

        Returns:
            Height, width and orientation, int64 [s, 3], all 0 where they are not known.
        """
        table = self._pictures.get(alternatives)
        if table is not None:
            return table.take(samples, axis=0)
        is_kept = len(self.index) <= _MOST_SIZES
        some = np.arange(len(self.index)) if is_kept else samples
        found = np.zeros((len(some), 3), np.int64)
        open_ = np.ones(len(some), np.bool_)
        offsets = self.index.rows(self.index.offsets)
        for field in alternatives:
            if field not in self.index.columns:
                if self.index.rare is not None and field in self._rare:
                    break
                continue
            have = open_ & (offsets[some, self.index.columns.index(field)] >= 0)
            sizes = self.index.picture_sizes(some[have], field)
            if sizes is not None:
                found[have] = sizes
            open_ &= ~have
        if not is_kept:
            return found
        self._pictures[alternatives] = found
        return found.take(samples, axis=0)

    def place(self, sample: int, field: str = "") -> str:
        """Describe the place of a sample, or of one of its fields, for errors."""
        place = f"{self.name}: sample {quoted(self.index.key(sample))}"
        if not field:
            return place
        cell = self.index.cells(sample).get(field)
        where = "" if cell is None else f" at offset {self._offsets[cell]}"
        return f"{place}, field {quoted(field)}{where}"

    def file(self) -> StoredFile:
        """Return the file, opened for one use if another thread has just closed it."""
        kept = self._kept
        file = kept or _opened(self._open_file)
        if isinstance(file, ComingShard) and file.whole is not None:
            whole = file.whole
            if self._kept is kept and kept is not None:
                self._kept = whole
            return whole
        return file

    def _only_fields(self, entries: Entries) -> Alternatives | None:
        """Return the only alternative of each entry that occurs; None if there is not one."""
        found = None if self._have_rare(entries) else _columns(entries, self.index.columns)
        if found is None or any(len(columns) != 1 for columns in found):
            return None
        return (*(some[0][0] for some in found),)

    def _table(self, fields: Alternatives) -> _Table:
        index, names = self.index, self.index.columns
        tables = index.offsets, index.sizes, index.firsts, index.checksums, index.headers
        flat = Places(fields, *tables).each(lambda array: array.reshape(-1))
        lacking = [row for row, name in enumerate(fields) if name not in names]
        columns = [names.index(name) if name in names else 0 for name in fields]
        return _Table(np.array(columns)[:, None], lacking, flat)

    def _have_rare(self, entries: Entries) -> bool:
        """Tell whether alternatives are fields that are no columns, so that each sample differs."""
        return self.index.rare is not None and not self._rare.isdisjoint(chain(*entries))

    def _columns_of(self, sample: int, entries: Entries) -> list[list[tuple[str, int]]]:
        """Find name and column of the alternatives of each entry, as cells from a sample's row.

        What is so for all samples is noted; of fields that are no columns, those of the sample
        have cells elsewhere.
        """
        known = self._found.get(entries)
        if known is None and entries not in self._found:
            rare = self._have_rare(entries)
            known = None if rare else _columns(entries, self.index.columns)
            self._found[entries] = known
        if known is not None:
            return known
        cells, row = self.index.cells(sample), sample * self._width
        return [[(name, cells[name] - row) for name in some if name in cells] for some in entries]

    def _damaged(self, sample: int, field: str, offset: int) -> SampleError:
        return SampleError(
            "the data is not what was packed (CRC-32 differs)",
            where=self.place(sample, field),
            remedy=restore(),
            shard=self.name,
            offset=offset,
            key=self.index.key(sample),
            field=field,
        )

    def _changed(self, sample: int, field: str, offset: int) -> TarError:
        return TarError(
            "its header is not the one that was indexed, so the shard was changed after the "
            "dataset was opened",
            where=self.place(sample, field),
            remedy="open it again",
            shard=self.name,
            offset=offset,
            key=self.index.key(sample),
            field=field,
        )

    def _load(self) -> None:
        self.index = index = _opened(self._load_index)
        self._offsets, self._sizes = index.offsets.reshape(-1).data, index.sizes.reshape(-1).data
        self._firsts = index.firsts.reshape(-1).data
        self._width, self._rare = len(index.columns), index.rare_fields()
        self._ends, self._keys = index.key_ends.data, index.keys.data
        if len(index.keys) <= _MOST_TEXT and not (index.keys & 0x80).any():
            self._text = str(self._keys, "ascii")
        self._checksums = None if index.checksums is None else index.checksums.reshape(-1).data
        self._headers = None if index.headers is None else index.headers.reshape(-1).data
        self._is_indexed = True


def _may_be_of_cache(error: Exception) -> bool:
    """Tell whether an error is of bytes, or of the disk, and not of the store."""
    if isinstance(error, ShardioError):
        return not isinstance(error, RemoteError) and error.offset is not None
    return not is_out_of_files(error) if isinstance(error, OSError) else True


def _opened(open_: Callable[[], T]) -> T:
    """Open a file, for which all pools let go of theirs if there is no other way.

    Raises:
        UsageError: no more files can be opened all the same.
        IndexFileError, TarError, OSError: the function raised it.
    """
    try:
        return open_()
    except OSError as error:
        if not is_out_of_files(error):
            raise
    for pool in [*_pools]:
        pool.let_go()
    try:
        return open_()
    except OSError as error:
        if not is_out_of_files(error):
            raise
        raise out_of_files(error) from error


class ShardPool:
    """Opens shards when they are needed, for any number of threads; they close with it.

    Args:
        entries: entries of the catalog.
    """

    def __init__(self, entries: tuple[ShardEntry, ...]) -> None:
        self._entries = entries
        self._remote = {
            shard: remote
            for shard, entry in enumerate(entries)
            if entry.storage is not LOCAL and (remote := entry.remote) is not None
        }
        self._downloads: Downloads | None = None
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = new_lock()
        self._mapped: OrderedDict[int, OpenShard] = OrderedDict()
        limit = most_open_files() or sys.maxsize
        self._most_open = max(1, min(_MOST_OPEN, int(limit * _OPEN_PART)))
        self._most_mapped = max(1, min(_MOST_MAPPED, int(limit * _MAPPED_PART)))
        _pools.add(self)

    def get(self, shard: int, *, only: Literal["file", "index"] | None = None) -> OpenShard:
        """Return the shard at a position of the catalog, open.

        Args:
            shard: position of the shard.
            only: part to open; "file" while others may read the index, "index" for what needs no
                data.

        Raises:
            IndexFileError, TarError, OSError: see OpenShard.open.
        """
        with self._lock:
            found = self._open.get(shard) or self._mapped.get(shard)
            if found is None:
                found = OpenShard(self._entries[shard], *self._openers(shard))
            self._mapped[shard] = found
            self._mapped.move_to_end(shard)
            if len(self._mapped) > self._most_mapped:
                self._mapped.popitem(last=False)
            if only != "index":
                self._open[shard] = found
                self._open.move_to_end(shard)
                if len(self._open) > self._most_open:
                    self._open.popitem(last=False)[1].close()
        if only == "file":
            found.open_file()
        else:
            found.open(index_only=only == "index")
        return found

    def bytes_per_sample(self) -> float:
        """Return how many bytes of the first shard a sample takes."""
        first = self._entries[0]
        return first.size / max(first.samples, 1)

    def indexed(self, shards: set[int], *, room: int = 2) -> dict[int, OpenShard]:
        """Return shards by their positions, with their indexes.

        Args:
            shards: positions of the shards.
            room: multiple of their number that the pool must have room for.

        Returns:
            The shards whose indexes open; none if they are so many that others would be let go.
        """
        found: dict[int, OpenShard] = {}
        for shard in shards if room * len(shards) <= self._most_mapped else ():
            with suppress(ShardioError, OSError):  # which are met again when the data are read
                found[shard] = self.get(shard, only="index")
        return found

    def let_go(self) -> None:
        """Close all shards that no thread reads from; they open again when they are needed."""
        with self._lock:
            for shard in self._open.values():
                shard.close()
            self._open.clear()
            self._mapped.clear()

    def compare_anew(self) -> None:
        """Have each open shard compared with what was indexed before it is next read."""
        with self._lock:
            for shard in self._open.values():
                shard.compare_anew()

    def finish(self) -> None:
        """Wait for shards that come, see Downloads.finish."""
        if self._downloads is not None:
            self._downloads.finish()

    def wait_for_ranges(self) -> None:
        """Wait for what was asked for of shards of stores, see Downloads.wait_for_ranges."""
        if self._downloads is not None:
            self._downloads.wait_for_ranges()

    def hold(self, *, on: bool = True) -> None:
        """Fetch no whole shard for now, or again, see Downloads.hold."""
        with self._lock:
            self._fetcher().hold(on=on)

    def close(self) -> None:
        """End the fetching of shards."""
        if self._downloads is not None:
            self._downloads.close()

    def fetch(self, shards: Sequence[int], next_use: NextUse, *, waits: bool = True) -> None:
        """Fetch those of some shards that are of stores, and close all others of them.

        Args:
            shards: positions of the shards that are due, those needed first in front.
            next_use: tells which shards stay in the cache.
            waits: whether samples wait for their shards.
        """
        with self._lock:
            for shard in self._open.keys() & self._remote.keys() - set(shards):
                self._open.pop(shard).close()  # the cache may need its room
            downloads = self._fetcher()
        due = [self._remote[shard] for shard in shards if shard in self._remote]
        downloads.want(due, next_use, waits=waits)

    def remote_keys(self) -> dict[str, int]:
        """Return the positions of the shards of stores, by their keys in the cache."""
        return {remote.key: shard for shard, remote in self._remote.items()}

    def _openers(
        self, shard: int
    ) -> tuple[Callable[[], ShardIndex], Callable[[], StoredFile], _Renew | None]:
        """Return what loads the index of a shard, what opens it, and what renews it."""
        entry = self._entries[shard]
        if shard not in self._remote:
            return entry.load_index, entry.open_file, None
        downloads, remote = self._fetcher(), self._remote[shard]
        return (
            partial(downloads.ask, entry.load_index),
            partial(downloads.open, remote),
            partial(downloads.renew, remote),
        )

    def _fetcher(self) -> Downloads:
        """Return what fetches shards for this process; the lock is held."""
        if self._downloads is None or self._downloads.process != os.getpid():
            self._downloads = Downloads()
        return self._downloads


class HeldFile(NamedTuple):
    """A shard with its file, which stays open.

    Attributes:
        shard: shard, open.
        file: file of the shard.
        descriptor: descriptor of the file; -1 for one that is not local.
    """

    shard: OpenShard
    file: StoredFile
    descriptor: int


class HeldFiles:
    """Files of the shards of some samples, for any thread.

    The pool is asked for a shard once, and again when the shard has let go of its file or wants it
    compared.

    Args:
        pool: pool of the shards.
        shards: positions of the shards in the catalog.

    Attributes:
        count: number of the shards.
    """

    def __init__(self, pool: ShardPool, shards: Sequence[int]) -> None:
        self._pool, self._shards, self.count = pool, shards, len(shards)
        self._known: dict[int, OpenShard] = {}

    def get(self, number: int) -> HeldFile:
        """Return a shard with its file.

        Args:
            number: place of the shard in the list of shards.

        Raises:
            IndexFileError, TarError, OSError: see OpenShard.open.
        """
        shard = self._known.get(number)
        file: StoredFile | None = None if shard is None else shard.open_local_file()
        if shard is None or file is None:
            shard = self._known[number] = self._pool.get(self._shards[number])
            file = shard.file()
        return HeldFile(shard, file, file.descriptor if type(file) is LocalShard else -1)


_pools: weakref.WeakSet[ShardPool] = weakref.WeakSet()
"""Pools of this process."""
