"""Gather along the second dimension, with separate indices for each row.

Plain indexing, `tensor[rows, indices]`, is correct everywhere. It supports negative indices,
checks the range, and works on every device and under every transform. In eager mode on the CPU,
reading values is cheap, which allows better error messages and faster kernels. Narrow entries use
`torch.gather`. It checks its indices itself, and only if it raises an error are they inspected
for negative ones. Wide entries are rows of a flattened view, copied whole by `index_select`.
Their indices are checked first, because a wrong index could select an entry of another row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from shardio.ops import peek

# Number of trailing elements from which copying whole entries is faster than gathering single
# elements, as measured on the CPU for the forward and backward pass together.
_WIDE_ENTRY = 8


def batch_gather(tensor: Tensor, indices: Tensor) -> Tensor:
    """Select entries of each row by separate indices for each row.

    Equal to `output[i] = tensor[i, indices[i]]` for every row `i`, without the loop.
    Differentiable in `tensor`; the gradients of an entry that is selected repeatedly add up.

    Args:
        tensor: tensor of shape `[N, K, *rest]` and any dtype.
        indices: integer tensor of shape `[N, *any]`, with values from -K to K-1; negative
            indices count from the end, as in Python.

    Returns:
        Tensor of shape `[N, *any, *rest]` and the dtype of `tensor`.

    Raises:
        TypeError: the indices are not integers.
        ValueError: `tensor` has no second dimension, or the numbers of rows differ.
        IndexError: an index is out of range. In eager mode on the CPU, the message names its
            position. Elsewhere, the error is that of torch's own indexing, because reading the
            indices would stall the device or break the graph.
    """
    check_rows(tensor, indices, "batch_gather")
    indices = indices.long()
    if not peek.reads_cheaply(indices):
        return _gather_anywhere(tensor, indices)
    narrow = math.prod(tensor.shape[2:]) < _WIDE_ENTRY
    if narrow:
        try:
            return _gather_narrow(tensor, indices)
        except RuntimeError:  # an index is negative or out of range
            pass
    if peek.known_range(indices) is None:
        return _gather_anywhere(tensor, indices)
    indices = counted_from_front(indices, tensor.shape[1])
    if narrow:
        return _gather_narrow(tensor, indices)
    if tensor.is_contiguous():
        return _gather_wide(tensor, indices)
    return _gather_anywhere(tensor, indices)


def _rows(indices: Tensor) -> Tensor:
    """Return the row numbers in a shape that broadcasts against the indices."""
    rows = torch.arange(indices.shape[0], device=indices.device)
    return rows.view(-1, *[1] * (indices.dim() - 1))


def _gather_anywhere(tensor: Tensor, indices: Tensor) -> Tensor:
    return tensor[_rows(indices), indices]


def _gather_narrow(tensor: Tensor, indices: Tensor) -> Tensor:
    rest = tensor.shape[2:]
    columns = indices.reshape(indices.shape[0], -1, *[1] * len(rest))
    if rest:
        columns = columns.expand(-1, -1, *rest)
    return torch.gather(tensor, 1, columns).reshape(*indices.shape, *rest)


def _gather_wide(tensor: Tensor, indices: Tensor) -> Tensor:
    places = indices + _rows(indices) * tensor.shape[1]
    entries = tensor.flatten(0, 1).index_select(0, places.flatten())
    return entries.view(*indices.shape, *tensor.shape[2:])


def check_rows(tensor: Tensor, indices: Tensor, name: str) -> None:
    """Raise an error unless tensor and indices have matching rows; `name` is the function's."""
    if indices.is_floating_point() or indices.is_complex() or indices.dtype is torch.bool:
        raise TypeError(
            f"{name} takes integer indices, not {indices.dtype}; "
            "convert positions with indices.long(), a mask with mask.nonzero()"
        )
    if tensor.dim() < 2 or indices.dim() < 1:
        raise ValueError(
            f"{name} takes a tensor of shape [N, K, ...] and indices of shape [N, ...], "
            f"not {tuple(tensor.shape)} and {tuple(indices.shape)}"
        )
    if tensor.shape[0] != indices.shape[0]:
        raise ValueError(
            f"{name} takes one row of indices for each row of the tensor, but the tensor of "
            f"shape {tuple(tensor.shape)} has {tensor.shape[0]} rows, and the indices of shape "
            f"{tuple(indices.shape)} have {indices.shape[0]}"
        )


def counted_from_front(indices: Tensor, size: int) -> Tensor:
    """Replace negative indices; raise an error for those out of range if values can be read."""
    found = peek.first_outside(indices, -size, size - 1)
    if found is not None:
        place, index = found
        valid = f"rows of {size} entries take indices from {-size} to {size - 1}"
        raise IndexError(
            f"indices{place} is {index}, but "
            f"{valid if size else 'the rows of the tensor are empty'}"
        )
    return torch.where(indices < 0, indices + size, indices)
