"""The samples that a dataset consists of: all of its shards' samples, or chosen ones.

The samples are numbered in packed order. Where all are taken, the counts of the shards say which
shard a number falls into; where some were chosen, their places in the shards are one flat array
of 4 bytes a sample beside the counts.
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
    """Samples by number.

    Args:
        counts: how many of each shard belong to it.
        chosen: their positions in their shards, ascending in each, [sum(counts)] uint32; None
            when they are the first `counts[shard]` of each shard.
        origin: what the choice was made of, where that says all of it.

    Attributes:
        counts: int64 [shards].
        chosen: as given.
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
        """16 hexadecimal digits that tell these samples from others.

        Args:
            of_all: the digest of the dataset when all its samples are taken.
        """
        if self.chosen is None:
            return of_all
        if not self._digest:
            listed = self.counts.tobytes() + self.chosen.tobytes() if not self._origin else b""
            parts = f"{of_all} {self._origin} ".encode() + listed
            self._digest = hashlib.sha256(parts).hexdigest()[:16]
        return self._digest

    def locate(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where samples are.

        Args:
            numbers: 0 to len(self) - 1, [n] int64.

        Returns:
            The shard of each and its position in that shard, [n] int64 both.
        """
        shards = np.searchsorted(self._starts, numbers, side="right") - 1
        return shards, self.place(shards, numbers - self._starts[shards])

    def place(self, shards: NDArray[np.int64], ordinals: NDArray[np.int64]) -> NDArray[np.int64]:
        """The position in its shard of the `ordinal`-th of the samples in a shard, [n] int64."""
        if self.chosen is None:
            return ordinals
        return self.chosen[self._starts[shards] + ordinals].astype(np.int64)

    def number(self, shard: int, position: int) -> int | None:
        """The number of the sample at a position of a shard; None if it does not belong."""
        start, end = int(self._starts[shard]), int(self._starts[shard + 1])
        if self.chosen is None:
            return start + position if position < end - start else None
        found = start + int(np.searchsorted(self.chosen[start:end], position))
        return found if found < end and self.chosen[found] == position else None

    def in_shard(self, shard: int) -> NDArray[np.int64]:
        """The positions of the samples in a shard, ascending, [n] int64."""
        ordinals = np.arange(self.counts[shard])
        return self.place(np.full_like(ordinals, shard), ordinals)

    def choose(self, numbers: NDArray[np.int64], *, origin: str = "") -> Samples:
        """Some of the samples.

        Args:
            numbers: distinct and ascending, [n] int64.
            origin: see Samples.
        """
        shards, positions = self.locate(numbers)
        counts = np.bincount(shards, minlength=len(self.counts))
        return Samples(counts, positions.astype(np.uint32), origin=origin)

    def split(self, fractions: Sequence[float], seed: int, contents: str) -> list[Samples]:
        """Disjoint random parts that together are all samples.

        Args:
            fractions: of each part; they add up to 1.
            seed: of the choice.
            contents: the digest of the samples.
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
