"""The index of one shard: key of each sample; offset, size and checksum of each field.

Of pictures it has height, width and orientation too, so that crops are chosen before any is read.

On disk an index is a file in the safetensors layout (a 64-bit little-endian header length, a
JSON header, then the arrays back to back), which other tools open too. Here the arrays of a small
file lie in memory, and those of a large local one are memory-mapped, so that all processes of a
machine share them through the page cache. The header holds a CRC-32 of the whole file, taken with
zeros in its place.

shardio replaces an index by a rename, which leaves maps as they are. Others may write into the
file or cut it off. What was read into memory does not change with it; a map does, and touching it
behind a cut ends the process with SIGBUS. So the file of a map is looked at before each batch or
sample; a cut in the microseconds after that still does harm.

    offsets    int64  [n, F]   of the field's data in the shard, -1 where a sample lacks it
    sizes      int64  [n, F]   in bytes
    checksums  uint32 [n, F]   CRC-32 (zlib) of the data; absent if only headers were read
    key_ends   int64  [n + 1]  where each key ends in `keys`, after a leading 0
    starts     int64  [n, F]   of the headers before the data, -1 where a sample lacks the field
    headers    uint32 [n, F]   CRC-32 of the bytes from there to the data
    heights    uint32 [n, P]   rows of the picture as shown, 0 where they are not known
    widths     uint32 [n, P]   columns of the picture as shown, 0 where they are not known
    orientations uint8 [n, P]  EXIF orientation, 1 to 8, 0 where it is not known
    keys       uint8  [·]      all keys back to back, UTF-8 (surrogateescape)

Where checksums of the data are not known, those of the headers tell whether what lies before
the data is still the name that was indexed; `starts` and `headers` are absent otherwise. The P
fields of which the sizes of pictures are known are in `pictures` of the header; where there are
none, it is absent, and so are the three arrays. Readers pass over arrays that they do not know.

Such a table is large where most samples lack most fields. So an index may keep fields that few
samples have apart from its columns. It then has the format `shardio-index-v2`, which readers of
version 1 refuse. Of its F fields, C are columns, and m members are in the others. Its offsets,
sizes, checksums, starts and headers are flat, [n · C + m]: the rows of the columns one after
another, then the other members, by sample and field. Two more arrays tell whose these are, and
the fields that `rare_fields` names are those that are no columns. There are no sizes of pictures
in them.

    rare_samples int64 [m]     sample, ascending
    rare_fields  int64 [m]     number of the field in `fields` of the header, ascending in a sample

A cell is the place of a member in the arrays of either format, laid flat.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardio.errors import IndexFileError, TarError, quoted
from shardio.fields.probe import PictureSize
from shardio.storage.local import LocalShard, version_of
from shardio.storage.location import Location, locate
from shardio.tar.header import BLOCK

FORMAT = "shardio-index-v1"
RARE_FORMAT = "shardio-index-v2"
_DTYPES: dict[str, np.dtype[Any]] = {
    "I64": np.dtype("<i8"),
    "U32": np.dtype("<u4"),
    "U8": np.dtype("u1"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_NO_CHECKSUM = b"00000000"
_OPTIONAL = ("checksums", "starts", "headers", "heights", "widths", "orientations")
_ARRAYS = {
    "offsets": "I64",
    "sizes": "I64",
    "key_ends": "I64",
    "starts": "I64",
    "checksums": "U32",
    "headers": "U32",
    "heights": "U32",
    "widths": "U32",
    "orientations": "U8",
    "keys": "U8",
}
_RARE_ARRAYS = {"rare_samples": "I64", "rare_fields": "I64"}
_MOST_READ = 1 << 16  # bytes of an index that is read: about 1,000 samples of two fields
_PIECE = 1 << 16  # bytes that are read at once; more would stay with the thread's allocator
_MOST_FETCHED = 1 << 30  # bytes of an index of a store: about 20 million samples
_MOST_SHARE, _MOST_FIXED = 8, 1 << 24  # of an index: bytes for each of its shard, and in any case
_LIMIT = 1 << 63  # of the size of a shard: its offsets are int64
_LAST_ORIENTATION = 8
_DAMAGED = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    TarError,
)


class MappedFile(NamedTuple):
    """An index file, as it was when it was mapped."""

    path: str
    inode: tuple[int, int]
    state: tuple[int, str]

    def verify_unchanged(self) -> None:
        """Compare the file, unless another has taken its place, which leaves the map as it is.

        Raises:
            IndexFileError: it was truncated or written to.
            OSError: it cannot be looked at.
        """
        try:
            status = os.stat(self.path)  # noqa: PTH116  a Path takes longer
        except FileNotFoundError:
            return
        if _inode_of(status) == self.inode and _state_of(status) != self.state:
            raise IndexFileError(
                "the index was changed while it was read",
                where=self.path,
                remedy=(
                    "open the dataset again, or run `shardio index` on the folder of its shard"
                ),
            )


def _mapped_file(file: LocalShard) -> MappedFile:
    return MappedFile(file.name, _inode_of(file.status()), (file.size, file.version))


def _inode_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _state_of(status: os.stat_result) -> tuple[int, str]:
    return status.st_size, version_of(status)


class Member(NamedTuple):
    """Place of a field of a sample.

    Attributes:
        offset: offset of its data in the shard.
        size: bytes of its data.
        first: offset where reading starts: of its headers, if they are to be verified.
        checksum: CRC-32 of its data, if it is known.
        header: CRC-32 of its headers, if they are to be verified.
    """

    offset: int
    size: int
    first: int
    checksum: int | None
    header: int | None


class Rare(NamedTuple):
    """The m members of fields that are no columns, by sample and field.

    Attributes:
        samples: int64 [m], sample of each member.
        numbers: int64 [m], number of its field among all fields.
        columns: names of the C fields that are columns, sorted.
    """

    samples: NDArray[np.int64]
    numbers: NDArray[np.int64]
    columns: tuple[str, ...]


def make_rare(
    fields: tuple[str, ...], samples: NDArray[np.int64], numbers: NDArray[np.int64]
) -> Rare:
    """Tell apart the fields of rare members and the columns.

    Args:
        fields: names of all fields.
        samples: see Rare.
        numbers: see Rare.

    Raises:
        ValueError: there are no such members, or one is in no field.
    """
    if not (samples.ndim == numbers.ndim == 1 and 0 < len(samples) == len(numbers)):
        raise ValueError("its arrays do not fit each other")
    if ((numbers < 0) | (numbers >= len(fields))).any():
        raise ValueError("a member is in no field")
    is_column = np.ones(len(fields), np.bool_)
    is_column[numbers] = False
    return Rare(samples, numbers, tuple(compress(fields, is_column.tolist())))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShardIndex:
    """The samples of one shard; see the module for the arrays.

    Attributes:
        shard_size: bytes of the tar file that was indexed.
        shard_sha256: hexadecimal digest of that file, if it was read whole.
        fields: names of all F fields, sorted.
        rare: members of fields that are no columns; None where all fields are columns.
        pictures: names of the P fields with sizes of pictures, sorted.
        has_end: whether an end-of-archive mark follows the members.
        file: file of the mapped arrays; None for arrays in memory.
        columns: names of the fields that have a cell in the row of each sample, sorted.
    """

    shard_size: int
    shard_sha256: str | None
    fields: tuple[str, ...]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    checksums: NDArray[np.uint32] | None
    key_ends: NDArray[np.int64]
    keys: NDArray[np.uint8]
    starts: NDArray[np.int64] | None = None
    headers: NDArray[np.uint32] | None = None
    pictures: tuple[str, ...] = ()
    heights: NDArray[np.uint32] | None = None
    widths: NDArray[np.uint32] | None = None
    orientations: NDArray[np.uint8] | None = None
    has_end: bool = True
    file: MappedFile | None = None
    rare: Rare | None = None
    columns: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        columns = self.fields if self.rare is None else self.rare.columns
        object.__setattr__(self, "columns", columns)

    @property
    def verifies(self) -> bool:
        """Whether it has checksums, of the data or of headers."""
        return self.checksums is not None or self.headers is not None

    @property
    def firsts(self) -> NDArray[np.int64]:
        """Offset where reading of each field starts: its headers, if they are to be verified."""
        return self.offsets if self.starts is None else self.starts

    def rare_fields(self) -> set[str]:
        """Return the names of the fields that are no columns."""
        return {*self.fields}.difference(self.columns)

    def __len__(self) -> int:
        return len(self.key_ends) - 1

    def contents(self) -> str:
        """Return the shard's hexadecimal digest; that of the index if the shard was not read."""
        return self.shard_sha256 or self.layout()

    def layout(self) -> str:
        """Return the hexadecimal digest of keys and places, the same whoever made the index.

        Where some fields are no columns, it is a digest of the members, whichever fields these are.
        """
        places: tuple[NDArray[np.int64], ...] = self.offsets, self.sizes
        if self.rare is not None:
            samples, numbers, cells = self.walk()
            places = samples, numbers, self.offsets[cells], self.sizes[cells]
        known = hashlib.sha256()
        for array in (*places, self.key_ends, self.keys):
            known.update(np.ascontiguousarray(array).data)
        return known.hexdigest()

    def cells(self, sample: int) -> dict[str, int]:
        """Return the cell of each field that a sample has, by the names of the fields."""
        row = sample * len(self.columns)
        offsets = self.offsets.reshape(-1)[row : row + len(self.columns)].tolist()
        named = enumerate(zip(self.columns, offsets, strict=True), row)
        found = {name: cell for cell, (name, offset) in named if offset >= 0}
        if self.rare is None:
            return found
        first = bisect_left(self.rare.samples.data, sample)
        last = bisect_right(self.rare.samples.data, sample, first)
        numbers = self.rare.numbers[first:last].tolist()
        others = enumerate(numbers, self._first_rare + first)
        return dict(sorted((found | {self.fields[each]: cell for cell, each in others}).items()))

    def member(self, cell: int) -> Member:
        """Return the place of the member that has a cell."""
        return Member(
            self.offsets.item(cell),
            self.sizes.item(cell),
            self.firsts.item(cell),
            None if self.checksums is None else self.checksums.item(cell),
            None if self.headers is None else self.headers.item(cell),
        )

    def members(self, sample: int) -> dict[str, Member]:
        """Return the place of each field that a sample has, in the order of their data."""
        found = {name: self.member(cell) for name, cell in self.cells(sample).items()}
        return dict(sorted(found.items(), key=lambda item: (item[1].offset, item[0])))

    def walk(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Walk all members, by sample and field.

        Returns:
            The sample, the number of the field among all fields, and the cell of each member,
            int64 [M].
        """
        samples, columns = np.nonzero(self.rows(self.offsets) >= 0)
        cells = samples * len(self.columns) + columns
        if self.rare is None:
            return samples, columns, cells
        others = self._first_rare + np.arange(len(self.rare.samples))
        numbers = np.setdiff1d(np.arange(len(self.fields)), self.rare.numbers)[columns]
        samples = np.concatenate([samples, self.rare.samples])
        numbers = np.concatenate([numbers, self.rare.numbers])
        order = np.lexsort((numbers, samples))
        return samples[order], numbers[order], np.concatenate([cells, others])[order]

    def cells_of(self, field: str) -> NDArray[np.int64]:
        """Return the cells of the members of a field, by sample, int64 [s]."""
        if field in self.columns:
            return self._cells_in(self.columns.index(field))
        if self.rare is None or field not in self.fields:
            return np.empty(0, np.int64)
        number = self.fields.index(field)
        return self._first_rare + np.flatnonzero(self.rare.numbers == number)

    def samples_of(self, field: str) -> NDArray[np.int64]:
        """Return the samples that have a field, int64 [s]."""
        if field in self.columns:
            return self.cells_of(field) // len(self.columns)
        if self.rare is None or field not in self.fields:
            return np.empty(0, np.int64)
        return np.asarray(self.rare.samples[self.rare.numbers == self.fields.index(field)])

    def by_field(self) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Yield each field with the cells of its members, see cells_of."""
        for column, name in enumerate(self.columns):
            yield name, self._cells_in(column)
        if self.rare is not None:
            order = np.argsort(self.rare.numbers, kind="stable")
            starts = np.flatnonzero(np.diff(self.rare.numbers[order])) + 1
            for some in np.split(order, starts):
                yield self.fields[self.rare.numbers[some[0]]], self._first_rare + some

    def extents(
        self, firsts: NDArray[np.int64], lasts: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Find where runs of samples start and end in the shard.

        Args:
            firsts: int64 [r], first sample of each run.
            lasts: int64 [r], last sample of each run.

        Returns:
            Offsets of their first bytes, and those after their last bytes, int64 [r] both.
        """
        starts = self.rows(self.firsts)[firsts]
        starts = np.where(starts < 0, self.shard_size, starts).min(axis=1, initial=self.shard_size)
        ends = self.rows(self.offsets)[lasts] + self.rows(self.sizes)[lasts]
        ends = ends.max(axis=1, initial=-1)
        for run, cells in self._rare_cells(firsts):
            starts[run] = min(starts[run], self.firsts[cells].min())
        for run, cells in self._rare_cells(lasts):
            ends[run] = max(ends[run], (self.offsets[cells] + self.sizes[cells]).max())
        return starts, ends

    def rows(self, array: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the cells of the columns from an array of all cells, [n, C]."""
        return array.reshape(-1)[: self._first_rare].reshape(len(self), len(self.columns))

    def _cells_in(self, column: int) -> NDArray[np.int64]:
        there = np.flatnonzero(self.rows(self.offsets)[:, column] >= 0)
        return there * len(self.columns) + column

    @property
    def _first_rare(self) -> int:
        """Cell of the first member that is in no column."""
        return len(self) * len(self.columns)

    def _rare_cells(self, samples: NDArray[np.int64]) -> Iterator[tuple[int, slice]]:
        """Yield the cells of members in no column, with the position of their sample in a list."""
        if self.rare is None:
            return
        starts = np.searchsorted(self.rare.samples, samples)
        ends = np.searchsorted(self.rare.samples, samples, side="right")
        for position in np.flatnonzero(starts < ends).tolist():
            yield (
                position,
                slice(self._first_rare + starts[position], self._first_rare + ends[position]),
            )

    def key(self, sample: int) -> str:
        """Return the key of a sample."""
        start, end = self.key_ends[sample], self.key_ends[sample + 1]
        return decode_key(self.keys.data[start:end])

    def picture_size(self, sample: int, field: str) -> PictureSize | None:
        """Return the size of the picture in a field of a sample; None if it is not known."""
        heights, widths, orientations = self.heights, self.widths, self.orientations
        if heights is None or widths is None or orientations is None or field not in self.pictures:
            return None
        at = sample, self.pictures.index(field)
        size = PictureSize(int(heights[at]), int(widths[at]), int(orientations[at]))
        return size if size.orientation else None

    def picture_sizes(self, samples: NDArray[np.int64], field: str) -> NDArray[np.int64] | None:
        """Return the sizes of the pictures in a field of some samples.

        Args:
            samples: int64 [s], samples.
            field: name of the field.

        Returns:
            Height, width and orientation, int64 [s, 3], all 0 where they are not known; None where
            none is.
        """
        tables = self.heights, self.widths, self.orientations
        if field not in self.pictures or any(table is None for table in tables):
            return None
        column = self.pictures.index(field)
        found = np.empty((len(samples), 3), np.int64)
        for place, table in enumerate(tables):
            if table is not None:
                found[:, place] = table[:, column].take(samples)
        return found


def decode_key(data: memoryview) -> str:
    """Decode the bytes of a key."""
    return str(data, "utf-8", "surrogateescape")


def encode_index(index: ShardIndex) -> list[bytes]:
    """Encode an index as the pieces of its file, in order."""
    header: dict[str, Any] = {
        "__metadata__": {
            "crc32": _NO_CHECKSUM.decode(),
            "format": FORMAT if index.rare is None else RARE_FORMAT,
            "shard_size": str(index.shard_size),
            "shard_sha256": index.shard_sha256 or "",
            "fields": json.dumps(index.fields),
            **({} if index.has_end else {"end": "missing"}),
            **({"pictures": json.dumps(index.pictures)} if index.pictures else {}),
        }
    }
    rare = () if index.rare is None else zip(_RARE_ARRAYS, index.rare[:2], strict=True)
    arrays = {**dict(rare), **{name: getattr(index, name) for name in _ARRAYS}}
    end = 0
    for name, array in arrays.items():
        if array is not None:
            start, end = end, end + array.nbytes
            dtype = _NAMES[array.dtype]
            header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    pieces = [len(text).to_bytes(8, "little") + text]
    pieces += [
        np.ascontiguousarray(array).tobytes() for array in arrays.values() if array is not None
    ]
    checksum = zlib.crc32(b"".join(pieces))
    pieces[0] = pieces[0].replace(_NO_CHECKSUM, b"%08x" % checksum, 1)
    return pieces


def read_index(path: Path | Location, *, shard_size: int | None = None) -> ShardIndex:
    """Open an index file; its arrays are read-only.

    Args:
        path: path of the file.
        shard_size: size of its shard, if it is known; see fetch_index.

    Raises:
        IndexFileError: the file is missing, damaged or of another version.
        OSError: the storage fails.
    """
    place = locate(path)
    try:
        if not place.is_local:
            return fetch_index(place, shard_size)[0]
        with _explained(path):
            file = place.open()
            assert isinstance(file, LocalShard)  # noqa: S101  of a local place
            return _decode_index(file)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IndexFileError(
            "the index is missing",
            where=path,
            remedy="run `shardio index` on the folder of its shard",
        ) from error


def fetch_index(path: Location, shard_size: int | None) -> tuple[ShardIndex, bytes]:
    """Read an index file into memory, whose size is looked at first.

    Args:
        path: path of the file.
        shard_size: size of its shard, if it is known, to which an index is in proportion: each
            member takes a block or more of a shard, and limited cells of a table.

    Returns:
        The index, and the bytes of its file.

    Raises:
        IndexFileError: the file is damaged, of another version, or too large for its shard.
        FileNotFoundError: there is none.
        OSError: the storage fails.
    """
    with _explained(path):
        file = path.open()
        most = _MOST_FETCHED
        if shard_size is not None:
            most = min(_MOST_SHARE * shard_size + _MOST_FIXED, most)
        if file.size > most:
            raise ValueError(f"it has {file.size:,} bytes, more than any of such a shard")
        content = file.read(0, file.size)
        return _decode_index(content), content


@contextmanager
def _explained(path: Path | Location) -> Iterator[None]:
    """Raise IndexFileError for what an index file must not hold."""
    try:
        yield
    except _DAMAGED as error:
        reason = error.what if isinstance(error, TarError) else error
        raise IndexFileError(
            f"the index is damaged or of another version ({reason})",
            where=path,
            remedy="delete it and run `shardio index` on the folder of its shard",
        ) from error


def _decode_index(file: LocalShard | bytes) -> ShardIndex:
    size = len(file) if isinstance(file, bytes) else file.size
    mappable = None if isinstance(file, bytes) or size <= _MOST_READ else file
    if isinstance(file, bytes):
        head = file
    else:
        # Reading, unlike touching a map, lets other threads run while storage takes its time.
        head = file.read(0, size if mappable is None else min(size, _PIECE))
    start = 8 + int.from_bytes(head[:8], "little")
    if start > size:
        raise ValueError("its header is truncated")
    if mappable is not None and start > len(head):
        head = mappable.read(0, start)
    header = json.loads(head[8:start])
    metadata = header["__metadata__"]
    if metadata["format"] not in (FORMAT, RARE_FORMAT):
        raise ValueError(
            f"format {quoted(metadata['format'])}, expected {FORMAT!r} or {RARE_FORMAT!r}"
        )
    checksum = metadata["crc32"].encode()
    found = zlib.crc32(head[:start].replace(checksum, _NO_CHECKSUM, 1))
    found = zlib.crc32(memoryview(head)[start:], found)
    if mappable is not None:
        for offset in range(len(head), size, _PIECE):
            found = zlib.crc32(mappable.read(offset, min(_PIECE, size - offset)), found)
    if b"%08x" % found != checksum:
        raise ValueError("its checksum differs")
    data = np.frombuffer(head if mappable is None else mappable.map(), np.uint8)
    fields, rare = tuple(json.loads(metadata["fields"])), None
    if metadata["format"] == RARE_FORMAT:
        rare = make_rare(fields, *_decode_arrays(header, data[start:], _RARE_ARRAYS).values())
    index = ShardIndex(
        shard_size=int(metadata["shard_size"]),
        shard_sha256=str(metadata["shard_sha256"]) or None,
        fields=fields,
        rare=rare,
        has_end=metadata.get("end") != "missing",
        pictures=tuple(json.loads(metadata.get("pictures", "[]"))),
        file=None if mappable is None else _mapped_file(mappable),
        **_decode_arrays(header, data[start:], _ARRAYS),
    )
    _verify(index)
    return index


def _decode_arrays(
    header: dict[str, Any], data: NDArray[np.uint8], types: dict[str, str]
) -> dict[str, Any]:
    arrays: dict[str, Any] = {name: None for name in types if name in _OPTIONAL}
    for name, dtype in types.items():
        if name in _OPTIONAL and name not in header:
            continue
        entry = header[name]
        first, last = entry["data_offsets"]
        if entry["dtype"] != dtype or not 0 <= first <= last <= len(data):
            raise ValueError(f"the array {name} has another type or lies outside the file")
        values: NDArray[Any] = np.frombuffer(data[first:last], _DTYPES[dtype])
        arrays[name] = np.require(values.reshape(tuple(entry["shape"])), requirements="A")
    return arrays


def _verify(index: ShardIndex) -> None:
    """Raise ValueError for contents that no shard can have, whatever the checksum says."""
    fields, ends, size = index.fields, index.key_ends, index.shard_size
    if not 0 <= size < _LIMIT or list(fields) != sorted(set(map(str, fields))):
        raise ValueError("no shard has such a size or such fields")
    for name in fields:
        name.encode("utf-8", "surrogateescape")  # UnicodeEncodeError is a ValueError
    _verify_shapes(index)
    if ends[0] != 0 or ends[-1] != len(index.keys) or (ends[1:] <= ends[:-1]).any():
        raise ValueError("its keys do not follow one another")
    room = np.where(index.offsets < 0, 0, size - index.offsets)
    if ((index.offsets < -1) | (index.sizes < 0) | (index.sizes > room)).any():
        raise ValueError("a field lies outside the shard")
    if (index.starts is None) != (index.headers is None):
        raise ValueError("it has headers without checksums, or checksums without headers")
    if index.pictures or not (index.heights is index.widths is index.orientations):
        _verify_pictures(index)
    if index.starts is not None:
        sizes = index.offsets - index.starts
        bad = (index.starts < 0) | (sizes <= 0) | (sizes % BLOCK != 0)
        if np.where(index.offsets < 0, index.starts != -1, bad).any():
            raise ValueError("headers do not lie before their data")


def _verify_shapes(index: ShardIndex) -> None:
    """Raise ValueError for arrays that do not fit each other."""
    shape: tuple[int, ...] = len(index), len(index.columns)
    if index.rare is not None:
        shape = (shape[0] * shape[1] + len(index.rare.samples),)
    for table in (index.offsets, index.sizes, index.checksums, index.starts, index.headers):
        if table is not None and table.shape != shape:
            raise ValueError("its arrays do not fit each other")
    if (index.key_ends.ndim, index.keys.ndim) != (1, 1):
        raise ValueError("its arrays do not fit each other")
    if index.rare is not None:
        _verify_rare(index, index.rare)


def _verify_rare(index: ShardIndex, rare: Rare) -> None:
    """Raise ValueError for members that are in no sample, or not in order."""
    samples, numbers = rare.samples, rare.numbers
    if samples[0] < 0 or samples[-1] >= len(index):
        raise ValueError("a member is in no sample")
    again = (samples[1:] == samples[:-1]) & (numbers[1:] <= numbers[:-1])
    if ((samples[1:] < samples[:-1]) | again).any():
        raise ValueError("its members do not follow one another")
    if (index.offsets[-len(samples) :] < 0).any():
        raise ValueError("a member lies outside the shard")


def are_aligned(offsets: NDArray[np.int64]) -> bool:
    """Tell whether all data start at a block of the tar, so that padding follows them."""
    return not (offsets % BLOCK).any()


def _verify_pictures(index: ShardIndex) -> None:
    """Raise ValueError for sizes that no pictures of the shard can have."""
    heights, widths, orientations = index.heights, index.widths, index.orientations
    if heights is None or widths is None or orientations is None:
        raise ValueError("it has pictures without sizes, or sizes without pictures")
    pictures, shape = [*index.pictures], (len(index), len(index.pictures))
    if not pictures or pictures != sorted({*pictures} & {*index.columns}):
        raise ValueError("it has sizes of pictures in fields that the shard does not have")
    if not heights.shape == widths.shape == orientations.shape == shape:
        raise ValueError("its arrays do not fit each other")
    known = index.rows(index.offsets)[:, np.searchsorted(index.columns, pictures)] >= 0
    known &= orientations > 0
    if ((heights > 0) != known).any() or ((widths > 0) != known).any():
        raise ValueError("it has a size where there is no picture, or only a part of one")
    if (orientations > _LAST_ORIENTATION).any():
        raise ValueError("it has an orientation that no picture has")
