from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that torch's own manual uses

from shardio.ops import log_softmax, peek, softmax, softmax_cross_entropy
from shardio.ops.reduction import Reduction

INF = math.inf
EXTREMES = st.sampled_from([0.0, 1.0, -1.0, 1e3, -1e3, 1e4, -1e4, 6e4, -6e4, -INF, INF])
MODERATE = st.floats(-30, 30, width=16)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
REDUCTIONS: list[Reduction] = ["mean", "sum", "none"]

# Logits, dim, class indices, distributions, valid.
Samples = tuple[Tensor, int, Tensor, Tensor, Tensor]

on_both_paths = pytest.mark.parametrize("hide", [False, True])
with_both_labels = pytest.mark.parametrize("soft", [False, True])
with_each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
of_both_functions = pytest.mark.parametrize("function", [softmax, log_softmax])


@contextmanager
def values_hidden(hide: bool) -> Iterator[None]:
    """Take the careful path, as on an accelerator, by hiding the values from the functions."""
    with pytest.MonkeyPatch.context() as patch:
        if hide:
            patch.setattr(peek, "reads_cheaply", lambda _: False)
        yield


@st.composite
def samples(draw: st.DrawFn, values: st.SearchStrategy[float]) -> Samples:
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    count = math.prod(shape)
    drawn = draw(st.lists(values, min_size=count, max_size=count))
    logits = torch.tensor(drawn).view(shape).to(draw(st.sampled_from(DTYPES)))
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    batch = logits.select(dim, 0).shape
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    labels = torch.randint(logits.shape[dim], batch, generator=generator)
    weights = F.normalize(torch.randint(3, shape, generator=generator).double(), p=1, dim=dim)
    return logits, dim, labels, weights, torch.rand(batch, generator=generator) < 0.7


def torch_losses(logits: Tensor, labels: Tensor, dim: int) -> Tensor:
    """What torch gives for each sample, in float64."""
    wide = logits.double().movedim(dim, -1)
    rows = wide.reshape(-1, wide.shape[-1])
    soft = labels.is_floating_point()
    flat = labels.movedim(dim, -1).reshape(rows.shape) if soft else labels.flatten()
    return F.cross_entropy(rows, flat, reduction="none").view(wide.shape[:-1])


@given(samples(MODERATE), st.booleans())
def test_finite_logits_give_what_torch_gives(case: Samples, hide: bool) -> None:
    x, dim, *_ = case
    with values_hidden(hide):
        probabilities, logarithms = softmax(x, dim), log_softmax(x, dim)
    torch.testing.assert_close(probabilities, torch.softmax(x.double(), dim).to(x.dtype))
    expected = torch.log_softmax(x.double(), dim).to(torch.promote_types(x.dtype, torch.float32))
    torch.testing.assert_close(logarithms, expected)


@given(samples(MODERATE), st.sampled_from(REDUCTIONS), st.booleans(), st.booleans())
def test_finite_logits_cost_what_torch_says(
    case: Samples, reduction: Reduction, soft: bool, hide: bool
) -> None:
    logits, dim, indices, distributions, _ = case
    labels = distributions if soft else indices
    with values_hidden(hide):
        loss = softmax_cross_entropy(logits, labels, dim=dim, reduction=reduction)
    expected = torch_losses(logits, labels, dim)
    if reduction != "none":
        expected = expected.sum() if reduction == "sum" else expected.mean()
    wide = torch.promote_types(logits.dtype, torch.float32)
    torch.testing.assert_close(loss, expected.to(wide), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_class_indices_come_in_any_integer_dtype(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 200)
    labels = torch.tensor([156, 3])  # in the arithmetic of uint8, 156 is the ignore_index -100
    loss = softmax_cross_entropy(logits, labels.to(dtype))
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels))


@with_each_reduction
@pytest.mark.parametrize("index", [-100, -1, 2])
def test_ignored_labels_do_not_count_as_in_torch(reduction: Reduction, index: int) -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, index, 1, index, 0])
    expected = F.cross_entropy(logits, labels, ignore_index=index, reduction=reduction)
    loss = softmax_cross_entropy(logits, labels, ignore_index=index, reduction=reduction)
    torch.testing.assert_close(loss, expected)


