"""Reading ahead: the page cache is the shuffle buffer, filled one window early.

Entering a window asks the operating system for the shards of the next one, whole, many requests
in flight; samples are then picked from memory. The workers share the asking. Of a shard that
two streams share, each asks for its own part.
"""

from __future__ import annotations

from shardio.plan.order import Order
from shardio.plan.samples import Samples
from shardio.reading.shards import ShardPool


class ReadAhead:
    """Asks for shards of one order before they are needed.

    Args:
        order: in which samples are read.
        samples: of the dataset.
        pool: of the dataset's shards.
        worker: of this process.
        num_workers: that ask.
    """

    def __init__(
        self, order: Order, samples: Samples, pool: ShardPool, worker: int, num_workers: int
    ) -> None:
        self._order = order
        self._samples = samples
        self._pool = pool
        self._mine = slice(worker, None, num_workers)
        self._asked = -1

    def enter(self, place: int) -> None:
        """Ask for what the window of a place in the order and the window after it need."""
        window = self._order.window_of(place)
        for wanted in range(max(window, self._asked + 1), window + 2):
            self._ask(wanted)
            self._asked = wanted

    def _ask(self, window: int) -> None:
        runs = self._order.runs_of_window(window)
        runs = runs.take(runs.lengths > 0).take(self._mine)
        firsts = self._samples.place(runs.shards, runs.firsts)
        lasts = self._samples.place(runs.shards, runs.firsts + runs.lengths - 1)
        for shard, first, last, length in zip(
            runs.shards.tolist(),
            firsts.tolist(),
            lasts.tolist(),
            runs.lengths.tolist(),
            strict=True,
        ):
            if 2 * length > last - first:  # of sparsely chosen samples most bytes are not needed
                found = self._pool.get(shard)
                found.file().read_ahead(*found.extent(first, last))
