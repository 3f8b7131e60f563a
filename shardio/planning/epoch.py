"""The end of an epoch: every rank takes the same number of steps.

A global batch is filled by all ranks together. Where the samples do not fill the last one,
`pad` repeats samples from the epoch's start and marks them as not valid, `drop` leaves the
incomplete batch out, and `short` makes it smaller, which only one rank alone can do.

One epoch as arithmetic: from a step and a rank to samples, without I/O.

The epoch is one sequence of global batches. Global batch b is positions [b·G, (b+1)·G); rank r
takes the r-th of its `world_size` equal slices; worker w takes steps w, w+W, w+2·W, which is the
order in which a DataLoader asks its workers.

The samples are divided evenly into canonical streams, each of which fills its own slice of
every global batch: one stream shuffles finest; with more, whichever ranks read a stream read its
shards and no others, in every epoch. World sizes that divide the number of streams give each
rank whole streams.

Nothing but the samples, the seed, the epoch, the shuffle, the streams and G enters the sequence,
so ranks, workers and threads only slice it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shardio.planning.order import KeyedPermutation, Order, Runs, derive_key, grouped
from shardio.planning.samples import Samples

Tail = Literal["pad", "drop", "short"]


def count_steps(num_samples: int, global_batch_size: int, tail: Tail) -> int:
    """Steps of an epoch, the same for every rank."""
    if tail == "drop":
        return num_samples // global_batch_size
    return -(-num_samples // global_batch_size)


DEFAULT_WINDOW = 16
_EVERY_EPOCH, _STREAM = -1, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """Samples that a step asks for, in order; every array is [n].

    Attributes:
        positions: int64, place in the epoch's endless sequence; random numbers belong to it.
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

    def split(self, size: int) -> Iterator[References]:
        """Yield at most that many references at a time."""
        if len(self) <= size:
            yield self
            return
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield References(
                positions=self.positions[part],
                shards=self.shards[part],
                indices=self.indices[part],
                valid=self.valid[part],
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shuffle:
    """How a dataset is ordered.

    Attributes:
        seed: of the shuffle.
        on: permute shards, then samples inside each window; otherwise the packed order.
        window: shards in a window of a stream; None is all of them.
        streams: canonical streams; at most as many as samples.
    """

    seed: int = 0
    on: bool = True
    window: int | None = DEFAULT_WINDOW
    streams: int = 1

    def order(self, samples: Samples, epoch: int) -> list[Order]:
        """The order of each stream in an epoch."""
        runs = Runs(
            shards=np.arange(len(samples.counts)),
            firsts=np.zeros_like(samples.counts),
            lengths=samples.counts,
        )
        key = derive_key(self.seed, epoch)
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


class EpochPlan:
    """The plan of one epoch.

    Args:
        samples: of the dataset.
        shuffle: their order.
        global_batch_size: samples that all ranks together take in a step; a multiple of the
            number of streams.
        epoch: counted from 0; each has another order.
        tail: see shardio.planning.epoch.

    Attributes:
        orders: of the streams.
        num_samples: in the epoch, repeats not counted.
        num_steps: the same for every rank.
    """

    def __init__(
        self,
        samples: Samples,
        shuffle: Shuffle,
        *,
        global_batch_size: int,
        epoch: int = 0,
        tail: Tail = "pad",
    ) -> None:
        self.orders = shuffle.order(samples, epoch)
        self.num_samples = len(samples)
        self.num_steps = count_steps(self.num_samples, global_batch_size, tail)
        self._samples = samples
        self._lengths = np.array([len(order) for order in self.orders])
        self._global_batch_size = global_batch_size
        self._slice = global_batch_size // shuffle.streams
        self._short = tail == "short"

    def share(self, steps: Iterable[int], rank: int, world_size: int) -> NDArray[np.int64]:
        """The positions of one rank's slices of some steps, in order, [n] int64.

        Args:
            steps: each 0 to num_steps - 1.
            rank: 0 to world_size - 1.
            world_size: divides the global batch size.
        """
        size = self._global_batch_size // world_size
        starts = np.fromiter(steps, np.int64) * self._global_batch_size + rank * size
        positions: NDArray[np.int64] = (starts[:, None] + np.arange(size)).ravel()
        if self._short:
            streams, places = self._in_streams(positions)
            positions = positions[places < self._lengths[streams]]
        return positions

    def references(self, positions: NDArray[np.int64]) -> References:
        """The samples at some positions of the epoch, [n] int64, in order."""
        streams, places = self._in_streams(positions)
        lengths = self._lengths[streams]
        shards, ordinals = np.empty_like(positions), np.empty_like(positions)
        for stream, inside in grouped(streams):
            wrapped = places[inside] % lengths[inside]
            shards[inside], ordinals[inside] = self.orders[stream].locate(wrapped)
        return References(
            positions=positions,
            shards=shards,
            indices=self._samples.place(shards, ordinals),
            valid=places < lengths,
        )

    def first_places(self, positions: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Each stream that some positions lie in, and the first place in it."""
        streams, places = self._in_streams(positions)
        return [(stream, int(places[inside][0])) for stream, inside in grouped(streams)]

    def _in_streams(
        self, positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        steps, offsets = np.divmod(positions, self._global_batch_size)
        streams, within = np.divmod(offsets, self._slice)
        return streams, steps * self._slice + within


def steps_of_worker(first: int, num_steps: int, worker: int, num_workers: int) -> range:
    """The steps of one worker from a first step on, in the order in which a DataLoader asks."""
    return range(first + worker, num_steps, num_workers)
