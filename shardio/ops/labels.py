"""What labels may be: their shapes and dtypes are checked, and a wrong one is explained.

Nothing is broadcast: labels of shape [N, 1] beside [N] would silently make N × N losses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shardio.ops import peek


def class_dim(logits: Tensor, dim: int) -> int:
    """Count the dimension of the classes from the front."""
    rank = logits.dim()
    if not -rank <= dim < rank:
        raise ValueError(f"dim={dim} is no dimension of logits of shape {tuple(logits.shape)}.")
    if logits.shape[dim] == 0:
        raise ValueError(f"logits of shape {tuple(logits.shape)} have no classes along dim={dim}.")
    return dim % rank


def without(shape: Sequence[int], dim: int) -> tuple[int, ...]:
    """Leave a dimension out."""
    return (*shape[:dim], *shape[dim + 1 :])


def check_labels(logits: Tensor, labels: Tensor, dim: int) -> None:
    """Refuse labels that are neither class indices nor distributions, and say what was meant."""
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
    """Refuse a smoothing or class weights that cannot be meant; lay the weights along ``dim``."""
    if not 0 <= smoothing <= 1:
        raise ValueError(f"label_smoothing is from 0 to 1, not {smoothing}.")
    if class_weight is None:
        return None
    classes = x.shape[dim]
    if class_weight.shape != (classes,) or not class_weight.is_floating_point():
        raise ValueError(
            f"class_weight has one floating point factor a class, shape ({classes},), not "
            f"dtype {class_weight.dtype} and shape {tuple(class_weight.shape)}."
        )
    return class_weight.to(x).view(classes, *[1] * (x.dim() - dim - 1))


def class_indices(
    labels: Tensor, ignore_index: int, counts: Tensor | None, classes: int, where: str
) -> tuple[Tensor, Tensor]:
    """Tell which class indices count, and give the others as 0.

    Raises:
        ValueError: one that counts is out of range, where that can be read.
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
            f"take 0 to {classes - 1}; labels that shall not count are marked with ignore_index."
        )
    return labels, counts


def check_targets(logits: Tensor, labels: Tensor) -> tuple[Tensor, bool]:
    """Give labels from 0 to 1, one for each logit, in the dtype of the losses.

    Returns:
        The labels, and whether all of them are known to be 0 or 1.

    Raises:
        TypeError: they are complex.
        ValueError: the shapes differ, or a label is outside, where that can be read.
    """
    if labels.is_complex():
        raise TypeError(f"labels are real, not {labels.dtype}.")
    if labels.shape != logits.shape:
        hint = ""
        if labels.shape == (*logits.shape, 1):
            hint = "; drop the dimension of size 1 with labels.squeeze(-1)"
        elif logits.shape == (*labels.shape, 1):
            hint = "; drop the dimension of size 1 with logits.squeeze(-1)"
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit logits of shape "
            f"{tuple(logits.shape)}: there is one for each logit, and nothing is broadcast{hint}."
        )
    labels = labels.to(torch.float64 if logits.dtype is torch.float64 else torch.float32)
    if peek.reads_cheaply(labels) and peek.known_range(labels * (1 - labels)) == (0, 0):
        return labels, True  # all are 0 or 1
    found = peek.first_outside(labels, 0, 1)
    if found is not None:
        place, label = found
        raise ValueError(
            f"labels{place or ''} is {label}, but labels are probabilities, from 0 to 1; for "
            "class indices there is softmax_cross_entropy."
        )
    return labels, False
