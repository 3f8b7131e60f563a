"""The loss of a linear classifier, without ever holding all of its logits.

With many classes the logits, their gradients and what lies between are larger than all else
together. Each depends on its own row alone, so that a chunk of rows is made, used and dropped:
forward for the losses, backward once more for the gradients. That is one multiplication more than
holding on to them, four instead of three. The backward pass is made of differentiable operations,
so that a second derivative is right, too (it holds on to the logits).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that torch's own manual uses

from shardio.ops.cross_entropy import softmax_cross_entropy
from shardio.ops.labels import check_weights, class_indices
from shardio.ops.reduction import Reduction, check_reduction, counting, reduce
from shardio.ops.softmax import impossible, peak_of, softmax

_LOGITS_AT_ONCE = 1 << 23


def linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    valid: Tensor | None = None,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Take ``softmax_cross_entropy(linear(features, weight, bias), labels)`` in little memory.

    Equal to it up to rounding, infinities and samples that do not count included: a bias of -inf
    masks a class. Differentiable in features, weight and bias, twice, in reverse mode.

    Args:
        features: shape ``[*batch, D]``, floating point.
        weight: shape ``[classes, D]``, the dtype of the features unless under autocast.
        labels: class indices, any integer dtype, shape ``[*batch]``.
        bias: shape ``[classes]``, or None.
        ignore_index: as in softmax_cross_entropy.
        valid: as in softmax_cross_entropy.
        class_weight: as in softmax_cross_entropy.
        label_smoothing: as in softmax_cross_entropy.
        reduction: as in softmax_cross_entropy.

    Returns:
        A scalar; with ``none`` shape ``[*batch]``. float32 where the features are narrower.

    Raises:
        TypeError: labels are no class indices.
        ValueError: shapes that do not fit, which nothing is broadcast to mend, and what
            softmax_cross_entropy refuses.
    """
    check_reduction(reduction)
    _check(features, weight, labels, bias)
    batch, classes = features.shape[:-1], weight.shape[0]
    counts = None if valid is None else counting(valid, batch, "losses")
    labels, counts = class_indices(labels, ignore_index, counts, classes, "the rows of the weight")
    check_weights(class_weight, weight.t(), 1, label_smoothing)
    features, weight, bias = _autocast(features, weight, bias)
    if class_weight is not None:
        wide = torch.promote_types(features.dtype, torch.float32)
        class_weight = class_weight.detach().to(weight.device, wide)
    rows = features.reshape(-1, features.shape[-1])
    samples = labels.flatten(), counts.flatten()
    losses: Tensor = _RowLosses.apply(  # type: ignore[no-untyped-call]  # torch's own
        rows, weight, bias, *samples, class_weight, label_smoothing
    )
    shares = None
    if class_weight is not None:
        shares = class_weight[labels].masked_fill(~counts, 0)
    return reduce(losses.view(batch), counts, reduction, shares)


class _RowLosses(torch.autograd.Function):
    """A loss for each row of features, 0 for those that do not count."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        counts: Tensor,
        class_weight: Tensor | None,
        smoothing: float,
    ) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            losses = [
                softmax_cross_entropy(
                    F.linear(features[rows], weight, bias),
                    labels[rows],
                    valid=counts[rows],
                    class_weight=class_weight,
                    label_smoothing=smoothing,
                    reduction="none",
                )
                for rows in _chunks(features, weight)
            ]
        return torch.cat(losses)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        features, weight, bias, labels, counts, class_weight, ctx.smoothing = inputs
        # A row that is lost, or has nothing to compare, has no gradient.
        counts = counts & output.isfinite()
        ctx.save_for_backward(features, weight, bias, labels, counts, class_weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, bias, labels, counts, class_weight = ctx.saved_tensors
        wide = grads[0].dtype
        of_features, of_weight, of_bias = [], None, None
        with torch.autocast(features.device.type, enabled=False):
            for rows in _chunks(features, weight):
                own = features[rows].masked_fill(~counts[rows, None], 0)
                logits = F.linear(own, weight, bias).to(wide)
                scale = grads[0][rows].masked_fill(~counts[rows], 0)
                slope = _slope(logits, labels[rows], scale, class_weight, ctx.smoothing)
                if bias is not None:
                    of_bias = _added(of_bias, slope.sum(0))
                slope = slope.to(own.dtype)
                if ctx.needs_input_grad[0]:
                    of_features.append(slope @ weight)
                if ctx.needs_input_grad[1]:
                    of_weight = _added(of_weight, (slope.t() @ own).to(wide))
        return (
            torch.cat(of_features) if of_features else None,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None or bias is None else of_bias.to(bias.dtype),
            *[None] * 4,
        )


def _slope(
    logits: Tensor,
    labels: Tensor,
    scale: Tensor,
    class_weight: Tensor | None,
    smoothing: float,
) -> Tensor:
    """Derive scaled losses by the logits: of ``-sum(q * log(p))`` it is ``sum(q) * p - q``.

    Rows whose classes are all masked have none, nor has an infinite logit.
    """
    probabilities = softmax(logits)
    places = labels.unsqueeze(-1)
    possible = ~impossible(logits, peak_of(logits, -1))
    scale = scale.masked_fill(~possible.any(-1), 0).unsqueeze(-1)
    chosen = (1 - smoothing) * scale
    if class_weight is not None:
        chosen = chosen * class_weight[places]
    whole = chosen
    if smoothing:
        spread = smoothing * scale * possible
        spread = spread / possible.sum(-1, keepdim=True).clamp(min=1)
        if class_weight is not None:
            spread = spread * class_weight
        whole = whole + spread.sum(-1, keepdim=True)
        slope = (probabilities * whole - spread).scatter_add(-1, places, -chosen)
    else:
        slope = (probabilities * whole).scatter_add(-1, places, -chosen)
    return slope.masked_fill(logits.isinf(), 0)


def _added(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)


def _chunks(features: Tensor, weight: Tensor) -> list[slice]:
    """Cut the rows so that few logits exist at a time."""
    step = max(_LOGITS_AT_ONCE // max(weight.shape[0], 1), 1)
    return [slice(at, at + step) for at in range(0, max(features.shape[0], 1), step)]


def _autocast(
    features: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Convert as torch's linear does under autocast, so that the backward pass does the same."""
    device = features.device.type
    if not torch.is_autocast_enabled(device) or features.dtype is torch.float64:
        return features, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return features.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _check(features: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None) -> None:
    shapes = f"features of shape {tuple(features.shape)} and weight of shape {tuple(weight.shape)}"
    if weight.dim() != 2 or not features.dim() or features.shape[-1] != weight.shape[1]:
        raise ValueError(f"{shapes} do not fit: they are [*batch, D] and [classes, D].")
    if not weight.shape[0]:
        raise ValueError(f"a weight of shape {tuple(weight.shape)} has no classes.")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias of shape {tuple(bias.shape)} does not fit a weight of shape "
            f"{tuple(weight.shape)}: it has shape {tuple(weight.shape[:1])}."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool:
        raise TypeError(
            f"linear_cross_entropy takes class indices, not {labels.dtype}: convert with "
            "labels.long(); for distributions there is softmax_cross_entropy."
        )
    if labels.shape != features.shape[:-1]:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit {shapes}: there is one for each "
            f"row, shape {tuple(features.shape[:-1])}, and nothing is broadcast."
        )
