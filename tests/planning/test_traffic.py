"""What a node fetches in each epoch: held against a simulation that looks at every shard."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from shardio.planning.epoch import Shuffle
from shardio.planning.samples import Samples
from shardio.planning.traffic import fetched_bytes, shards_by_window

Epochs = Sequence[Sequence[Sequence[int]]]


def uses_of(
    shards: int, *, window: int, streams: int = 1, epochs: int = 4, of: slice | None = None
) -> Epochs:
    """Shards by window of epochs in which each shard has some samples."""
    samples, shuffle = Samples([7] * shards), Shuffle(seed=3, window=window, streams=streams)
    return [
        shards_by_window(shuffle.order(samples, epoch)[of or slice(None)])
        for epoch in range(epochs)
    ]


def simulate(epochs: Epochs, sizes: Sequence[int], limit: int) -> list[int]:
    """Fetch, evict and read as the module says, by looking through everything each time."""
    windows = [window for epoch in epochs for window in epoch]
    ends = np.cumsum([len(epoch) for epoch in epochs])
    totals, held = [0] * len(epochs), set[int]()
    for now, window in enumerate(windows):
        epoch = int(np.searchsorted(ends, now, side="right"))

        def next_use(shard: int, now: int = now) -> float:
            later = (at for at in range(now, len(windows)) if shard in windows[at])
            return next(later, math.inf)

        due = [*window, *(windows[now + 1] if now + 1 < ends[epoch] else ())]
        for shard in due:
            if shard in held:
                continue
            while sum(sizes[one] for one in held) + sizes[shard] > limit:
                later = [one for one in held if next_use(one) > next_use(shard)]
                if not later:
                    break
                held.remove(max(later, key=lambda one: (next_use(one), -one)))
            if sum(sizes[one] for one in held) + sizes[shard] <= limit:
                held.add(shard)
                totals[epoch] += sizes[shard]
        totals[epoch] += sum(sizes[shard] for shard in window if shard not in held)
    return totals[:-1]


@pytest.mark.parametrize(("window", "streams"), [(1, 1), (4, 1), (2, 3), (30, 1)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.7, 0.95, 1.0])
def test_what_is_fetched_is_what_a_simulation_fetches(
    share: float, window: int, streams: int
) -> None:
    sizes = np.random.default_rng(0).integers(1, 1000, 30)
    epochs = uses_of(30, window=window, streams=streams)
    limit = int(share * sizes.sum())
    found = fetched_bytes(epochs, sizes, limit)
    assert found == simulate(epochs, sizes.tolist(), limit)
    if share in (0.0, 1.0):
        assert found[1:] == [0 if share else sizes.sum()] * 2


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_a_cache_saves_the_share_that_it_holds(share: float) -> None:
    sizes = np.full(1000, 64)
    first, *later = fetched_bytes(uses_of(1000, window=1), sizes, int(share * sizes.sum()))
    assert first == sizes.sum()
    assert [1 - one / sizes.sum() for one in later] == pytest.approx([share] * 2, abs=0.01)


def test_each_node_fetches_what_its_streams_need() -> None:
    sizes = np.full(12, 10)
    for of, expected in ((slice(0, 2), 60), (slice(2, 4), 60), (slice(None), 120)):
        epochs = uses_of(12, window=1, streams=4, of=of)
        assert fetched_bytes(epochs, sizes, 0) == [expected] * 3
        assert fetched_bytes(epochs, sizes, 120) == [expected, 0, 0]
