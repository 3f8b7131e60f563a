"""Keyed random numbers and permutations, and the order of a sequence of samples.

All randomness in shardio is a pure function of a key and a position, so any process can compute
any part of it independently. The numbers come from SplitMix64's finalizer (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", 2014). numpy's generators are not used, because
their streams may change between versions.

A permutation of a small range is a table, the argsort of one random number per position. It is
uniform over all permutations. A permutation of a large range takes no memory: it is a Feistel
network over the next power of two, applied repeatedly until the value falls inside the range
(Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).

A sequence of samples consists of runs, which are consecutive samples of a shard. A shuffle
permutes the runs, and then the samples inside each window of consecutive runs. A single window of
all runs gives a global permutation. Locating a position takes the permutation of its window and a
search in the cumulative lengths of the runs; earlier positions are not needed.

Whatever orders an epoch is a `SampleSequence`, from positions to samples, in windows of shards.
`Order` has each sample once, `Passes` is a part of one order after another, and
shardio.planning.draws has another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_MASK64 = (1 << 64) - 1
_TABLE_LIMIT = 1 << 16
_ROUNDS = 8


def derive_key(*parts: int) -> int:
    """Mix integers into one 64-bit key; a change of any part may change any bit."""
    key = 0
    for part in parts:
        key = (key + _GOLDEN + (part & _MASK64)) & _MASK64
        key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _MASK64
        key ^= key >> 31
    return key


def uniform_numbers(key: int, rows: NDArray[np.int64], columns: int) -> NDArray[np.float64]:
    """Return random numbers for each row, independent of the other rows requested.

    Args:
        key: random key from derive_key.
        rows: int64 [n], identifier of each row, such as its position.
        columns: number of random numbers per row.

    Returns:
        float64 [n, columns], uniform in [0, 1).
    """
    if not columns:
        return np.empty((len(rows), 0))
    start = _mix(rows.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(key))
    steps = np.arange(1, columns + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    bits = _mix(start[:, None] + steps[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


class KeyedPermutation:
    """Permutation of range(size), evaluated on demand.

    Args:
        size: number of values.
        key: random key from derive_key; equal keys give equal permutations.
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
        """Return the values at the given positions, int64 [n] for int64 [n]."""
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


Inside = NDArray[np.bool_] | slice
"""Index of a subset of an array."""

_SHARDS, _SAMPLES = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runs:
    """Runs of consecutive samples; every array is int64 [n].

    Attributes:
        shards: position of the run's shard in the dataset.
        firsts: ordinal of the run's first sample in that shard, see shardio.planning.samples.
        lengths: number of samples in the run.
    """

    shards: NDArray[np.int64]
    firsts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.shards)

    def take(self, which: NDArray[Any] | slice) -> Runs:
        """Return a selection of the runs."""
        return Runs(
            shards=self.shards[which], firsts=self.firsts[which], lengths=self.lengths[which]
        )

    def cut(self, start: int, end: int) -> Runs:
        """Return the runs of the samples [start, end) in the concatenation of all runs."""
        ends = np.cumsum(self.lengths)
        starts = ends - self.lengths
        inside = np.flatnonzero((ends > start) & (starts < end))
        lead = np.maximum(start - starts[inside], 0)
        return Runs(
            shards=self.shards[inside],
            firsts=self.firsts[inside] + lead,
            lengths=np.minimum(end, ends[inside]) - starts[inside] - lead,
        )


Count = int | NDArray[np.int64]
"""Number of occurrences: of all samples, or of each one by its number, int64 [n]."""


