"""One epoch as arithmetic: from a step and a rank to samples, without I/O.

The epoch is one sequence of samples. To shuffle it, the shards are permuted, then the samples
inside each window of consecutive shards; a window of all shards is a global permutation. A
position goes through the permutation of its window, then through a search in the cumulative
sample counts of the permuted shards. Global batch b is positions [b·G, (b+1)·G); rank r takes
the r-th of its `world_size` equal slices; worker w takes steps w, w+W, w+2·W, which is the
order in which a DataLoader asks its workers.

Nothing but the shard counts, the seed, the epoch, the shuffle and G enters the sequence, so
ranks, workers and threads only slice it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardio.plan.shuffle import KeyedPermutation, derive_key
from shardio.plan.tail import Tail, count_steps, wrap_pads

DEFAULT_WINDOW = 16
_SHARDS, _SAMPLES = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """Samples that a step asks for, in order; every array is [n].

    Attributes:
        positions: int64, place in the epoch's endless sequence (pads lie past its end).
        shards: int64, position of the shard in the dataset.
        indices: int64, position of the sample in its shard.
        valid: bool, False for the repeats that pad a tail.
    """

    positions: NDArray[np.int64]
    shards: NDArray[np.int64]
    indices: NDArray[np.int64]
    valid: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.positions)

    def split(self) -> Iterator[References]:
        """One reference at a time."""
        for i in range(len(self)):
            yield References(
                positions=self.positions[i : i + 1],
                shards=self.shards[i : i + 1],
                indices=self.indices[i : i + 1],
                valid=self.valid[i : i + 1],
            )


class EpochPlan:
    """The plan of one epoch.

    Args:
        counts: samples in each shard of the dataset.
        global_batch_size: samples that all ranks together take in a step.
        seed: of the shuffle.
        epoch: counted from 0; each has another order.
        shuffle: permute shards, then samples inside each window; otherwise the packed order.
        window: shards in a window.
        tail: see shardio.plan.tail.
    """

    def __init__(
        self,
        counts: Sequence[int] | NDArray[np.int64],
        *,
        global_batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = True,
        window: int = DEFAULT_WINDOW,
        tail: Tail = "pad",
    ) -> None:
        sizes = np.asarray(counts, dtype=np.int64)
        self._global_batch_size = global_batch_size
        self._key = derive_key(seed, epoch)
        self._shuffle = shuffle
        self._window = window
        self._shard_order = np.arange(len(sizes))
        if shuffle:
            permutation = KeyedPermutation(len(sizes), derive_key(self._key, _SHARDS))
            self._shard_order = permutation(self._shard_order)
        self._starts = np.concatenate([[0], np.cumsum(sizes[self._shard_order])])
        self._window_starts = self._starts[:-1:window]
        self.num_samples = int(self._starts[-1])
        self.num_steps = count_steps(self.num_samples, global_batch_size, tail)
        self._permutations: dict[int, KeyedPermutation] = {}

    def share(self, steps: Iterable[int], rank: int, world_size: int) -> NDArray[np.int64]:
        """The positions of one rank's slices of some steps, in order, [n] int64.

        Args:
            steps: each 0 to num_steps - 1.
            rank: 0 to world_size - 1.
            world_size: divides the global batch size.
        """
        size = self._global_batch_size // world_size
        starts = np.fromiter(steps, np.int64) * self._global_batch_size + rank * size
        return (starts[:, None] + np.arange(size)).ravel()

    def references(self, positions: NDArray[np.int64]) -> References:
        """The samples at some positions of the epoch, [n] int64, in order."""
        wrapped, valid = wrap_pads(positions, self.num_samples)
        permuted = self._permute(wrapped)
        slots = np.searchsorted(self._starts, permuted, side="right") - 1
        return References(
            positions=positions,
            shards=self._shard_order[slots],
            indices=permuted - self._starts[slots],
            valid=valid,
        )

    def window_of(self, step: int) -> int:
        """The window that a step's first sample lies in."""
        position = step * self._global_batch_size
        return int(np.searchsorted(self._window_starts, position, side="right")) - 1

    def shards_of_window(self, window: int) -> NDArray[np.int64]:
        """The shards of a window, in reading order; empty past the last window."""
        return self._shard_order[window * self._window : (window + 1) * self._window]

    def _permute(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self._shuffle:
            return positions
        windows = np.searchsorted(self._window_starts, positions, side="right") - 1
        permuted = np.empty_like(positions)
        for window in np.unique(windows):
            inside = windows == window
            start = self._window_starts[window]
            permuted[inside] = start + self._permutation(int(window))(positions[inside] - start)
        return permuted

    def _permutation(self, window: int) -> KeyedPermutation:
        if window not in self._permutations:
            end = self._starts[min((window + 1) * self._window, len(self._shard_order))]
            key = derive_key(self._key, _SAMPLES, window)
            while len(self._permutations) > 1:
                del self._permutations[next(iter(self._permutations))]
            size = int(end - self._window_starts[window])
            self._permutations[window] = KeyedPermutation(size, key)
        return self._permutations[window]


def steps_of_worker(num_steps: int, worker: int, num_workers: int) -> range:
    """The steps of one worker, in the order in which a DataLoader asks for them."""
    return range(worker, num_steps, num_workers)
