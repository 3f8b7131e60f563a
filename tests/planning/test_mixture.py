from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shardio.planning.mixture import LEAST_WEIGHT, Mixture

GOLDEN = [0, 1, 0, 2, 0, 0, 1, 0, 0, 1, 2, 0]
GOLDEN_COUNTS = [333330002, 142860001, 523810004]

shares = st.lists(st.floats(0.001, 1), min_size=1, max_size=12).map(
    lambda raw: [share / sum(raw) for share in raw]
)


@settings(max_examples=25)
@given(shares, st.integers(0, 10**7))
def test_every_window_of_a_thousand_has_the_weights_to_within_one(
    weights: list[float], start: int
) -> None:
    sources = Mixture(weights).sources(np.arange(start, start + 20_000))
    for source, weight in enumerate(weights):
        counts = np.concatenate([[0], np.cumsum(sources == source)])
        assert np.abs(counts[1000:] - counts[:-1000] - 1000 * weight).max() <= 1


@settings(max_examples=25)
@given(shares, st.integers(0, 10**12))
def test_counts_and_positions_agree_with_the_sources(weights: list[float], start: int) -> None:
    mixture = Mixture(weights)
    sources = mixture.sources(np.arange(start, start + 3000))
    for source in range(len(weights)):
        before, after = mixture.count(source, start), mixture.count(source, start + 3000)
        assert after - before == np.count_nonzero(sources == source)
        for place in np.flatnonzero(sources == source)[:3].tolist():
            assert mixture.position(source, mixture.count(source, start + place)) == start + place
    assert sum(mixture.count(source, start) for source in range(len(weights))) == start


def test_sources_are_spread_evenly_and_not_in_runs() -> None:
    sources = Mixture([0.5, 0.3, 0.2]).sources(np.arange(1000))
    for source, weight in enumerate([0.5, 0.3, 0.2]):
        gaps = np.diff(np.flatnonzero(sources == source))
        assert gaps.max() <= 2 / weight


def test_the_schedule_is_the_same_in_every_version() -> None:
    mixture = Mixture([0.6, 0.25, 0.15])
    assert mixture.sources(np.arange(12)).tolist() == GOLDEN
    uneven = Mixture([1 / 3, 1 / 7, 11 / 21])
    assert [uneven.count(source, 10**9 + 7) for source in range(3)] == GOLDEN_COUNTS


def test_the_least_weight_comes_once_in_a_hundred_thousand() -> None:
    mixture = Mixture([1 - LEAST_WEIGHT, LEAST_WEIGHT])
    assert mixture.count(1, 100_000) == 1
    assert 500_000 <= mixture.position(1, 5) < 600_000


def test_many_least_weights_leave_the_others_their_shares() -> None:
    weights = [1 - 300 * LEAST_WEIGHT, *[LEAST_WEIGHT] * 300]
    mixture = Mixture(weights)
    assert [mixture.count(source, 100_000) for source in (0, 1, 300)] == [99_700, 1, 1]
