"""Values of any size, infinities, masks and padding: never NaN, and what is documented."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that torch's own manual uses

from shardio import ops
from shardio.ops import peek

INF = math.inf
EXTREMES = st.sampled_from([0.0, 1.0, -1.0, 1e4, -1e4, 6e4, -6e4, -INF, INF])
PROBABILITIES = st.sampled_from([0.0, 1.0, 0.5, 1e-7, 0.25])
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
on_both_paths = pytest.mark.parametrize("hide", [False, True])


@contextmanager
def values_hidden(hide: bool) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if hide:
            patch.setattr(peek, "reads_cheaply", lambda _: False)
        yield


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels from 0 to 1, and what is valid."""
    rows, size = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    count, dtype = rows * size, draw(DTYPES)
    logits = torch.tensor(draw(st.lists(EXTREMES, min_size=count, max_size=count)))
    labels = torch.tensor(draw(st.lists(PROBABILITIES, min_size=count, max_size=count)))
    valid = torch.tensor(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    shape = (rows, size)
    return logits.view(shape).to(dtype), labels.view(shape).to(dtype), valid


def functions(labels: Tensor, valid: Tensor) -> dict[str, Any]:
    classes = labels.argmax(-1)
    shares = F.normalize(labels.float(), p=1, dim=-1)
    weights = torch.linspace(0, 2, labels.shape[-1])
    options: dict[str, Any] = {"valid": valid, "reduction": "none"}
    smooth: dict[str, Any] = {**options, "label_smoothing": 0.1, "class_weight": weights}
    return {
        "logsumexp": ops.logsumexp,
        "hard": lambda x: ops.softmax_cross_entropy(x, classes, **smooth),
        "soft": lambda x: ops.softmax_cross_entropy(x, shares, **smooth),
        "all smooth": lambda x: ops.softmax_cross_entropy(
            x, classes, **{**smooth, "label_smoothing": 1.0}
        ),
        "binary": lambda x: ops.sigmoid_cross_entropy(x, labels, **options),
        "smooth binary": lambda x: ops.sigmoid_cross_entropy(
            x, labels, label_smoothing=0.1, pos_weight=weights, **options
        ),
        "focal": lambda x: ops.binary_focal_loss(x, labels, **options),
        "unfocused": lambda x: ops.binary_focal_loss(x, labels, gamma=0, alpha=None, **options),
        "divergence": lambda x: ops.kl_divergence(x, shares, **options),
        "divergence of logits": lambda x: ops.kl_divergence(
            x, labels.log(), log_labels=True, **options
        ),
        "mean": lambda x: ops.masked_mean(x.nan_to_num(), valid, dim=0),
    }


@settings(max_examples=150)
@given(batches())
def test_nothing_is_nan_and_both_paths_agree(case: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, labels, valid = case
    for name, function in functions(labels, valid).items():
        results = []
        for hide in (False, True):
            x = logits.clone().requires_grad_()
            with values_hidden(hide):
                result = function(x)
            results.append((result, *torch.autograd.grad(result.sum(), x)))
            assert not result.isnan().any(), name
            assert results[-1][1].isfinite().all(), name
        torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-6, msg=name)


@settings(max_examples=100)
@given(batches(), st.sampled_from(["mean", "sum"]))
def test_what_is_padded_changes_nothing(
    case: tuple[Tensor, Tensor, Tensor], reduction: Any
) -> None:
    logits, labels, valid = case
    logits, labels = logits.clamp(-100, 100), labels.clone()
    padded = (~valid).unsqueeze(-1)
    dirty, garbage = logits.masked_fill(padded, math.nan), labels.masked_fill(padded, math.nan)
    for function in (ops.sigmoid_cross_entropy, ops.binary_focal_loss, ops.kl_divergence):
        x = dirty.clone().requires_grad_()
        loss = function(x, garbage, valid=valid, reduction=reduction)
        kept = function(logits[valid], labels[valid], reduction=reduction)
        torch.testing.assert_close(loss, kept)
        (gradient,) = torch.autograd.grad(loss, x)
        assert not gradient[~valid].any()
    x = dirty.clone().requires_grad_()
    mean = ops.masked_mean(x, valid)
    expected = logits[valid].to(mean.dtype).sum() / max(int(valid.sum()) * logits.shape[1], 1)
    torch.testing.assert_close(mean, expected)
    assert not torch.autograd.grad(mean, x)[0][~valid].any()


@on_both_paths
def test_a_certain_answer_costs_nothing_if_right_and_infinity_if_wrong(hide: bool) -> None:
    logits = torch.tensor([INF, INF, INF, -INF, -INF, -INF], requires_grad=True)
    labels = torch.tensor([1.0, 0.0, 0.5, 0.0, 1.0, 0.5])
    with values_hidden(hide):
        for function in (ops.sigmoid_cross_entropy, ops.binary_focal_loss):
            losses = function(logits, labels, reduction="none")
            assert losses.tolist() == [0, INF, INF, 0, INF, INF]
            assert torch.autograd.grad(losses.sum(), logits)[0].tolist() == [0.0] * 6


def test_small_losses_are_exact_where_torchs_are_lost() -> None:
    logits = torch.tensor([50.0, -50.0])
    losses = ops.sigmoid_cross_entropy(logits, torch.tensor([1.0, 0.0]), reduction="none")
    torch.testing.assert_close(losses, torch.full((2,), math.exp(-50)), atol=0, rtol=1e-6)


def test_smoothing_spreads_over_the_classes_that_are_not_masked() -> None:
    logits = torch.tensor([[1.0, -INF, 3.0]], requires_grad=True)
    loss = ops.softmax_cross_entropy(logits, torch.tensor([0]), label_smoothing=0.2)
    rest = torch.tensor([[1.0, 3.0]], requires_grad=True)
    expected = F.cross_entropy(rest, torch.tensor([0]), label_smoothing=0.2)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient[:, ::2], torch.autograd.grad(expected, rest)[0])
    assert gradient[0, 1].item() == 0