def test_logits_of_a_thousand_give_the_gradient_half_and_minus_half() -> None:
    logits = torch.tensor([[1000.0, 1000.0]], requires_grad=True)
    loss = softmax_cross_entropy(logits, torch.tensor([1]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(math.log(2))
    assert gradient.tolist() == [[0.5, -0.5]]


@on_both_paths
@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float16, 6e4), (torch.bfloat16, 1e4), (torch.float32, 1e4), (torch.float64, 1e300)],
)
def test_logits_of_any_size_have_finite_losses_and_gradients(
    dtype: torch.dtype, size: float, hide: bool
) -> None:
    rows = [[size, -size, 0.0], [-size, -size, -size], [-size, 0.0, size]]
    logits = torch.tensor(rows, dtype=dtype, requires_grad=True)
    with values_hidden(hide):
        loss = softmax_cross_entropy(logits, torch.tensor([1, 0, 2]), reduction="none")
    assert loss.tolist() == pytest.approx([2 * logits[0, 0].item(), math.log(3), 0])
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient[0].tolist() == [1.0, -1.0, 0.0]
    assert gradient[1].tolist() == pytest.approx([-2 / 3, 1 / 3, 1 / 3], rel=1e-2)
    assert gradient[2].tolist() == [0.0, 0.0, 0.0]


@settings(max_examples=300)
@given(samples(EXTREMES), st.sampled_from(REDUCTIONS), st.booleans(), st.booleans())
def test_nothing_is_nan_unless_an_input_is_and_both_paths_agree(
    case: Samples, reduction: Reduction, soft: bool, masks: bool
) -> None:
    logits, dim, indices, distributions, mask = case
    labels, valid = distributions if soft else indices, mask if masks else None
    logits.requires_grad_()

    def outputs(hide: bool) -> tuple[list[Tensor], list[Tensor]]:
        with values_hidden(hide):
            loss = softmax_cross_entropy(logits, labels, dim=dim, valid=valid, reduction=reduction)
            results = [softmax(logits, dim), log_softmax(logits, dim), loss]
        seeds = [torch.linspace(1, 2, r.numel()).view(r.shape).to(r.dtype) for r in results]
        pairs = zip(results, seeds, strict=True)
        return results, [torch.autograd.grad(r, logits, seed)[0] for r, seed in pairs]

    results, gradients = outputs(hide=False)
    torch.testing.assert_close((results, gradients), outputs(hide=True))
    assert not any(result.isnan().any() for result in results)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not any(gradient[logits.isinf()].any() for gradient in gradients)


@on_both_paths
def test_infinite_logits_have_the_documented_results(hide: bool) -> None:
    x = torch.tensor([[0.0, -INF, 0.0], [-INF, -INF, -INF], [INF, 5.0, INF], [INF, -INF, 0.0]])
    x.requires_grad_()
    with values_hidden(hide):
        probabilities, logarithms = softmax(x), log_softmax(x)
    assert probabilities.tolist() == [[0.5, 0, 0.5], [0, 0, 0], [0.5, 0, 0.5], [1, 0, 0]]
    torch.testing.assert_close(logarithms, probabilities.log(), rtol=0, atol=1e-7)
    seed = torch.tensor([[1.0, 7.0, 0.0]] * 4)
    (gradient,) = torch.autograd.grad(logarithms, x, seed)
    assert gradient.tolist() == [[0.5, 0, -0.5], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    (gradient,) = torch.autograd.grad(probabilities, x, seed)
    assert gradient.tolist() == [[0.25, 0, -0.25], [0, 0, 0], [0, 0, 0], [0, 0, 0]]


@on_both_paths
@with_both_labels
def test_a_masked_class_costs_infinity_with_a_label_and_nothing_without(
    soft: bool, hide: bool
) -> None:
    rows = [[0.0, -INF, 0.0], [0.0, -INF, 0.0], [-INF, -INF, -INF], [INF, 0.0, INF]]
    logits = torch.tensor([*rows, [INF, 0.0, -INF]], requires_grad=True)
    labels = torch.tensor([0, 1, 1, 2, 1])
    with values_hidden(hide):
        targets = F.one_hot(labels).float() if soft else labels
        loss = softmax_cross_entropy(logits, targets, reduction="none")
    assert loss.tolist() == pytest.approx([math.log(2), INF, 0.0, math.log(2), INF])
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.tolist() == [[-0.5, 0, 0.5], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]


@on_both_paths
def test_a_nan_stays_in_its_row(hide: bool) -> None:
    x = torch.tensor([[0.0, math.nan], [0.0, 0.0]], requires_grad=True)
    with values_hidden(hide):
        loss = softmax_cross_entropy(x, torch.tensor([0, 0]), reduction="none")
        probabilities = softmax(x)
    assert probabilities[0].isnan().all()
    assert probabilities[1].tolist() == [0.5, 0.5]
    assert loss.isnan().tolist() == [True, False]
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert gradient.tolist() == [[0.0, 0.0], [-0.5, 0.5]]


@on_both_paths
def test_the_entropy_of_masked_classes_has_a_finite_gradient(hide: bool) -> None:
    x = torch.tensor([[0.0, -INF, 1.0]], requires_grad=True)
    with values_hidden(hide):
        entropy = torch.special.entr(softmax(x)).sum()
    rest = torch.tensor([[0.0, 1.0]], requires_grad=True)
    (expected,) = torch.autograd.grad(torch.special.entr(torch.softmax(rest, -1)).sum(), rest)
    (gradient,) = torch.autograd.grad(entropy, x)
    torch.testing.assert_close(gradient[:, ::2], expected)
    assert gradient[0, 1].item() == 0


@of_both_functions
def test_the_maximum_is_taken_per_row(function: Callable[[Tensor], Tensor]) -> None:
    rows = torch.tensor([[1e4, 1e4 - 1], [-1e4, -1e4 + 1], [0.0, 3.0], [-INF, 2.0]])
    alone = torch.cat([function(row[None]) for row in rows])
    torch.testing.assert_close(function(rows), alone)


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 0)])
def test_scalars_and_empty_tensors_have_a_softmax(shape: tuple[int, ...]) -> None:
    torch.testing.assert_close(softmax(torch.ones(shape)), torch.ones(shape))
    torch.testing.assert_close(log_softmax(torch.ones(shape)), torch.zeros(shape))


