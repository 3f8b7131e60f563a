"""What must not be held in memory is not: measured by what torch's allocator hands out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that torch's own manual uses
from torch.profiler import ProfilerActivity, profile

from shardio import ops


def peak_bytes(function: Callable[..., Tensor], *inputs: Tensor) -> int:
    leaves = [x.clone().requires_grad_() for x in inputs]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        torch.autograd.grad(function(*leaves).sum(), leaves)
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    held = peak = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def test_the_logits_of_a_linear_classifier_are_never_held_whole() -> None:
    features, weight = torch.randn(4096, 16), torch.randn(50_000, 16)
    labels = torch.arange(4096)
    own = peak_bytes(lambda x, w: ops.linear_cross_entropy(x, w, labels), features, weight)
    assert own < 4096 * 50_000 * 4 / 4
    # What F.linear and F.cross_entropy hold together is twice the logits at least.
    logits = 16 * 5000 * 4
    torchs = peak_bytes(
        lambda x, w: F.cross_entropy(F.linear(x, w), labels[:16]), features[:16], weight[:5000]
    )
    assert torchs >= 2 * logits


def test_merge_holds_a_quarter_of_what_tiling_does() -> None:
    left, right = torch.randn(8, 32, 1, 64), torch.randn(8, 1, 32, 64)
    merge = ops.Merge([64, 64], 16)
    linear = merge.to_linear()

    def tiled(left: Tensor, right: Tensor) -> Tensor:
        shape = (8, 32, 32, 64)
        whole = torch.cat([left.expand(shape), right.expand(shape)], -1)
        return F.linear(whole, linear.weight, linear.bias)

    assert peak_bytes(merge, left, right) < peak_bytes(tiled, left, right) / 4
