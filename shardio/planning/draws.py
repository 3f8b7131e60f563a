"""Weighted draws: an epoch in which samples come as often as their weights say.

The weights of all samples are scaled so that they add up to the number of draws. A sample whose
share is 2.3 then comes two or three times. This is systematic resampling: the shares lie end to end
on a line, and one random start, with steps of one draw, says what is drawn (Madow and Madow, "On
the theory of systematic sampling", 1944; Carpenter, Clifford and Fearnhead, "Improved particle
filter for nonlinear problems", 1999). The expected number of a sample is exactly its share, and the
number differs from it by less than one, where independent draws would leave out a third of equal
samples.

The shares lie in the order that a shuffled epoch has, so a window of shards has the draws of its
samples and no others, and is read once, as without weights. The draws of a window are permuted
again, which takes repeats apart. Shares are whole numbers of 1 / 2**32 of a draw, so that every
machine draws the same.

The weights take 16 bytes a sample, and a window 16 bytes a draw.
"""

from __future__ import annotations

import hashlib
import math
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from shardio.planning.order import KeyedPermutation, Order, Runs, derive_key
from shardio.planning.samples import Samples

_BITS = 32
_UNIT = 1 << _BITS
MOST_DRAWS = (1 << (63 - _BITS)) - 1
"""Greatest number of draws in an epoch."""

_START, _DRAWS = 6, 7
_AT_ONCE = 1 << 16


class Weights:
    """Weights of the samples of a dataset, as shares of the draws of an epoch.

    Args:
        samples: samples of the dataset.
        given: float64 [n], weight of each sample by number: finite, at least 0, not all 0.
        draws: number of draws in an epoch, at most MOST_DRAWS.

    Attributes:
        given: weight of each sample.
        draws: number of draws in an epoch.
        shares: int64 [n], draws of each sample in units of 1 / 2**32.
    """

    def __init__(self, samples: Samples, given: NDArray[np.float64], draws: int) -> None:
        self.given, self.draws = given, draws
        self.shares = _apportion(given, draws)
        ends = np.concatenate([[0], np.cumsum(self.shares)])[np.cumsum(samples.counts)]
        self._of_shards = np.diff(ends, prepend=0)
        self._samples = samples
        self._digest = ""

    def digest(self) -> str:
        """Return 16 hexadecimal digits that identify the shares."""
        if not self._digest:
            self._digest = hashlib.sha256(self.shares.astype("<i8").data).hexdigest()[:16]
        return self._digest

    def order(self, runs: Runs, key: int, *, shuffled: bool, window: int | None) -> Draws:
        """Return the draws of an epoch.

        Args:
            runs: runs of all shards, in packed order.
            key: random key of the epoch.
            shuffled: whether shards, and the draws of a window, are permuted.
            window: number of shards in a window; None for all.
        """
        drawn = runs.take(self._of_shards > 0)
        size = window or len(drawn)
        order = Order(drawn, key=key if shuffled else None, window=size)
        return Draws(order, self, key, shuffled=shuffled)

    def of_window(self, order: Order, window: int) -> int:
        """Return the shares of all samples of a window of an order."""
        return int(self._of_shards[order.runs_of_window(window).shards].sum())

    def at(self, shards: NDArray[np.int64], ordinals: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the shares of samples given by ordinal, int64 [n]."""
        return self.shares[self._samples.numbers(shards, ordinals)]


class Draws:
    """Weighted draws of an epoch; a SampleSequence.

    Args:
        order: order of the samples in which the shares lie.
        weights: weights of the samples.
        key: random key.
        shuffled: whether the draws of a window are permuted.
    """

    def __init__(self, order: Order, weights: Weights, key: int, *, shuffled: bool) -> None:
        self._order, self._weights = order, weights
        self._key, self._shuffled = key, shuffled
        self._start = derive_key(key, _START) >> (64 - _BITS)
        shares = [weights.of_window(order, window) for window in range(order.num_windows)]
        self._shares: NDArray[np.int64] = np.concatenate([[0], np.cumsum(shares)])
        self._starts = self._count(self._shares)
        self._tables: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def __len__(self) -> int:
        return self._weights.draws

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See SampleSequence."""
        windows = np.searchsorted(self._starts, positions, side="right") - 1
        shards, ordinals = np.empty_like(positions), np.empty_like(positions)
        for window in np.unique(windows).tolist():
            inside = windows == window
            drawn, inner = self._table(window), positions[inside] - self._starts[window]
            shards[inside], ordinals[inside] = drawn[0][inner], drawn[1][inner]
        return shards, ordinals

    def window_of(self, position: int) -> int:
        """See SampleSequence."""
        return int(np.searchsorted(self._starts, position, side="right")) - 1

    def runs_of_window(self, window: int) -> Runs:
        """See SampleSequence."""
        return self._order.runs_of_window(window)

    def window_of_shards(self, count: int) -> NDArray[np.int64]:
        """See SampleSequence."""
        return self._order.window_of_shards(count)

    def bounds(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See SampleSequence."""
        shares = self._weights.shares
        return shares >> _BITS, (shares + _UNIT - 1) >> _BITS

    def _count(self, shares: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count the draws before some points of the line."""
        return (shares - self._start + _UNIT - 1) >> _BITS

    def _table(self, window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the shard and ordinal of each draw of a window."""
        if window not in self._tables:
            places = self._order.locate(self._order.positions_of_window(window))
            ends = self._count(self._shares[window] + np.cumsum(self._weights.at(*places)))
            counts = np.diff(ends, prepend=self._starts[window])
            drawn = np.repeat(np.arange(len(counts)), counts)
            if self._shuffled:
                key = derive_key(self._key, _DRAWS, window)
                drawn = drawn[KeyedPermutation(len(drawn), key)(np.arange(len(drawn)))]
            while len(self._tables) > 1:
                del self._tables[next(iter(self._tables))]
            self._tables[window] = places[0][drawn], places[1][drawn]
        return self._tables[window]


def _apportion(weights: NDArray[np.float64], draws: int) -> NDArray[np.int64]:
    """Round shares of the draws to whole units, so that their sum is exact.

    What rounding leaves over goes to the samples that it took most from, or from those that it gave
    most.
    """
    some = (weights[at : at + _AT_ONCE].tolist() for at in range(0, len(weights), _AT_ONCE))
    greatest = float(weights.max())  # the sum of what is scaled by it does not overflow
    total = math.fsum(weight / greatest for weight in chain.from_iterable(some))
    exact = weights / greatest * (draws / total) * _UNIT
    shares = np.rint(exact).astype(np.int64)
    left = (draws << _BITS) - int(shares.sum())
    drawn = np.flatnonzero(shares)
    order = drawn[np.argsort((shares - exact)[drawn] * (1 if left > 0 else -1), kind="stable")]
    each, rest = divmod(abs(left), len(order))
    shares[order] += each * np.sign(left)
    shares[order[:rest]] += np.sign(left)
    return shares
