"""Limits of float32, and four ways in which a training loop meets them.

A float has a fixed number of bits for its digits (24 in float32) and some for its magnitude. Large
numbers are therefore far apart, and adding a small number to a large one may change nothing.
"""

import torch

from shardio import ops


def main() -> None:
    print(f"{'':10} {'largest':>10} {'smallest':>10} {'step at 1':>10} {'whole numbers to':>17}")
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        info = torch.finfo(dtype)
        name = str(dtype).removeprefix("torch.")
        exact = int(2 / info.eps)  # the next one has no float of its own
        print(f"{name:10} {info.max:10.3g} {info.tiny:10.3g} {info.eps:10.3g} {exact:17,}")

    print("\n1. counting in float32 stops at 16,777,216")
    count = torch.tensor(16_777_216.0)
    print(f"   {count.item():,.0f} + 1 = {(count + 1).item():,.0f}")
    assert count + 1 == count

    print("2. the order of a sum matters: small numbers first, or in pairs")
    numbers = torch.cat([torch.tensor([1e8]), torch.ones(1000)])
    one_by_one = torch.zeros(())
    for number in numbers:
        one_by_one = one_by_one + number
    backwards = torch.zeros(())
    for number in numbers.flip(0):
        backwards = backwards + number
    print(f"   100,000,000 and a thousand ones: {one_by_one.item():,.0f} forwards,")
    print(f"   {backwards.item():,.0f} backwards, {numbers.double().sum().item():,.0f} in float64")
    assert one_by_one == 1e8

    print("3. differences of near numbers lose their digits, as in E[x²] - E[x]²")
    x = 10_000 + torch.linspace(-1, 1, 10_001)
    naive = x.square().mean() - x.mean().square()
    print(f"   variance of 10,000 ± 1: {naive.item():.4f} by E[x²] - E[x]²,", end=" ")
    print(f"{x.var(correction=0).item():.4f} by torch.var")

    print("4. exp leaves the range at 89, and log(sum(exp)) need not")
    x = torch.tensor([88.0, 89.0, 1e4])
    print(f"   exp of {x.tolist()}: {x.exp().tolist()}")
    print(f"   log(sum(exp)): {x.exp().sum().log().item()}, logsumexp: {ops.logsumexp(x).item()}")
    half = torch.full((4,), 6e4, dtype=torch.float16)
    total = ops.logsumexp(half)
    print(f"   float16 sums: 4 × 6e4 is {half.sum().item()}; logsumexp {total.item():.4f}", end="")
    print(f" in {str(total.dtype).removeprefix('torch.')}")
    assert half.sum().isinf()


if __name__ == "__main__":
    main()
