from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardio.planning.order import KeyedPermutation, derive_key, uniform_numbers


@given(st.integers(1, 70_000), st.integers(0, 2**64 - 1))
def test_a_permutation_has_each_value_once(size: int, key: int) -> None:
    values = KeyedPermutation(size, key)(np.arange(size))
    assert np.array_equal(np.sort(values), np.arange(size))


@pytest.mark.parametrize("size", [65_537, 131_072, 131_073, 1_000_003])
def test_a_large_permutation_has_each_value_once(size: int) -> None:
    values = KeyedPermutation(size, 1)(np.arange(size))
    assert np.array_equal(np.sort(values), np.arange(size))


def test_a_large_permutation_is_evaluated_anywhere_without_a_table() -> None:
    tracemalloc.start()
    permutation = KeyedPermutation(10**12, 3)
    some = permutation(np.array([0, 10**12 - 1, 123_456_789]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(some.tolist())) == 3
    assert 0 <= some.min() <= some.max() < 10**12
    assert peak < 100_000


def test_all_orders_of_a_small_range_are_equally_likely() -> None:
    """Chi-squared with 23 degrees of freedom: 49.7 has a chance of 0.1 % to be exceeded."""
    counts = Counter(
        tuple(KeyedPermutation(4, derive_key(key))(np.arange(4)).tolist()) for key in range(4800)
    )
    expected = 4800 / 24
    assert set(counts) == set(itertools.permutations(range(4)))
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 49.7


@pytest.mark.parametrize("size", [50_000, 300_000])
def test_neighbours_end_far_apart(size: int) -> None:
    """For a random permutation the mean distance is a third of the range."""
    values = KeyedPermutation(size, 9)(np.arange(size))
    distance = np.abs(np.diff(values)).mean() / size
    assert distance == pytest.approx(1 / 3, rel=0.02)


@pytest.mark.parametrize("size", [50_000, 300_000])
def test_each_part_of_the_order_draws_evenly_from_the_range(size: int) -> None:
    """Chi-squared of 100 x 100 cells, 9,801 degrees of freedom: within 4.5 deviations of 140."""
    values = KeyedPermutation(size, 5)(np.arange(size))
    cells = np.zeros((100, 100))
    np.add.at(cells, (np.arange(size) * 100 // size, values * 100 // size), 1)
    expected = size / 10_000
    assert abs(((cells - expected) ** 2 / expected).sum() - 9801) < 4.5 * 140


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**62), min_size=1, max_size=5))
def test_random_numbers_of_a_row_do_not_depend_on_other_rows(key: int, rows: list[int]) -> None:
    together = uniform_numbers(key, np.array(rows), 7)
    alone = np.concatenate([uniform_numbers(key, np.array([row]), 7) for row in rows])
    assert np.array_equal(together, alone)
    assert np.array_equal(uniform_numbers(key, np.array(rows), 3), together[:, :3])


def test_random_numbers_are_uniform_and_independent() -> None:
    numbers = uniform_numbers(11, np.arange(20_000), 8)
    assert 0 <= numbers.min() <= numbers.max() < 1
    assert np.abs(numbers.mean(axis=0) - 0.5).max() < 4.5 / np.sqrt(12 * 20_000)
    correlation = np.corrcoef(np.hstack([numbers[:-1], numbers[1:]]).T)
    assert np.abs(correlation - np.eye(16)).max() < 0.035


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4), st.data())
def test_a_key_changes_with_each_of_its_parts(parts: list[int], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(parts) - 1))
    other = [*parts]
    other[place] ^= 1 << data.draw(st.integers(0, 63))
    assert derive_key(*parts) != derive_key(*other)
