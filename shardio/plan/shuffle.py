"""Keyed permutations and keyed random numbers.

Everything random in shardio is a pure function of a key and a position, so that any process
can compute any part of it alone. Numbers come from SplitMix64's finaliser (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", 2014), not from numpy's generators,
whose streams may change between numpy versions.

A permutation of a small range is a table: the argsort of one random number per position, which
is uniform over all orders. A large range would need a large table, so there it is a Feistel
network over the next power of two, walked until the value falls inside the range (Black and
Rogaway, "Ciphers with arbitrary finite domains", 2002): any position at once, O(1) memory.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_MASK64 = (1 << 64) - 1
_TABLE_LIMIT = 1 << 16
_ROUNDS = 8


def derive_key(*parts: int) -> int:
    """Mix integers into one 64-bit key; any change of any part changes every bit's odds."""
    key = 0
    for part in parts:
        key = _mix_int((key + _GOLDEN + (part & _MASK64)) & _MASK64)
    return key


def uniforms(key: int, rows: NDArray[np.int64], columns: int) -> NDArray[np.float64]:
    """Random numbers for each row, whatever other rows are asked for.

    Args:
        key: from derive_key.
        rows: [n] int64, what each row of numbers belongs to.
        columns: how many numbers a row needs.

    Returns:
        [n, columns] float64 in [0, 1).
    """
    if not columns:
        return np.empty((len(rows), 0))
    start = _mix(rows.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(key))
    steps = np.arange(1, columns + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    bits = _mix(start[:, None] + steps[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


class KeyedPermutation:
    """A permutation of range(size) that is evaluated where it is asked.

    Args:
        size: how many values are permuted.
        key: from derive_key; equal keys give equal permutations.
    """

    __slots__ = ("_key", "_size", "_table")

    def __init__(self, size: int, key: int) -> None:
        self._size = size
        self._key = key
        self._table: NDArray[np.int64] | None = None
        if size <= _TABLE_LIMIT:
            order = _mix(np.arange(size, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(key))
            self._table = np.argsort(order, kind="stable").astype(np.int64)

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Values at the given positions, [n] int64 in and out."""
        if self._table is not None:
            return self._table[positions]
        values = self._feistel(positions.astype(np.uint64))
        outside = np.flatnonzero(values >= self._size)
        while outside.size:
            values[outside] = self._feistel(values[outside])
            outside = outside[values[outside] >= self._size]
        return values.astype(np.int64)

    def _feistel(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        bits = (self._size - 1).bit_length()
        low_bits = np.uint64(bits // 2)
        low_mask = np.uint64((1 << (bits // 2)) - 1)
        high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
        high, low = values >> low_bits, values & low_mask
        for round_number in range(0, _ROUNDS, 2):
            high ^= _mix(low + np.uint64(derive_key(self._key, round_number))) & high_mask
            low ^= _mix(high + np.uint64(derive_key(self._key, round_number + 1))) & low_mask
        return (high << low_bits) | low


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _mix_int(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)
