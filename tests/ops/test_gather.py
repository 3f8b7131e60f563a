from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shardio.ops import batch_gather


def by_loop(tensor: Tensor, indices: Tensor) -> Tensor:
    return torch.stack([tensor[i, indices[i].long()] for i in range(len(tensor))])


@st.composite
def gathers(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    rows, size = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    rest = draw(st.sampled_from([(), (0,), (1,), (3,), (2, 2), (9,), (3, 4), (16,)]))
    shape = draw(st.sampled_from([(), (1,), (4,), (2, 3), (0,), (2, 1, 2)]))
    dtype = draw(st.sampled_from([torch.int8, torch.int16, torch.int32, torch.int64]))
    tensor = torch.arange(float(rows * size * max(1, torch.Size(rest).numel())))
    tensor = tensor[: rows * size * torch.Size(rest).numel()].view(rows, size, *rest)
    low = draw(st.sampled_from([-size, 0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    indices = torch.randint(low, size, (rows, *shape), generator=generator).to(dtype)
    if draw(st.booleans()):
        tensor = tensor.transpose(0, 1).contiguous().transpose(0, 1)
    return tensor, indices


@given(gathers())
def test_each_row_is_gathered_with_its_own_indices(case: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(batch_gather(*case), by_loop(*case), rtol=0, atol=0)


@settings(max_examples=30)
@given(gathers())
def test_gradients_are_those_of_the_loop(case: tuple[Tensor, Tensor]) -> None:
    tensor, indices = case
    gradients = []
    for gather in (batch_gather, by_loop):
        leaf = tensor.detach().requires_grad_()
        output = gather(leaf, indices)
        seed = torch.arange(1.0, output.numel() + 1).view(output.shape)
        gradients.append(torch.autograd.grad(output, leaf, seed))
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("rest", [(), (2,), (9,)])
def test_first_and_second_derivatives_are_exact(rest: tuple[int, ...]) -> None:
    tensor = torch.randn(3, 4, *rest, dtype=torch.float64, requires_grad=True)
    indices = torch.tensor([[0, 0], [-1, 2], [3, -4]])
    assert torch.autograd.gradcheck(lambda t: batch_gather(t, indices), tensor)
    assert torch.autograd.gradgradcheck(lambda t: batch_gather(t, indices) ** 2, tensor)


def test_unsigned_indices_are_positions_and_not_a_mask() -> None:
    tensor = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert batch_gather(tensor, torch.tensor([1, 0], dtype=torch.uint8)).tolist() == [2.0, 3.0]


def test_no_rows_give_no_rows() -> None:
    gathered = batch_gather(torch.empty(0, 5, 2), torch.empty(0, 3, dtype=torch.int64))
    assert gathered.shape == (0, 3, 2)


@pytest.mark.parametrize("rest", [(), (2,), (9,)])
@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 4, 9], r"^indices\[1\] is 4, but rows of 4 entries take indices from -4 to 3$"),
        ([0, 3, -5], r"^indices\[2\] is -5, but rows of 4 entries take indices from -4 to 3$"),
        ([[0, 1], [-1, 3], [2, 7]], r"^indices\[2, 1\] is 7, "),
    ],
)
def test_an_index_out_of_range_is_refused_with_its_place(
    rest: tuple[int, ...], indices: list[int], message: str
) -> None:
    with pytest.raises(IndexError, match=message):
        batch_gather(torch.zeros(3, 4, *rest), torch.tensor(indices))


def test_empty_rows_take_no_index() -> None:
    with pytest.raises(IndexError, match=r"^indices\[0\] is 0, but the rows of the tensor are emp"):
        batch_gather(torch.zeros(3, 0), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("shape", "indices", "error", "message"),
    [
        ((3, 4), torch.zeros(3), TypeError, "takes integer indices, not torch.float32"),
        ((3, 4), torch.ones(3, 4, dtype=torch.bool), TypeError, "a mask with mask.nonzero()"),
        ((3,), torch.zeros(3, dtype=torch.int64), ValueError, "shape [N, K, ...] and indices"),
        ((3, 4), torch.tensor(1), ValueError, "not (3, 4) and ()"),
        (
            (3, 4),
            torch.tensor([1, 2]),
            ValueError,
            "has 3 rows, and the indices of shape (2,) have 2",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(
    shape: tuple[int, ...], indices: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        batch_gather(torch.zeros(shape), indices)
    assert message in str(caught.value)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("rest", [(), (9,)])
def test_compiled_whole_it_gives_the_same_with_the_same_gradient(
    rest: tuple[int, ...], dynamic: bool
) -> None:
    compiled = torch.compile(batch_gather, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    indices = torch.tensor([[0, 3], [-1, 2], [-4, 1]])
    results = []
    for gather in (batch_gather, compiled):
        tensor = torch.arange(12.0 * torch.Size(rest).numel()).view(3, 4, *rest).requires_grad_()
        output = gather(tensor, indices)
        results.append((output, *torch.autograd.grad(output.square().sum(), tensor)))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0)])
@pytest.mark.parametrize("rest", [(), (9,)])
@pytest.mark.parametrize("low", [0, -4])
def test_vmap_maps_over_either_or_both(
    in_dims: tuple[int | None, int | None], rest: tuple[int, ...], low: int
) -> None:
    tensors, indices = torch.randn(2, 3, 4, *rest), torch.randint(low, 4, (2, 3, 5))
    cases = [
        (tensors[i if in_dims[0] == 0 else 0], indices[i if in_dims[1] == 0 else 0])
        for i in range(2)
    ]
    mapped = torch.vmap(batch_gather, in_dims=in_dims)(
        tensors if in_dims[0] == 0 else tensors[0], indices if in_dims[1] == 0 else indices[0]
    )
    torch.testing.assert_close(mapped, torch.stack([by_loop(*case) for case in cases]))


@pytest.mark.parametrize("rest", [(), (9,)])
def test_the_functional_gradient_counts_how_often_an_entry_is_taken(rest: tuple[int, ...]) -> None:
    indices = torch.tensor([[0, 0], [-1, 1]])
    counts = torch.func.grad(lambda t: batch_gather(t, indices).sum())(torch.zeros(2, 3, *rest))
    expected = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    torch.testing.assert_close(counts, expected.view(2, 3, *[1] * len(rest)).expand(2, 3, *rest))


def fastest(action: Callable[[], object], runs: int) -> float:
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def test_it_is_far_faster_than_the_loop() -> None:
    tensor, indices = torch.randn(4096, 100), torch.randint(0, 100, (4096,))
    loop = fastest(lambda: by_loop(tensor, indices), runs=3)
    # Several hundred times on a quiet machine; the bound leaves room for a busy one.
    assert loop > 50 * fastest(lambda: batch_gather(tensor, indices), runs=50)
