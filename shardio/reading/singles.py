"""Single samples that are read several at once.

A dataset without batch size yields samples, one a step. The native core is for chunks of them, so
some samples that follow each other are read together, as a batch, and taken out of it. Where one of
them is bad, lacks an entry or is unlike the others, each is read alone instead: what is delivered,
and where an error is raised, does not depend on the samples beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from shardio.errors import ShardioError
from shardio.reading.kinds import as_array, as_tensor

if TYPE_CHECKING:
    from shardio.reading.batch import Batch

AT_ONCE = 16
_LEAST = 4  # samples for which that pays
_MOST_FAILURES = 4  # in a row; then samples are taken to be unlike each other

MakeBatch = Callable[[slice], "Batch"]


class Singles:
    """Makes single samples, and reads them together as long as that succeeds."""

    def __init__(self) -> None:
        self._failures = 0

    def read(self, slots: slice, make: MakeBatch) -> Iterator[Single | Batch]:
        """Yield samples, empty.

        Args:
            slots: places of the samples among those that were planned.
            make: maker of an empty batch.
        """
        for part in _divide(slots, AT_ONCE):
            if part.stop - part.start < _LEAST or self._failures >= _MOST_FAILURES:
                yield from map(make, _divide(part, 1))
                continue
            together = Together(part, make)
            yield from together.samples()
            self._failures = 0 if together.is_whole else self._failures + 1


def _divide(slots: slice, size: int) -> Iterator[slice]:
    for start in range(slots.start, slots.stop, size):
        yield slice(start, min(start + size, slots.stop))


class Together:
    """Samples that are read together when the first of them is due.

    Args:
        slots: places of the samples among those that were planned.
        make: maker of an empty batch.
    """

    def __init__(self, slots: slice, make: MakeBatch) -> None:
        self._slots, self._make = slots, make
        self._entries: dict[str, Any] | None = None
        self._is_read = False

    @property
    def is_whole(self) -> bool:
        """Whether the samples could be read together, if they were read."""
        return self._entries is not None or not self._is_read

    def samples(self) -> Iterator[Single]:
        """Yield the samples, empty."""
        for at, alone in enumerate(_divide(self._slots, 1)):
            yield Single(self, at, partial(self._make, alone))

    def take(self, at: int) -> dict[str, Any] | None:
        """Return a sample as a batch of one; None if it must be read alone."""
        if not self._is_read:
            self._is_read = True
            batch = self._make(self._slots)
            with suppress(ShardioError):  # which is raised again when the bad sample is due
                batch.fill(range(len(batch)))
                if batch.is_sound:
                    self._entries = batch.finish()
        if self._entries is None:
            return None
        return {name: _one(value, at) for name, value in self._entries.items()}


class Single:
    """One of several samples; an UnfinishedBatch.

    Args:
        together: the samples.
        at: position of the sample among them.
        make: maker of a batch of the sample alone.
    """

    chunk = 1

    def __init__(self, together: Together, at: int, make: Callable[[], Batch]) -> None:
        self._together, self._at, self._make = together, at, make
        self._taken: dict[str, Any] | None = None
        self._alone: Batch | None = None

    def __len__(self) -> int:
        return 1

    def fill(self, slots: range) -> None:
        """Read the sample; see Batch.fill."""
        self._taken = self._together.take(self._at)
        if self._taken is None:
            self._alone = self._make()
            self._alone.fill(slots)

    def finish(self) -> dict[str, Any]:
        """Return the entries of the sample; see Batch.finish."""
        if self._alone is not None:
            return self._alone.finish()
        return self._taken or {}

    def abandon(self) -> None:
        """See UnfinishedBatch; one thread reads single samples, so that none waits elsewhere."""


def _one(value: Any, at: int) -> Any:
    """Return a part of an entry of a batch, with memory of its own."""
    if isinstance(value, torch.Tensor):
        # torch's own copy would start threads, which wait for each other by spinning.
        return as_tensor(as_array(value)[at : at + 1].copy(order="K"))
    if isinstance(value, dict):
        return {name: _one(each, at) for name, each in value.items()}
    return value[at : at + 1]
