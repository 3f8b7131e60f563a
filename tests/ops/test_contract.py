"""What holds for every function: exact derivatives, every transform of torch, accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that torch's own manual uses

from shardio import ops
from shardio.ops import linear, peek

Function = Callable[..., Tensor]
GENERATOR = torch.Generator().manual_seed(0)
VALID = torch.tensor([True, True, False, True])
LABELS = torch.tensor([1, -100, 0, 2])
CLASS_WEIGHT = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def distributions(*shape: int) -> Tensor:
    return random(*shape).softmax(-1)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Inputs that are differentiated, others, and what torch says."""

    function: Function
    peer: Function
    learned: tuple[Tensor, ...]
    fixed: tuple[Tensor, ...] = ()

    def run(self, function: Function | None = None, dtype: torch.dtype = torch.float64) -> Tensor:
        inputs = [x.to(dtype) for x in self.learned]
        fixed = [x.to(dtype) if x.is_floating_point() else x for x in self.fixed]
        return (function or self.function)(*inputs, *fixed)


def cases() -> Iterator[tuple[str, Case]]:
    x, y, labels = random(4, 3), distributions(4, 3), torch.tensor([0, 2, 1, 1])
    yield "softmax", Case(function=ops.softmax, learned=(x,), peer=lambda x: x.softmax(-1))
    yield (
        "log_softmax along 0",
        Case(
            function=lambda x: ops.log_softmax(x, 0),
            learned=(x,),
            peer=lambda x: x.log_softmax(0),
        ),
    )
    yield (
        "logsumexp",
        Case(function=ops.logsumexp, learned=(x,), peer=lambda x: x.logsumexp(-1)),
    )
    for reduction in ("mean", "sum", "none"):
        yield (
            f"softmax_cross_entropy, {reduction}",
            Case(
                function=lambda x, y, r=reduction: ops.softmax_cross_entropy(x, y, reduction=r),
                learned=(x,),
                fixed=(LABELS,),
                peer=lambda x, y, r=reduction: F.cross_entropy(x, y, reduction=r),
            ),
        )
        yield (
            f"softmax_cross_entropy smoothed and weighted, {reduction}",
            Case(
                function=lambda x, y, w, r=reduction: ops.softmax_cross_entropy(
                    x, y, class_weight=w, label_smoothing=0.2, reduction=r
                ),
                learned=(x,),
                fixed=(LABELS, CLASS_WEIGHT),
                peer=lambda x, y, w, r=reduction: F.cross_entropy(
                    x, y, weight=w, label_smoothing=0.2, reduction=r
                ),
            ),
        )
        yield (
            f"softmax_cross_entropy of distributions, {reduction}",
            Case(
                function=lambda x, y, w, r=reduction: ops.softmax_cross_entropy(
                    x, y, class_weight=w, label_smoothing=0.2, reduction=r
                ),
                learned=(x, y),
                fixed=(CLASS_WEIGHT,),
                peer=lambda x, y, w, r=reduction: F.cross_entropy(
                    x, y, weight=w, label_smoothing=0.2, reduction=r
                ),
            ),
        )
        yield (
            f"linear_cross_entropy, {reduction}",
            Case(
                function=lambda f, w, b, y, c, r=reduction: ops.linear_cross_entropy(
                    f, w, y, bias=b, class_weight=c, label_smoothing=0.2, reduction=r
                ),
                learned=(random(4, 2), random(3, 2), random(3)),
                fixed=(LABELS, CLASS_WEIGHT),
                peer=lambda f, w, b, y, c, r=reduction: F.cross_entropy(
                    F.linear(f, w, b), y, weight=c, label_smoothing=0.2, reduction=r
                ),
            ),
        )
    yield (
        "linear_cross_entropy with valid",
        Case(
            function=lambda f, w, y, valid: ops.linear_cross_entropy(f, w, y, valid=valid),
            learned=(random(4, 2), random(3, 2)),
            fixed=(labels, VALID),
            peer=lambda f, w, y, valid: F.cross_entropy(F.linear(f[valid], w), y[valid]),
        ),
    )
    yield (
        "softmax_cross_entropy with valid",
        Case(
            function=lambda x, y, valid: ops.softmax_cross_entropy(x, y, valid=valid),
            learned=(x,),
            fixed=(labels, VALID),
            peer=lambda x, y, valid: F.cross_entropy(x[valid], y[valid]),
        ),
    )
    yield (
        "sigmoid_cross_entropy",
        Case(
            function=lambda x, y, w: ops.sigmoid_cross_entropy(x, y, pos_weight=w),
            learned=(x, y),
            fixed=(CLASS_WEIGHT,),
            peer=lambda x, y, w: F.binary_cross_entropy_with_logits(x, y, pos_weight=w),
        ),
    )
    yield (
        "sigmoid_cross_entropy of yes and no",
        Case(
            function=lambda x, y, valid: ops.sigmoid_cross_entropy(x, y, valid=valid),
            learned=(x,),
            fixed=(torch.tensor([[0.0, 1.0, 0.0]] * 4), VALID),
            peer=lambda x, y, valid: F.binary_cross_entropy_with_logits(x[valid], y[valid]),
        ),
    )
    yield (
        "binary_focal_loss",
        Case(
            function=ops.binary_focal_loss,
            learned=(x,),
            fixed=(torch.tensor([[0.0, 1.0, 1.0]] * 4),),
            peer=focal,
        ),
    )
    yield (
        "binary_focal_loss of probabilities",
        Case(
            function=lambda x, y: ops.binary_focal_loss(x, y, gamma=1.5, reduction="none"),
            learned=(x, y),
            peer=lambda x, y: y * focal(x, torch.ones_like(x), 1.5, "none")
            + (1 - y) * focal(x, torch.zeros_like(x), 1.5, "none"),
        ),
    )
    for log_labels in (False, True):
        yield (
            f"kl_divergence, {log_labels=}",
            Case(
                function=lambda x, y, log=log_labels: ops.kl_divergence(x, y, log_labels=log),
                learned=(x, random(4, 3).log_softmax(-1) if log_labels else y),
                peer=lambda x, y, log=log_labels: F.kl_div(
                    x.log_softmax(-1),
                    y.log_softmax(-1) if log else y,
                    log_target=log,
                    reduction="batchmean",
                ),
            ),
        )
    yield (
        "masked_mean",
        Case(
            function=lambda x, valid: ops.masked_mean(x, valid, dim=0),
            learned=(x,),
            fixed=(VALID,),
            peer=lambda x, valid: x[valid].mean(0),
        ),
    )
    places = torch.tensor([[0, -1], [2, 2], [1, 0], [-3, 1]])
    yield (
        "batch_gather",
        Case(
            function=ops.batch_gather,
            learned=(x,),
            fixed=(places,),
            peer=lambda x, i: x.gather(1, i % 3),
        ),
    )
    distinct = torch.tensor([[0, -1], [2, 1], [1, 0], [-3, 1]])
    yield (
        "batch_scatter",
        Case(
            function=lambda x, v, i: ops.batch_scatter(x, i, v),
            learned=(x, random(4, 2)),
            fixed=(distinct,),
            peer=lambda x, v, i: x.scatter(1, i % 3, v),
        ),
    )
    yield (
        "batch_scatter, sum",
        Case(
            function=lambda x, v, i: ops.batch_scatter(x, i, v, reduce="sum"),
            learned=(x, random(4, 2)),
            fixed=(places,),
            peer=lambda x, v, i: x.scatter_add(1, i % 3, v),
        ),
    )


