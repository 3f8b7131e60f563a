"""The end of an epoch: every rank takes the same number of steps.

A global batch is filled by all ranks together. Where the samples do not fill the last one,
`pad` repeats samples from the epoch's start and marks them as not valid, `drop` leaves the
incomplete batch out.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Tail = Literal["pad", "drop"]


def count_steps(num_samples: int, global_batch_size: int, tail: Tail) -> int:
    """Steps of an epoch, the same for every rank."""
    if tail == "drop":
        return num_samples // global_batch_size
    return -(-num_samples // global_batch_size)


def wrap_pads(
    positions: NDArray[np.int64], num_samples: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Turn positions past the end into repeats.

    Returns:
        Positions within the epoch, [n] int64, and which of them are no repeats, [n] bool.
    """
    return positions % num_samples, positions < num_samples
