"""Number the samples of a dataset: all samples of its shards, or a selection.

Samples are numbered in packed order. An ordinal counts the samples of one shard that belong to the
dataset. For all samples, the counts of the shards are enough to locate a number, and ordinals are
positions in the shard. A selection also has a flat array of these positions, with 4 bytes per
sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from shardio.planning.order import KeyedPermutation, derive_key

_SPLIT = -2  # keys of epochs have no negative parts
_AT_ONCE = 1 << 20


class Samples:
    """Numbered samples of a dataset.

    Args:
        counts: number of samples in each shard.
        chosen: uint32 [sum(counts)], position of each sample in its shard, ascending within a
            shard; None for the first `counts[shard]` samples of each shard.
        origin: complete description of the selection, from which its digest is derived; if
            empty, the digest is that of the positions.

    Attributes:
        counts: int64 [shards], number of samples in each shard.
        chosen: positions of the samples in their shards, or None.
    """

    def __init__(
        self,
        counts: Sequence[int] | NDArray[np.int64],
        chosen: NDArray[np.uint32] | None = None,
        *,
        origin: str = "",
    ) -> None:
        self.counts: NDArray[np.int64] = np.asarray(counts, dtype=np.int64)
        self.chosen = chosen
        self._origin = origin
        self._digest = ""
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def digest(self, of_all: str) -> str:
        """Return 16 hexadecimal digits that identify these samples.

        Args:
            of_all: digest of the whole dataset.
        """
        if self.chosen is None:
            return of_all
        if not self._digest:
            listed = self.counts.tobytes() + self.chosen.tobytes() if not self._origin else b""
            parts = f"{of_all} {self._origin} ".encode() + listed
            self._digest = hashlib.sha256(parts).hexdigest()[:16]
        return self._digest

    def locate(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Locate samples by number.

        Args:
            numbers: int64 [n], from 0 to len(self) - 1.

        Returns:
            Shard of each sample, and its position in that shard, both int64 [n].
        """
        shards = np.searchsorted(self._starts, numbers, side="right") - 1
        return shards, self.in_shards(shards, numbers - self._starts[shards])

    def in_shards(
        self, shards: NDArray[np.int64], ordinals: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the positions in their shards of samples given by ordinal, int64 [n]."""
        if self.chosen is None:
            return ordinals
        return self.chosen[self._starts[shards] + ordinals].astype(np.int64)

    def numbers(self, shards: NDArray[np.int64], ordinals: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of samples given by ordinal, int64 [n]."""
        return self._starts[shards] + ordinals

    def number(self, shard: int, position: int) -> int | None:
        """Return the number of the sample at a position of a shard; None if not selected."""
        start, end = int(self._starts[shard]), int(self._starts[shard + 1])
        if self.chosen is None:
            return start + position if position < end - start else None
        found = start + int(np.searchsorted(self.chosen[start:end], position))
        return found if found < end and self.chosen[found] == position else None

    def find(self, others: Samples) -> NDArray[np.int64]:
        """Return the numbers of samples of the same shards that were chosen of these, int64 [n]."""
        shards, positions = others.locate(np.arange(len(others)))
        if self.chosen is None:
            return self._starts[shards] + positions
        own, wide = self.locate(np.arange(len(self)))[0], 1 << 32
        return np.searchsorted(own * wide + self.chosen, shards * wide + positions)

    def in_shard(self, shard: int) -> NDArray[np.int64]:
        """Return the positions of the samples in a shard, ascending, int64 [n]."""
        ordinals = np.arange(self.counts[shard])
        return self.in_shards(np.full_like(ordinals, shard), ordinals)

    def choose(self, numbers: NDArray[np.int64], *, origin: str = "") -> Samples:
        """Select some of the samples.

        Args:
            numbers: int64 [n], distinct and ascending.
            origin: complete description of the selection; see Samples.
        """
        shards, positions = self.locate(numbers)
        counts = np.bincount(shards, minlength=len(self.counts))
        return Samples(counts, positions.astype(np.uint32), origin=origin)

    def split(self, fractions: Sequence[float], seed: int, contents: str) -> list[Samples]:
        """Split the samples into disjoint random parts.

        Args:
            fractions: fraction of each part; the sum must be 1.
            seed: random seed.
            contents: digest of the samples.
        """
        ends = np.rint(np.cumsum(fractions) * len(self)).astype(np.int64)
        part_of = np.empty(len(self), np.uint8 if len(ends) < 256 else np.int64)
        for numbers, drawn in self._drawn(seed):
            part_of[numbers] = np.searchsorted(ends, drawn, side="right")
        origin = f"{contents} split {ends.tolist()} {seed}"
        return [
            self.choose(np.flatnonzero(part_of == part), origin=f"{origin} {part}")
            for part in range(len(ends))
        ]

    def _drawn(self, seed: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        permutation = KeyedPermutation(len(self), derive_key(seed, _SPLIT))
        for start in range(0, len(self), _AT_ONCE):
            numbers = np.arange(start, min(start + _AT_ONCE, len(self)))
            yield numbers, permutation(numbers)
