from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shardio.plan.epoch import EpochPlan, References, Shuffle, steps_of_worker
from shardio.plan.samples import Samples
from shardio.plan.tail import Tail

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
        "window": st.integers(1, 15),
    }
)


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
        assert len(window) <= arguments["window"]


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


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 10**9 - 512))
def test_a_plan_of_a_billion_samples_needs_no_table(position: int) -> None:
    counts = np.full(1000, 1_000_000)
    for window in (16, 1000):
        plan = make_plan(counts, global_batch_size=512, window=window)
        references = plan.references(np.arange(position, position + 512))
        assert len(set(samples_of(references))) == 512
