"""Scatter along the second dimension, each row to its own indices: the way back of gather.

Where one entry is written twice the last one wins, as in the loop: for every entry its last
writer is found, and gathered from. So value and gradients do not depend on the order in which a
device happens to write.
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
    """Write values into each row, at the places that the row's own indices name.

    ``output = tensor.clone(); output[i, indices[i]] = values[i]`` for every row ``i``, without the
    loop; with ``reduce="sum"`` it is ``+=``. Differentiable in ``tensor`` and ``values``. Where an
    index comes twice in a row, the last value replaces the others, which have gradient 0.

    Args:
        tensor: shape ``[N, K, *rest]``.
        indices: shape ``[N, *any]``, an integer dtype, each from -K to K-1.
        values: shape ``[N, *any, *rest]``, the dtype of ``tensor``.
        reduce: ``replace`` entries, or ``sum`` values up on them.

    Returns:
        The shape and dtype of ``tensor``, which is left as it is.

    Raises:
        TypeError: the indices are not integers, or the dtypes of tensor and values differ.
        ValueError: shapes that do not fit; nothing is broadcast.
        IndexError: an index is out of range; as in batch_gather.
    """
    if reduce not in get_args(Scattering):
        raise ValueError(f"reduce is 'replace' or 'sum', not {reduce!r}.")
    check_rows(tensor, indices, "batch_scatter")
    rest = tensor.shape[2:]
    if values.shape != (*indices.shape, *rest):
        raise ValueError(
            f"values of shape {tuple(values.shape)} do not fit indices of shape "
            f"{tuple(indices.shape)} into a tensor of shape {tuple(tensor.shape)}: they have shape "
            f"{(*indices.shape, *rest)}, and nothing is broadcast."
        )
    if values.dtype is not tensor.dtype:
        raise TypeError(
            f"values are of dtype {values.dtype}, but the tensor of {tensor.dtype}: convert them "
            "with values.to(tensor.dtype)."
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
    """Repeat along the trailing dimensions of another tensor."""
    rest = like.shape[2:]
    return marks.view(*marks.shape, *[1] * len(rest)).expand(*marks.shape, *rest)
