"""The order of one sequence of samples: runs of shards, permuted inside windows.

To shuffle, the runs are permuted, then the samples inside each window of consecutive runs; a
window of all runs is a global permutation. A position goes through the permutation of its
window, then through a search in the cumulative lengths of the permuted runs: any position at
once, without the positions before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardio.plan.shuffle import KeyedPermutation, derive_key

Inside = NDArray[np.bool_] | slice
"""An index of an array: some of its places."""

_SHARDS, _SAMPLES = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runs:
    """Consecutive samples of shards; every array is int64 [n].

    Attributes:
        shards: position of the shard in the dataset.
        firsts: the first of the run among the dataset's samples in that shard.
        lengths: how many samples.
    """

    shards: NDArray[np.int64]
    firsts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.shards)

    def take(self, which: NDArray[Any] | slice) -> Runs:
        """Some of the runs."""
        return Runs(
            shards=self.shards[which], firsts=self.firsts[which], lengths=self.lengths[which]
        )

    def cut(self, start: int, end: int) -> Runs:
        """The runs of samples [start, end) when all runs are laid end to end."""
        ends = np.cumsum(self.lengths)
        starts = ends - self.lengths
        inside = np.flatnonzero((ends > start) & (starts < end))
        lead = np.maximum(start - starts[inside], 0)
        return Runs(
            shards=self.shards[inside],
            firsts=self.firsts[inside] + lead,
            lengths=np.minimum(end, ends[inside]) - starts[inside] - lead,
        )


class Order:
    """A sequence of samples.

    Args:
        runs: that hold them.
        key: of the permutations; None keeps the runs as they are.
        window: runs in a window.
    """

    def __init__(self, runs: Runs, *, key: int | None, window: int) -> None:
        self._key = key
        self._window = window
        if key is not None:
            permutation = KeyedPermutation(len(runs), derive_key(key, _SHARDS))
            runs = runs.take(permutation(np.arange(len(runs))))
        self._runs = runs
        self._starts = np.concatenate([[0], np.cumsum(runs.lengths)])
        self._window_starts = self._starts[:-1:window]
        self._permutations: dict[int, KeyedPermutation] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The samples at some positions of the sequence.

        Args:
            positions: 0 to len(self) - 1, [n] int64.

        Returns:
            The shard of each and its ordinal among the dataset's samples there, [n] int64 both.
        """
        permuted = positions if self._key is None else self._permute(positions)
        slots = np.searchsorted(self._starts, permuted, side="right") - 1
        ordinals = permuted - self._starts[slots] + self._runs.firsts[slots]
        return self._runs.shards[slots], ordinals

    def window_of(self, position: int) -> int:
        """The window that a position lies in."""
        return int(np.searchsorted(self._window_starts, position, side="right")) - 1

    def runs_of_window(self, window: int) -> Runs:
        """The runs of a window, in reading order; empty past the last window."""
        return self._runs.take(slice(window * self._window, (window + 1) * self._window))

    def _permute(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        windows = np.searchsorted(self._window_starts, positions, side="right") - 1
        permuted = np.empty_like(positions)
        for window, inside in grouped(windows):
            start = self._window_starts[window]
            permuted[inside] = start + self._permutation(window)(positions[inside] - start)
        return permuted

    def _permutation(self, window: int) -> KeyedPermutation:
        if window not in self._permutations:
            end = self._starts[min((window + 1) * self._window, len(self._runs))]
            key = derive_key(self._key or 0, _SAMPLES, window)
            while len(self._permutations) > 1:
                del self._permutations[next(iter(self._permutations))]
            size = int(end - self._window_starts[window])
            self._permutations[window] = KeyedPermutation(size, key)
        return self._permutations[window]


def grouped(numbers: NDArray[np.int64]) -> Iterator[tuple[int, Inside]]:
    """Each number that occurs, ascending, with its places."""
    if not len(numbers):
        return
    least = int(numbers.min())
    if least == int(numbers.max()):
        yield least, slice(None)
        return
    # np.unique would do, but its first call imports a tenth of a second's worth of modules.
    for number in (np.flatnonzero(np.bincount(numbers - least)) + least).tolist():
        yield number, numbers == number
