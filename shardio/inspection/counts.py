"""Count sizes, for their medians, and class numbers, in little memory.

Sizes are counted by value. Only distinct sizes take memory, and there are few of them: n distinct
sizes add up to at least n²/2 bytes, so the members of a terabyte have at most 1.4 million.

Class numbers are counted without reading the shard if its index has checksums. Decimal numbers of
equal length up to seven digits have different CRC-32s, so size and checksum identify the number.
Other members are read by the thousand, and each distinct text is parsed once.

Samples are counted by the fields that they have, the formats of images counting as one.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from shardio.errors import CodecError
from shardio.fields.arrays import decode_cls
from shardio.fields.base import LABEL_FIELD
from shardio.fields.formats import IMAGE_FIELDS
from shardio.indexing.entry import ShardEntry
from shardio.indexing.shard_index import ShardIndex, are_aligned
from shardio.storage.base import StoredFile
from shardio.storage.copying import RowCopier

_LEAST_PENDING = 1 << 17
_MOST_FIELD_SETS = 1000


class Tally:
    """Multiset of whole numbers."""

    def __init__(self) -> None:
        self._numbers = np.empty(0, np.int64)
        self._counts = np.empty(0, np.int64)
        self._pending: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._waiting = 0

    def add(self, numbers: NDArray[np.int64]) -> None:
        """Add numbers, int64 [n]."""
        self._add(numbers, np.ones(len(numbers), np.int64))

    def merge(self, other: Tally) -> None:
        """Add the numbers of another tally."""
        self._add(*other.counts())

    def counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the distinct numbers, ascending, and their counts, both int64 [d]."""
        if self._pending:
            numbers, counts = (
                np.concatenate(arrays)
                for arrays in zip((self._numbers, self._counts), *self._pending, strict=True)
            )
            order = np.argsort(numbers, kind="stable")
            numbers, counts = numbers[order], counts[order]
            first = np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1])[: len(numbers)])
            self._numbers = numbers[first]
            self._counts = np.add.reduceat(counts, first) if len(first) else counts
            self._pending, self._waiting = [], 0
        return self._numbers, self._counts

    def median(self) -> int:
        """Return the median, the lower one of two; 0 if there are no numbers."""
        numbers, counts = self.counts()
        ends = np.cumsum(counts)
        return int(numbers[np.searchsorted(ends, (ends[-1] + 1) // 2)]) if len(ends) else 0

    def _add(self, numbers: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        self._pending.append((numbers, counts))
        self._waiting += len(numbers)
        if self._waiting > max(_LEAST_PENDING, 2 * len(self._numbers)):
            self.counts()


MOST_CLASSES = 100_000
"""Maximum number of distinct class numbers to count if classes have no names."""
TOLD_BY_CHECKSUM = 7
"""Maximum number of digits for which CRC-32s are distinct; with 8 digits, some collide."""

_KNOWN = 10_000  # numbers whose checksums are computed in advance, at least
_MOST_TEXT = 64  # bytes of a number, with white space around it
_AT_ONCE = 1 << 13

T = TypeVar("T", int, bytes)


class ClassCounter:
    """Counter of class numbers, shard by shard.

    Args:
        classes: number of classes with names.

    Attributes:
        numbers: number of samples by class number.
        missing: number of samples without a class number.
        unreadable: number of samples whose member is not a class number.
        complete: whether `numbers` has all class numbers; False if there were too many.
    """

    def __init__(self, classes: int) -> None:
        self.numbers = Counter[int]()
        self.missing = self.unreadable = 0
        self.complete = True
        self._most = max(classes, MOST_CLASSES)
        self._by_checksum: dict[int, int | None] = {}
        for number in range(max(classes, _KNOWN)):
            text = b"%d" % number
            self._by_checksum[len(text) << 32 | zlib.crc32(text)] = number
        self._by_text: dict[bytes, int | None] = {}

    def add(self, entry: ShardEntry, index: ShardIndex) -> None:
        """Count the samples of a shard.

        Raises:
            TarError: the shard has to be read, and is missing or changed.
            OSError: the shard cannot be read.
        """
        if LABEL_FIELD not in index.fields:
            self.missing += len(index)
            return
        cells = index.cells_of(LABEL_FIELD)
        self.missing += len(index) - len(cells)
        offsets, sizes = index.offsets.take(cells), index.sizes.take(cells)
        told = np.zeros(len(cells), np.bool_)
        if index.checksums is not None:
            told = sizes <= TOLD_BY_CHECKSUM
            tokens = sizes[told] << 32 | index.checksums.take(cells)[told]
            self._count_told(entry, offsets[told], sizes[told], tokens)
        if not told.all():
            self._count_read(entry, offsets[~told], sizes[~told])

    def merge(self, other: ClassCounter) -> None:
        """Add the counts of another counter."""
        self.numbers += other.numbers
        self.missing += other.missing
        self.unreadable += other.unreadable
        self.complete &= other.complete

    def _count_told(
        self,
        entry: ShardEntry,
        offsets: NDArray[np.int64],
        sizes: NDArray[np.int64],
        tokens: NDArray[np.int64],
    ) -> None:
        """Count members by size and checksum; of those not seen before one is read."""
        file: StoredFile | None = None

        def read(row: int) -> bytes:
            nonlocal file
            file = file or entry.open_file()
            return file.read(int(offsets[row]), int(sizes[row]))

        unique, first, counts = np.unique(tokens, return_index=True, return_counts=True)
        self._count(self._by_checksum, unique.tolist(), counts, lambda at: read(first[at]))

    def _count_read(
        self, entry: ShardEntry, offsets: NDArray[np.int64], sizes: NDArray[np.int64]
    ) -> None:
        """Count members by their bytes."""
        short = sizes <= _MOST_TEXT
        self.unreadable += int((~short).sum())
        offsets, sizes = offsets[short], sizes[short]
        file = entry.open_file()
        for start in range(0, len(offsets), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            texts, counts = _unique_texts(_read_texts(file, offsets[some], sizes[some]))
            self._count(self._by_text, texts, counts, texts.__getitem__)

    def _count(
        self,
        known: dict[T, int | None],
        tokens: Sequence[T],
        counts: NDArray[np.int64],
        text_of: Callable[[int], bytes],
    ) -> None:
        for at, (token, count) in enumerate(zip(tokens, counts.tolist(), strict=True)):
            if token not in known:
                known[token] = _number_in(text_of(at))
            number = known[token]
            if number is None:
                self.unreadable += count
            elif number in self.numbers or len(self.numbers) < self._most:
                self.numbers[number] += count
            else:
                self.complete = False
        if len(known) > 2 * self._most:
            known.clear()  # limits memory; texts are parsed again


def class_name(number: int, classes: tuple[str, ...] | None) -> str | None:
    """Return the name of a class, or None."""
    return classes[number] if classes is not None and 0 <= number < len(classes) else None


def _number_in(text: bytes) -> int | None:
    try:
        return decode_cls(text)
    except CodecError:
        return None


def _read_texts(
    file: StoredFile, offsets: NDArray[np.int64], sizes: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Read members of at most 64 bytes as uint8 [n, 65]: data, zeros, and the size at the end."""
    width = _MOST_TEXT + 1
    # The rest of a member's block is padding.
    inside = are_aligned(offsets)
    rows = RowCopier().copy([file], [len(offsets)], offsets, width) if inside else None
    texts = np.zeros((len(offsets), width), np.uint8)
    if rows is not None:
        texts[:] = rows
    else:
        for row, (offset, size) in enumerate(zip(offsets.tolist(), sizes.tolist(), strict=True)):
            texts[row, :size] = np.frombuffer(file.read(offset, size), np.uint8)
    texts[np.arange(width) >= sizes[:, None]] = 0
    texts[:, _MOST_TEXT] = sizes
    return texts


def _unique_texts(rows: NDArray[np.uint8]) -> tuple[list[bytes], NDArray[np.int64]]:
    """Return the distinct texts and their counts."""
    unique, counts = np.unique(rows.view(f"S{rows.shape[1]}").ravel(), return_counts=True)
    padded = [text.ljust(rows.shape[1], b"\0") for text in unique.tolist()]
    return [text[: text[-1]] for text in padded], counts


class FieldSet(NamedTuple):
    """Samples that have the same fields.

    Attributes:
        samples: number of samples.
        key: key of the first sample.
    """

    samples: int
    key: str


def count_field_sets(samples: Mapping[str, set[str]]) -> dict[frozenset[str], FieldSet]:
    """Count samples by the general names of their fields.

    Args:
        samples: names of the fields of each sample, by key.
    """
    found: dict[frozenset[str], FieldSet] = {}
    for key, fields in samples.items():
        names = frozenset(map(general_name, fields))
        if names in found or len(found) < _MOST_FIELD_SETS:
            before = found.get(names, FieldSet(0, key))
            found[names] = FieldSet(before.samples + 1, before.key)
    return found


def general_name(field: str) -> str:
    """Return the name of a field, with "image" in place of any image format."""
    head, dot, last = field.rpartition(".")
    return f"{head}{dot}image" if last in IMAGE_FIELDS else field
