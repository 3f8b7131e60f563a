"""Reading ahead: the page cache is the shuffle buffer, filled before it is needed.

Storage is often a network file system, where each request costs tens of milliseconds but many may
be under way. Entering a window asks for its shards and for those of the next one, whole, in
requests of the size that the kernel grants; samples are then picked from memory. Until that has
been asked for, and wherever reading turns out to be slow, the samples of each batch are asked for
beside it, all at once, so that the first batch waits for a few requests and not for a window.

Asking only starts requests, and happens in threads of its own. The workers share the asking. Of a
shard that two streams share, each asks for its own part. What goes wrong here is left to the
reading, which meets it again and tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shardio.errors import ShardioError
from shardio.planning.epoch import References
from shardio.planning.order import Order, Runs, grouped
from shardio.planning.samples import Samples
from shardio.processes import Threads
from shardio.reading.shards import OpenShard, ShardPool
from shardio.reading.times import StageTimes

_PIECE = 128 << 10  # bytes; of one larger request Linux reads no more, unless it is set to
_OPENERS = 32  # shards that open at once, and their indexes
_SLOW_READ = 200_000  # ns for a sample; from memory it takes a tenth


class ReadAhead:
    """Asks for what the batches of a loop will need.

    Args:
        orders: order of each stream, whose windows are asked for; if empty, only batches are.
        samples: samples of the dataset.
        pool: pool of the dataset's shards.
        workers: number of this process, and of those that share the asking.
        times: totals of the reading in this process.
    """

    def __init__(
        self,
        orders: Sequence[Order],
        samples: Samples,
        pool: ShardPool,
        workers: tuple[int, int],
        times: StageTimes,
    ) -> None:
        self._orders = orders
        self._samples = samples
        self._pool = pool
        self._mine = slice(workers[0], None, workers[1])
        self._times = times
        self._seen = times.read, times.samples
        self._asked = [-1] * len(orders)
        self._opened: set[int] = set()
        self._closed = False
        self._opening = Threads("ahead", _OPENERS)
        self._batches = Threads("ahead", 1)
        self._asking = Threads("ahead", 1)

    def close(self) -> None:
        """Ask for nothing more, and end the threads."""
        self._closed = True
        for threads in (self._opening, self._batches, self._asking):
            threads.end()

    def enter(self, references: References) -> None:
        """Ask for what a batch needs, and for its windows and the windows after them."""
        runs = self._new_windows(references) if self._orders else []
        if self._may_be_slow():
            batch = self._batches.submit(self._ask_for_samples, references)
            if runs:
                self._asking.submit(batch.result)  # the batch comes first
        for part in runs:
            self._asking.submit(self._ask_for_window, part)

    def _new_windows(self, references: References) -> list[Runs]:
        """List this worker's runs of each window that was not asked for before."""
        found: list[Runs] = []
        for stream, inside in grouped(references.streams):
            order, asked = self._orders[stream], self._asked[stream]
            window = order.window_of(int(references.inner[inside][0]))
            if asked <= window:
                self._pool.compare_anew()  # what was opened ahead may have changed since
            for number in range(max(window, asked + 1), window + 2):
                runs = order.runs_of_window(number)
                mine = np.flatnonzero(runs.lengths)[self._mine]
                if mine.size:
                    found.append(runs.take(mine))
            self._asked[stream] = max(asked, window + 1)
        return found

    def _may_be_slow(self) -> bool:
        """Tell whether samples came slowly since the last batch, or none has come."""
        (read, samples), self._seen = self._seen, (self._times.read, self._times.samples)
        return self._seen[1] == samples or self._seen[0] - read > _SLOW_READ * (
            self._seen[1] - samples
        )

    def _ask_for_window(self, runs: Runs) -> None:
        firsts = self._samples.in_shards(runs.shards, runs.firsts)
        lasts = self._samples.in_shards(runs.shards, runs.firsts + runs.lengths - 1)
        for shard, first, last, length in zip(
            runs.shards, firsts, lasts, runs.lengths, strict=True
        ):
            if 2 * length > last - first:  # of sparsely chosen samples most bytes are not needed
                self._ask(int(shard), first[None], last[None])

    def _ask_for_samples(self, references: References) -> None:
        for shard in set(references.shards.tolist()) - self._opened:
            self._opened.add(shard)  # not in the loop: starting threads takes long
            self._opening.submit(partial(self._try, shard, only="file"))
            self._opening.submit(self._try, shard)
        for shard, inside in grouped(references.shards):
            samples = references.indices[inside]
            self._ask(shard, samples, samples)

    def _ask(self, shard: int, firsts: NDArray[np.int64], lasts: NDArray[np.int64]) -> None:
        """Ask for the data of some runs of samples of a shard."""
        found = self._try(shard)
        if found is None:
            return
        starts, ends = found.index.extents(firsts, lasts)
        with suppress(ShardioError, OSError):
            file = found.file()
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
                for at in range(start, end, _PIECE):
                    if self._closed:
                        return
                    file.read_ahead(at, min(at + _PIECE, end))

    def _try(self, shard: int, *, only: Literal["file"] | None = None) -> OpenShard | None:
        with suppress(ShardioError, OSError):
            return self._pool.get(shard, only=only)
        return None