class SampleSequence(Protocol):
    """Sequence of the samples of a stream in an epoch, in windows of shards that are read together.

    It is a pure function of its arguments, and any position is found without those before it.
    """

    def __len__(self) -> int: ...

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Locate the samples at some positions of the sequence.

        Args:
            positions: int64 [n], from 0 to len(self) - 1.

        Returns:
            Shard of each sample, and its ordinal in that shard, both int64 [n].
        """

    def window_of(self, position: int) -> int:
        """Return the window of a position."""

    def runs_of_window(self, window: int) -> Runs:
        """Return the runs of a window, in reading order; empty after the last window."""

    def window_of_shards(self, count: int) -> NDArray[np.int64]:
        """Return the window of each shard, int64 [count]; the last one of several, -1 for none."""

    def bounds(self) -> tuple[Count, Count]:
        """Return how often a sample comes at least, and at most."""


class Order:
    """Order of a sequence of samples, each of which comes once; a SampleSequence.

    Args:
        runs: runs of the sequence, in packed order.
        key: random key of the permutations; None keeps the packed order.
        window: number of runs in a window.
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

    @property
    def num_windows(self) -> int:
        """Number of windows."""
        return len(self._window_starts)

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See SampleSequence."""
        permuted = positions if self._key is None else self._permute(positions)
        runs = np.searchsorted(self._starts, permuted, side="right") - 1
        ordinals = permuted - self._starts[runs] + self._runs.firsts[runs]
        return self._runs.shards[runs], ordinals

    def window_of(self, position: int) -> int:
        """See SampleSequence."""
        return int(np.searchsorted(self._window_starts, position, side="right")) - 1

    def runs_of_window(self, window: int) -> Runs:
        """See SampleSequence."""
        return self._runs.take(slice(window * self._window, (window + 1) * self._window))

    def positions_of_window(self, window: int) -> NDArray[np.int64]:
        """Return the positions of a window, int64 [n]."""
        return np.arange(*self._ends(window))

    def bounds(self) -> tuple[int, int]:
        """See SampleSequence."""
        return 1, 1

    def window_of_shards(self, count: int) -> NDArray[np.int64]:
        """See SampleSequence."""
        windows = np.full(count, -1)
        windows[self._runs.shards] = np.arange(len(self._runs)) // self._window
        return windows

    def _permute(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        windows = np.searchsorted(self._window_starts, positions, side="right") - 1
        permuted = np.empty_like(positions)
        for window, inside in grouped(windows):
            start = self._window_starts[window]
            permuted[inside] = start + self._permutation(window)(positions[inside] - start)
        return permuted

    def _permutation(self, window: int) -> KeyedPermutation:
        if window not in self._permutations:
            key = derive_key(self._key or 0, _SAMPLES, window)
            while len(self._permutations) > 1:
                del self._permutations[next(iter(self._permutations))]
            start, end = self._ends(window)
            self._permutations[window] = KeyedPermutation(end - start, key)
        return self._permutations[window]

    def _ends(self, window: int) -> tuple[int, int]:
        end = self._starts[min((window + 1) * self._window, len(self._runs))]
        return int(self._window_starts[window]), int(end)


class Passes:
    """Part of an endless sequence of passes, each of which has every sample once; a SampleSequence.

    Args:
        order_of: returns the order of a pass; all passes have the same runs.
        first: position of the first sample in the endless sequence.
        length: number of samples, at least 1.
    """

    def __init__(self, order_of: Callable[[int], Order], *, first: int, length: int) -> None:
        self._length, self._size = length, len(order_of(0))
        self._first, self._offset = divmod(first, self._size)
        self._order_of = order_of
        self._num_windows = order_of(0).num_windows
        self._skipped = 0
        self._skipped = self.window_of(0)

    def __len__(self) -> int:
        return self._length

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See SampleSequence."""
        passes, inner = np.divmod(positions + self._offset, self._size)
        shards, ordinals = np.empty_like(positions), np.empty_like(positions)
        for number, inside in grouped(passes):
            shards[inside], ordinals[inside] = self._order(number).locate(inner[inside])
        return shards, ordinals

    def window_of(self, position: int) -> int:
        """See SampleSequence."""
        number, inner = divmod(position + self._offset, self._size)
        before = number * self._num_windows - self._skipped
        return before + self._order(number).window_of(inner)

    def runs_of_window(self, window: int) -> Runs:
        """See SampleSequence."""
        number, inner = divmod(window + self._skipped, self._num_windows)
        beyond = window > self.window_of(self._length - 1)
        return self._order(number).runs_of_window(self._num_windows if beyond else inner)

    def window_of_shards(self, count: int) -> NDArray[np.int64]:
        """See SampleSequence."""
        windows, last = np.full(count, -1), self.window_of(self._length - 1)
        for number in range((self._length - 1 + self._offset) // self._size + 1):
            found = self._order(number).window_of_shards(count)
            shifted = found + number * self._num_windows - self._skipped
            inside = (found >= 0) & (shifted >= 0) & (shifted <= last)
            windows[inside] = shifted[inside]
        return windows

    def bounds(self) -> tuple[int, int]:
        """See SampleSequence."""
        end = self._offset + self._length
        whole = end // self._size - -(-self._offset // self._size)
        return max(whole, 0), -(-end // self._size)

    def _order(self, number: int) -> Order:
        return self._order_of(self._first + number)


def grouped(numbers: NDArray[np.int64]) -> list[tuple[int, Inside]]:
    """List each distinct number, ascending, with the index of its occurrences."""
    if not len(numbers):
        return []
    least = int(numbers.min())
    if least == int(numbers.max()):
        return [(least, slice(None))]
    # The first call of np.unique spends 0.1 s on imports.
    distinct: list[int] = (np.flatnonzero(np.bincount(numbers - least)) + least).tolist()
    return [(number, numbers == number) for number in distinct]