def test_a_class_without_weight_costs_nothing_though_it_is_masked() -> None:
    logits = torch.tensor([[1.0, -INF]])
    loss = ops.softmax_cross_entropy(
        logits, torch.tensor([1]), class_weight=torch.tensor([1.0, 0.0])
    )
    assert loss.item() == 0


def test_a_bias_masks_classes_of_a_linear_classifier() -> None:
    features, weight = torch.randn(3, 4), torch.randn(5, 4)
    bias = torch.tensor([0.0, -INF, 0.0, 0.0, -INF])
    inputs = [x.requires_grad_() for x in (features, weight, bias)]
    labels = torch.tensor([0, 1, 3])
    losses = ops.linear_cross_entropy(features, weight, labels, bias=bias, reduction="none")
    expected = ops.softmax_cross_entropy(F.linear(*inputs), labels, reduction="none")
    torch.testing.assert_close(losses, expected)
    assert losses[1].item() == INF
    gradients = torch.autograd.grad(losses.sum(), inputs)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.sum(), inputs))


def test_a_linear_classifier_with_all_classes_masked_has_no_loss() -> None:
    features = torch.randn(2, 4, requires_grad=True)
    bias = torch.full((3,), -INF)
    loss = ops.linear_cross_entropy(features, torch.randn(3, 4), torch.tensor([0, 2]), bias=bias)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, features)[0].any()


@on_both_paths
def test_the_logarithm_of_a_sum_is_infinite_where_documented(hide: bool) -> None:
    x = torch.tensor([[-INF, -INF], [INF, 1.0], [-INF, 2.0]], requires_grad=True)
    with values_hidden(hide):
        result = ops.logsumexp(x)
    assert result.tolist() == [-INF, INF, 2.0]
    assert torch.autograd.grad(result.sum(), x)[0].tolist() == [[0, 0], [0, 0], [0, 1]]
    assert ops.logsumexp(torch.ones(2, 0)).tolist() == [-INF, -INF]
    assert ops.logsumexp(x, 0, keepdim=True).shape == (1, 2)
    assert ops.logsumexp(torch.tensor(3.0)).item() == 3


def test_labels_of_zero_on_masked_classes_diverge_by_nothing() -> None:
    logits = torch.tensor([[0.0, -INF], [0.0, -INF], [-INF, -INF]], requires_grad=True)
    labels = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]], requires_grad=True)
    losses = ops.kl_divergence(logits, labels, reduction="none")
    assert losses.tolist() == [0, INF, 0]
    gradients = torch.autograd.grad(losses.sum(), (logits, labels))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[1][0, 1].item() == 0


