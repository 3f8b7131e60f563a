"""Masks of valid samples, and sums and means over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

Reduction = Literal["mean", "sum", "none"]


def masked_mean(
    values: Tensor,
    valid: Tensor,
    *,
    dim: int | tuple[int, ...] | None = None,
    keepdim: bool = False,
) -> Tensor:
    """Compute the mean of the valid values; the others have no effect, even if they are NaN.

    `masked_mean(logits.argmax(-1) == batch["label"], batch["valid"])` is the accuracy of a
    batch without its padding.

    Args:
        values: floating point, integer or bool tensor of any shape.
        valid: bool tensor of leading dimensions of `values`.
        dim: dimensions to reduce; None for all.
        keepdim: whether to keep the reduced dimensions, with size 1.

    Returns:
        Tensor of means; 0 with gradient 0 if no value is valid. float64 for float64, otherwise
        float32.

    Raises:
        TypeError: `valid` is not bool, or `values` is complex.
        ValueError: the shape of `valid` does not match leading dimensions of `values`.
    """
    if values.is_complex():
        raise TypeError("masked_mean takes real values; pass values.real and values.imag")
    counts = counting(valid, values.shape, "values")
    wide = values if values.dtype is torch.float64 else values.float()
    dims = tuple(range(values.dim())) if dim is None else dim
    total = wide.masked_fill(~counts, 0).sum(dims, keepdim=keepdim)
    return total / counts.sum(dims, keepdim=keepdim).clamp(min=1)


def check_reduction(reduction: str) -> None:
    """Raise an error for an unknown reduction."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', not {reduction!r}")


def counting(valid: Tensor, shape: Sequence[int], what: str) -> Tensor:
    """Expand a mask of leading dimensions to a full shape.

    Args:
        valid: bool tensor of leading dimensions.
        shape: full shape.
        what: name of the masked tensor in messages.
    """
    if valid.dtype is not torch.bool:
        raise TypeError(
            f"valid must be a mask of dtype bool, not {valid.dtype}; convert it with valid.bool(), "
            "or, to weight samples, multiply the losses of reduction='none'"
        )
    if valid.shape != tuple(shape[: valid.dim()]):
        raise ValueError(
            f"valid must have leading dimensions of the {what}, such as [B] for a batch of B "
            f"samples; got shape {tuple(valid.shape)} for {what} of shape {tuple(shape)}"
        )
    aligned = (*valid.shape, *[1] * (len(shape) - valid.dim()))
    return valid.reshape(aligned).expand(tuple(shape))


def reduce(
    losses: Tensor, counts: Tensor | None, reduction: Reduction, shares: Tensor | None = None
) -> Tensor:
    """Reduce the valid losses, and set the others to 0.

    Args:
        losses: tensor of any shape.
        counts: bool tensor of that shape, True for valid losses; None if all are valid.
        reduction: kind of reduction.
        shares: weights of that shape, 0 for losses that are not valid; the mean divides by
            their sum.
    """
    if counts is not None:
        losses = losses.masked_fill(~counts, 0)
    if reduction == "none":
        return losses
    total = losses.sum()
    if reduction == "sum":
        return total
    if shares is not None:
        whole = shares.sum()
        return total / whole.masked_fill(whole == 0, 1)
    if counts is None:
        return total / max(losses.numel(), 1)
    return total / counts.sum().clamp(min=1)
