"""Softmax cross entropy with masked classes, padded samples and logits of any magnitude.

As in `softmax.py`, there are two ways for each kind of labels. torch's kernels are used if all
their losses turn out finite. Otherwise the losses are computed by formulas that handle infinities.
For both kinds of labels, a class weight multiplies the label, and label smoothing mixes the loss
with the mean loss of all classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that torch's own manual uses

from shardio.ops import peek
from shardio.ops.labels import check_labels, check_weights, class_dim, class_indices, without
from shardio.ops.reduction import Reduction, check_reduction, counting, reduce
from shardio.ops.softmax import below_peak, impossible, peak_of, total_of, widen


def softmax_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    dim: int = -1,
    ignore_index: int = -100,
    valid: Tensor | None = None,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute `-sum(labels * log_softmax(logits))` for each sample.

    Equal to `torch.nn.functional.cross_entropy` where that is finite. A logit of -inf masks its
    class. A masked class contributes 0 if its label is 0; otherwise the loss is inf, with gradient
    0. Label smoothing spreads over the other classes only. If all classes are masked, loss and
    gradient are 0. They are also 0 for samples that are not valid or have the label
    `ignore_index`, whatever their logits are. A NaN makes the loss of its sample NaN, with
    gradient 0.

    Args:
        logits: floating point tensor of shape `[..., classes, ...]`, with classes along `dim`.
        labels: class indices of any integer dtype, in the shape of the logits without `dim`; or
            floating point distributions along `dim` (not checked), in the shape of the logits,
            differentiable where no class is masked.
        dim: dimension of the classes; torch's function always uses 1.
        ignore_index: class index of samples to ignore.
        valid: bool tensor of leading dimensions of the losses, as `[B]`; False marks padding.
        class_weight: factor of each class, of shape `[classes]`; torch calls it `weight`.
        label_smoothing: share of each label that is spread over all classes, from 0 to 1.
        reduction: `mean`, `sum` or `none`. As in torch, the mean divides by the class weights if
            labels are class indices. The mean of no samples is 0.

    Returns:
        Scalar, or with `none` a tensor of one loss per sample; at least float32.

    Raises:
        TypeError: a dtype is not supported.
        ValueError: a shape does not match (nothing is broadcast); dim, reduction or smoothing is
            invalid; a class index is out of range (checked in eager mode on the CPU; elsewhere
            by torch's gather).
    """
    check_reduction(reduction)
    x = widen(logits)
    dim = class_dim(logits, dim)
    check_labels(logits, labels, dim)
    weights = check_weights(class_weight, x, dim, label_smoothing)
    batch = without(logits.shape, dim)
    counts = None if valid is None else counting(valid, batch, "losses")
    if labels.is_floating_point():
        soft = labels.to(x.dtype)
        if counts is not None:
            soft = soft.masked_fill(~counts.unsqueeze(dim), 0)
        losses = _losses(x, soft, dim, None, weights, label_smoothing)
        return reduce(losses, counts, reduction)
    labels, counts = class_indices(labels, ignore_index, counts, logits.shape[dim], f"dim={dim}")
    chosen = None if class_weight is None else class_weight.to(x)[labels]
    losses = _losses(x, labels, dim, chosen, weights, label_smoothing)
    shares = None if chosen is None else chosen.masked_fill(~counts, 0)
    return reduce(losses, counts, reduction, shares)


def _losses(
    x: Tensor,
    labels: Tensor,
    dim: int,
    chosen: Tensor | None,
    weights: Tensor | None,
    smoothing: float,
) -> Tensor:
    """Compute a loss for each sample, by torch if all of its losses are known to be finite."""
    soft = labels.is_floating_point()
    if peek.reads_cheaply(x):
        losses = F.cross_entropy(
            _classes_second(x, dim),
            _classes_second(labels, dim) if soft else labels,
            weight=None if weights is None else weights.flatten(),
            label_smoothing=smoothing,
            reduction="none",
        )
        if peek.known_finite(losses):
            return losses
    if soft:
        return _soft_losses(x, labels, dim, weights, smoothing)
    return _hard_losses(x, labels, dim, chosen, weights, smoothing)


def _classes_second(x: Tensor, dim: int) -> Tensor:
    """Move the classes to dimension 1, as torch expects them."""
    return x.movedim(dim, 1) if x.dim() > 1 else x


def _hard_losses(
    x: Tensor,
    labels: Tensor,
    dim: int,
    chosen: Tensor | None,
    weights: Tensor | None,
    smoothing: float,
) -> Tensor:
    """Compute a loss for each sample from class indices and their weights."""
    peak = peak_of(x, dim)
    below = below_peak(x, peak)
    log_total = total_of(below, dim).log()
    # This is a gather whose gradient compiles without a scatter.
    losses = log_total.squeeze(dim) + F.nll_loss(
        _classes_second(below, dim).contiguous(), labels, reduction="none"
    )
    chosen_logit = x.detach().gather(dim, labels.unsqueeze(dim))
    losses = losses.masked_fill(impossible(chosen_logit, peak).squeeze(dim), math.inf)
    if chosen is not None:
        losses = (losses * chosen).masked_fill(chosen == 0, 0)
    losses = _smoothed(losses, x, below, peak, log_total, dim, weights, smoothing)
    return losses.masked_fill((peak == -math.inf).squeeze(dim), 0)


def _soft_losses(
    x: Tensor, labels: Tensor, dim: int, weights: Tensor | None, smoothing: float
) -> Tensor:
    """Compute a loss for each sample from distributions."""
    if weights is not None:
        labels = labels * weights
    peak = peak_of(x, dim)
    below = below_peak(x, peak)
    log_total = total_of(below, dim).log()
    # Replace -inf by a finite number, whose product with a label of 0 is 0.
    picked = labels * below.clamp(min=torch.finfo(x.dtype).min)
    losses = log_total * labels.sum(dim, keepdim=True) - picked.sum(dim, keepdim=True)
    lost = (impossible(x, peak) & (labels != 0)).any(dim, keepdim=True)
    losses = losses.masked_fill(lost, math.inf).squeeze(dim)
    losses = _smoothed(losses, x, below, peak, log_total, dim, weights, smoothing)
    return losses.masked_fill((peak == -math.inf).squeeze(dim), 0)


def _smoothed(
    losses: Tensor,
    x: Tensor,
    below: Tensor,
    peak: Tensor,
    log_total: Tensor,
    dim: int,
    weights: Tensor | None,
    smoothing: float,
) -> Tensor:
    """Mix the losses with the mean cost of the classes that are not masked."""
    if not smoothing:
        return losses
    masked = impossible(x, peak)
    costs = log_total - below.masked_fill(masked, 0)
    free = masked
    if weights is not None:
        costs, free = costs * weights, masked | (weights == 0)
    classes = (~masked).sum(dim).clamp(min=1)
    spread = costs.masked_fill(free, 0).sum(dim) / classes
    return spread if smoothing == 1 else (1 - smoothing) * losses + smoothing * spread
