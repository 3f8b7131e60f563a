"""Reading values where that is cheap: in eager mode on the CPU.

Elsewhere it would break a graph or stall an accelerator's queue, so that what depends on values
must be computed instead.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def reads_cheaply(values: Tensor) -> bool:
    """Tell whether values may be read: neither a graph nor an accelerator's queue is broken."""
    return not torch.compiler.is_compiling() and values.device.type == "cpu" and values.numel() > 0


def known_range(values: Tensor) -> tuple[float, float] | None:
    """Read the smallest and the largest value, where that costs next to nothing.

    Returns:
        Both values, NaN if any value is; or None if reading would break a graph or stall a
        device, if nothing is there to read, or if a transform such as vmap hides the values.
    """
    if not reads_cheaply(values):
        return None
    try:
        low, high = torch.aminmax(values.detach())
        return low.item(), high.item()
    except RuntimeError:  # how vmap and fake tensors answer when asked for a value
        return None


def known_finite(values: Tensor) -> bool:
    """Tell whether all values are finite; False also where that cannot be read."""
    known = known_range(values)
    return known is not None and -math.inf < known[0] and known[1] < math.inf


def first_outside(values: Tensor, low: float, high: float) -> tuple[list[int], float] | None:
    """Find the first value outside a range, where values can be read.

    Returns:
        Its place and itself; None if there is none, or it cannot be known.
    """
    known = known_range(values)
    if known is None or (known[0] >= low and known[1] <= high):
        return None
    outside = ((values < low) | (values > high)).nonzero()
    if not len(outside):  # a NaN, which is no value outside
        return None
    place = outside[0].tolist()
    return place, values[tuple(place)].item()