def focal(x: Tensor, y: Tensor, gamma: float = 2.0, reduction: str = "mean") -> Tensor:
    """As in torchvision, where labels are 0 or 1."""
    p = torch.sigmoid(x)
    costs = F.binary_cross_entropy_with_logits(x, y, reduction="none")
    wrong = 1 - (p * y + (1 - p) * (1 - y))
    losses = (0.25 * y + 0.75 * (1 - y)) * costs * wrong**gamma
    return losses if reduction == "none" else losses.mean()


CASES = dict(cases())
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
on_both_paths = pytest.mark.parametrize("hide", [False, True])


@contextmanager
def values_hidden(hide: bool) -> Iterator[None]:
    """Take the careful path, as on an accelerator, by hiding the values from the functions."""
    with pytest.MonkeyPatch.context() as patch:
        if hide:
            patch.setattr(peek, "reads_cheaply", lambda _: False)
        yield


@pytest.fixture(autouse=True)
def chunks_of_two_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_LOGITS_AT_ONCE", 6)


@each_case
@on_both_paths
def test_first_and_second_derivatives_are_exact(case: Case, hide: bool) -> None:
    inputs = [x.clone().requires_grad_() for x in case.learned]
    with values_hidden(hide):
        assert torch.autograd.gradcheck(lambda *x: case.function(*x, *case.fixed), inputs)
        assert torch.autograd.gradgradcheck(lambda *x: case.function(*x, *case.fixed), inputs)


