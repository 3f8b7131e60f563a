"""Read values of tensors if that is cheap, which is in eager mode on the CPU.

Elsewhere, reading would break a graph or stall an accelerator. Callers then compute what they need
without branching on values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def reads_cheaply(values: Tensor) -> bool:
    """Return whether values can be read without breaking a graph or stalling an accelerator."""
    return not torch.compiler.is_compiling() and values.device.type == "cpu" and values.numel() > 0


def known_range(values: Tensor) -> tuple[float, float] | None:
    """Read the smallest and the largest value if that is cheap.

    Returns:
        Both values, or NaN if any value is NaN; None if reading is expensive, the tensor is
        empty, or a transform such as vmap hides the values.
    """
    if not reads_cheaply(values):
        return None
    try:
        low, high = torch.aminmax(values.detach())
        return low.item(), high.item()
    except RuntimeError:  # raised by vmap and fake tensors
        return None


def known_finite(values: Tensor) -> bool:
    """Return whether all values are known to be finite; False if they cannot be read."""
    known = known_range(values)
    return known is not None and -math.inf < known[0] and known[1] < math.inf


def first_outside(values: Tensor, low: float, high: float) -> tuple[list[int], float] | None:
    """Find the first value outside a range, if values can be read.

    Returns:
        Index of the value and the value itself; None if there is none or reading is expensive.
    """
    known = known_range(values)
    if known is None or (known[0] >= low and known[1] <= high):
        return None
    outside = ((values < low) | (values > high)).nonzero()
    if not len(outside):  # NaN does not count as outside
        return None
    place = outside[0].tolist()
    return place, values[tuple(place)].item()
