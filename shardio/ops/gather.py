"""Gather along the second dimension, each row with its own indices.

Plain indexing, ``tensor[rows, indices]``, is right everywhere: it counts negative indices from
the end, refuses others out of range, and runs on every device and under every transform. In
eager mode on the CPU, where reading values costs next to nothing, more is to be had: an error
that names the place, and faster kernels. Narrow entries go through ``torch.gather``, which
checks its indices itself; only once it refuses them, being negative or out of range, are they
looked at. Wide entries are rows of a flattened view, copied whole by ``index_select``, which
must not see an index before it is known to lie in its own row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from shardio.ops import peek

# From this many trailing elements on, copying whole entries beats gathering single elements
# (measured on the CPU, forward and backward together).
_WIDE_ENTRY = 8


def batch_gather(tensor: Tensor, indices: Tensor) -> Tensor:
    """Take from each row the entries that the row's own indices name.

    ``output[i] = tensor[i, indices[i]]`` for every row ``i``, without the loop. Differentiable
    in ``tensor``; an entry that is taken twice gets the sum of both gradients.

    Args:
        tensor: shape ``[N, K, *rest]``, any dtype.
        indices: shape ``[N, *any]``, an integer dtype, each from -K to K-1. Negative indices
            count from the end, as in Python.

    Returns:
        Shape ``[N, *any, *rest]``, the dtype of ``tensor``.

    Raises:
        TypeError: the indices are not integers.
        ValueError: ``tensor`` has no second dimension, or the numbers of rows differ.
        IndexError: an index is out of range. In eager mode on the CPU the message names its
            position; elsewhere reading the indices would stall the device or break the
            graph, and the refusal is that of torch's own indexing.
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
    """Number the rows, in a shape that broadcasts against the indices."""
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
    """Refuse what are no rows of entries and rows of indices, for the function of that name."""
    if indices.is_floating_point() or indices.is_complex() or indices.dtype is torch.bool:
        raise TypeError(
            f"{name} takes integer indices, not {indices.dtype}: "
            "convert positions with indices.long(), a mask with mask.nonzero()."
        )
    if tensor.dim() < 2 or indices.dim() < 1:
        raise ValueError(
            f"{name} takes a tensor of shape [N, K, ...] and indices of shape [N, ...], "
            f"not {tuple(tensor.shape)} and {tuple(indices.shape)}."
        )
    if tensor.shape[0] != indices.shape[0]:
        raise ValueError(
            f"{name} needs one row of indices for each row of the tensor: the tensor of "
            f"shape {tuple(tensor.shape)} has {tensor.shape[0]} rows, the indices of shape "
            f"{tuple(indices.shape)} have {indices.shape[0]}."
        )


def counted_from_front(indices: Tensor, size: int) -> Tensor:
    """Replace negative indices; refuse those out of range, where that can be read."""
    found = peek.first_outside(indices, -size, size - 1)
    if found is not None:
        place, index = found
        valid = f"rows of {size} entries take indices from {-size} to {size - 1}"
        raise IndexError(
            f"indices{place} is {index}, but "
            f"{valid if size else 'the rows of the tensor are empty'}."
        )
    return torch.where(indices < 0, indices + size, indices)
