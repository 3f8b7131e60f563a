"""Softmax, its logarithm and the losses on it, right where the plain formulas are not.

torch's fused kernels take the maximum per row and are exact for finite logits of any size.
Rows with infinities are where they fail: a row of -inf alone, or with +inf, comes out as NaN,
values and gradients alike. Two facts make the remedy cheap:

1. On the CPU a value can be read. One pass over the values (a tenth of the time of a softmax),
   or over the losses of the samples, tells that all are finite, and torch's kernel is the answer.
2. Elsewhere (accelerators, ``torch.compile``, ``vmap``) every row takes a path without branches:
   the peak is clipped before it is subtracted, the sum is at least 1, and what is out of reach
   is set afterwards, one value a row where possible. Its gradients need no mask of the size
   of the logits, which a compiler would store.

An infinite logit is a constant: its gradient is 0. float16 and bfloat16 are computed in float32.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that torch's own manual uses

from shardio.ops.gather import known_range, reads_cheaply

Reduction = Literal["mean", "sum", "none"]


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Turn logits into probabilities: ``exp(x) / exp(x).sum(dim)``, stably.

    Equal to ``torch.softmax`` for finite logits. Beyond it: an entry of -inf is a masked class,
    with probability 0 and gradient 0; a row of -inf alone has no class left and gives zeros
    (which do not add up to 1); entries of +inf share the probability of their row equally. The
    result is NaN only in rows that hold a NaN.

    Args:
        x: logits of any shape, floating point.
        dim: the dimension along which the probabilities add up to 1.

    Returns:
        The shape and dtype of ``x``; computed in float32 where ``x`` is narrower.

    Raises:
        TypeError: ``x`` is not floating point.
    """
    wide = _widen(x)
    if _known_finite(wide):
        return torch.softmax(wide, dim).to(x.dtype)
    below = _below(wide, _peak(wide, dim))
    probabilities = below.exp() / _total(below, dim)
    # This changes no probability; it stops gradients, infinite ones too, where one is 0.
    return F.threshold(probabilities, 0, 0).to(x.dtype)


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Take the logarithm of ``softmax`` without forming the softmax.

    Equal to ``torch.log_softmax`` for finite logits. Beyond it: an entry of -inf is a masked
    class, with log-probability -inf and gradient 0; a row of -inf alone stays -inf; entries
    of +inf share the probability of their row equally, the others get -inf. The result is NaN
    only in rows that hold a NaN.

    Args:
        x: logits of any shape, floating point.
        dim: the dimension along which the probabilities add up to 1.

    Returns:
        The shape of ``x``. float32 where ``x`` is narrower, as under autocast: a float16
        cannot hold the log-probability of a logit 70,000 below the largest.

    Raises:
        TypeError: ``x`` is not floating point.
    """
    wide = _widen(x)
    if _known_finite(wide):
        return torch.log_softmax(wide, dim)
    below = _below(wide, _peak(wide, dim))
    # What is out of reach becomes -inf, and a constant.
    return F.threshold(below - _total(below, dim).log(), torch.finfo(wide.dtype).min / 2, -math.inf)


def softmax_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    dim: int = -1,
    ignore_index: int = -100,
    valid: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compare logits with labels: ``-sum(labels * log_softmax(logits))`` for each sample.

    Equal to ``torch.nn.functional.cross_entropy`` wherever that is finite. Beyond it:

    - Masked classes: logits of -inf. A label of 0 on one counts 0; a label on one costs inf,
      with gradient 0.
    - A sample whose classes are all masked has nothing to compare: its loss and gradient are 0.
    - A sample that does not count (``valid`` is False, or its label is ``ignore_index``) has
      loss and gradient 0 whatever its logits hold, NaN included.
    - A NaN among the logits of a sample makes its loss NaN, with gradient 0.
    - The mean is over the samples that count, which depends on labels and ``valid`` alone; 0 if
      none does, where torch gives NaN.

    Args:
        logits: shape ``[..., classes, ...]`` with the classes along ``dim``, floating point.
        labels: class indices, any integer dtype, the shape of the logits without ``dim``; or
            distributions, floating point, the shape of the logits, which should add up to 1
            along ``dim`` (not checked). Differentiable in distributions too, where no class is
            masked.
        dim: the dimension of the classes. torch's function has it at 1.
        ignore_index: class indices of this value do not count.
        valid: bool, the shape of the logits without ``dim``; False where a sample is padding.
        reduction: ``mean`` over the samples that count, their ``sum``, or ``none``.

    Returns:
        A scalar; with ``none`` the shape of the logits without ``dim``. float32 where the logits
        are narrower, as under autocast.

    Raises:
        TypeError: a dtype that cannot be meant.
        ValueError: shapes that do not fit, which nothing is broadcast to mend; a dimension or
            reduction that does not exist; a class index out of range (found in eager mode on
            the CPU; elsewhere torch's gather refuses it).
    """
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction is 'mean', 'sum' or 'none', not {reduction!r}.")
    wide = _widen(logits)
    dim = _class_dim(logits, dim)
    _check_labels(logits, labels, dim)
    _check_valid(logits, valid, dim)
    if labels.is_floating_point():
        losses = _soft_losses(wide, labels.to(wide.dtype), dim, valid)
        return _reduce(losses, valid, reduction)
    labels = labels.long()
    counts = labels != ignore_index
    if valid is not None:
        counts = counts & valid
    return _reduce(_hard_losses(wide, labels, dim, counts), counts, reduction)


