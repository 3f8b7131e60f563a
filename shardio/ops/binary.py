"""Losses of independent yes-or-no decisions: one logit and one label each.

With ``softplus(x) = log(1 + exp(x))`` a yes costs ``softplus(-x)`` and a no ``softplus(x)``.
Neither subtracts large numbers from each other, so that losses of 1e-30 are as exact as those of
1e4. A label between 0 and 1 mixes both; where it can be read that there is none, each logit needs
one of them alone. Infinite logits are clipped first, which makes them constants; where one is
wrong the loss is set to inf.
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
    """Compare logits with labels: ``-y * log(sigmoid(x)) - (1 - y) * log(1 - sigmoid(x))``.

    Equal to ``torch.nn.functional.binary_cross_entropy_with_logits`` wherever that is finite,
    but for rounding, which there loses losses below 1e-8. Beyond it: a logit of ±inf costs 0 if
    the label agrees, else inf, with gradient 0. A NaN makes its loss NaN, with gradient 0.

    Args:
        logits: any shape, floating point.
        labels: the shape of the logits, any dtype, from 0 to 1.
        valid: bool, the leading dimensions of the logits, as ``[B]``; False where padded: loss
            and gradient are 0 there, whatever logits and labels hold.
        pos_weight: shape of the last dimension of the logits, or a scalar: factors of the
            losses of a yes.
        label_smoothing: from 0 to 1, the share of a label that is replaced by 1/2.
        reduction: ``mean`` over the logits that count, 0 if none does, their ``sum``, or
            ``none``.

    Returns:
        A scalar, or with ``none`` the shape of the logits. float32 where these are narrower.

    Raises:
        TypeError: a dtype that cannot be meant.
        ValueError: shapes that do not fit, which nothing is broadcast to mend; a label outside 0
            to 1 (found in eager mode on the CPU); a reduction or smoothing that does not exist.
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is from 0 to 1, not {label_smoothing}.")
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
    """Compare as sigmoid_cross_entropy does, with less weight for what is right already.

    ``-alpha * y * (1 - p)**gamma * log(p) - (1 - alpha) * (1 - y) * p**gamma * log(1 - p)`` with
    ``p = sigmoid(x)``: Lin et al., Focal Loss for Dense Object Detection, 2017, equation 5. The
    same as ``torchvision.ops.sigmoid_focal_loss`` for labels of 0 and 1; between them linear.
    Infinite logits and NaN are as in sigmoid_cross_entropy.

    Args:
        logits: any shape, floating point.
        labels: the shape of the logits, any dtype, from 0 to 1.
        alpha: from 0 to 1, the weight of a yes; None leaves weights out.
        gamma: at least 0; the larger, the less counts what is right already. 0 is no focus.
        valid: as in sigmoid_cross_entropy.
        reduction: as in sigmoid_cross_entropy. The paper divides the sum by the number of yes.

    Returns:
        A scalar, or with ``none`` the shape of the logits. float32 where these are narrower.

    Raises:
        TypeError: a dtype that cannot be meant.
        ValueError: as sigmoid_cross_entropy; alpha or gamma out of range.
    """
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"alpha is from 0 to 1, or None, not {alpha}.")
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma is at least 0 and finite, not {gamma}.")
    x, y, hard, counts = _prepared(logits, labels, valid, reduction)

    def cost(x: Tensor) -> Tensor:
        return _softplus(x) * (-gamma * _softplus(-x)).exp() if gamma else _softplus(x)

    yes, no = (None, None) if alpha is None else (alpha, 1 - alpha)
    return reduce(_mixed(cost, x, y, yes, no, hard=hard), counts, reduction)


def _prepared(
    logits: Tensor, labels: Tensor, valid: Tensor | None, reduction: Reduction
) -> tuple[Tensor, Tensor, bool, Tensor | None]:
    """Check, and give logits, labels, whether these are known to be 0 or 1, and what counts."""
    check_reduction(reduction)
    x = widen(logits)
    counts = None if valid is None else counting(valid, logits.shape, "logits")
    if counts is not None and labels.shape == logits.shape:
        x, labels = x.masked_fill(~counts, 0), labels.masked_fill(~counts, 0)
    labels, hard = check_targets(logits, labels)
    return x, labels, hard and not labels.requires_grad, counts


def _softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))``, which beyond 40 is x in every dtype."""
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
    """Mix what a no costs and a yes, which costs what a no does for the opposite logit."""
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
            f"pos_weight of shape {tuple(pos_weight.shape)} does not fit logits of shape "
            f"{tuple(x.shape)}: it is a scalar, or has shape {tuple(x.shape[-1:])}."
        )
    return pos_weight.to(x)
