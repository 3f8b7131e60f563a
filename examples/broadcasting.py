"""Broadcasting: its trap, a sum of 12 instead of 6, and its gain, Merge.

Shapes are aligned at the right, and dimensions that are missing or of size 1 are repeated. Nothing
is copied, and there is no warning if it was not intended.
"""

import time

import torch
from torch import Tensor
from torch.nn import functional

from shardio import ops


def the_trap() -> None:
    column, row = torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 2.0])
    print(f"[[1], [2]] + [1, 2] = {(column + row).tolist()}, whose sum is", end=" ")
    print(f"{(column + row).sum():.0f}; meant was {(column[:, 0] + row).sum():.0f}")
    assert (column + row).sum() == 12
    assert (column[:, 0] + row).sum() == 6

    # A model that ends in a Linear(…, 1) gives [N, 1], labels are [N]: the loss of N·N pairs.
    logits, labels = torch.randn(4, 1), torch.tensor([0.0, 1.0, 1.0, 0.0])
    pairs = (logits - labels).square()
    print(f"(logits - labels)² of [4, 1] and [4] has shape {[*pairs.shape]}, and no error")
    try:
        ops.sigmoid_cross_entropy(logits, labels)
    except ValueError as error:
        print(f"shardio.ops refuses: {error}")


def tiled(left: Tensor, right: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Merge features without broadcasting, by concatenating copies of both."""
    leading = torch.broadcast_shapes(left.shape[:-1], right.shape[:-1])
    parts = [part.expand(*leading, part.shape[-1]) for part in (left, right)]
    return functional.linear(torch.cat(parts, -1), weight, bias)


def the_gain() -> None:
    """Merge every position of an image with every word of a sentence."""
    torch.manual_seed(0)
    places, words = torch.randn(16, 64, 1, 256), torch.randn(16, 1, 64, 256)
    merge = ops.Merge([256, 256], 64)
    linear = merge.to_linear()

    def seconds(action: str) -> float:
        start = time.perf_counter()
        with torch.no_grad():
            if action == "merge":
                merge(places, words)
            else:
                tiled(places, words, linear.weight, linear.bias)
        return time.perf_counter() - start

    with torch.no_grad():
        same = tiled(places, words, linear.weight, linear.bias)
        torch.testing.assert_close(merge(places, words), same, rtol=1e-4, atol=1e-4)
    times = {name: min(seconds(name) for _ in range(5)) for name in ("merge", "tiled")}
    copies = 16 * 64 * 64 * 512 * 4 / 1e6
    print(f"\nMerge of {[*places.shape]} and {[*words.shape]}: {times['merge'] * 1e3:.1f} ms")
    print(f"tiling, concatenating, Linear: {times['tiled'] * 1e3:.1f} ms and {copies:.0f} MB more")
    print("both give the same, for a Linear of a concatenation is a sum of Linears")


if __name__ == "__main__":
    the_trap()
    the_gain()
