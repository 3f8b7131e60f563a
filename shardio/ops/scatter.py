"""Scatter along the second dimension, with separate indices for each row; the inverse of gather.

If an entry is written repeatedly, the last value prevails, as in a loop. The last writer of every
entry is determined first, and its value is gathered. Values and gradients thus do not depend on
the order in which a device writes.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from shardio.ops.gather import batch_gather, check_rows, counted_from_front

Scattering = Literal["replace", "sum"]


def batch_scatter(
    tensor: Tensor, indices: Tensor, values: Tensor, *, reduce: Scattering = "replace"
) -> Tensor:
    """Write values to entries of each row, by separate indices for each row.

    Equal to `output = tensor.clone()` and `output[i, indices[i]] = values[i]` for every row
    `i`, without the loop; with `reduce="sum"`, to `+=`. Differentiable in `tensor` and
    `values`. If an index occurs repeatedly in a row, the last value replaces the others, whose
    gradient is 0.

    Args:
        tensor: tensor of shape `[N, K, *rest]`.
        indices: integer tensor of shape `[N, *any]`, with values from -K to K-1.
        values: tensor of shape `[N, *any, *rest]` and the dtype of `tensor`.
        reduce: `replace` to overwrite entries, or `sum` to add to them.

    Returns:
        New tensor of the shape and dtype of `tensor`.

    Raises:
        TypeError: the indices are not integers, or the dtypes of tensor and values differ.
        ValueError: a shape does not match, since nothing is broadcast; reduce is invalid.
        IndexError: an index is out of range; see `batch_gather`.
    """
    if reduce not in get_args(Scattering):
        raise ValueError(f"reduce must be 'replace' or 'sum', not {reduce!r}")
    check_rows(tensor, indices, "batch_scatter")
    rest = tensor.shape[2:]
    if values.shape != (*indices.shape, *rest):
        raise ValueError(
            f"values must have shape {(*indices.shape, *rest)} for indices of shape "
            f"{tuple(indices.shape)} and a tensor of shape {tuple(tensor.shape)}, got "
            f"{tuple(values.shape)}; nothing is broadcast"
        )
    if values.dtype is not tensor.dtype:
        raise TypeError(
            f"values have dtype {values.dtype}, but the tensor has {tensor.dtype}; convert them "
            "with values.to(tensor.dtype)"
        )
    rows, size = tensor.shape[:2]
    places = counted_from_front(indices.long(), size).reshape(rows, math.prod(indices.shape[1:]))
    flat = values.reshape(rows, places.shape[1], *rest)
    if reduce == "sum":
        return tensor.scatter_add(1, _over_rest(places, flat), flat)
    if not places.shape[1]:
        return tensor.clone()
    numbers = torch.arange(1, places.shape[1] + 1, device=tensor.device).expand_as(places)
    nobody = torch.zeros(rows, size, dtype=torch.int64, device=tensor.device)
    last = nobody.scatter_reduce(1, places, numbers, "amax")
    written = batch_gather(flat, (last - 1).clamp(min=0))
    return torch.where(_over_rest(last > 0, tensor), written, tensor)


def _over_rest(marks: Tensor, like: Tensor) -> Tensor:
    """Expand marks to the trailing dimensions of another tensor."""
    rest = like.shape[2:]
    return marks.view(*marks.shape, *[1] * len(rest)).expand(*marks.shape, *rest)