@given(samples(MODERATE), st.booleans(), st.booleans(), st.booleans())
def test_a_padded_sample_counts_for_nothing_whatever_it_holds(
    case: Samples, mean: bool, soft: bool, hide: bool
) -> None:
    logits, dim, indices, distributions, valid = case
    kept = torch_losses(logits, distributions if soft else indices, dim)[valid]
    expected = kept.sum() / (max(len(kept), 1) if mean else 1)
    padding = ~valid.unsqueeze(dim)
    logits = logits.masked_fill(padding, math.nan).requires_grad_()
    labels = distributions.masked_fill(padding, math.nan) if soft else indices - 9 * ~valid
    with values_hidden(hide):
        loss = softmax_cross_entropy(
            logits, labels, dim=dim, valid=valid, reduction="mean" if mean else "sum"
        )
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=2e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()
    assert not gradient.movedim(dim, -1)[~valid].any()


@with_both_labels
@pytest.mark.parametrize("rows", [3, 0])
def test_a_batch_with_nothing_that_counts_costs_zero(soft: bool, rows: int) -> None:
    logits = torch.randn(rows, 4, requires_grad=True)
    labels = torch.rand(rows, 4) if soft else torch.full((rows,), -100)
    loss = softmax_cross_entropy(logits, labels, valid=torch.zeros(rows, dtype=torch.bool))
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient.any()


@on_both_paths
@of_both_functions
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_first_and_second_derivatives_of_softmax_are_exact(
    function: Callable[[Tensor, int], Tensor], dim: int, hide: bool
) -> None:
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    with values_hidden(hide):
        assert torch.autograd.gradcheck(lambda x: function(x, dim), x)
        assert torch.autograd.gradgradcheck(lambda x: function(x, dim), x)


@on_both_paths
@with_both_labels
@with_each_reduction
@pytest.mark.parametrize("masked", [False, True])
def test_first_and_second_derivatives_of_the_loss_are_exact(
    reduction: Reduction, soft: bool, masked: bool, hide: bool
) -> None:
    logits, labels = torch.randn(3, 3, 2).double(), torch.rand(3, 3, 2).double()
    if masked:
        logits[:, 1], labels[:, 1] = -INF, 0
    indices = torch.tensor([[0, 2], [0, -100], [2, 2]])
    valid = torch.tensor([[True, True], [True, True], [False, True]])

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return softmax_cross_entropy(logits, labels, dim=1, valid=valid, reduction=reduction)

    inputs = (logits.requires_grad_(), labels.requires_grad_(not masked) if soft else indices)
    with values_hidden(hide):
        assert torch.autograd.gradcheck(loss, inputs)
        assert torch.autograd.gradgradcheck(loss, inputs)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64)


