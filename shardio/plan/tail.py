"""The end of an epoch: every rank takes the same number of steps.

A global batch is filled by all ranks together. Where the samples do not fill the last one,
`pad` repeats samples from the epoch's start and marks them as not valid, `drop` leaves the
incomplete batch out, and `short` makes it smaller, which only one rank alone can do.
"""

from __future__ import annotations

from typing import Literal

Tail = Literal["pad", "drop", "short"]


def count_steps(num_samples: int, global_batch_size: int, tail: Tail) -> int:
    """Steps of an epoch, the same for every rank."""
    if tail == "drop":
        return num_samples // global_batch_size
    return -(-num_samples // global_batch_size)
