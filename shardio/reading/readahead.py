"""Reading ahead: the page cache is the shuffle buffer, filled before it is needed.

Storage is often a network file system, where each request costs tens of milliseconds but many may
be under way. Entering a window asks for its shards and for those of the next one, whole, in
requests of the size that the kernel grants; samples are then picked from memory. At first, and
wherever reading turns out to be slow, the samples of each batch and of some batches after it are
asked for beside it, all at once, so that a batch waits for a few requests and not for a window. Of
those after it, only what is planned already: a Mix and buckets plan one batch.

Asking only starts requests, and happens in threads of its own. The workers share the asking. Of a
shard that two streams share, each asks for its own part. What goes wrong here is left to the
reading, which meets it again and tells.

Shards of stores are fetched whole, those of a window before it is entered; see
shardio.storage.downloads. Every worker asks for all of them, each for another one first, and one
process of the machine fetches each. Only the samples of the first batches are asked for one by one,
and nothing else is fetched before the first has been read, which would take longer beside that;
where the whole dataset is one window, those of all batches, until their shards have come.
Which of the fetched shards stay follows from the order of this epoch and the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shardio.errors import ShardioError
from shardio.planning.epoch import References
from shardio.planning.order import Runs, SampleSequence, grouped
from shardio.planning.samples import Samples
from shardio.processes import Threads
from shardio.reading.shards import OpenShard, ShardPool
from shardio.reading.times import StageTimes
from shardio.storage.downloads import ComingShard
from shardio.storage.shard_cache import NextUse

_PIECE = 128 << 10  # bytes; of one larger request Linux reads no more, unless it is set to
_OPENERS = 32  # shards that open at once, and their indexes
_SLOW_READ = 200_000  # ns for a sample; from memory it takes a tenth
_SURELY_QUICK = 64  # batches in a row; few prove nothing, since they had been asked for
_LATER = 4  # batches after one that are asked for with it
_LONGEST_ASKING = 1.0  # seconds that the first batch waits for its samples to be asked for
_LONGEST_FIRST = 1.0  # seconds that shards of stores wait for the first batch
_POLL = 0.005  # seconds between looks at what has been read
_FIRST_BATCHES = 2  # of which the samples in shards of stores are asked for one by one


class ReadAhead:
    """Asks for what the batches of a loop will need.

    Args:
        orders: sequence of each stream, whose windows are asked for; if empty, only batches are.
        samples: samples of the dataset.
        pool: pool of the dataset's shards.
        workers: number of this process, and of those that share the asking.
        times: totals of the reading in this process.
        later: returns the sequence of each stream in the next epoch; None if there is none.
        windows: number of windows ahead whose shards are fetched from stores.
    """

    def __init__(
        self,
        orders: Sequence[SampleSequence],
        samples: Samples,
        pool: ShardPool,
        workers: tuple[int, int],
        times: StageTimes,
        later: Callable[[], Sequence[SampleSequence]] | None = None,
        windows: int = 1,
    ) -> None:
        self._later = later
        self._ahead = windows
        self._remote = pool.remote_keys()
        self._stored = set(self._remote.values())
        self._batches_asked = 0
        self._asked_to = -1  # last position of the epoch whose sample was asked for
        self._quick = _SURELY_QUICK  # batches in a row that came quickly
        self._orders = orders
        self._samples = samples
        self._pool = pool
        self._mine = slice(workers[0], None, workers[1])
        self._times = times
        self._seen = times.read, times.samples
        self._samples_before = times.samples
        self._last_progress = time.perf_counter_ns()
        self._asked = [-1] * len(orders)
        self._current: dict[int, int] = {}
        self._fetched: dict[int, int] | None = None  # the current windows when it was last done
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

    def finish(self) -> None:
        """Have fetched what the last batches need, of which the threads may not have come yet."""
        if self._current and self._remote:
            self._fetch()

    def enter(self, planned: References, slots: slice) -> None:
        """Ask for what a batch needs, and for its windows and the windows after them.

        Args:
            planned: samples of the batch, and of others after it.
            slots: places of the batch's samples among the planned ones.
        """
        count = slots.stop - slots.start
        entered = {} if not self._orders else self._enter_windows(planned.part(slots))
        first, read = self._fetches_ranges, self._times.samples + count
        if self._may_be_slow(count) or first:
            if self._remote and self._batches_asked == 1:
                self._batches.submit(self._pool.wait_for_ranges)
            asked = int(np.searchsorted(planned.positions, self._asked_to, side="right"))
            further = 0 if self._remote else _LATER * count
            ends = slots.start, slots.stop, min(slots.stop + further, len(planned))
            batch = [
                self._batches.submit(self._ask_for_samples, planned.part(slice(start, end)), first)
                for start, end in pairwise(max(end, asked) for end in ends)
                if start < end
            ]
            self._asked_to = int(planned.positions[: ends[-1]].max(initial=self._asked_to))
            if entered and batch:
                self._asking.submit(batch[0].result)  # the batch comes first
            if first and not self._batches_asked:
                wait(batch, _LONGEST_ASKING)  # or readers would ask for the same, one by one
        if self._remote and not self._batches_asked:
            self._pool.hold()
            self._opening.submit(self._go_on_after, read)
        self._batches_asked += 1
        for order, windows in entered.values():
            for number in windows:
                runs = order.runs_of_window(number)
                mine = np.flatnonzero(runs.lengths)[self._mine]
                if mine.size:
                    self._asking.submit(self._ask_for_window, runs.take(mine))
        if entered and self._remote:
            self._asking.submit(self._fetch)
        elif self._remote and not self._orders and self._batches_asked == 1:
            self._asking.submit(self._fetch_all)

    @property
    def _fetches_ranges(self) -> bool:
        """Whether the samples of a batch in shards of stores are asked for one by one."""
        return bool(self._remote) and (not self._orders or self._batches_asked < _FIRST_BATCHES)

    def _go_on_after(self, count: int) -> None:
        """Have shards fetched when the first batch is read, or has not been for long.

        Args:
            count: samples that will have been read then.
        """
        latest = time.monotonic() + _LONGEST_FIRST
        while self._times.samples < count and not self._closed and time.monotonic() < latest:
            time.sleep(_POLL)
        self._pool.hold(on=False)

    def _fetch_all(self) -> None:
        """Have all shards fetched that the cache has room for, since any may be needed next."""
        shards = sorted(self._stored)
        first = (len(shards) * self._mine.start) // self._mine.step
        with suppress(ShardioError, OSError):
            self._pool.fetch(shards[first:] + shards[:first], self._remote.get, waits=False)

    def _enter_windows(self, references: References) -> dict[int, tuple[SampleSequence, range]]:
        """Return the order, and the windows that were not asked for before, of each stream."""
        found: dict[int, tuple[SampleSequence, range]] = {}
        for stream, inside in grouped(references.streams):
            order, asked = self._orders[stream], self._asked[stream]
            # Pads, and batches of rare buckets, lie in windows that are over.
            now = order.window_of(int(references.inner[inside][0]))
            window = max(now, self._current.get(stream, now))
            self._current = {**self._current, stream: window}
            if asked <= window:
                self._pool.compare_anew()  # what was opened ahead may have changed since
                found[stream] = order, range(max(window, asked + 1), window + 2)
            self._asked[stream] = max(asked, window + 1)
        return found

    def _fetch(self) -> None:
        """Have the shards of the current windows fetched, and of those after them."""
        current = self._current  # as it is now: reading may have gone on since it was entered
        if current == self._fetched:
            return
        self._fetched = current
        shards: list[int] = []
        for ahead in range(self._ahead + 1):
            for stream, window in current.items():
                runs = self._orders[stream].runs_of_window(window + ahead)
                due = self._mostly_needed(runs)
                first = (len(due) * self._mine.start) // self._mine.step
                shards += due[first:] + due[:first]
        with suppress(ShardioError, OSError):
            self._pool.fetch([*dict.fromkeys(shards)], self._next_use(current))

    def _next_use(self, current: dict[int, int]) -> NextUse:
        """Return a function that tells in how many windows a shard is next used."""
        count = len(self._samples.counts)
        beyond = np.iinfo(np.int64).max

        def soonest(orders: Sequence[SampleSequence], *, now: bool) -> NDArray[np.int64]:
            found = np.full(count, beyond)
            for stream, order in enumerate(orders):
                windows = order.window_of_shards(count)
                if now:
                    windows = windows - current.get(stream, min(current.values()))
                found = np.where(windows >= 0, np.minimum(found, windows), found)
            return found

        first = soonest(self._orders, now=True)
        then: list[NDArray[np.int64]] = []

        def next_use(key: str) -> float | None:
            shard = self._remote.get(key)
            if shard is None:
                return None
            if first[shard] < beyond:
                return float(first[shard])
            if not then:
                then.append(soonest(self._later() if self._later else [], now=False))
            return float(count + then[0][shard])

        return next_use

    def _may_be_slow(self, count: int) -> bool:
        """Tell whether samples came slowly lately, or have not begun to come.

        Args:
            count: number of samples in a batch; threads count them when they end a chunk.
        """
        seen, now = (self._times.read, self._times.samples), time.perf_counter_ns()
        (read, samples), new = self._seen, seen[1] - self._seen[1]
        if not new and samples == self._samples_before:
            return True
        is_slow = now - self._last_progress > _SLOW_READ * count
        if new:
            self._seen, self._last_progress = seen, now
            is_slow = seen[0] - read > _SLOW_READ * new
        self._quick = 0 if is_slow else self._quick + 1
        return self._quick < _SURELY_QUICK

    def _ask_for_window(self, runs: Runs) -> None:
        """Ask for the data of shards that are not of a store."""
        firsts = self._samples.in_shards(runs.shards, runs.firsts)
        lasts = self._samples.in_shards(runs.shards, runs.firsts + runs.lengths - 1)
        needed = set(self._mostly_needed(runs))
        for shard, first, last in zip(runs.shards.tolist(), firsts, lasts, strict=True):
            if shard in needed and shard not in self._stored:
                self._ask(shard, first[None], last[None])

    def _mostly_needed(self, runs: Runs) -> list[int]:
        """List the shards of runs, except those of which most bytes are not needed."""
        firsts = self._samples.in_shards(runs.shards, runs.firsts)
        lasts = self._samples.in_shards(runs.shards, runs.firsts + runs.lengths - 1)
        chosen: list[int] = runs.shards[2 * runs.lengths > lasts - firsts].tolist()
        return chosen

    def _ask_for_samples(self, references: References, first: bool) -> None:
        """Ask for the samples of a batch.

        Args:
            references: samples of the batch.
            first: whether samples in shards of stores do not wait for these.
        """
        for shard in set(references.shards.tolist()) - self._opened:
            self._opened.add(shard)  # not in the loop: starting threads takes long
            self._opening.submit(partial(self._try, shard, only="file"))
            self._opening.submit(self._try, shard)
        for shard, inside in grouped(references.shards):
            samples = references.indices[inside]
            self._ask(shard, samples, samples, first=first)

    def _ask(
        self,
        shard: int,
        firsts: NDArray[np.int64],
        lasts: NDArray[np.int64],
        *,
        first: bool = False,
    ) -> None:
        """Ask for the data of some runs of samples of a shard."""
        found = self._try(shard)
        if found is None:
            return
        with suppress(ShardioError, OSError):
            file = found.file()
            coming = file if isinstance(file, ComingShard) else None
            if shard in self._stored and (coming is None or not (first or coming.lacks_room)):
                return
            starts, ends = found.index.extents(firsts, lasts)
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
                piece = _PIECE if coming is None else end - start
                for at in range(start, end, piece):
                    if self._closed:
                        return
                    file.read_ahead(at, min(at + piece, end))

    def _try(self, shard: int, *, only: Literal["file"] | None = None) -> OpenShard | None:
        with suppress(ShardioError, OSError):
            return self._pool.get(shard, only=only)
        return None