@pytest.mark.parametrize(
    ("logits", "labels", "options", "message"),
    [
        (torch.zeros(8, 4), zeros(8, 1), {}, "1 is dropped with labels.squeeze(1): logits of sha"),
        (torch.zeros(8, 4, 5), zeros(8, 5), {}, "unless dim=1 is passed, for classes along dim"),
        (
            torch.zeros(8, 4),
            zeros(7),
            {},
            "dtype torch.int64 and shape (7,) do not match the logits: logits",
        ),
        (torch.zeros(8, 4), torch.zeros(8, 1), {}, "of dtype torch.float32 and shape (8, 1) do"),
        (torch.zeros(3, 4), torch.tensor([0, 4, 9]), {}, "labels[1] is 4, but logits with 4 clas"),
        (torch.zeros(4), torch.tensor(-1), {}, "labels is -1, but logits with 4 classes along dim"),
        (torch.zeros(3, 0), zeros(3), {}, "logits of shape (3, 0) have no classes along dim=-1"),
        (torch.zeros(3, 4), zeros(3), {"dim": 2}, "dim=2 is out of range for logits of shape (3,"),
        (
            torch.zeros(3, 4),
            zeros(3),
            {"reduction": "avg"},
            "must be 'mean', 'sum' or 'none', not 'avg",
        ),
        (torch.zeros(3, 4), zeros(3), {"valid": zeros(1, 3) == 0}, "got shape (1, 3) for"),
        (torch.zeros(8, 4), zeros(8, 4), {}, "seem to be one-hot: convert with labels.float()"),
        (torch.zeros(8, 4), zeros(8, 4) == 0, {}, "to class indices with labels.argmax(1);"),
        (torch.zeros(8, 4), torch.zeros(8), {}, "seem to be class indices: convert with labels"),
        (
            torch.zeros(8, 4),
            zeros(8) == 0,
            {},
            "torch.bool and shape (8,) do not match the logits: logits",
        ),
        (
            torch.zeros(8, 4),
            zeros(8),
            {"valid": torch.ones(8)},
            "convert it with valid.bool(), or, to w",
        ),
        (zeros(8, 4), zeros(8), {}, "logits must be floating point, not torch.int64; convert them"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(
    logits: Tensor, labels: Tensor, options: Any, message: str
) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        softmax_cross_entropy(logits, labels, **options)
    sentence = str(caught.value)
    assert message in sentence
    assert not sentence.endswith(".")
    assert caught.type is (
        TypeError if {"convert", "torch.bool"} & {*sentence.split()} else ValueError
    )


@of_both_functions
def test_a_softmax_of_integers_is_refused(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(TypeError, match=r"floating point, not torch.int64; convert them with"):
        function(torch.tensor([1, 2]))


def some_samples(soft: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with masked rows and entries, labels, and a valid mask."""
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    logits[1, 2:] = logits[3] = -INF
    logits[4, 0] = INF
    labels = torch.tensor([4, 1, 0, 2, 0, 3])
    valid = torch.tensor([True, True, False, True, True, True])
    return logits, F.one_hot(labels, 5).float() if soft else labels, valid


@pytest.mark.parametrize(("soft", "dynamic"), [(False, False), (False, True), (True, True)])
def test_compiled_whole_they_give_the_same(soft: bool, dynamic: bool) -> None:
    def steps(logits: Tensor, labels: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        loss = softmax_cross_entropy(logits, labels, valid=valid)
        return loss, softmax(logits), log_softmax(logits).clamp(min=-100)

    compiled = torch.compile(steps, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    results = []
    for version in (steps, compiled):
        logits, labels, valid = some_samples(soft)
        outputs = version(logits.requires_grad_(), labels, valid)
        total = sum((output.square().sum() for output in outputs), torch.zeros(()))
        results.append((*outputs, *torch.autograd.grad(total, logits)))
    torch.testing.assert_close(results[0], results[1])


@with_both_labels
def test_vmap_and_grad_give_values_and_gradients_of_each_sample(soft: bool) -> None:
    logits, labels, valid = some_samples(soft)
    mapped = torch.vmap(lambda x, y, valid: softmax_cross_entropy(x, y, valid=valid))
    expected = softmax_cross_entropy(logits, labels, valid=valid, reduction="none")
    torch.testing.assert_close(mapped(logits, labels, valid), expected)
    torch.testing.assert_close(torch.vmap(softmax)(logits), softmax(logits))
    torch.testing.assert_close(torch.vmap(log_softmax)(logits), log_softmax(logits))
    rows = torch.vmap(torch.func.grad(softmax_cross_entropy))(logits, labels)
    whole = torch.func.grad(lambda x: softmax_cross_entropy(x, labels, reduction="sum"))(logits)
    loss = softmax_cross_entropy(logits.requires_grad_(), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close((rows, whole), (gradient, gradient))


@with_both_labels
def test_the_loss_exports(soft: bool) -> None:
    class Loss(torch.nn.Module):
        def forward(self, logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
            return softmax_cross_entropy(logits, labels, valid=valid)

    inputs = some_samples(soft)
    exported = torch.export.export(Loss(), inputs).module()
    torch.testing.assert_close(exported(*inputs), Loss()(*inputs))


@with_both_labels
def test_under_autocast_the_loss_is_float32(soft: bool) -> None:
    layer, features = torch.nn.Linear(4, 5), torch.randn(6, 4)
    _, labels, valid = some_samples(soft)
    with torch.autocast("cpu", torch.bfloat16):
        logits = layer(features)
        loss = softmax_cross_entropy(logits, labels, valid=valid)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(loss, softmax_cross_entropy(logits.float(), labels, valid=valid))
