from __future__ import annotations

import tracemalloc
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shardio.planning.epoch import EpochPlan, References, Shuffle, Tail, steps_of_worker
from shardio.planning.samples import Samples

Sample = tuple[int, int]

GOLDEN = [
    (1, 0),
    (0, 0),
    (0, 4),
    (1, 1),
    (0, 2),
    (0, 3),
    (0, 1),
    (1, 2),
    (2, 0),
    (2, 2),
    (2, 3),
    (2, 1),
]
GOLDEN_LARGE = [(1, 71652), (0, 62821), (1, 52804)]

shard_sizes = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)
plans = st.fixed_dictionaries(
    {
        "counts": shard_sizes,
        "seed": st.integers(0, 2**63),
        "epoch": st.integers(0, 1000),
        "shuffle": st.booleans(),
        "window": st.none() | st.integers(1, 15),
    }
)


@dataclass(frozen=True)
class Run:
    """A plan with a topology that fits it."""

    plan: EpochPlan
    counts: list[int]
    global_batch_size: int
    world_size: int
    num_workers: int

    @property
    def samples(self) -> int:
        return sum(self.counts)


@st.composite
def runs(draw: st.DrawFn, tails: tuple[Tail, ...] = ("pad", "even", "drop", "short")) -> Run:
    arguments: dict[str, Any] = draw(plans)
    tail = draw(st.sampled_from(tails))
    world_size = 1 if tail == "short" else draw(st.integers(1, 8))
    streams = world_size * draw(st.integers(1, 4)) if draw(st.booleans()) else 1
    samples = sum(arguments["counts"])
    if streams > samples:
        streams = 1
    unit = streams if streams > 1 else world_size
    batch = unit * draw(st.integers(1, 6))
    plan = make_plan(**arguments, global_batch_size=batch, tail=tail, streams=streams)
    return Run(plan, arguments["counts"], batch, world_size, draw(st.integers(1, 6)))


def make_plan(
    counts: Any, *, global_batch_size: int, epoch: int = 0, tail: Tail = "pad", **shuffle: Any
) -> EpochPlan:
    on = shuffle.pop("shuffle", True)
    return EpochPlan(
        Samples(counts),
        Shuffle(on=on, **shuffle),
        global_batch_size=global_batch_size,
        epoch=epoch,
        tail=tail,
    )


def samples_of(references: References) -> list[Sample]:
    return list(zip(references.shards.tolist(), references.indices.tolist(), strict=True))


def sequence(plan: EpochPlan) -> list[Sample]:
    """All samples of an epoch in order, pads left out."""
    found = []
    for step in range(plan.num_steps):
        references = plan.references(plan.share([step], 0, 1))
        pairs = zip(samples_of(references), references.valid.tolist(), strict=True)
        found += [sample for sample, valid in pairs if valid]
    return found


@given(plans, st.integers(1, 30))
def test_an_epoch_has_each_sample_exactly_once(arguments: dict[str, Any], batch: int) -> None:
    plan = make_plan(**arguments, global_batch_size=batch)
    everything = [
        (shard, index) for shard, count in enumerate(arguments["counts"]) for index in range(count)
    ]
    assert sorted(sequence(plan)) == everything


@given(plans, st.integers(1, 8), st.integers(1, 5), st.integers(1, 6))
def test_ranks_and_workers_only_slice_the_one_sequence(
    arguments: dict[str, Any], share: int, world_size: int, num_workers: int
) -> None:
    plan = make_plan(**arguments, global_batch_size=share * world_size)
    whole = [
        samples_of(plan.references(plan.share([step], 0, 1))) for step in range(plan.num_steps)
    ]
    sliced: dict[int, list[Sample]] = {}
    for rank in range(world_size):
        for worker in range(num_workers):
            for step in steps_of_worker(0, plan.num_steps, worker, num_workers):
                part = plan.references(plan.share([step], rank, world_size))
                assert len(part) == share
                sliced.setdefault(step, []).extend(samples_of(part))
    assert [sliced[step] for step in range(plan.num_steps)] == whole


