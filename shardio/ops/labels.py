"""Validate labels and class weights, with explanations of what is wrong.

Nothing is broadcast, because labels of shape [N, 1] with logits of shape [N] would silently give
N × N losses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shardio.ops import peek


def class_dim(logits: Tensor, dim: int) -> int:
    """Return the dimension of the classes, counted from the front."""
    rank = logits.dim()
    if not -rank <= dim < rank:
        raise ValueError(f"dim={dim} is out of range for logits of shape {tuple(logits.shape)}")
    if logits.shape[dim] == 0:
        raise ValueError(f"logits of shape {tuple(logits.shape)} have no classes along dim={dim}")
    return dim % rank


def without(shape: Sequence[int], dim: int) -> tuple[int, ...]:
    """Return a shape without one of its dimensions."""
    return (*shape[:dim], *shape[dim + 1 :])


def check_labels(logits: Tensor, labels: Tensor, dim: int) -> None:
    """Raise an error for labels that are neither class indices nor distributions."""
    batch, whole = without(logits.shape, dim), tuple(logits.shape)
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
        raise TypeError(f"{given} seem to be class indices: convert with labels.long(); {asked}")
    if not soft and labels.shape == whole:
        raise TypeError(
            f"{given} seem to be one-hot: convert with labels.float(), or to class indices with "
            f"labels.argmax({dim}); {asked}"
        )
    error = TypeError if odd else ValueError
    raise error(f"{given} do not match the logits{_hint(logits, labels, dim)}: {asked}")


def _hint(logits: Tensor, labels: Tensor, dim: int) -> str:
    """Return a hint for labels whose wrong shape has a likely cause, else an empty string."""
    batch = without(logits.shape, dim)
    if labels.shape == (*batch[:dim], 1, *batch[dim:]):
        return f", unless their dimension of size 1 is dropped with labels.squeeze({dim})"
    for other in range(logits.dim()):
        if other != dim and labels.shape == without(logits.shape, other):
            return f", unless dim={other} is passed, for classes along dimension {other}"
    return ""


def check_weights(
    class_weight: Tensor | None, x: Tensor, dim: int, smoothing: float
) -> Tensor | None:
    """Validate smoothing and class weights, and lay the weights along `dim`."""
    if not 0 <= smoothing <= 1:
        raise ValueError(f"label_smoothing must be between 0 and 1, not {smoothing}")
    if class_weight is None:
        return None
    classes = x.shape[dim]
    if class_weight.shape != (classes,) or not class_weight.is_floating_point():
        raise ValueError(
            f"class_weight must have one floating point factor per class, shape ({classes},), got "
            f"dtype {class_weight.dtype} and shape {tuple(class_weight.shape)}"
        )
    return class_weight.to(x).view(classes, *[1] * (x.dim() - dim - 1))


def class_indices(
    labels: Tensor, ignore_index: int, counts: Tensor | None, classes: int, where: str
) -> tuple[Tensor, Tensor]:
    """Replace ignored class indices by 0.

    Returns:
        Class indices, and the mask of those that are not ignored.

    Raises:
        ValueError: a class index that is not ignored is out of range; only if values can be read.
    """
    labels = labels.long()
    labelled = labels != ignore_index
    counts = labelled if counts is None else labelled & counts
    labels = labels.masked_fill(~counts, 0)
    found = peek.first_outside(labels, 0, classes - 1)
    if found is not None:
        place, label = found
        raise ValueError(
            f"labels{place or ''} is {label}, but logits with {classes} classes along {where} "
            f"take 0 to {classes - 1}; mark labels to ignore with ignore_index"
        )
    return labels, counts


def check_targets(logits: Tensor, labels: Tensor) -> tuple[Tensor, bool]:
    """Validate labels from 0 to 1, and convert them to the dtype of the losses.

    Returns:
        Labels, and whether all of them are known to be 0 or 1.

    Raises:
        TypeError: the labels are complex.
        ValueError: the shapes differ, or a label is out of range and can be read.
    """
    if labels.is_complex():
        raise TypeError(f"labels must be real, not {labels.dtype}")
    if labels.shape != logits.shape:
        hint = ""
        if labels.shape == (*logits.shape, 1):
            hint = "; drop the dimension of size 1 with labels.squeeze(-1)"
        elif logits.shape == (*labels.shape, 1):
            hint = "; drop the dimension of size 1 with logits.squeeze(-1)"
        raise ValueError(
            f"labels must have the shape of the logits, {tuple(logits.shape)}, got "
            f"{tuple(labels.shape)}; nothing is broadcast{hint}"
        )
    labels = labels.to(torch.float64 if logits.dtype is torch.float64 else torch.float32)
    if peek.reads_cheaply(labels) and peek.known_range(labels * (1 - labels)) == (0, 0):
        return labels, True  # all are 0 or 1
    found = peek.first_outside(labels, 0, 1)
    if found is not None:
        place, label = found
        raise ValueError(
            f"labels{place or ''} is {label}, but labels must be probabilities from 0 to 1; for "
            "class indices, use softmax_cross_entropy"
        )
    return labels, False
