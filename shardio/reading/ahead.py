"""Reading ahead: the page cache is the shuffle buffer, filled one window early.

Entering a window asks the operating system for the shards of the next one, whole, many requests
in flight; samples are then picked from memory. The workers share the asking.
"""

from __future__ import annotations

from shardio.plan.epoch import EpochPlan
from shardio.reading.shards import ShardPool


class ReadAhead:
    """Asks for shards before they are needed.

    Args:
        plan: of the epoch.
        pool: of the dataset's shards.
        worker: of this process.
        num_workers: that ask.
    """

    def __init__(self, plan: EpochPlan, pool: ShardPool, worker: int, num_workers: int) -> None:
        self._plan = plan
        self._pool = pool
        self._worker = worker
        self._num_workers = num_workers
        self._asked = -1

    def enter(self, step: int) -> None:
        """Ask for what the window of a step and the window after it need."""
        window = self._plan.window_of(step)
        for wanted in range(max(window, self._asked + 1), window + 2):
            shards = self._plan.shards_of_window(wanted)
            for shard in shards[self._worker :: self._num_workers].tolist():
                self._pool.get(shard).file.read_ahead()
            self._asked = wanted
