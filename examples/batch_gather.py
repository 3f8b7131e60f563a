"""Select one entry of each row by its own index: in a loop, scripted, compiled and vectorized.

TorchScript was once the way to speed up such loops. It is deprecated in favour of `torch.compile`,
which only unrolls a loop over rows. The remedy is to avoid the loop with
`shardio.ops.batch_gather`. It accepts negative indices and names the position of a wrong one.
"""

import shutil
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from shardio import ops


def by_loop(tensor: Tensor, indices: Tensor) -> Tensor:
    rows = []
    for i in range(tensor.shape[0]):
        rows.append(tensor[i, indices[i]])  # noqa: PERF401  TorchScript knows no such list
    return torch.stack(rows)


def by_formula(tensor: Tensor, indices: Tensor) -> Tensor:
    return tensor.gather(1, indices[:, None])[:, 0]


def fastest(action: Callable[[Tensor, Tensor], Tensor], *inputs: Tensor) -> float:
    action(*inputs)  # compilers work at the first call
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        action(*inputs)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def scripted() -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return the loop as TorchScript, or None if torch no longer has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            function: Callable[[Tensor, Tensor], Tensor] = torch.jit.script(by_loop)
        except (AttributeError, RuntimeError):
            return None
    return function


def compiled() -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return the formula under torch.compile, which needs a C++ compiler for the CPU."""
    function: Callable[[Tensor, Tensor], Tensor] = torch.compile(by_formula)
    return function if any(map(shutil.which, ("g++", "clang++"))) else None


def main() -> None:
    torch.manual_seed(0)
    tensor, indices = torch.randn(4096, 100), torch.randint(0, 100, (4096,))
    ways = {
        "loop": by_loop,
        "scripted loop (deprecated)": scripted(),
        "torch.gather, compiled": compiled(),
        "torch.gather": by_formula,
        "shardio.ops.batch_gather": ops.batch_gather,
    }
    loop = fastest(by_loop, tensor, indices)
    for name, way in ways.items():
        if way is None:
            print(f"{name:28} not available here")
            continue
        seconds = fastest(way, tensor, indices)
        torch.testing.assert_close(way(tensor, indices), by_loop(tensor, indices))
        print(f"{name:28} {seconds * 1e3:8.3f} ms  {loop / seconds:8,.0f} × the loop")

    indices[17] = 100
    try:
        ops.batch_gather(tensor, indices)
    except IndexError as error:
        print(f"a wrong index: {error}")


if __name__ == "__main__":
    main()