@given(plans, st.integers(1, 30))
def test_the_last_step_is_padded_with_repeats_or_dropped(
    arguments: dict[str, Any], batch: int
) -> None:
    padded = make_plan(**arguments, global_batch_size=batch, tail="pad")
    dropped = make_plan(**arguments, global_batch_size=batch, tail="drop")
    samples = sum(arguments["counts"])
    assert padded.num_steps == -(-samples // batch)
    assert dropped.num_steps == samples // batch
    last = padded.references(padded.share([padded.num_steps - 1], 0, 1))
    assert int(last.valid.sum()) == samples - (padded.num_steps - 1) * batch
    assert samples_of(last)[0] in sequence(padded)
    assert sequence(dropped) == sequence(padded)[: dropped.num_steps * batch]


@given(plans, st.integers(1, 30), st.data())
def test_any_step_is_found_at_once_without_the_steps_before(
    arguments: dict[str, Any], batch: int, data: st.DataObject
) -> None:
    plan = make_plan(**arguments, global_batch_size=batch)
    everything = sequence(plan)
    step = data.draw(st.integers(0, plan.num_steps - 1))
    fresh = make_plan(**arguments, global_batch_size=batch)
    part = fresh.references(fresh.share([step], 0, 1))
    valid = [s for s, good in zip(samples_of(part), part.valid.tolist(), strict=True) if good]
    assert valid == everything[step * batch : (step + 1) * batch]


@given(plans)
def test_samples_stay_inside_their_window_of_shards(arguments: dict[str, Any]) -> None:
    plan = make_plan(**arguments | {"shuffle": True}, global_batch_size=1)
    for step in range(plan.num_steps):
        references = plan.references(plan.share([step], 0, 1))
        (order,) = plan.orders
        window = order.runs_of_window(order.window_of(step))
        assert references.shards[0] in window.shards
        assert len(window) <= (arguments["window"] or len(arguments["counts"]))


def everything_in(run: Run) -> set[Sample]:
    return {(shard, i) for shard, count in enumerate(run.counts) for i in range(count)}


def global_batches(run: Run, first: int = 0) -> dict[int, list[tuple[Sample, bool]]]:
    """Samples and validity of each step from a first one on, as ranks and workers read them."""
    found: dict[int, list[tuple[Sample, bool]]] = {}
    for rank in range(run.world_size):
        for worker in range(run.num_workers):
            for step in steps_of_worker(first, run.plan.num_steps, worker, run.num_workers):
                part = run.plan.references(run.plan.share([step], rank, run.world_size))
                pairs = zip(samples_of(part), part.valid.tolist(), strict=True)
                found.setdefault(step, []).extend(pairs)
    return found


@given(runs())
def test_every_topology_delivers_each_sample_once_in_equal_steps(run: Run) -> None:
    batches = global_batches(run)
    assert sorted(batches) == [*range(run.plan.num_steps)]
    counts = Counter(sample for batch in batches.values() for sample, valid in batch if valid)
    everything = everything_in(run)
    assert set(counts.values()) <= {1}
    assert counts.keys() <= everything
    delivered = sum(map(len, batches.values()))
    if run.plan.num_steps * run.global_batch_size >= run.samples:
        assert counts.keys() == everything
    else:  # the tail was dropped
        assert delivered == len(counts) == run.plan.num_steps * run.global_batch_size
        assert run.samples - delivered < run.global_batch_size
    whole = [batch for batch in batches.values() if len(batch) == run.global_batch_size]
    assert len(whole) >= len(batches) - 1


@given(runs(tails=("short",)))
def test_a_short_tail_has_no_pads(run: Run) -> None:
    batches = global_batches(run)
    assert all(valid for batch in batches.values() for _, valid in batch)
    assert sum(map(len, batches.values())) == run.samples


@given(runs(tails=("pad", "drop", "short")), st.data())
def test_a_run_taken_up_at_any_step_on_another_topology_continues(
    run: Run, data: st.DataObject
) -> None:
    whole = global_batches(run)
    first = data.draw(st.integers(0, run.plan.num_steps))
    divisors = [n for n in range(1, run.world_size + 1) if run.world_size % n == 0]
    then = replace(
        run,
        world_size=data.draw(st.sampled_from(divisors)),
        num_workers=data.draw(st.integers(1, 4)),
    )
    rest = global_batches(then, first)
    assert rest == {step: batch for step, batch in whole.items() if step >= first}


@given(runs(tails=("even",)), st.data())
def test_an_even_tail_gives_all_ranks_one_size_and_a_pad_at_most(
    run: Run, data: st.DataObject
) -> None:
    """The steps before are those of "pad", and the last one has the same samples on any ranks."""
    plan, ranks = run.plan, run.world_size
    last = plan.num_steps - 1
    parts = [plan.references(plan.share([last], rank, ranks)) for rank in range(ranks)]
    left = run.samples - last * run.global_batch_size
    assert {len(part) for part in parts} == {-(-left // ranks)}
    valid = [int(part.valid.sum()) for part in parts]
    assert sum(valid) == left
    assert max(valid) - min(valid) <= 1
    assert all(valid) or left < ranks
    streams = len(plan.orders)
    for rank, part in enumerate(parts):
        own = {*range(streams * rank // ranks, max(streams * (rank + 1) // ranks, 1))}
        assert streams == 1 or own.issuperset(part.streams.tolist())
        assert set(samples_of(part)) <= everything_in(run)
    positions = np.concatenate([part.positions for part in parts])
    assert len(set(positions.tolist())) == len(positions)  # random numbers of their own
    fewer = data.draw(st.sampled_from([n for n in range(1, ranks + 1) if ranks % n == 0]))
    assert without_pads(replace(run, world_size=fewer)) == without_pads(run)
    steps, first = [*range(last)], data.draw(st.integers(0, last))
    together = [step for step in [*steps, last] if step >= first]
    alone = [plan.share([step], ranks - 1, ranks) for step in together]
    assert np.array_equal(plan.share(together, ranks - 1, ranks), np.concatenate(alone))


def without_pads(run: Run) -> dict[int, list[Sample]]:
    return {
        step: [sample for sample, valid in batch if valid]
        for step, batch in global_batches(run).items()
    }


@given(plans, st.integers(2, 12))
def test_a_stream_holds_the_same_few_shards_in_every_epoch(
    arguments: dict[str, Any], streams: int
) -> None:
    counts = arguments["counts"]
    if streams > sum(counts):
        return
    found = []
    for epoch in range(2):
        changed = arguments | {"epoch": epoch}
        plan = make_plan(**changed, streams=streams, global_batch_size=streams)
        parts = [
            set(zip(*map(list, o.locate(np.arange(len(o)))), strict=True)) for o in plan.orders
        ]
        assert sum(map(len, parts)) == len(set.union(*parts)) == sum(counts)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        touched = sum(len({shard for shard, _ in part}) for part in parts)
        assert touched <= sum(map(bool, counts)) + streams - 1
        found.append(parts)
    assert found[0] == found[1]


def test_streams_have_orders_and_shards_of_their_own() -> None:
    def parts(seed: int) -> list[tuple[list[int], list[int]]]:
        plan = make_plan([50] * 8, streams=4, global_batch_size=4, seed=seed)
        places = [order.locate(np.arange(len(order))) for order in plan.orders]
        return [(shards.tolist(), ordinals.tolist()) for shards, ordinals in places]

    assert len({str(ordinals) for _, ordinals in parts(0)}) == 4
    pairs = [{frozenset(shards) for shards, _ in parts(seed)} for seed in range(12)]
    assert all(len(stream) == 2 for stream in set.union(*pairs))
    assert len({frozenset(seed) for seed in pairs}) > 9  # of 105 ways to pair eight shards


def test_nodes_with_streams_read_little_more_than_the_dataset() -> None:
    """Eight nodes of eight ranks over 100 shards: each shard on one node, or on two at a border."""
    counts = np.full(100, 500)
    for epoch in range(3):
        plan = make_plan(counts, streams=64, global_batch_size=640, window=4, epoch=epoch)
        touched = [set[int]() for _ in range(8)]
        for rank in range(64):
            positions = plan.share(range(plan.num_steps), rank, 64)
            touched[rank // 8] |= set(plan.references(positions).shards.tolist())
        assert sum(map(len, touched)) <= 1.1 * len(counts)
        assert len(set.union(*touched)) == len(counts)


def test_without_shuffle_the_packed_order_is_kept() -> None:
    plan = make_plan([2, 0, 3], global_batch_size=2, shuffle=False)
    assert sequence(plan) == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(sequence(make_plan([30] * 6, global_batch_size=8, seed=seed, epoch=epoch)))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16


def test_the_order_is_the_same_in_every_version() -> None:
    """A resumed run must find the sequence that it left, also after an upgrade."""
    plan = make_plan([5, 3, 4], global_batch_size=4, seed=7, epoch=2, window=2)
    assert sequence(plan) == GOLDEN
    large = make_plan([100_000] * 3, global_batch_size=4, seed=7, epoch=2)
    assert samples_of(large.references(np.array([0, 150_000, 299_999]))) == GOLDEN_LARGE


@settings(max_examples=5)
@given(st.integers(0, 10**9 - 512))
def test_a_plan_of_a_billion_samples_needs_no_table(position: int) -> None:
    counts = np.full(1000, 1_000_000)
    for window in (16, 1000):
        plan = make_plan(counts, global_batch_size=512, window=window)
        tracemalloc.start()
        references = plan.references(np.arange(position, position + 512))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
        tracemalloc.stop()
        assert len(set(samples_of(references))) == 512
