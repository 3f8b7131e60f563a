"""Buckets: steps whose samples, over all ranks, are of one bucket, such as an aspect ratio.

The epoch's sequence is divided by bucket, each bucket is cut into global batches, and these are
ordered by the position where each is full. A batch is thus read when the loop has come past its
last sample, and a rare bucket reaches back into windows of shards that are over. What is left of a
bucket, less than a global batch, comes at the end of the epoch, one incomplete step a bucket, to
which the tail policy applies: pads are samples of the same bucket.

Positions of the epoch are numbered by step, as without buckets, so ranks and workers slice steps
alike, and any step is found at once. The table of an epoch takes 4 bytes a sample.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from shardio.planning.order import SampleSequence
from shardio.planning.samples import Samples

_AT_ONCE = 1 << 18


class Bucketing:
    """Buckets of the samples of a dataset.

    Args:
        samples: samples of the dataset.
        numbers: uint8 or uint16 [n], bucket of each sample by number.
        origin: description of the buckets, which is part of the digest.

    Attributes:
        numbers: bucket of each sample.
        origin: description of the buckets.
        counts: int64 [buckets], number of samples in each bucket.
    """

    def __init__(
        self, samples: Samples, numbers: NDArray[np.uint8] | NDArray[np.uint16], origin: str
    ) -> None:
        self.numbers, self.origin = numbers, origin
        self.counts: NDArray[np.int64] = np.bincount(numbers)
        self._samples = samples

    def digest(self) -> str:
        """Return 16 hexadecimal digits that identify the buckets and their samples."""
        content = self.numbers.astype("<u2").tobytes()
        return hashlib.sha256(self.origin.encode() + content).hexdigest()[:16]

    def count_steps(self, global_batch_size: int, *, whole: bool) -> int:
        """Return the number of steps in an epoch.

        Args:
            global_batch_size: number of samples per step over all ranks.
            whole: whether incomplete steps are left out.
        """
        lacking = 0 if whole else global_batch_size - 1
        return int(((self.counts + lacking) // global_batch_size).sum())

    def count_rare(self, global_batch_size: int) -> int:
        """Return the number of samples in buckets that are less than one global batch."""
        return int(self.counts[self.counts < global_batch_size].sum())

    def steps(
        self, sequence: SampleSequence, global_batch_size: int, *, whole: bool
    ) -> BucketSteps:
        """Return the steps of an epoch, see count_steps."""
        of = np.empty(len(sequence), self.numbers.dtype)
        for start in range(0, len(of), _AT_ONCE):
            positions = np.arange(start, min(start + _AT_ONCE, len(of)))
            of[positions] = self.numbers[self._samples.numbers(*sequence.locate(positions))]
        return BucketSteps(of, global_batch_size, whole=whole)


class BucketSteps:
    """Steps of an epoch by bucket; Steps of shardio.planning.epoch.

    Args:
        of: bucket at each position of the sequence.
        global_batch_size: number of samples per step over all ranks.
        whole: whether incomplete steps are left out.

    Attributes:
        buckets: int64 [steps], bucket of each step.
    """

    def __init__(
        self,
        of: NDArray[np.uint8] | NDArray[np.uint16],
        global_batch_size: int,
        *,
        whole: bool,
    ) -> None:
        self._size = size = global_batch_size
        self._counts = counts = np.bincount(of)
        self._starts = np.cumsum(counts) - counts
        self._positions = np.empty(len(of), np.uint32 if len(of) < 1 << 32 else np.int64)
        for bucket, start in enumerate(self._starts.tolist()):
            self._positions[start : start + counts[bucket]] = np.flatnonzero(of == bucket)
        steps = counts // size if whole else -(-counts // size)
        buckets = np.repeat(np.arange(len(counts)), steps)
        firsts = (np.arange(len(buckets)) - np.repeat(np.cumsum(steps) - steps, steps)) * size
        lasts = self._starts[buckets] + firsts + size - 1
        full = firsts + size <= counts[buckets]
        fills = np.full(len(buckets), len(of))
        fills[full] = self._positions[lasts[full]]
        order = np.argsort(fills, kind="stable")
        self.buckets, self._firsts = buckets[order], firsts[order]

    def __len__(self) -> int:
        return len(self.buckets)

    def filled(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """See Steps."""
        rest: NDArray[np.int64] = self._counts[self.buckets[steps]] - self._firsts[steps]
        return np.minimum(rest, self._size)

    def places(
        self, positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """See Steps."""
        steps, offsets = np.divmod(positions, self._size)
        buckets, inner = self.buckets[steps], self._firsts[steps] + offsets
        counts = self._counts[buckets]
        places = self._positions[self._starts[buckets] + inner % counts].astype(np.int64)
        return np.zeros_like(positions), places, inner < counts