@each_case
@on_both_paths
def test_torch_gives_the_same_where_it_has_the_function(case: Case, hide: bool) -> None:
    with values_hidden(hide):
        torch.testing.assert_close(case.run(), case.run(case.peer))


@each_case
@on_both_paths
def test_rounding_is_at_most_two_units_worse_than_torchs(case: Case, hide: bool) -> None:
    exact = case.run(case.peer)
    with values_hidden(hide):
        found = case.run(dtype=torch.float32)
    units = torch.finfo(torch.float32).eps * exact.abs().clamp(min=1e-3)
    errors = [
        ((result.double() - exact).abs() / units).max().item()
        for result in (found, case.run(case.peer, torch.float32))
    ]
    assert errors[0] <= errors[1] + 2


@each_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_inputs_are_computed_wide(case: Case, dtype: torch.dtype) -> None:
    inputs = [x.to(dtype).double() for x in case.learned]
    fixed = [x.to(dtype).double() if x.is_floating_point() else x for x in case.fixed]
    exact = case.function(*inputs, *fixed)
    found = case.run(dtype=dtype)
    if found.dtype is dtype:
        tolerance = 2 * torch.finfo(dtype).eps
    else:
        assert found.dtype is torch.float32
        is_linear = case.learned[0].shape[-1] == 2 and len(case.learned) > 1  # narrow logits
        tolerance = 4 * torch.finfo(dtype).eps if is_linear else 1e-5
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "dynamic"),  # which takes most of a second; static shapes are the easier ones
    [*((name, True) for name in CASES), *((name, False) for name in [*CASES][::3])],
)
def test_compiled_whole_it_gives_the_same_with_the_same_gradients(name: str, dynamic: bool) -> None:
    case = CASES[name]
    torch.compiler.reset()
    compiled = torch.compile(case.function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    results = []
    for function in (case.function, compiled):
        inputs = [x.clone().requires_grad_() for x in case.learned]
        output = function(*inputs, *case.fixed)
        results.append((output, *torch.autograd.grad(output.square().sum(), inputs)))
    torch.testing.assert_close(results[0], results[1])


@each_case
def test_vmap_maps_over_batches_and_their_gradients(case: Case) -> None:
    batches = [torch.stack([x, x.roll(1, 0)]) for x in case.learned]

    def total(*inputs: Tensor) -> Tensor:
        return case.function(*inputs, *case.fixed).square().sum()

    mapped = torch.vmap(torch.func.grad_and_value(total, tuple(range(len(batches)))))(*batches)
    for at in range(2):
        inputs = [batch[at].clone().requires_grad_() for batch in batches]
        value = total(*inputs)
        torch.testing.assert_close(mapped[1][at], value.detach())
        gradients = torch.autograd.grad(value, inputs)
        for found, expected in zip(mapped[0], gradients, strict=True):
            torch.testing.assert_close(found[at], expected)


@each_case
def test_it_exports(case: Case) -> None:
    class Whole(nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return case.function(*inputs)

    exported = torch.export.export(Whole(), (*case.learned, *case.fixed)).module()
    torch.testing.assert_close(exported(*case.learned, *case.fixed), case.run())


@each_case
def test_a_nan_comes_from_a_nan_alone(case: Case) -> None:
    for value in (0.0, 1.0):
        inputs = [torch.full_like(x, value).requires_grad_() for x in case.learned]
        output = case.function(*inputs, *case.fixed)
        gradients = torch.autograd.grad(output.sum(), inputs)
        assert all(x.isfinite().all() for x in (output, *gradients))


@each_case
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cuda_device_gives_the_same_with_the_same_gradients(
    case: Case, dtype: torch.dtype
) -> None:
    results = []
    for device in ("cpu", "cuda"):
        inputs = [x.to(device, dtype).requires_grad_() for x in case.learned]
        fixed = [x.to(device, dtype) if x.is_floating_point() else x.to(device) for x in case.fixed]
        output = case.function(*inputs, *fixed)
        gradients = torch.autograd.grad(output.square().sum(), inputs)
        results.append([x.detach().cpu() for x in (output, *gradients)])
    torch.testing.assert_close(results[0], results[1])
