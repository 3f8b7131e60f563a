from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from shardio.ops import Merge


def tiled(linear: nn.Linear, *features: Tensor) -> Tensor:
    leading = sum((f[..., 0] for f in features), torch.tensor(0)).shape
    output: Tensor = linear(torch.cat([f.expand(*leading, f.shape[-1]) for f in features], dim=-1))
    return output


@st.composite
def merges(draw: st.DrawFn) -> tuple[Merge, list[Tensor]]:
    in_features = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    leading = draw(st.lists(st.integers(1, 3), max_size=3))
    torch.manual_seed(draw(st.integers(0, 1000)))
    features = []
    for size in in_features:
        kept = leading[draw(st.integers(0, len(leading))) :]
        shape = [draw(st.sampled_from([1, length])) for length in kept]
        features.append(torch.randn(*shape, size, dtype=torch.float64))
    return Merge(in_features, 3, bias=draw(st.booleans())).double(), features


@given(merges())
def test_it_equals_a_linear_over_the_tiled_concatenation(case: tuple[Merge, list[Tensor]]) -> None:
    merge, features = case
    torch.testing.assert_close(merge(*features), tiled(merge.to_linear(), *features))


@settings(max_examples=30)
@given(merges())
def test_its_gradients_are_those_of_the_linear(case: tuple[Merge, list[Tensor]]) -> None:
    merge, features = case
    linear = merge.to_linear()
    gradients = []
    for module, output in ((merge, merge), (linear, lambda *f: tiled(linear, *f))):
        leaves = [feature.detach().requires_grad_() for feature in features]
        loss = output(*leaves).square().sum()
        gradients.append(torch.autograd.grad(loss, [*leaves, *module.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_first_and_second_derivatives_are_exact() -> None:
    merge = Merge([2, 3, 1], 2, activation=torch.tanh).double()
    shapes = [(2, 1, 2), (3, 3), (2, 3, 1)]
    features = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(merge, features)
    assert torch.autograd.gradgradcheck(merge, features)


@pytest.mark.parametrize("bias", [True, False])
def test_the_same_seed_gives_the_start_values_of_the_concatenated_linear(bias: bool) -> None:
    torch.manual_seed(3)
    linear = nn.Linear(7, 5, bias=bias)
    torch.manual_seed(3)
    merge = Merge([4, 3], 5, bias=bias)
    torch.testing.assert_close(merge.state_dict(), linear.state_dict(), rtol=0, atol=0)


def test_sizes_may_be_given_like_those_of_bilinear() -> None:
    for merge in [Merge(4, 3, 2, 5), Merge(4, 3, 2, out_features=5), Merge([4, 3, 2], 5)]:
        assert (merge.in_features, merge.out_features) == ((4, 3, 2), 5)
    layer = Merge(4, 3, 5, bias=False, activation=torch.relu)
    assert layer.bias is None
    assert layer(torch.randn(2, 1, 4), torch.randn(7, 3)).shape == (2, 7, 5)


@pytest.mark.parametrize("sizes", [([4, 3],), ([4, 3], 2, 5), (4,)])
def test_sizes_that_name_no_result_are_refused(sizes: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"write Merge\(\[5, 6\], 10\) or Merge\(5, 6, 10\)"):
        Merge(*sizes)


def test_state_dicts_are_exchanged_with_a_linear() -> None:
    merge, linear = Merge([4, 3], 5), nn.Linear(7, 5)
    merge.load_state_dict(linear.state_dict())
    features = torch.randn(2, 4), torch.randn(2, 3)
    torch.testing.assert_close(merge(*features), tiled(linear, *features))
    nn.Linear(7, 5).load_state_dict(merge.state_dict())


@pytest.mark.parametrize("bias", [True, False])
def test_from_linear_and_to_linear_are_inverse_and_copy(bias: bool) -> None:
    linear = nn.Linear(7, 5, bias=bias, dtype=torch.float64)
    merge = Merge.from_linear(linear, [4, 3], activation=torch.relu)
    back = merge.to_linear()
    torch.testing.assert_close(back.state_dict(), linear.state_dict(), rtol=0, atol=0)
    with torch.no_grad():
        merge.weight.zero_()
    assert bool(linear.weight.any())
    assert bool(back.weight.any())


def test_the_activation_is_applied_and_registered() -> None:
    activation = nn.PReLU(init=0.5)
    merge = Merge([2, 2], 3, activation=activation)
    features = torch.randn(4, 2), torch.randn(4, 2)
    expected = activation(tiled(merge.to_linear(), *features))
    torch.testing.assert_close(merge(*features), expected)
    assert "activation.weight" in merge.state_dict()


class Allocations(TorchDispatchMode):
    """Records the number of elements of new tensors, by their storage."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch annotates it not
        self.storages: dict[int, int] = {}
        self.alive: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.alive.append(result)  # an address freed could be given out again
            self.storages[result.untyped_storage().data_ptr()] = result.numel()
        return result


@pytest.mark.parametrize(
    ("shapes", "as_large"),
    [
        ([(8, 1, 4), (1, 9, 4)], 1),
        ([(8, 1, 4), (1, 9, 4), (4,)], 1),
        ([(8, 9, 4), (1, 9, 4)], 1),
        ([(8, 9, 4), (8, 9, 4), (8, 9, 4)], 3),
    ],
)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_nothing_larger_than_the_result_is_made(
    shapes: list[tuple[int, ...]], as_large: int, requires_grad: bool
) -> None:
    merge = Merge([4] * len(shapes), 16).requires_grad_(requires_grad)
    features = [torch.randn(shape) for shape in shapes]
    with Allocations() as seen:
        merge(*features)
    full = 8 * 9 * 16
    sized = list(seen.storages.values())
    assert max(sized) == full
    assert sized.count(full) == as_large


@pytest.mark.parametrize(
    ("in_features", "out_features", "message"),
    [
        ([4], 3, "Merge takes two or more features, not 1; for a single feature, use nn.Linear"),
        ([4, 0], 3, "not in_features=(4, 0) and out_features=3"),
        ([4, 2], -1, "not in_features=(4, 2) and out_features=-1"),
    ],
)
def test_sizes_that_cannot_be_meant_are_refused(
    in_features: list[int], out_features: int, message: str
) -> None:
    with pytest.raises(ValueError, match=r"[^.]$") as caught:
        Merge(in_features, out_features)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(2, 4)], "expected 2 features, of sizes (4, 3), got 1"),
        ([(2, 4), (2, 4)], "feature 1 has shape (2, 4), but its last dimension must be 3"),
        ([(), (3,)], "feature 0 has shape (), but its last dimension must be 4"),
        ([(2, 4), (2, 5, 3)], "shapes (2, 4), (2, 5, 3) do not broadcast"),
    ],
)
def test_shapes_that_do_not_fit_are_explained(shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=r"[^.]$") as caught:
        Merge([4, 3], 5)(*(torch.zeros(shape) for shape in shapes))
    assert message in str(caught.value)


def test_a_linear_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 3\) add up to 7, but the Linear takes 8 features"):
        Merge.from_linear(nn.Linear(8, 2), [4, 3])


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_whole_it_gives_the_same_with_the_same_gradients(dynamic: bool) -> None:
    merge = Merge([4, 3, 2], 5, activation=torch.relu)
    compiled = torch.compile(merge, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    features = torch.randn(6, 1, 4), torch.randn(7, 3), torch.randn(6, 7, 2)
    results = []
    for module in (merge, compiled):
        output = module(*features)
        loss = output.square().sum()
        results.append((output, *torch.autograd.grad(loss, list(merge.parameters()))))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 0, None), (None, None, 0)])
def test_vmap_maps_over_any_of_the_features(in_dims: tuple[int | None, ...]) -> None:
    merge = Merge([4, 3, 2], 5)
    shapes = [(6, 1, 4), (7, 3), (6, 7, 2)]
    features = [
        torch.randn(*([2] if mapped == 0 else []), *shape)
        for mapped, shape in zip(in_dims, shapes, strict=True)
    ]
    samples = [
        merge(*(f if mapped is None else f[i] for f, mapped in zip(features, in_dims, strict=True)))
        for i in range(2)
    ]
    mapped = torch.vmap(merge, in_dims=in_dims)(*features)
    torch.testing.assert_close(mapped, torch.stack(samples))


def test_functional_gradients_are_those_of_autograd() -> None:
    merge = Merge([4, 3], 5)
    features = torch.randn(6, 1, 4), torch.randn(6, 7, 3)
    parameters: dict[str, Tensor] = dict(merge.named_parameters())

    def loss(parameters: dict[str, Tensor], first: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(merge, parameters, (first, features[1]))
        return output.square().sum()

    functional, first = torch.func.grad(loss, argnums=(0, 1))(parameters, features[0])
    leaf = features[0].clone().requires_grad_()
    expected = torch.autograd.grad(loss(parameters, leaf), [*parameters.values(), leaf])
    torch.testing.assert_close((*functional.values(), first), expected)


def test_autocast_computes_in_bfloat16() -> None:
    merge = Merge([4, 3], 5)
    features = torch.randn(6, 1, 4), torch.randn(6, 7, 3)
    with torch.autocast("cpu", torch.bfloat16):
        output = merge(*features)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), merge(*features), rtol=0.05, atol=0.05)


def test_it_shows_its_sizes() -> None:
    assert str(Merge([4, 3], 5)) == "Merge(in_features=(4, 3), out_features=5, bias=True)"
