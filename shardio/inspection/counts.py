"""Count sizes, for their medians, and class numbers, in little memory.

Sizes are counted by value. Only distinct sizes take memory, and there are few of them: n distinct
sizes add up to at least n²/2 bytes, so the members of a terabyte have at most 1.4 million.

Class numbers are counted as shardio.indexing.labels tells them.

Samples are counted by the fields that they have, the formats of images counting as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardio.fields.formats import IMAGE_FIELDS
from shardio.indexing.entry import ShardEntry
from shardio.indexing.labels import LabelReader
from shardio.indexing.shard_index import ShardIndex

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
        self._reader = LabelReader(classes)

    def add(self, entry: ShardEntry, index: ShardIndex) -> None:
        """Count the samples of a shard.

        Raises:
            TarError: the shard has to be read, and is missing or changed.
            OSError: the shard cannot be read.
        """
        found = self._reader.read(entry, index)
        self.missing += int((~found.present).sum())
        self.unreadable += int((found.present & ~found.known).sum())
        numbers, counts = np.unique(found.numbers[found.known], return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            if number in self.numbers or len(self.numbers) < self._most:
                self.numbers[number] += count
            else:
                self.complete = False

    def merge(self, other: ClassCounter) -> None:
        """Add the counts of another counter."""
        self.numbers += other.numbers
        self.missing += other.missing
        self.unreadable += other.unreadable
        self.complete &= other.complete


def class_name(number: int, classes: tuple[str, ...] | None) -> str | None:
    """Return the name of a class, or None."""
    return classes[number] if classes is not None and 0 <= number < len(classes) else None


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
