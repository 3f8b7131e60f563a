from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shardio.ops import batch_gather, batch_scatter


def by_loop(tensor: Tensor, indices: Tensor, values: Tensor, add: bool) -> Tensor:
    rows = []
    for row, places, entries in zip(tensor, indices, values, strict=True):
        result = [*row]
        for place, value in zip(
            places.flatten().tolist(), entries.reshape(-1, *row.shape[1:]), strict=True
        ):
            result[place] = result[place] + value if add else value
        rows.append(torch.stack(result))
    return torch.stack(rows)


@st.composite
def scatters(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    rows, size = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    rest = draw(st.sampled_from([(), (1,), (3,), (2, 2), (9,)]))
    shape = draw(st.sampled_from([(), (1,), (4,), (2, 3), (0,)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    indices = torch.randint(-size, size, (rows, *shape), generator=generator)
    tensor = torch.rand(rows, size, *rest, generator=generator, dtype=torch.float64)
    values = torch.rand(rows, *shape, *rest, generator=generator, dtype=torch.float64)
    return tensor.requires_grad_(), indices, values.requires_grad_()


@given(scatters(), st.booleans())
def test_values_and_gradients_are_those_of_the_loop_where_the_last_one_wins(
    case: tuple[Tensor, Tensor, Tensor], add: bool
) -> None:
    tensor, indices, values = case
    before = tensor.detach().clone()
    result = batch_scatter(tensor, indices, values, reduce="sum" if add else "replace")
    expected = by_loop(tensor, indices, values, add)
    torch.testing.assert_close(result, expected)
    seed = torch.linspace(1, 2, result.numel(), dtype=torch.float64).view(result.shape)
    found = torch.autograd.grad(result, (tensor, values), seed, materialize_grads=True)
    wanted = torch.autograd.grad(
        expected, (tensor, values), seed, allow_unused=True, materialize_grads=True
    )
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(tensor.detach(), before)


def test_what_is_scattered_can_be_gathered() -> None:
    tensor, values = torch.zeros(3, 5, 2), torch.randn(3, 2, 2)
    indices = torch.tensor([[0, 4], [2, 1], [-1, -2]])
    scattered = batch_scatter(tensor, indices, values)
    torch.testing.assert_close(batch_gather(scattered, indices), values)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.bfloat16])
def test_any_dtype_is_scattered(dtype: torch.dtype) -> None:
    result = batch_scatter(
        torch.zeros(2, 3, dtype=dtype), torch.tensor([1, -1]), torch.ones(2, dtype=dtype)
    )
    assert result.dtype is dtype
    assert result.tolist() == [[0, 1, 0], [0, 0, 1]]
