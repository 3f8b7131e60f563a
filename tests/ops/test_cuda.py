"""On a CUDA device the functions give what they give on the CPU, gradients included."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from shardio import ops

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 2e-6, torch.float64: 1e-12}


def both(function: Any, *tensors: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Results and gradients on the CPU and on the device."""
    found = []
    for device in ("cpu", "cuda"):
        arguments = [tensor.to(device).detach() for tensor in tensors]
        for argument in arguments:
            argument.requires_grad_(argument.is_floating_point())
        result = function(*arguments)
        result.float().square().sum().backward()
        grads = [argument.grad for argument in arguments if argument.grad is not None]
        found.append([result.detach(), *grads])
    return [*zip(*found, strict=True)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "softmax_cross_entropy", "soft labels"])
def test_losses_agree(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(64, 100) * 5).to(dtype)
    logits[3, 4] = 6e4 if dtype is torch.float16 else 1e4
    labels = torch.randint(0, 100, (64,))
    labels[5] = -100
    if name in {"softmax", "log_softmax"}:
        pairs = both(getattr(ops, name), logits)
    elif name == "softmax_cross_entropy":
        pairs = both(lambda x, y: ops.softmax_cross_entropy(x, y), logits, labels)
    else:
        soft = torch.softmax(torch.randn(64, 100), -1).to(dtype)
        pairs = both(lambda x: ops.softmax_cross_entropy(x, soft.to(x.device)), logits)
    for here, there in pairs:
        assert there.is_cuda
        assert not there.isnan().any()
        torch.testing.assert_close(there.cpu(), here, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_masked_rows_are_finite_there_too() -> None:
    logits = torch.full((4, 5), -torch.inf, device="cuda")
    logits[0] = 1.0
    soft = torch.zeros(4, 5, device="cuda")
    soft[0] = 0.2
    loss = ops.softmax_cross_entropy(logits[:1], soft[:1])
    assert loss.isfinite()
    assert not ops.softmax(logits).isnan().any()


@pytest.mark.parametrize("shape", [(64, 100), (64, 100, 3), (64, 100, 32)])
def test_gather_agrees(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    indices = torch.randint(-100, 100, (64, 7))
    for here, there in both(lambda x: ops.batch_gather(x, indices.to(x.device)), tensor):
        torch.testing.assert_close(there.cpu(), here)


def test_merge_agrees() -> None:
    torch.manual_seed(0)
    merge = ops.Merge([16, 16], 8)
    left, right = torch.randn(4, 6, 1, 16), torch.randn(4, 1, 6, 16)
    expected = merge(left, right)
    moved = merge.cuda()(left.cuda(), right.cuda())
    torch.testing.assert_close(moved.cpu(), expected, rtol=1e-3, atol=1e-3)
    with torch.autocast("cuda", torch.bfloat16):
        assert merge(left.cuda(), right.cuda()).isfinite().all()