def _widen(x: Tensor) -> Tensor:
    """Give the values in the dtype that sums over them are taken in."""
    if not x.is_floating_point():
        raise TypeError(f"logits are floating point, not {x.dtype}: convert with logits.float().")
    return x if x.dtype is torch.float64 else x.float()


def _known_finite(values: Tensor) -> bool:
    """Tell whether all values are finite; False also where that cannot be read."""
    known = known_range(values)
    return known is not None and -math.inf < known[0] and known[1] < math.inf


def _peak(x: Tensor, dim: int) -> Tensor:
    """Find the largest logit of each row, as a constant, with the dimension kept at 1."""
    x = x.detach()
    return x.amax(dim, keepdim=True) if x.numel() or x.shape[dim] else x


def _below(x: Tensor, peak: Tensor) -> Tensor:
    """Subtract the peak, so that exp neither overflows nor makes NaN of infinities.

    Entries at the peak become 0, also at a peak of +inf, there without a gradient; others beside
    +inf become so low that exp gives 0. A row of -inf alone stays. Where there is a NaN the row
    becomes NaN, without a gradient.
    """
    limits = torch.finfo(x.dtype)
    return (x - peak.clamp(limits.min, limits.max)).clamp(max=0)


def _total(below: Tensor, dim: int) -> Tensor:
    """Add up the exponentials: at least the 1 of the peak, but for a row of -inf alone."""
    return below.exp().sum(dim, keepdim=True).clamp(min=1)


def _impossible(x: Tensor, peak: Tensor) -> Tensor:
    """Mark the logits with probability 0: masked classes, and finite ones beside +inf."""
    return x.detach() < torch.where(peak == math.inf, peak, torch.finfo(x.dtype).min)


def _hard_losses(x: Tensor, labels: Tensor, dim: int, counts: Tensor) -> Tensor:
    """Compute a loss for each sample from class indices."""
    labels = labels.masked_fill(~counts, 0)
    _check_range(labels, x.shape[dim], dim)
    labels = labels.unsqueeze(dim)
    if reads_cheaply(x):
        losses = -torch.log_softmax(x, dim).gather(dim, labels).squeeze(dim)
        if _known_finite(losses):
            return losses
    peak = _peak(x, dim)
    chosen = x.gather(dim, labels)
    losses = _total(_below(x, peak), dim).log() - _below(chosen, peak)
    losses = losses.masked_fill(_impossible(chosen, peak), math.inf)
    return losses.masked_fill(peak == -math.inf, 0).squeeze(dim)


def _soft_losses(x: Tensor, labels: Tensor, dim: int, counts: Tensor | None) -> Tensor:
    """Compute a loss for each sample from distributions."""
    if reads_cheaply(x):
        log_probabilities = torch.log_softmax(x, dim)
        losses = -(labels * log_probabilities).sum(dim)
        if _known_finite(losses):
            return losses
        masked = (labels == 0) & (log_probabilities == -math.inf)
        losses = -(labels * log_probabilities.masked_fill(masked, 0)).sum(dim)
        if _known_finite(losses):
            return losses
    peak = _peak(x, dim)
    below = _below(x, peak)
    if counts is not None:
        labels = labels.masked_fill(~counts.unsqueeze(dim), 0)
    # A finite number in place of -inf, so that a label of 0 makes 0 of it.
    picked = labels * below.clamp(min=torch.finfo(x.dtype).min)
    weight = labels.sum(dim, keepdim=True)
    losses = _total(below, dim).log() * weight - picked.sum(dim, keepdim=True)
    lost = (_impossible(x, peak) & (labels != 0)).any(dim, keepdim=True)
    return losses.masked_fill(lost, math.inf).masked_fill(peak == -math.inf, 0).squeeze(dim)


