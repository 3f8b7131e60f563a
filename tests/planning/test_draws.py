"""Epochs of other sizes, and weighted draws."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from shardio.planning.draws import Weights
from shardio.planning.epoch import EpochPlan, Shuffle
from shardio.planning.order import SampleSequence
from shardio.planning.samples import Samples

Sample = tuple[int, int]

GOLDEN = [0, 1, 6, 3, 6, 7, 6, 5, 3, 5, 2, 10, 10, 10, 9]

shard_sizes = st.lists(st.integers(0, 20), min_size=1, max_size=12).filter(any)
orders = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**63),
        "on": st.booleans(),
        "window": st.none() | st.integers(1, 15),
    }
)


def sequence(plan: EpochPlan) -> list[Sample]:
    """All valid samples of an epoch in order."""
    references = plan.references(plan.share(range(plan.num_steps), 0, 1))
    pairs = zip(
        references.shards[references.valid], references.indices[references.valid], strict=True
    )
    return [(int(shard), int(index)) for shard, index in pairs]


def check_windows(order: SampleSequence, shards: list[int]) -> None:
    """Each position lies in a shard of its window, and windows follow one another from 0."""
    windows = [order.window_of(position) for position in range(len(order))]
    assert windows == sorted(windows)
    listed = [
        set(order.runs_of_window(window).shards.tolist()) for window in range(windows[-1] + 1)
    ]
    assert all(shard in listed[window] for shard, window in zip(shards, windows, strict=True))
    most = 1000  # more than there are shards; windows may follow of which nothing is drawn
    assert not len(order.runs_of_window(most))
    last = order.window_of_shards(most)
    for shard, window in zip(shards, windows, strict=True):
        assert last[shard] >= window


@given(shard_sizes, orders, st.integers(1, 90), st.integers(1, 4), st.data())
def test_epochs_of_another_size_follow_one_another_through_whole_orders(
    counts: list[int], order: dict[str, Any], size: int, streams: int, data: st.DataObject
) -> None:
    """The first sum(counts) samples of a stream are a permutation, then come the next ones."""
    total = sum(counts)
    assume(streams <= min(size, total))
    batch = streams * data.draw(st.integers(1, 5))
    found: list[list[Sample]] = [[] for _ in range(streams)]
    for epoch in range(2 * total // size + 2):
        shuffle = Shuffle(**order, streams=streams, epoch_size=size)
        plan = EpochPlan(Samples(counts), shuffle, global_batch_size=batch, epoch=epoch)
        assert len(sequence(plan)) == size == plan.num_samples
        least, most = plan.bounds()
        times = Counter(sequence(plan))
        assert all(times[sample] <= most for sample in times)
        assert least == 0 or len(times) == total
        for stream, part in enumerate(plan.orders):
            places = part.locate(np.arange(len(part)))
            check_windows(part, places[0].tolist())
            found[stream] += zip(places[0].tolist(), places[1].tolist(), strict=True)
    whole = Shuffle(**order, streams=streams)
    for number in range(2):
        passed = EpochPlan(Samples(counts), whole, global_batch_size=batch, epoch=number).orders
        for stream, part in enumerate(passed):
            places = part.locate(np.arange(len(part)))
            expected = [*zip(places[0].tolist(), places[1].tolist(), strict=True)]
            slices = slice(number * len(part), (number + 1) * len(part))
            assert found[stream][slices] == expected[: len(found[stream][slices])]


weighted = st.lists(st.integers(0, 9), min_size=1, max_size=60).filter(any)


def draw(
    counts: list[int], weights: Any, draws: int, epoch: int = 0, **order: Any
) -> tuple[EpochPlan, list[int]]:
    """A plan, and the numbers of the samples in it, in order."""
    samples = Samples(counts)
    shuffle = Shuffle(**order, weights=Weights(samples, np.array(weights, np.float64), draws))
    plan = EpochPlan(samples, shuffle, global_batch_size=4, epoch=epoch)
    starts = np.cumsum(counts) - counts
    return plan, [int(starts[shard]) + index for shard, index in sequence(plan)]


@given(weighted, orders, st.integers(1, 300), st.integers(0, 99), st.integers(1, 9))
def test_a_sample_comes_floor_or_ceil_of_its_share_of_the_draws(
    weights: list[int], order: dict[str, Any], draws: int, epoch: int, size: int
) -> None:
    counts = [len(weights[at : at + size]) for at in range(0, len(weights), size)]
    plan, numbers = draw(counts, weights, draws, epoch, **order)
    assert len(numbers) == draws
    times = np.bincount(numbers, minlength=len(weights))
    shares = [draws * weight for weight in weights]
    for number, share in enumerate(shares):
        assert share // sum(weights) <= times[number] <= -(-share // sum(weights))
    least, most = plan.bounds()
    assert np.all(least <= times)
    assert np.all(times <= most)
    check_windows(plan.orders[0], [shard for shard, _ in sequence(plan)])


@given(weighted, orders, st.integers(1, 100), st.data())
def test_draws_are_found_anywhere_without_those_before(
    weights: list[int], order: dict[str, Any], draws: int, data: st.DataObject
) -> None:
    counts = [len(weights)] if len(weights) < 3 else [1, 2, len(weights) - 3]
    (whole,) = draw(counts, weights, draws, **order)[0].orders
    (fresh,) = draw(counts, weights, draws, **order)[0].orders
    everything = whole.locate(np.arange(draws))
    some = np.array(data.draw(st.lists(st.integers(0, draws - 1), min_size=1)))
    for found, expected in zip(fresh.locate(some), everything, strict=True):
        assert found.tolist() == expected[some].tolist()


def test_over_epochs_each_sample_comes_as_often_as_its_weight_says() -> None:
    weights = np.array([0.25, 1, 1.5, 0.6, 0.05, 3] * 10)
    times = np.zeros(60)
    for epoch in range(2000):
        times += np.bincount(draw([20] * 3, weights, 60, epoch)[1], minlength=60)
    shares = weights / weights.sum() * 60
    deviation = np.sqrt(2000 * (shares % 1) * (1 - shares % 1))
    assert (np.abs(times - 2000 * shares) <= 4.5 * deviation + 1e-6).all()
    assert (np.abs(times - 2000 * shares) > 0.5 * deviation).any()  # epochs differ


def test_equal_weights_draw_each_sample_once() -> None:
    for weight in (1.0, 0.1, 1e-300, 1 / 3):
        assert sorted(draw([7, 0, 8], [weight] * 15, 15)[1]) == [*range(15)]


def test_repeats_of_a_sample_lie_apart() -> None:
    _, numbers = draw([100], [50.0] + [1.0] * 99, 149)
    places = np.flatnonzero(np.array(numbers) == 0)
    assert len(places) in (49, 50, 51)
    assert places.max() - places.min() > 100
    assert sum(np.diff(places) == 1) < 35


def test_draws_are_the_same_in_every_version() -> None:
    """A resumed run must find the sequence that it left, also after an upgrade."""
    weights = [1, 0.5, 0.75, 2, 0.1, 2, 3, 1, 0.3, 1, 2]
    _, numbers = draw([5, 3, 3], weights, 15, epoch=2, seed=7, window=2)
    assert numbers == GOLDEN
    digest = Weights(Samples([11]), np.array(weights), 15).digest()
    assert digest == "db37da3ebb4610ea"
