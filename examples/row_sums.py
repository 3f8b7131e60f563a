"""Row sums in four ways: every call from Python takes microseconds, however little it does.

Indexing creates a tensor for each element, `unbind` creates those of all rows at once, and `sum`
creates none.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor


def by_elements(x: Tensor) -> Tensor:
    sums = torch.zeros(len(x))
    for i in range(len(x)):
        for j in range(x.shape[1]):
            sums[i] += x[i, j]
    return sums


def by_rows(x: Tensor) -> Tensor:
    return torch.stack([x[i].sum() for i in range(len(x))])


def by_unbinding(x: Tensor) -> Tensor:
    return torch.stack([row.sum() for row in x.unbind()])


def by_columns(x: Tensor) -> Tensor:
    """Sum with fewer calls: one per column, each for all rows."""
    total = torch.zeros(len(x))
    for column in x.unbind(1):
        total += column
    return total


def at_once(x: Tensor) -> Tensor:
    return x.sum(1)


def fastest(action: Callable[[Tensor], Tensor], x: Tensor) -> float:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        action(x)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(2000, 20)
    ways = {
        "x[i, j], element by element": by_elements,
        "x[i].sum(), row by row": by_rows,
        "x.unbind(), row by row": by_unbinding,
        "x.unbind(1), column by column": by_columns,
        "x.sum(1)": at_once,
    }
    best = fastest(at_once, x)
    print(f"sums of {[*x.shape]}")
    for name, way in ways.items():
        torch.testing.assert_close(way(x), x.sum(1))
        seconds = fastest(way, x)
        print(f"{name:30} {seconds * 1e3:9.3f} ms  {seconds / best:9,.0f} ×")


if __name__ == "__main__":
    main()