def _reduce(losses: Tensor, counts: Tensor | None, reduction: Reduction) -> Tensor:
    """Take the sum or mean of the losses that count; with none, put 0 for the others."""
    if counts is not None:
        losses = losses.masked_fill(~counts, 0)
    if reduction == "none":
        return losses
    total = losses.sum()
    if reduction == "sum":
        return total
    if counts is None:
        return total / max(losses.numel(), 1)
    return total / counts.sum().clamp(min=1)


def _class_dim(logits: Tensor, dim: int) -> int:
    """Count the dimension from the front."""
    rank = logits.dim()
    if not -rank <= dim < rank:
        raise ValueError(f"dim={dim} is no dimension of logits of shape {tuple(logits.shape)}.")
    if logits.shape[dim] == 0:
        raise ValueError(f"logits of shape {tuple(logits.shape)} have no classes along dim={dim}.")
    return dim % rank


def _without(shape: torch.Size, dim: int) -> tuple[int, ...]:
    return (*shape[:dim], *shape[dim + 1 :])


def _check_labels(logits: Tensor, labels: Tensor, dim: int) -> None:
    """Refuse labels that are neither class indices nor distributions, and say what was meant."""
    batch, whole = _without(logits.shape, dim), tuple(logits.shape)
    soft = labels.is_floating_point()
    odd = labels.dtype is torch.bool or labels.is_complex()
    if labels.shape == (whole if soft else batch) and not odd:
        return
    given = f"labels of dtype {labels.dtype} and shape {tuple(labels.shape)}"
    asked = (
        f"logits of shape {whole} with classes along dim={dim} take class indices (integers, "
        f"shape {batch}) or distributions (floating point, shape {whole})"
    )
    if soft and labels.shape == batch:
        raise TypeError(f"{given} seem to be class indices: convert with labels.long(); {asked}.")
    if not soft and labels.shape == whole:
        raise TypeError(
            f"{given} seem to be one-hot: convert with labels.float(), or to class indices with "
            f"labels.argmax({dim}); {asked}."
        )
    error = TypeError if odd else ValueError
    raise error(f"{given} do not fit{_hint(logits, labels, dim)}: {asked}.")


def _hint(logits: Tensor, labels: Tensor, dim: int) -> str:
    """Guess what labels of a wrong shape were meant to be."""
    batch = _without(logits.shape, dim)
    if labels.shape == (*batch[:dim], 1, *batch[dim:]):
        return f", unless their dimension of size 1 is dropped with labels.squeeze({dim})"
    for other in range(logits.dim()):
        if other != dim and labels.shape == _without(logits.shape, other):
            return f", unless dim={other} is passed, for classes along dimension {other}"
    return ""


def _check_valid(logits: Tensor, valid: Tensor | None, dim: int) -> None:
    if valid is None:
        return
    if valid.dtype is not torch.bool:
        raise TypeError(
            f"valid is a mask of dtype bool, not {valid.dtype}: convert with valid.bool(); to "
            "weight samples, multiply the losses of reduction='none'."
        )
    if valid.shape != _without(logits.shape, dim):
        raise ValueError(
            f"valid of shape {tuple(valid.shape)} does not fit logits of shape "
            f"{tuple(logits.shape)} with classes along dim={dim}: one bool for each sample has "
            f"shape {_without(logits.shape, dim)}."
        )


def _check_range(classes: Tensor, size: int, dim: int) -> None:
    """Refuse a class index that does not exist, where the indices can be read."""
    known = known_range(classes)
    if known is None or (known[0] >= 0 and known[1] < size):
        return
    place = ((classes < 0) | (classes >= size)).nonzero()[0].tolist()
    raise ValueError(
        f"labels{place or ''} is {classes[tuple(place)].item()}, but logits with {size} classes "
        f"along dim={dim} take 0 to {size - 1}; labels that shall not count are marked with "
        "ignore_index."
    )
