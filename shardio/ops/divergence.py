"""Kullback-Leibler divergence of a softmax from a distribution."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that torch's own manual uses

from shardio.ops import peek
from shardio.ops.labels import class_dim, without
from shardio.ops.reduction import Reduction, check_reduction, counting, reduce
from shardio.ops.softmax import log_softmax, widen


def kl_divergence(
    logits: Tensor,
    labels: Tensor,
    *,
    dim: int = -1,
    log_labels: bool = False,
    valid: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute `sum(p * (log(p) - log_softmax(logits)))` for each sample with the labels p.

    This is the loss of knowledge distillation. Equal to `torch.nn.functional.kl_div(log_softmax(
    logits, dim), labels, reduction="batchmean")` where that is finite, gradients included. Logits
    may be log-probabilities, which the softmax leaves unchanged. A label of exactly 0 contributes
    0, with gradient 0. A logit of -inf masks its class; any other label of a masked class costs
    inf, with gradient 0. Loss and gradient are 0 if all classes of a sample are masked.

    Args:
        logits: floating point tensor of shape `[..., classes, ...]`, with classes along `dim`.
        labels: floating point distributions along `dim` (not checked), in the shape of the
            logits; differentiable.
        dim: dimension of the classes.
        log_labels: whether labels are logits or log-probabilities instead of probabilities.
        valid: bool tensor of leading dimensions of the losses, as `[B]`; False marks padding.
        reduction: `mean` (0 if no sample is valid) or `sum` over valid samples, or `none`.

    Returns:
        Scalar, or with `none` a tensor of one loss per sample; at least float32.

    Raises:
        TypeError: logits or labels are not floating point.
        ValueError: a shape does not match (nothing is broadcast); dim or reduction is invalid.
    """
    check_reduction(reduction)
    x = widen(logits)
    dim = class_dim(logits, dim)
    if not labels.is_floating_point():
        raise TypeError(
            f"labels must be floating point distributions, not {labels.dtype}; for class indices, "
            "use softmax_cross_entropy"
        )
    if labels.shape != logits.shape:
        raise ValueError(
            f"labels must have the shape of the logits, {tuple(logits.shape)}, got "
            f"{tuple(labels.shape)}; nothing is broadcast"
        )
    counts = None if valid is None else counting(valid, without(logits.shape, dim), "losses")
    y = labels.to(x.dtype)
    if counts is not None:
        y = y.masked_fill(~counts.unsqueeze(dim), 0)
    logarithms = log_softmax(x, dim)
    if log_labels:
        y = log_softmax(y, dim)
    known = peek.known_range(y)
    if known is not None and (known[0] > 0 or (log_labels and known[0] > -math.inf)):
        losses = F.kl_div(logarithms, y, reduction="none", log_target=log_labels).sum(dim)
        if peek.known_finite(losses):
            return reduce(losses, counts, reduction)
    return reduce(_careful(logarithms, y, dim, log_labels=log_labels), counts, reduction)


def _careful(logarithms: Tensor, labels: Tensor, dim: int, *, log_labels: bool) -> Tensor:
    """Compute the losses with labels of 0 and masked classes left out, also from the gradients."""
    masked = logarithms == -math.inf
    never = labels == (-math.inf if log_labels else 0)
    log_p = labels.masked_fill(never, 0) if log_labels else labels.masked_fill(never, 1).log()
    p = log_p.exp() if log_labels else labels
    costs = (p * (log_p - logarithms.masked_fill(masked, 0))).masked_fill(never, 0)
    lost = (masked & ~never).any(dim)
    losses = costs.sum(dim).masked_fill(lost, math.inf)
    return losses.masked_fill(masked.all(dim), 0)
