"""What cannot be meant is refused in a sentence, and nothing is broadcast by accident."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shardio import ops

X, I = torch.zeros(8, 4), torch.zeros(8, dtype=torch.int64)  # noqa: E741
FEATURES, WEIGHT = torch.zeros(8, 5), torch.zeros(4, 5)


def kl(*inputs: Tensor, **options: Any) -> Tensor:
    return ops.kl_divergence(*inputs, **options)


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (lambda: ops.sigmoid_cross_entropy(X[:, 0], X[:, :1]), ValueError, "labels.squeeze(-1)"),
        (lambda: ops.sigmoid_cross_entropy(X[:, :1], X[:, 0]), ValueError, "logits.squeeze(-1)"),
        (lambda: ops.binary_focal_loss(X[:, :1], X[:, 0]), ValueError, "nothing is broadcast"),
        (lambda: ops.sigmoid_cross_entropy(X, X[:1]), ValueError, "(8, 4), got (1, 4); nothing"),
        (lambda: ops.sigmoid_cross_entropy(X, X + 2), ValueError, "labels[0, 0] is 2.0, but"),
        (
            lambda: ops.sigmoid_cross_entropy(I, X[:, 0]),
            TypeError,
            "convert them with logits.float()",
        ),
        (lambda: ops.sigmoid_cross_entropy(X, X + 0j), TypeError, "labels must be real"),
        (
            lambda: ops.sigmoid_cross_entropy(X, X, pos_weight=torch.ones(8)),
            ValueError,
            "must be a scalar or have shape (4,)",
        ),
        (lambda: ops.sigmoid_cross_entropy(X, X, label_smoothing=2), ValueError, "between 0 and 1"),
        (
            lambda: ops.sigmoid_cross_entropy(X, X, valid=torch.ones(4) > 0),
            ValueError,
            "must have leading dimensions of the logits, such as [B]",
        ),
        (lambda: ops.binary_focal_loss(X, X, alpha=2), ValueError, "alpha must be between 0 and 1"),
        (
            lambda: ops.binary_focal_loss(X, X, gamma=-1),
            ValueError,
            "gamma must be finite and at least 0",
        ),
        (
            lambda: kl(X, X[:, :1]),
            ValueError,
            "the shape of the logits, (8, 4), got (8, 1); nothing",
        ),
        (lambda: kl(X, I), TypeError, "for class indices, use softmax_cross_entropy"),
        (lambda: kl(X, X, reduction="batchmean"), ValueError, "'mean', 'sum' or 'none'"),
        (
            lambda: ops.softmax_cross_entropy(X, I, class_weight=torch.ones(8)),
            ValueError,
            "class_weight must have one floating point factor per class, shape (4,)",
        ),
        (
            lambda: ops.softmax_cross_entropy(X, I, label_smoothing=-1),
            ValueError,
            "between 0 and 1",
        ),
        (lambda: ops.masked_mean(X, torch.ones(8)), TypeError, "convert it with valid.bool()"),
        (lambda: ops.masked_mean(X, torch.ones(4) > 0), ValueError, "leading dimensions"),
        (lambda: ops.masked_mean(X + 0j, I > 0), TypeError, "values.real"),
        (lambda: ops.linear_cross_entropy(FEATURES, X, I), ValueError, "[classes, D]"),
        (
            lambda: ops.linear_cross_entropy(FEATURES, WEIGHT, I[:1]),
            ValueError,
            "must have shape (8,) for",
        ),
        (lambda: ops.linear_cross_entropy(FEATURES, WEIGHT, X[:, 0]), TypeError, "labels.long()"),
        (
            lambda: ops.linear_cross_entropy(FEATURES, WEIGHT, I, bias=X[0, :3]),
            ValueError,
            "bias must have shape (4,) for a weight",
        ),
        (lambda: ops.linear_cross_entropy(FEATURES, WEIGHT[:0], I), ValueError, "no classes"),
        (lambda: ops.linear_cross_entropy(FEATURES, WEIGHT, I + 4), ValueError, "labels[0] is 4"),
        (
            lambda: ops.linear_cross_entropy(FEATURES, WEIGHT, I, class_weight=torch.ones(5)),
            ValueError,
            "shape (4,)",
        ),
        (lambda: ops.batch_scatter(X, I, X[0]), ValueError, "got (4,); nothing is broadcast"),
        (lambda: ops.batch_scatter(X, I, I), TypeError, "values.to(tensor.dtype)"),
        (lambda: ops.batch_scatter(X, I - 5, X[:, 0]), IndexError, "indices[0] is -5, but rows"),
        (lambda: ops.batch_scatter(X, X, X), TypeError, "batch_scatter takes integer indices"),
        (
            lambda: ops.batch_scatter(X, I, X[:, 0], reduce="mean"),  # type: ignore[arg-type]
            ValueError,
            "'replace' or 'sum', not 'mean'",
        ),
    ],
)
def test_it_is_refused_in_a_sentence(
    action: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        action()
    assert message in str(caught.value)
    assert not str(caught.value).endswith(".")
