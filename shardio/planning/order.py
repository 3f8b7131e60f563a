"""Keyed permutations and keyed random numbers.

Everything random in shardio is a pure function of a key and a position, so that any process
can compute any part of it alone. Numbers come from SplitMix64's finaliser (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", 2014), not from numpy's generators,
whose streams may change between numpy versions.

A permutation of a small range is a table: the argsort of one random number per position, which
is uniform over all orders. A large range would need a large table, so there it is a Feistel
network over the next power of two, walked until the value falls inside the range (Black and
Rogaway, "Ciphers with arbitrary finite domains", 2002): any position at once, O(1) memory.

The order of one sequence of samples: runs of shards, permuted inside windows.

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

_GOLDEN = 0x9E3779B97F4A7C15
_MASK64 = (1 << 64) - 1
_TABLE_LIMIT = 1 << 16
_ROUNDS = 8


def derive_key(*parts: int) -> int:
    """Mix integers into one 64-bit key; any change of any part changes every bit's odds."""
    key = 0
    for part in parts:
        key = _mix_int((key + _GOLDEN + (part & _MASK64)) & _MASK64)
    return key


def uniform_numbers(key: int, rows: NDArray[np.int64], columns: int) -> NDArray[np.float64]:
    """Random numbers for each row, whatever other rows are asked for.

    Args:
        key: from derive_key.
        rows: [n] int64, what each row of numbers belongs to.
        columns: how many numbers a row needs.

    Returns:
        [n, columns] float64 in [0, 1).
    """
    if not columns:
        return np.empty((len(rows), 0))
    start = _mix(rows.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(key))
    steps = np.arange(1, columns + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    bits = _mix(start[:, None] + steps[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


class KeyedPermutation:
    """A permutation of range(size) that is evaluated where it is asked.

    Args:
        size: how many values are permuted.
        key: from derive_key; equal keys give equal permutations.
    """

    __slots__ = ("_key", "_size", "_table")

    def __init__(self, size: int, key: int) -> None:
        self._size = size
        self._key = key
        self._table: NDArray[np.int64] | None = None
        if size <= _TABLE_LIMIT:
            order = _mix(np.arange(size, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(key))
            self._table = np.argsort(order, kind="stable").astype(np.int64)

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Values at the given positions, [n] int64 in and out."""
        if self._table is not None:
            return self._table[positions]
        values = self._feistel(positions.astype(np.uint64))
        outside = np.flatnonzero(values >= self._size)
        while outside.size:
            values[outside] = self._feistel(values[outside])
            outside = outside[values[outside] >= self._size]
        return values.astype(np.int64)

    def _feistel(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        bits = (self._size - 1).bit_length()
        low_bits = np.uint64(bits // 2)
        low_mask = np.uint64((1 << (bits // 2)) - 1)
        high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
        high, low = values >> low_bits, values & low_mask
        for round_number in range(0, _ROUNDS, 2):
            high ^= _mix(low + np.uint64(derive_key(self._key, round_number))) & high_mask
            low ^= _mix(high + np.uint64(derive_key(self._key, round_number + 1))) & low_mask
        return (high << low_bits) | low


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _mix_int(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


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
