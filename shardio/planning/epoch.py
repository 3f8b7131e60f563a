"""Plan one epoch: map steps and ranks to samples, by arithmetic and without I/O.

An epoch is one sequence of global batches of G samples each. Global batch b covers the positions
[b·G, (b+1)·G). It consists of `world_size` equal slices, one for each rank. Of W workers, worker w
takes steps w, w+W, w+2·W and so on, which is the order in which a DataLoader asks its workers.

The sequence depends only on the samples, the seed, the epoch, the shuffle, the streams, the size
of an epoch, the weights and G. Ranks, workers and threads slice it.

The samples are divided evenly into canonical streams, and each stream fills its own slice of every
global batch. A single stream shuffles best. With several, the ranks that read a stream read the
same shards in every epoch and no others. If the world size divides the number of streams, each
rank reads whole streams.

Where samples have buckets, each step has samples of one of them, see shardio.planning.buckets.

Every rank takes the same number of steps. The tail policy says what happens to an incomplete
global batch. "pad" fills it with samples from the start of the epoch, marked as not valid. "even"
shares its samples out, so that all ranks have a batch of one size, with at most one pad each: the
shares differ by one sample at most, and a rank lacks a valid sample only where the batch has fewer
samples than there are ranks. "exact" has no pads: the samples of the incomplete global batch and of
the one before are halved between these two, and each half is shared out, so that every rank has
samples in every step. "drop" leaves it out. "short" makes it smaller, which requires a single rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Literal, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from shardio.planning.buckets import Bucketing
from shardio.planning.draws import Weights
from shardio.planning.order import (
    Count,
    KeyedPermutation,
    Order,
    Passes,
    Runs,
    SampleSequence,
    derive_key,
    grouped,
)
from shardio.planning.samples import Samples

Tail = Literal["pad", "even", "exact", "drop", "short"]


def count_steps(num_samples: int, global_batch_size: int, tail: Tail) -> int:
    """Return the number of steps in an epoch, which is the same for every rank."""
    if tail == "drop":
        return num_samples // global_batch_size
    return -(-num_samples // global_batch_size)


def halve_rest(num_samples: int, global_batch_size: int) -> list[range]:
    """Return the positions of the last steps under tail="exact", if they differ from full ones.

    They depend on the global batch size and on no ranks, as all steps do.
    """
    steps, rest = divmod(num_samples, global_batch_size)
    if not rest:
        return []
    if not steps:
        return [range(num_samples)]
    start = (steps - 1) * global_batch_size
    middle = num_samples - (global_batch_size + rest) // 2
    return [range(start, middle), range(middle, num_samples)]


DEFAULT_WINDOW = 16
_EVERY_EPOCH, _STREAM = -1, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """Samples of a step, in order; every array has shape [n].

    Attributes:
        positions: int64, position in the epoch, padding included; random numbers depend on it.
        streams: int64, canonical stream.
        inner: int64, position in the stream's sequence.
        shards: int64, position of the shard in the dataset.
        indices: int64, position of the sample in its shard.
        valid: bool, False for padding.
    """

    positions: NDArray[np.int64]
    streams: NDArray[np.int64]
    inner: NDArray[np.int64]
    shards: NDArray[np.int64]
    indices: NDArray[np.int64]
    valid: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.positions)

    def part(self, samples: slice) -> References:
        """Return the references of some of the samples."""
        return References(
            positions=self.positions[samples],
            streams=self.streams[samples],
            inner=self.inner[samples],
            shards=self.shards[samples],
            indices=self.indices[samples],
            valid=self.valid[samples],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shuffle:
    """Settings for the order of a dataset.

    Attributes:
        seed: random seed.
        on: whether to permute the shards and the samples inside each window; packed order if
            False.
        window: number of shards in a window of a stream; None for all shards.
        streams: number of canonical streams, at most the number of samples.
        epoch_size: number of samples in an epoch; None for all. Epochs of another size follow one
            another through the orders that epochs have without it, so that each of these orders is
            delivered whole before the next one begins.
        weights: weights of the samples, which are drawn; None delivers each one once.
    """

    seed: int = 0
    on: bool = True
    window: int | None = DEFAULT_WINDOW
    streams: int = 1
    epoch_size: int | None = None
    weights: Weights | None = None

    def identity(self) -> dict[str, str | int | bool | None]:
        """Return all that the order depends on beside the samples; entries in use alone."""
        found: dict[str, str | int | bool | None] = {
            "seed": self.seed,
            "shuffle": self.on,
            "window": self.window,
            "streams": self.streams,
        }
        if self.epoch_size is not None:
            found["epoch_size"] = self.epoch_size
        if self.weights is not None:
            found["weights"] = self.weights.digest()
        return found

    def epoch_length(self, samples: Samples) -> int:
        """Return the number of samples in an epoch."""
        if self.weights is not None:
            return self.weights.draws
        return len(samples) if self.epoch_size is None else self.epoch_size

    def order(self, samples: Samples, epoch: int) -> list[SampleSequence]:
        """Return the sequence of each stream in an epoch."""
        if self.weights is not None:
            key, runs = derive_key(self.seed, epoch), _all_runs(samples)
            return [self.weights.order(runs, key, shuffled=self.on, window=self.window)]
        if self.epoch_size is None:
            return [*self._pass(samples, epoch)]
        of_pass = lru_cache(maxsize=4)(partial(self._pass, samples))
        ends = [self.epoch_size * stream // self.streams for stream in range(self.streams + 1)]
        sizes = [end - start for start, end in pairwise(ends)]

        def order_of(stream: int, number: int) -> Order:
            return of_pass(number)[stream]

        return [
            Passes(partial(order_of, stream), first=epoch * size, length=size)
            for stream, size in enumerate(sizes)
        ]

    def _pass(self, samples: Samples, number: int) -> list[Order]:
        """Return the order of each stream in a pass, which has each sample once."""
        runs = _all_runs(samples)
        key = derive_key(self.seed, number)
        window = self.window or max(len(runs), 1)
        if self.streams == 1:
            return [Order(runs, key=key if self.on else None, window=window)]
        if self.on:
            fixed = KeyedPermutation(len(runs), derive_key(self.seed, _EVERY_EPOCH))
            runs = runs.take(fixed(np.arange(len(runs))))
        ends = [len(samples) * stream // self.streams for stream in range(self.streams + 1)]
        return [
            Order(
                runs.cut(ends[stream], ends[stream + 1]),
                key=derive_key(key, _STREAM, stream) if self.on else None,
                window=window,
            )
            for stream in range(self.streams)
        ]


def _all_runs(samples: Samples) -> Runs:
    return Runs(
        shards=np.arange(len(samples.counts)),
        firsts=np.zeros_like(samples.counts),
        lengths=samples.counts,
    )


class Steps(Protocol):
    """Steps of an epoch: from its positions, padding included, to places in its sequences."""

    def __len__(self) -> int: ...

    def filled(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of samples in some steps, at most the global batch size each."""

    def places(
        self, positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Return stream, position in its sequence, and validity of some positions of the epoch."""


class _PlainSteps:
    """Steps that cut the sequences of the streams, one after another.

    Args:
        lengths: int64 [streams], number of samples in each stream.
        global_batch_size: number of samples per step over all ranks.
        tail: policy for the last step.
    """

    def __init__(self, lengths: NDArray[np.int64], global_batch_size: int, tail: Tail) -> None:
        self._lengths, self._size = lengths, global_batch_size
        self._slice = global_batch_size // len(lengths)
        self._samples = int(lengths.sum())
        self._steps = count_steps(self._samples, global_batch_size, tail)

    def __len__(self) -> int:
        return self._steps

    def filled(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """See Steps."""
        return np.minimum(self._samples - steps * self._size, self._size)

    def places(
        self, positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """See Steps."""
        steps, offsets = np.divmod(positions, self._size)
        streams, within = np.divmod(offsets, self._slice)
        inner, lengths = steps * self._slice + within, self._lengths[streams]
        return streams, inner % lengths, inner < lengths


class EpochPlan:
    """Plan of one epoch.

    Args:
        samples: samples of the dataset.
        shuffle: settings for their order.
        global_batch_size: number of samples per step over all ranks; a multiple of the number
            of streams.
        epoch: number of the epoch, from 0; each epoch has a different order.
        tail: policy for an incomplete global batch; see the module docstring.
        buckets: buckets of the samples; each step then has samples of one of them.

    Attributes:
        samples: samples of the dataset.
        shuffle: settings for their order.
        orders: sequence of each stream.
        num_samples: number of samples in the epoch, without padding.
        num_steps: number of steps, the same for every rank.
        bucketing: buckets of the samples; None without buckets.
        buckets: int64 [steps], bucket of each step; None without buckets.
    """

    def __init__(
        self,
        samples: Samples,
        shuffle: Shuffle,
        *,
        global_batch_size: int,
        epoch: int = 0,
        tail: Tail = "pad",
        buckets: Bucketing | None = None,
    ) -> None:
        self.samples, self.shuffle = samples, shuffle
        self.orders = shuffle.order(samples, epoch)
        self.num_samples = shuffle.epoch_length(samples)
        self._global_batch_size = global_batch_size
        self.bucketing = buckets
        self._steps: Steps
        self.buckets: NDArray[np.int64] | None = None
        if buckets is None:
            lengths = np.array([*map(len, self.orders)])
            self._steps = _PlainSteps(lengths, global_batch_size, tail)
        else:
            (sequence,) = self.orders
            found = buckets.steps(sequence, global_batch_size, whole=tail == "drop")
            self._steps, self.buckets = found, found.buckets
        self.num_steps = len(self._steps)
        self._shares_out = tail in ("even", "short")
        self._last: dict[int, range] = {}
        if tail == "exact":
            last = halve_rest(self.num_samples, global_batch_size)
            self._last = dict(enumerate(last, self.num_steps - len(last)))

    def share(self, steps: Iterable[int], rank: int, world_size: int) -> NDArray[np.int64]:
        """Return the positions of one rank's slices of some steps, in order.

        Args:
            steps: numbers of the steps, from 0 to num_steps - 1.
            rank: number of the rank, from 0 to world_size - 1.
            world_size: number of ranks, a divisor of the global batch size.

        Returns:
            int64 array of shape [n].
        """
        size = self._global_batch_size // world_size
        which = np.fromiter(steps, np.int64)
        starts = which * self._global_batch_size + rank * size
        positions = starts[:, None] + np.arange(size)
        if not (self._shares_out or self._last):
            return positions.ravel()
        shares = [*positions]
        for place, step in enumerate(which.tolist()):
            if step in self._last:
                start, end = _borders(len(self._last[step]), rank, world_size)
                shares[place] = np.asarray(self._last[step][start:end], np.int64)
        if self._shares_out:
            for at in np.flatnonzero(self._steps.filled(which) < self._global_batch_size):
                shares[at] = self._share_out(int(which[at]), rank, world_size)
        return np.concatenate([np.empty(0, np.int64), *shares])

    def _share_out(self, step: int, rank: int, world_size: int) -> NDArray[np.int64]:
        """Return the positions of one rank's even share of an incomplete global batch."""
        size = self._global_batch_size
        positions = step * size + np.arange(size)
        valid = self._steps.places(positions)[2]
        samples, pads = positions[valid], positions[~valid]
        # The same borders divide the streams, so that a rank has the samples of its own.
        start, end = _borders(len(samples), rank, world_size)
        lacks = -(-len(samples) // world_size) - (end - start)
        pad = rank * size // world_size - start  # the first one of the rank's streams
        return np.concatenate([samples[start:end], pads[pad : pad + lacks]])

    def references(self, positions: NDArray[np.int64]) -> References:
        """Return the samples at some positions of the epoch, int64 [n], in order."""
        streams, inner, valid = self._steps.places(positions)
        shards, ordinals = np.empty_like(positions), np.empty_like(positions)
        for stream, inside in grouped(streams):
            shards[inside], ordinals[inside] = self.orders[stream].locate(inner[inside])
        return References(
            positions=positions,
            streams=streams,
            inner=inner,
            shards=shards,
            indices=self.samples.in_shards(shards, ordinals),
            valid=valid,
        )

    def bucket_of(self, positions: NDArray[np.int64]) -> int | None:
        """Return the bucket of the samples at some positions of one step; None without buckets."""
        if self.buckets is None:
            return None
        return int(self.buckets[positions[0] // self._global_batch_size])

    def bounds(self) -> tuple[Count, Count]:
        """Return how often a sample comes at least, and at most, if no step is left out."""
        least, most = zip(*(order.bounds() for order in self.orders), strict=True)
        return (least[0], most[0]) if len(least) == 1 else (min(least), max(most))


def _borders(count: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return start and end of the share of a rank; shares differ by one at most."""
    return count * rank // world_size, count * (rank + 1) // world_size


def steps_of_worker(first: int, num_steps: int, worker: int, num_workers: int) -> range:
    """Return the steps of one worker from step `first` on, in the DataLoader's order."""
    return range(first + worker, num_steps, num_workers)


def in_growing_parts(steps: Sequence[int], first: int, most: int) -> Iterator[Sequence[int]]:
    """Divide steps into parts that are planned at once; a loop waits for the first part."""
    start, size = 0, min(first, most)
    while start < len(steps):
        yield steps[start : start + size]
        start, size = start + size, min(2 * size, most)


class DealtSteps(Sequence[int]):
    """Steps of one worker whose DataLoader joins several of them in a batch.

    The workers take turns with the batches, so that these are the same for any number of workers.

    Args:
        steps: steps of the worker if a batch is one step, see steps_of_worker.
        worker: number of the worker.
        size: number of steps in a batch.
    """

    def __init__(self, steps: range, worker: int, size: int) -> None:
        self._start = steps.start + worker * (size - 1)
        self._size, self._stride = size, size * steps.step
        rounds, rest = divmod(max(steps.stop - self._start, 0), self._stride)
        self._count = rounds * size + min(rest, size)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[number] for number in range(self._count)[index]]
        turn, offset = divmod(range(self._count)[index], self._size)
        return self._start + turn * self._stride + offset
