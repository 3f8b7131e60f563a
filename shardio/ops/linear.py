"""Loss of a linear classifier, computed without holding all of its logits.

With many classes, the logits, their gradients and the intermediate values take more memory than
everything else. Each row of logits is independent, so chunks of rows are computed, used and
dropped. The forward pass does so for the losses, and the backward pass again for the gradients.
This takes four matrix multiplications instead of three. The backward pass consists of
differentiable operations, so second derivatives are correct (but they keep the logits in memory).
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
    """Compute `softmax_cross_entropy(linear(features, weight, bias), labels)` in little memory.

    Equal to that expression up to rounding, including infinities and ignored samples; a bias of
    -inf masks a class. Twice differentiable in features, weight and bias, in reverse mode.

    Args:
        features: floating point tensor of shape `[*batch, D]`.
        weight: tensor of shape `[classes, D]`, of the dtype of the features unless under
            autocast.
        labels: class indices of any integer dtype, of shape `[*batch]`.
        bias: tensor of shape `[classes]`, or None.
        ignore_index: class index of samples to ignore.
        valid: mask of valid samples; see `softmax_cross_entropy`.
        class_weight: factor of each class, of shape `[classes]`.
        label_smoothing: share of each label that is spread over all classes, from 0 to 1.
        reduction: `mean`, `sum` or `none`; see `softmax_cross_entropy`.

    Returns:
        Scalar, or tensor of shape `[*batch]` with `none`; at least float32.

    Raises:
        TypeError: labels are not class indices.
        ValueError: a shape does not match, since nothing is broadcast; see also
            `softmax_cross_entropy`.
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
    """Loss of each row of features; 0 for ignored rows."""

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
        # Rows with an infinite or NaN loss, and ignored rows, have no gradient.
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
    """Compute the gradient of scaled losses: `sum(q) * p - q` for `-sum(q * log(p))`.

    It is 0 in rows whose classes are all masked, and for infinite logits.
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
    """Divide the rows into chunks with a limited number of logits."""
    step = max(_LOGITS_AT_ONCE // max(weight.shape[0], 1), 1)
    return [slice(at, at + step) for at in range(0, max(features.shape[0], 1), step)]


def _autocast(
    features: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Convert as torch's linear does under autocast, for the forward and backward pass alike."""
    device = features.device.type
    if not torch.is_autocast_enabled(device) or features.dtype is torch.float64:
        return features, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return features.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _check(features: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None) -> None:
    shapes = f"features of shape {tuple(features.shape)} and weight of shape {tuple(weight.shape)}"
    if weight.dim() != 2 or not features.dim() or features.shape[-1] != weight.shape[1]:
        raise ValueError(f"{shapes} do not match: expected [*batch, D] and [classes, D]")
    if not weight.shape[0]:
        raise ValueError(f"a weight of shape {tuple(weight.shape)} has no classes")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias must have shape {tuple(weight.shape[:1])} for a weight of shape "
            f"{tuple(weight.shape)}, got {tuple(bias.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool:
        raise TypeError(
            f"linear_cross_entropy takes class indices, not {labels.dtype}; convert them with "
            "labels.long(), or use softmax_cross_entropy for distributions"
        )
    if labels.shape != features.shape[:-1]:
        raise ValueError(
            f"labels must have shape {tuple(features.shape[:-1])} for {shapes}, got "
            f"{tuple(labels.shape)}; nothing is broadcast"
        )
