"""Steps of one bucket."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shardio.planning.buckets import Bucketing
from shardio.planning.epoch import EpochPlan, Shuffle, Tail
from shardio.planning.samples import Samples

Step = list[tuple[int, bool]]


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    counts = draw(st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any))
    samples = sum(counts)
    buckets = draw(st.lists(st.integers(0, 4), min_size=samples, max_size=samples))
    ranks = draw(st.integers(1, 6))
    tail: Tail = draw(st.sampled_from(["pad", "even", "drop"] + ["short"] * (ranks == 1)))
    return {
        "counts": counts,
        "buckets": buckets,
        "ranks": ranks,
        "tail": tail,
        "size": ranks * draw(st.integers(1, 5)),
        "order": {
            "seed": draw(st.integers(0, 2**63)),
            "on": draw(st.booleans()),
            "window": draw(st.none() | st.integers(1, 9)),
        },
        "epoch": draw(st.integers(0, 9)),
    }


def make(given_: dict[str, Any]) -> tuple[EpochPlan, Bucketing]:
    samples = Samples(given_["counts"])
    buckets = Bucketing(samples, np.array(given_["buckets"], np.uint8), "")
    plan = EpochPlan(
        samples,
        Shuffle(**given_["order"]),
        global_batch_size=given_["size"],
        epoch=given_["epoch"],
        tail=given_["tail"],
        buckets=buckets,
    )
    return plan, buckets


def read(plan: EpochPlan, step: int, rank: int, ranks: int) -> Step:
    """Numbers of the samples of a rank's step, and whether they are valid."""
    starts = np.cumsum(plan.samples.counts) - plan.samples.counts
    found = plan.references(plan.share([step], rank, ranks))
    numbers = starts[found.shards] + found.indices
    return [*zip(numbers.tolist(), found.valid.tolist(), strict=True)]


@given(plans(), st.data())
def test_each_step_has_one_bucket_and_each_sample_comes_once(
    given_: dict[str, Any], data: st.DataObject
) -> None:
    plan, buckets = make(given_)
    ranks, size, tail = given_["ranks"], given_["size"], given_["tail"]
    assert plan.num_steps == buckets.count_steps(size, whole=tail == "drop")
    steps = [[read(plan, s, rank, ranks) for rank in range(ranks)] for s in range(plan.num_steps)]
    times = Counter(number for parts in steps for part in parts for number, valid in part if valid)
    in_buckets = Counter(given_["buckets"])
    left_out = sum(count % size for count in in_buckets.values()) if tail == "drop" else 0
    assert set(times.values()) <= {1}
    assert len(times) == sum(given_["counts"]) - left_out
    incomplete = Counter[int]()
    for step, parts in enumerate(steps):
        (bucket,) = {given_["buckets"][number] for part in parts for number, _ in part}
        assert plan.bucket_of(plan.share([step], ranks - 1, ranks)) == bucket
        assert len({len(part) for part in parts}) == 1  # one size on all ranks
        pads = sum(not valid for part in parts for _, valid in part)
        incomplete[bucket] += sum(map(len, parts)) < size or pads > 0
        assert pads < (ranks if tail == "even" else size)
        assert tail in ("pad", "even") or not pads
    assert max(incomplete.values(), default=0) <= 1
    step = data.draw(st.integers(0, max(plan.num_steps - 1, 0)))
    fewer = data.draw(st.sampled_from([n for n in range(1, ranks + 1) if ranks % n == 0]))
    plan, _ = make(given_)
    for which in range(step, plan.num_steps):  # as a run that is taken up there sees it
        whole = [pair for part in steps[which] for pair in part]
        again = [pair for rank in range(fewer) for pair in read(plan, which, rank, fewer)]
        if tail == "even":
            whole, again = [p for p in whole if p[1]], [p for p in again if p[1]]
        assert again == whole


@given(plans())
def test_batches_come_when_they_are_full_in_the_order_of_the_epoch(given_: dict[str, Any]) -> None:
    """So a loop reads ahead as without buckets."""
    plan, _ = make(given_)
    size = given_["size"]
    lasts = []
    for step in range(plan.num_steps):
        found = plan.references(np.arange(step * size, (step + 1) * size))
        if found.valid.all():
            lasts.append(int(found.inner.max()))
            assert found.inner.tolist() == sorted(found.inner.tolist())
    assert lasts == sorted(lasts)


@settings(deadline=None, max_examples=1)
@given(st.integers(0, 2**63))
def test_few_steps_and_pads_are_added(seed: int) -> None:
    """A million samples in 13 buckets: at most one step a bucket more, of 1,954."""
    samples = Samples(np.full(100, 10_000))
    shares = np.exp(-np.abs(np.arange(13) - 6) / 2)
    of = np.repeat(np.arange(13), np.ceil(shares / shares.sum() * 10**6).astype(int))[: 10**6]
    numbers = of[np.random.default_rng(seed % 1000).permutation(10**6)].astype(np.uint8)
    buckets = Bucketing(samples, numbers, "")
    plan = EpochPlan(samples, Shuffle(seed=seed), global_batch_size=512, buckets=buckets)
    assert plan.num_steps <= 1954 + 13
    assert plan.num_steps * 512 - 10**6 <= 13 * 511


def test_the_order_is_the_same_in_every_version() -> None:
    """A resumed run must find the sequence that it left, also after an upgrade."""
    given_ = {
        "counts": [5, 3, 4], "buckets": [0, 1, 1, 0, 2, 1, 0, 0, 1, 2, 0, 1], "size": 3,
        "order": {"seed": 7, "window": 2}, "epoch": 2, "tail": "pad",
    }  # fmt: skip
    plan, buckets = make(given_)
    golden = [[0, 6, 3], [5, 2, 1], [7, 10, 0], [8, 11, 5], [4, 9, 4]]
    assert [[number for number, _ in read(plan, s, 0, 1)] for s in range(plan.num_steps)] == golden
    assert buckets.digest() == "636dd1e83d66d2a1"
