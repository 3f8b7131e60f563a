"""What a node fetches from a store in each epoch, with a cache of shards of some size.

Shards are fetched whole, those of a window and of the next one when the window is entered. If the
cache has no room, the shards go whose next use is farthest, as long as that is later than the use
of the one that comes. If there is no room even so, a shard is read by ranges, which are about as
many bytes. All streams of a node are taken to enter their windows at the same time.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shardio.planning.order import SampleSequence

_NEVER = np.iinfo(np.int64).max


def shards_by_window(orders: Sequence[SampleSequence]) -> list[list[int]]:
    """List the shards that the windows of some streams need, by the windows' numbers."""
    found: list[list[int]] = []
    while True:
        parts = [order.runs_of_window(len(found)) for order in orders]
        if not any(map(len, parts)):
            return found
        shards = [runs.shards[runs.lengths > 0].tolist() for runs in parts]
        found.append([*dict.fromkeys(shard for some in shards for shard in some)])


def fetched_bytes(
    epochs: Sequence[Sequence[Sequence[int]]],
    sizes: NDArray[np.int64],
    limit: int,
) -> list[int]:
    """Return the bytes that a node fetches in each epoch, the first with an empty cache.

    Args:
        epochs: shards by window, of each epoch. The last one tells what is used next alone.
        sizes: int64 [shards], size of each shard.
        limit: bytes that shards may take in the cache.

    Returns:
        A sum for each epoch but the last.
    """
    cache = _Cache(sizes, limit, [window for windows in epochs for window in windows])
    totals, now = [], 0
    for windows in epochs[:-1]:
        before = cache.fetched
        for number, window in enumerate(windows):
            for later in windows[number : number + 2]:
                for shard in later:
                    cache.want(shard)
            cache.read(window)
            now += 1
            cache.enter(now, window)
        totals.append(cache.fetched - before)
    return totals


def window_that_fits(sizes: NDArray[np.int64], streams: int, room: int) -> int:
    """Return the largest window of which a cache holds two of each stream, in any order.

    Args:
        sizes: int64 [shards], size of each shard.
        streams: number of streams of a node.
        room: bytes that shards may take.

    Returns:
        Number of shards; 0 if no window fits.
    """
    largest = np.cumsum(np.sort(sizes)[::-1])
    return int(np.searchsorted(largest, room, side="right")) // (2 * streams)


class _Cache:
    """Cache that evicts what is used farthest in the future.

    Args:
        sizes: size of each shard.
        limit: bytes that shards may take.
        windows: shards of all windows, in order.

    Attributes:
        fetched: number of bytes fetched.
    """

    def __init__(
        self, sizes: NDArray[np.int64], limit: int, windows: Sequence[Sequence[int]]
    ) -> None:
        self.fetched = 0
        self._sizes: list[int] = sizes.tolist()
        self._room = limit
        self._uses: dict[int, list[int]] = {}  # numbers of the windows, the next one last
        for number in reversed(range(len(windows))):
            for shard in windows[number]:
                self._uses.setdefault(shard, []).append(number)
        self._held: set[int] = set()
        self._farthest: list[tuple[int, int]] = []  # of what is held, with entries that are over

    def want(self, shard: int) -> None:
        """Fetch a shard if it is not there, and if there is room."""
        size, due = self._sizes[shard], self._next_use(shard)
        if shard in self._held:
            return
        while self._room < size and self._farthest and -self._farthest[0][0] > due:
            use, other = heapq.heappop(self._farthest)
            if other in self._held and self._next_use(other) == -use:
                self._held.remove(other)
                self._room += self._sizes[other]
        if self._room >= size:
            self._room -= size
            self.fetched += size
            self._held.add(shard)
            heapq.heappush(self._farthest, (-due, shard))

    def read(self, window: Sequence[int]) -> None:
        """Read shards, by ranges where they are not there."""
        self.fetched += sum(self._sizes[shard] for shard in window if shard not in self._held)

    def enter(self, now: int, passed: Sequence[int]) -> None:
        """Enter a window, so that the shards of the one before are next used later."""
        for shard in passed:
            uses = self._uses[shard]
            while uses and uses[-1] < now:
                uses.pop()
            if shard in self._held:
                heapq.heappush(self._farthest, (-self._next_use(shard), shard))

    def _next_use(self, shard: int) -> int:
        uses = self._uses[shard]
        return uses[-1] if uses else _NEVER
