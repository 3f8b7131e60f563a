from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardio.planning.samples import Samples

shard_sizes = st.lists(st.integers(0, 30), min_size=1, max_size=8)


def places(samples: Samples) -> list[tuple[int, int]]:
    shards, positions = samples.locate(np.arange(len(samples)))
    return list(zip(shards.tolist(), positions.tolist(), strict=True))


@given(shard_sizes)
def test_numbers_count_through_the_shards(counts: list[int]) -> None:
    everything = [(shard, i) for shard, count in enumerate(counts) for i in range(count)]
    samples = Samples(counts)
    assert places(samples) == everything
    assert [samples.number(*place) for place in everything] == [*range(len(everything))]
    assert samples.number(0, counts[0]) is None


@given(shard_sizes, st.data())
def test_choosing_twice_is_choosing_from_the_chosen(counts: list[int], data: st.DataObject) -> None:
    numbers = data.draw(st.sets(st.integers(0, sum(counts) - 1)) if any(counts) else st.just(set()))
    samples = Samples(counts)
    for _ in range(2):
        everything = places(samples)
        chosen = sorted(number for number in numbers if number < len(samples))
        samples = samples.choose(np.array(chosen, np.int64))
        assert places(samples) == [everything[number] for number in chosen]
        assert [samples.number(*place) for place in places(samples)] == [*range(len(chosen))]
        outside = set(everything) - set(places(samples))
        assert all(samples.number(*place) is None for place in outside)


@given(shard_sizes, st.lists(st.floats(0.01, 1), min_size=1, max_size=300), st.integers(0, 99))
def test_parts_are_disjoint_whole_and_as_large_as_asked(
    counts: list[int], shares: list[float], seed: int
) -> None:
    samples = Samples(counts)
    fractions = np.array(shares) / sum(shares)
    parts = samples.split(fractions.tolist(), seed, "")
    assert sorted(place for part in parts for place in places(part)) == places(samples)
    for part, fraction in zip(parts, fractions, strict=True):
        assert abs(len(part) - fraction * len(samples)) <= 1


def test_a_split_is_random_and_depends_on_the_seed_alone() -> None:
    samples = Samples([100_000])
    first, again, other = (places(samples.split([0.5, 0.5], seed, "")[0]) for seed in (0, 0, 1))
    assert first == again != other
    runs = np.count_nonzero(np.diff([place for _, place in first]) > 1)
    assert runs == pytest.approx(25_000, rel=0.05)


def test_digests_tell_choices_apart() -> None:
    samples = Samples([5, 5])
    digests = {samples.choose(np.array(some)).digest("a") for some in ([0], [1], [5], [0, 1])}
    assert len(digests | {samples.digest("a"), samples.choose(np.array([0])).digest("b")}) == 6
    assert samples.digest("a") == "a"
