"""Memory for batches.

New memory costs a page fault for each of its pages, and a batch of photos has thousands. So the
memory of a batch that nobody holds any more is lent again: each tensor keeps a small array alive
that stands for the loan, and its end gives the memory back. A batch may be kept as long as one
likes.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

Allocate = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]
"""Makes a contiguous tensor to fill, of a shape and dtype."""

_LEAST_LENT = 1 << 16  # bytes; less is not worth the keeping


class Recycler:
    """Lends memory and takes it back; an Allocate, for any number of threads.

    Args:
        make: new memory, uint8 [size].
    """

    def __init__(self, make: Callable[[int], NDArray[np.uint8]] | None = None) -> None:
        self._make = make or _make
        self._free: defaultdict[int, list[NDArray[np.uint8]]] = defaultdict(list)

    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """See Allocate."""
        size = prod(shape) * dtype.itemsize
        if size < _LEAST_LENT:
            return torch.empty(shape, dtype=dtype)
        free = self._free[size]
        try:
            memory = free.pop()
        except IndexError:
            memory = self._make(size)
        loan = memory[:]
        ending = weakref.finalize(loan, free.append, memory)
        ending.atexit = False  # type: ignore[misc]  # typeshed takes it for read-only
        return torch.from_numpy(loan).view(dtype).view(shape)


def _make(size: int) -> NDArray[np.uint8]:
    return np.empty(size, np.uint8)
