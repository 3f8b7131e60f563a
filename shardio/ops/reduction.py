"""What counts: masks of valid samples, and sums and means over them."""

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
    """Take the mean of the values that count; what the others hold, NaN included, changes nothing.

    ``masked_mean(logits.argmax(-1) == batch["label"], batch["valid"])`` is the accuracy of a
    batch without its padding.

    Args:
        values: any shape; floating point, integer or bool.
        valid: bool; its shape is that of the leading dimensions of ``values``, all or fewer.
        dim: over which dimensions; None takes all.
        keepdim: keep the dimensions, at size 1.

    Returns:
        The means; 0 where nothing counts, with gradient 0. float64 for float64, else float32.

    Raises:
        TypeError: ``valid`` is not bool, or ``values`` is complex.
        ValueError: the shape of ``valid`` is not that of leading dimensions of ``values``.
    """
    if values.is_complex():
        raise TypeError("masked_mean takes real values: give it values.real and values.imag.")
    counts = counting(valid, values.shape, "values")
    wide = values if values.dtype is torch.float64 else values.float()
    dims = tuple(range(values.dim())) if dim is None else dim
    total = wide.masked_fill(~counts, 0).sum(dims, keepdim=keepdim)
    return total / counts.sum(dims, keepdim=keepdim).clamp(min=1)


def check_reduction(reduction: str) -> None:
    """Refuse a reduction that does not exist."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction is 'mean', 'sum' or 'none', not {reduction!r}.")


def counting(valid: Tensor, shape: Sequence[int], what: str) -> Tensor:
    """Give each element its sample's mark: a mask of leading dimensions, expanded to a shape.

    Args:
        valid: bool, of leading dimensions.
        shape: of what is masked.
        what: its name in messages.
    """
    if valid.dtype is not torch.bool:
        raise TypeError(
            f"valid is a mask of dtype bool, not {valid.dtype}: convert with valid.bool(); to "
            "weight samples, multiply the losses of reduction='none'."
        )
    if valid.shape != tuple(shape[: valid.dim()]):
        raise ValueError(
            f"valid of shape {tuple(valid.shape)} does not fit {what} of shape {tuple(shape)}: "
            "it has their leading dimensions, as [B] for a batch of B samples."
        )
    aligned = (*valid.shape, *[1] * (len(shape) - valid.dim()))
    return valid.reshape(aligned).expand(tuple(shape))


def reduce(
    losses: Tensor, counts: Tensor | None, reduction: Reduction, shares: Tensor | None = None
) -> Tensor:
    """Take the sum or mean of the losses that count; with none, put 0 for the others.

    Args:
        losses: any shape.
        counts: bool of that shape; None if all count.
        reduction: which.
        shares: of that shape, 0 where a loss does not count: the mean divides by their sum.
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
