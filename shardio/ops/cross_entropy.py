"""Softmax cross entropy: right for masked classes, padded samples and logits of any size.

Both kinds of labels have two ways, as softmax has (see ``softmax.py``): torch's kernels where all
losses turn out finite, else formulas that know what is infinite. A class weight is a factor of the
label; label smoothing mixes the loss with the mean loss of all classes, for either kind alike.
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
    """Compare logits with labels: ``-sum(labels * log_softmax(logits))`` for each sample.

    Equal to ``torch.nn.functional.cross_entropy`` wherever that is finite. Beyond it: a label of 0
    on a masked class (a logit of -inf) counts 0, a label on one costs inf with gradient 0, and
    smoothing spreads over the other classes. Loss and gradient are 0 if all classes are masked,
    and, whatever the logits hold, for samples that do not count (``valid`` is False, or the label
    ``ignore_index``). A NaN makes the loss of its sample NaN, with gradient 0.

    Args:
        logits: shape ``[..., classes, ...]`` with the classes along ``dim``, floating point.
        labels: class indices, any integer dtype, the shape of the logits without ``dim``; or
            distributions along ``dim`` (not checked), floating point, the shape of the logits,
            differentiable where no class is masked.
        dim: the dimension of the classes. torch's function has it at 1.
        ignore_index: class indices of this value do not count.
        valid: bool, the leading dimensions of the losses, as ``[B]``; False where padded.
        class_weight: shape ``[classes]``, factors of the labels (torch's ``weight``).
        label_smoothing: from 0 to 1, the share of a label that is spread over all classes.
        reduction: ``sum``, ``mean`` or ``none``. As in torch the mean divides by the class
            weights of class indices; it is 0 where nothing counts.

    Returns:
        A scalar; with ``none`` the shape of the logits without ``dim``; at least float32.

    Raises:
        TypeError: a dtype that cannot be meant.
        ValueError: shapes that do not fit, which nothing is broadcast to mend; a dimension,
            reduction or smoothing that does not exist; a class index out of range (in eager
            mode on the CPU; elsewhere torch's gather refuses it).
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
    """Compute a loss for each sample, as torch does if all of its losses are known to be finite."""
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
    """Move the classes to where torch has them."""
    return x.movedim(dim, 1) if x.dim() > 1 else x


def _hard_losses(
    x: Tensor,
    labels: Tensor,
    dim: int,
    chosen: Tensor | None,
    weights: Tensor | None,
    smoothing: float,
) -> Tensor:
    """Compute a loss for each sample from class indices, and the weights of these."""
    peak = peak_of(x, dim)
    below = below_peak(x, peak)
    log_total = total_of(below, dim).log()
    # A gather, but its gradient compiles without a scatter.
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
    # A finite number in place of -inf, so that a label of 0 makes 0 of it.
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
    """Mix the losses with the mean of what each possible class would cost."""
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
