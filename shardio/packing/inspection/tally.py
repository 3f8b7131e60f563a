"""How often whole numbers come, for medians of millions of sizes in little memory.

Only numbers that differ take memory, and there are few: n sizes that all differ add up to n²/2
bytes, so the members of a terabyte have at most 1.4 million.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LEAST_PENDING = 1 << 17


class Tally:
    """Numbers with how often each came."""

    def __init__(self) -> None:
        self._numbers = np.empty(0, np.int64)
        self._counts = np.empty(0, np.int64)
        self._pending: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._waiting = 0

    def add(self, numbers: NDArray[np.int64]) -> None:
        """Count numbers, int64 [n]."""
        self._add(numbers, np.ones(len(numbers), np.int64))

    def merge(self, other: Tally) -> None:
        """Count what another tally counted."""
        self._add(*other.counts())

    def counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The numbers that came, ascending, and how often each did, int64 [d] both."""
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
        """The number in the middle, of two the lower; 0 if none came."""
        numbers, counts = self.counts()
        ends = np.cumsum(counts)
        return int(numbers[np.searchsorted(ends, (ends[-1] + 1) // 2)]) if len(ends) else 0

    def _add(self, numbers: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        self._pending.append((numbers, counts))
        self._waiting += len(numbers)
        if self._waiting > max(_LEAST_PENDING, 2 * len(self._numbers)):
            self.counts()
