"""Losses of binary classification, with one logit and one label per decision.

With `softplus(x) = log(1 + exp(x))`, a positive label costs `softplus(-x)` and a negative label
`softplus(x)`. Neither subtracts large numbers, so a loss of 1e-30 is as exact as one of 1e4. A
label between 0 and 1 mixes the two costs. If all labels are known to be 0 or 1, only one cost per
logit is computed. Infinite logits are clipped, which makes them constants. Where an infinite logit
contradicts its label, the loss is set to inf.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that torch's own manual uses

from shardio.ops import peek
from shardio.ops.labels import check_targets
from shardio.ops.reduction import Reduction, check_reduction, counting, reduce
from shardio.ops.softmax import widen


def sigmoid_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    valid: Tensor | None = None,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute `-y * log(sigmoid(x)) - (1 - y) * log(1 - sigmoid(x))` of logits and labels.

    Equal to `torch.nn.functional.binary_cross_entropy_with_logits` where that is finite, except
    for rounding: torch loses losses below 1e-8. A logit of ±inf costs 0 if the label agrees and
    inf otherwise, with gradient 0. A logit of NaN has a loss of NaN and gradient 0.

    Args:
        logits: floating point tensor of any shape.
        labels: tensor of the shape of the logits, of any dtype, with values from 0 to 1.
        valid: bool tensor of leading dimensions of the logits, such as `[B]`; False marks
            padding, where loss and gradient are 0 whatever the logits and labels are.
        pos_weight: factor of the positive part of the loss; a scalar, or a tensor of the size
            of the last dimension of the logits.
        label_smoothing: share of each label that is replaced by 1/2, from 0 to 1.
        reduction: `mean` or `sum` over the valid logits, or `none`; the mean of no valid
            logits is 0.

    Returns:
        Scalar, or tensor of the shape of the logits with `none`; at least float32.

    Raises:
        TypeError: a dtype is not supported.
        ValueError: a shape does not match, since nothing is broadcast; a label is outside the
            range 0 to 1 (checked in eager mode on the CPU); reduction or smoothing is invalid.
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be between 0 and 1, not {label_smoothing}")
    x, y, hard, counts = _prepared(logits, labels, valid, reduction)
    if label_smoothing:
        y, hard = y * (1 - label_smoothing) + label_smoothing / 2, False
    weight = None if pos_weight is None else _weight(pos_weight, x)
    return reduce(_mixed(_softplus, x, y, weight, None, hard=hard), counts, reduction)


def binary_focal_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    valid: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the focal loss, a binary cross entropy with less weight for correct predictions.

    `-alpha * y * (1 - p)**gamma * log(p) - (1 - alpha) * (1 - y) * p**gamma * log(1 - p)` with
    `p = sigmoid(x)`: Lin et al., Focal Loss for Dense Object Detection, 2017, equation 5. Equal
    to `torchvision.ops.sigmoid_focal_loss` for labels of 0 and 1, and linear between them.
    Infinities and NaN are handled as in `sigmoid_cross_entropy`.

    Args:
        logits: floating point tensor of any shape.
        labels: tensor of the shape of the logits, of any dtype, with values from 0 to 1.
        alpha: weight of the positive part, from 0 to 1; None for no weights.
        gamma: focus on wrong predictions, at least 0; 0 gives the plain cross entropy.
        valid: mask of valid samples; see `sigmoid_cross_entropy`.
        reduction: `mean`, `sum` or `none`; see `sigmoid_cross_entropy`. The paper
            divides the sum by the number of positive labels.

    Returns:
        Scalar, or tensor of the shape of the logits with `none`; at least float32.

    Raises:
        TypeError: a dtype is not supported.
        ValueError: alpha or gamma is out of range; see also `sigmoid_cross_entropy`.
    """
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be between 0 and 1, or None, not {alpha}")
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma must be finite and at least 0, not {gamma}")
    x, y, hard, counts = _prepared(logits, labels, valid, reduction)

    def cost(x: Tensor) -> Tensor:
        return _softplus(x) * (-gamma * _softplus(-x)).exp() if gamma else _softplus(x)

    yes, no = (None, None) if alpha is None else (alpha, 1 - alpha)
    return reduce(_mixed(cost, x, y, yes, no, hard=hard), counts, reduction)


def _prepared(
    logits: Tensor, labels: Tensor, valid: Tensor | None, reduction: Reduction
) -> tuple[Tensor, Tensor, bool, Tensor | None]:
    """Check the arguments and convert them.

    Returns:
        Logits; labels; whether the labels are known to be 0 or 1; mask of the valid logits.
    """
    check_reduction(reduction)
    x = widen(logits)
    counts = None if valid is None else counting(valid, logits.shape, "logits")
    if counts is not None and labels.shape == logits.shape:
        x, labels = x.masked_fill(~counts, 0), labels.masked_fill(~counts, 0)
    labels, hard = check_targets(logits, labels)
    return x, labels, hard and not labels.requires_grad, counts


def _softplus(x: Tensor) -> Tensor:
    """Compute `log(1 + exp(x))`, which equals x above 40 in every dtype."""
    return F.softplus(x, threshold=40)


def _mixed(
    cost: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    weight_yes: Tensor | float | None,
    weight_no: float | None,
    *,
    hard: bool,
) -> Tensor:
    """Mix the costs of positive and negative labels; `cost(-x)` is that of a positive one."""
    finite = peek.known_finite(x)
    clipped = x
    if not finite:
        limits = torch.finfo(x.dtype)
        clipped = x.clamp(limits.min, limits.max)
    if hard:
        losses = cost(clipped * (labels * -2).add_(1))
        if weight_yes is not None:
            yes = torch.as_tensor(weight_yes).to(x)
            no = torch.as_tensor(1.0 if weight_no is None else weight_no).to(x)
            losses = losses * torch.where(labels > 0, yes, no)
    else:
        of_yes, of_no = labels * cost(-clipped), (1 - labels) * cost(clipped)
        losses = of_yes if weight_yes is None else weight_yes * of_yes
        losses = losses + (of_no if weight_no is None else weight_no * of_no)
    if finite:
        return losses
    wrong = ((x == math.inf) & (labels < 1)) | ((x == -math.inf) & (labels > 0))
    return losses.masked_fill(wrong, math.inf)


def _weight(pos_weight: Tensor, x: Tensor) -> Tensor:
    if pos_weight.dim() and pos_weight.shape != x.shape[-1:]:
        raise ValueError(
            f"pos_weight must be a scalar or have shape {tuple(x.shape[-1:])} for logits of shape "
            f"{tuple(x.shape)}, got shape {tuple(pos_weight.shape)}"
        )
    return pos_weight.to(x)