@on_both_paths
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dim", range(4))
def test_classes_may_lie_along_any_dimension_of_four(dim: int, masked: bool, hide: bool) -> None:
    x = torch.randn(2, 2, 3, 4)
    if masked:
        x[..., 1] = -INF
    labels = torch.tensor([0, 2, 3]).expand(2, 2, 3)
    own, torchs = x.movedim(-1, dim).contiguous().requires_grad_(), x.clone().requires_grad_()
    with values_hidden(hide):
        loss = ops.softmax_cross_entropy(own, labels, dim=dim)
    expected = F.cross_entropy(torchs.view(12, 4), labels.reshape(12))
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, own)
    torch.testing.assert_close(gradient.movedim(dim, -1), torch.autograd.grad(expected, torchs)[0])


def test_improbable_classes_of_a_linear_classifier_are_smoothed_over_as_in_torch() -> None:
    features = torch.tensor([[1.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[0.0, 0.0], [-200.0, 0.0], [0.0, 0.0]], requires_grad=True)
    label = torch.tensor([0])
    loss = ops.linear_cross_entropy(features, weight, label, label_smoothing=0.3)
    expected = F.cross_entropy(F.linear(features, weight), label, label_smoothing=0.3)
    gradients = torch.autograd.grad(loss, (features, weight))
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (features, weight)))


@pytest.mark.parametrize("garbage", [math.nan, INF])
def test_a_padded_sample_of_a_linear_classifier_changes_no_gradient(garbage: float) -> None:
    features = torch.tensor([[1.0, 2.0], [garbage, 1.0]], requires_grad=True)
    weight, valid = torch.randn(3, 2, requires_grad=True), torch.tensor([True, False])
    loss = ops.linear_cross_entropy(features, weight, torch.tensor([0, 1]), valid=valid)
    gradients = torch.autograd.grad(loss, (features, weight))
    kept = ops.linear_cross_entropy(features[:1], weight, torch.tensor([0]))
    expected = torch.autograd.grad(kept, (features, weight))
    torch.testing.assert_close((loss, gradients[1]), (kept, expected[1]))
    assert gradients[0].tolist() == [expected[0][0].tolist(), [0.0, 0.0]]


def test_an_empty_batch_is_scattered_into() -> None:
    for indices in (torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)):
        values = torch.zeros(indices.shape)
        assert ops.batch_scatter(torch.zeros(0, 4), indices, values).shape == (0, 4)
        assert ops.batch_scatter(torch.zeros(0, 4), indices, values, reduce="sum").shape == (0, 4)


def test_a_row_does_not_depend_on_what_others_hold() -> None:
    rows = torch.tensor([[1e38, -1e38], [0.0, -INF]])
    assert ops.log_softmax(rows)[0].tolist() == ops.log_softmax(rows[:1])[0].tolist()
    logits, labels = torch.tensor([-1e4, 0.0]), torch.tensor([1e-8, 0.5])
    losses = ops.sigmoid_cross_entropy(logits, labels, reduction="none")
    alone = ops.sigmoid_cross_entropy(logits[:1], labels[:1], reduction="none")
    assert losses[0].item() == alone.item() == pytest.approx(1e-4)


def test_a_class_without_weight_is_smoothed_over_for_nothing() -> None:
    loss = ops.softmax_cross_entropy(
        torch.tensor([[3e38, -3e38]]),
        torch.tensor([0]),
        class_weight=torch.tensor([1.0, 0.0]),
        label_smoothing=0.1,
    )
    assert loss.item() == 0


def test_small_weights_of_a_yes_are_exact() -> None:
    x, yes = torch.tensor([-1.0]), torch.tensor([1.0])
    whole = ops.binary_focal_loss(x, yes, alpha=1.0)
    torch.testing.assert_close(ops.binary_focal_loss(x, yes, alpha=1e-8), whole * 1e-8)


def test_an_infinite_bias_is_a_constant() -> None:
    features, bias = torch.randn(1, 2), torch.tensor([INF, INF, 0.0], requires_grad=True)
    loss = ops.linear_cross_entropy(features, torch.randn(3, 2), torch.tensor([0]), bias=bias)
    assert loss.item() == pytest.approx(math.log(2))
    assert torch.autograd.grad(loss, bias)[0].tolist() == [0, 0, 0]


def test_a_padded_logit_changes_no_gradient_of_a_learned_weight() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    logits, labels = torch.tensor([1.0, math.nan]), torch.tensor([0.7, 0.5])
    valid = torch.tensor([True, False])
    loss = ops.sigmoid_cross_entropy(logits, labels, valid=valid, pos_weight=weight)
    kept = ops.sigmoid_cross_entropy(logits[:1], labels[:1], pos_weight=weight)
    gradients = [torch.autograd.grad(one, weight)[0] for one in (loss, kept)]
    torch.testing.assert_close(*gradients)
