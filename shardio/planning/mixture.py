"""Schedule the sources of a mixture: map any position to its source, without those before it.

The schedule consists of blocks of 1,000 positions. Weights are rounded to multiples of 1/100,000,
so each source occurs a whole number of times in 100 blocks. The whole part of a source's share of
1,000 has fixed positions, spread evenly over the block and the same in every block. A few free
positions remain for the fractions. The sources move through them from the last to the first,
by a hundredth of the way in each block. This is systematic sampling (Madow and Madow, "On the
theory of systematic sampling", 1944) with a start that advances evenly.

In every block, a source therefore occurs floor or ceil of its share of times. The same holds for
every window of 1,000 positions across two blocks. Such a window has the later positions of the
first block and the earlier positions of the second. A source moves to an earlier free position only
after at least one block without it. If it moves to a later one, no window contains both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK = 1000
BLOCKS = 100
_UNITS = BLOCK * BLOCKS
LEAST_WEIGHT = 1 / _UNITS


class Mixture:
    """Schedule of sources.

    Args:
        weights: weight of each source, at least LEAST_WEIGHT; the sum must be 1.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._units = _apportion(np.asarray(weights, dtype=np.float64))
        self._whole, fractions = np.divmod(self._units, BLOCKS)
        self._ends = np.cumsum(fractions)
        free = len(weights)  # letter of the free positions
        counts = np.append(self._whole, int(self._ends[-1]) // BLOCKS)
        self._word = _spread(counts)
        self._free = np.flatnonzero(self._word == free)
        letters = self._word[:, None] == np.arange(free)
        self._before = np.concatenate([np.zeros((1, free), np.int64), np.cumsum(letters, axis=0)])

    def sources(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the source at each position, int64 [n] for int64 [n]."""
        blocks, inner = np.divmod(positions, BLOCK)
        found = self._word[inner]
        free = np.flatnonzero(found == len(self._units))
        numbers = np.searchsorted(self._free, inner[free])
        found[free] = self._in_free(numbers, blocks[free] % BLOCKS)
        return found

    def count(self, source: int, position: int) -> int:
        """Count the occurrences of a source before a position."""
        blocks, inner = divmod(position, BLOCK)
        rounds, block = divmod(blocks, BLOCKS)
        taken = np.arange(int(np.searchsorted(self._free, inner)))
        return int(
            rounds * self._units[source]
            + block * self._whole[source]
            + self._extra_before(source, block)
            + self._before[inner, source]
            + np.count_nonzero(self._in_free(taken, np.full_like(taken, block)) == source)
        )

    def position(self, source: int, number: int) -> int:
        """Return the position of a source's occurrence with the given number, from 0."""
        low, high = 0, (number // int(self._units[source]) + 1) * _UNITS
        while low < high:
            middle = (low + high) // 2
            if self.count(source, middle + 1) > number:
                high = middle
            else:
                low = middle + 1
        return low

    def _in_free(self, numbers: NDArray[np.int64], blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._ends, numbers * BLOCKS + blocks, side="right")

    def _extra_before(self, source: int, block: int) -> int:
        ends = [int(self._ends[source - 1]) if source else 0, int(self._ends[source])]
        first, last = (end // BLOCKS * block + min(end % BLOCKS, block) for end in ends)
        return last - first


def _apportion(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Round weights to whole units by the largest remainder method."""
    exact = np.round(weights * _UNITS, 6)
    units = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(units - exact, kind="stable")
    units[by_remainder[: _UNITS - int(units.sum())]] += 1
    return units


def _spread(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a word with the given count of each letter, evenly spread."""
    letters = np.repeat(np.arange(len(counts)), counts)
    ordinals = np.concatenate([np.arange(count) for count in counts])
    even = (ordinals + 0.5) / counts[letters]
    return letters[np.lexsort((letters, even))]
