"""The Kullback-Leibler divergence of a softmax from a distribution."""

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
    """Tell how far logits are from labels: ``sum(p * (log(p) - log_softmax(logits)))``.

    The loss of distillation. Equal to ``torch.nn.functional.kl_div(log_softmax(logits, dim),
    labels, reduction="batchmean")`` wherever that is finite, gradients included. Log-probabilities
    may be given as logits: the softmax leaves them as they are. Beyond it: a label of exactly 0
    counts 0, with gradient 0, also on a masked class (a logit of -inf); any other label on one
    costs inf, with gradient 0. A sample that is masked whole has loss and gradient 0.

    Args:
        logits: shape ``[..., classes, ...]`` with the classes along ``dim``, floating point.
        labels: the shape of the logits, floating point: distributions that add up to 1 along
            ``dim`` (not checked). Differentiable in them too.
        dim: the dimension of the classes.
        log_labels: the labels are logits or log-probabilities: their softmax is meant.
        valid: bool, the leading dimensions of the losses, as ``[B]``; False where padded.
        reduction: ``mean`` over the samples that count, 0 if none does; ``sum``, or ``none``.

    Returns:
        A scalar; with ``none`` the shape of the logits without ``dim``; at least float32.

    Raises:
        TypeError: logits or labels are not floating point.
        ValueError: shapes that do not fit, which nothing is broadcast to mend; a dimension or
            reduction that does not exist.
    """
    check_reduction(reduction)
    x = widen(logits)
    dim = class_dim(logits, dim)
    if not labels.is_floating_point():
        raise TypeError(
            f"labels are distributions, floating point, not {labels.dtype}; for class indices "
            "there is softmax_cross_entropy."
        )
    if labels.shape != logits.shape:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit logits of shape "
            f"{tuple(logits.shape)}: there is one for each logit, and nothing is broadcast."
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
    """Leave out what is 0 or masked, from the values and the gradients."""
    masked = logarithms == -math.inf
    never = labels == (-math.inf if log_labels else 0)
    log_p = labels.masked_fill(never, 0) if log_labels else labels.masked_fill(never, 1).log()
    p = log_p.exp() if log_labels else labels
    costs = (p * (log_p - logarithms.masked_fill(masked, 0))).masked_fill(never, 0)
    lost = (masked & ~never).any(dim)
    losses = costs.sum(dim).masked_fill(lost, math.inf)
    return losses.masked_fill(masked.all(dim), 0)
