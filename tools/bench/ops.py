"""Compare shardio.ops with the naive formulas and torch.nn.functional: time, memory and accuracy.

Each function and its peers run forward and backward in turn. Ratios are medians over the rounds, of
shardio's time or memory to the peer's; below 1, shardio is faster or smaller. Memory is the peak of
torch's allocator beyond the inputs. The second table gives errors against the same formula in
float64, in units in the last place: the maximum and the mean over all elements and gradients.

Usage: python tools/bench/ops.py [--rounds 15] [--only NAME] [--compiled]
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that torch's own manual uses
from torch.profiler import ProfilerActivity, profile

from shardio import ops

Function = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Task for several functions.

    Attributes:
        name: name of the task.
        inputs: arguments of the functions; the first `learned` ones have gradients.
        learned: number of inputs with gradients.
        versions: functions by name; "shardio" comes first, and "torch" is torch's own.
        rounds: share of the rounds to run, since loops are slow.
    """

    name: str
    inputs: tuple[Tensor, ...]
    learned: int
    versions: dict[str, Function]
    rounds: float = 1.0


def naive_focal(x: Tensor, y: Tensor) -> Tensor:
    p = torch.sigmoid(x)
    losses = -0.25 * y * (1 - p) ** 2 * p.log() - 0.75 * (1 - y) * p**2 * (1 - p).log()
    return losses.mean()


def torchvision_focal(x: Tensor, y: Tensor) -> Tensor:
    """Compute the formula of torchvision.ops.sigmoid_focal_loss."""
    p = torch.sigmoid(x)
    cost = F.binary_cross_entropy_with_logits(x, y, reduction="none")
    likely = p * y + (1 - p) * (1 - y)
    return ((0.25 * y + 0.75 * (1 - y)) * cost * (1 - likely) ** 2).mean()


def naive_binary(x: Tensor, y: Tensor) -> Tensor:
    p = torch.sigmoid(x)
    return -(y * p.log() + (1 - y) * (1 - p).log()).mean()


def naive_cross_entropy(x: Tensor, labels: Tensor) -> Tensor:
    p = x.exp() / x.exp().sum(-1, keepdim=True)
    return -p[torch.arange(len(x)), labels].log().mean()


def gather_by_loop(tensor: Tensor, indices: Tensor) -> Tensor:
    return torch.stack([row[i] for row, i in zip(tensor.unbind(), indices.unbind(), strict=True)])


def gather_by_torch(tensor: Tensor, indices: Tensor) -> Tensor:
    rest = tensor.shape[2:]
    places = indices.view(*indices.shape, *[1] * len(rest)).expand(*indices.shape, *rest)
    return torch.gather(tensor, 1, places)


def scatter_by_loop(tensor: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    result = tensor.clone()
    for i in range(len(tensor)):
        result[i, indices[i]] = values[i]
    return result


def scatter_by_torch(tensor: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    return tensor.scatter(1, indices, values)


def softmax_cases() -> Iterator[Case]:
    x, labels = torch.randn(4096, 1000), torch.randint(0, 1000, (4096,))
    soft = torch.randn(4096, 1000).softmax(-1)
    yield Case(
        name="softmax",
        inputs=(x,),
        learned=1,
        versions={
            "shardio": ops.softmax,
            "naive": lambda x: x.exp() / x.exp().sum(-1, keepdim=True),
            "torch": lambda x: torch.softmax(x, -1),
        },
    )
    yield Case(
        name="log_softmax",
        inputs=(x,),
        learned=1,
        versions={
            "shardio": ops.log_softmax,
            "naive": lambda x: (x.exp() / x.exp().sum(-1, keepdim=True)).log(),
            "torch": lambda x: torch.log_softmax(x, -1),
        },
    )
    yield Case(
        name="logsumexp",
        inputs=(x,),
        learned=1,
        versions={
            "shardio": ops.logsumexp,
            "naive": lambda x: x.exp().sum(-1).log(),
            "torch": lambda x: torch.logsumexp(x, -1),
        },
    )
    yield Case(
        name="softmax_cross_entropy",
        inputs=(x, labels),
        learned=1,
        versions={
            "shardio": ops.softmax_cross_entropy,
            "naive": naive_cross_entropy,
            "torch": F.cross_entropy,
        },
    )
    yield Case(
        name="… of distributions",
        inputs=(x, soft),
        learned=1,
        versions={
            "shardio": ops.softmax_cross_entropy,
            "naive": lambda x, y: -(y * (x.exp() / x.exp().sum(-1, keepdim=True)).log())
            .sum(-1)
            .mean(),
            "torch": F.cross_entropy,
        },
    )
    yield Case(
        name="… smoothed, weighted",
        inputs=(x, labels, torch.rand(1000)),
        learned=1,
        versions={
            "shardio": lambda x, y, w: ops.softmax_cross_entropy(
                x, y, class_weight=w, label_smoothing=0.1
            ),
            "torch": lambda x, y, w: F.cross_entropy(x, y, weight=w, label_smoothing=0.1),
        },
    )
    yield Case(
        name="kl_divergence",
        inputs=(x, soft),
        learned=1,
        versions={
            "shardio": ops.kl_divergence,
            "naive": lambda x, y: (y * (y / x.softmax(-1)).log()).sum(-1).mean(),
            "torch": lambda x, y: F.kl_div(x.log_softmax(-1), y, reduction="batchmean"),
        },
    )


def other_cases() -> Iterator[Case]:
    x, yes = torch.randn(4096, 1000) * 4, (torch.rand(4096, 1000) < 0.1).float()
    yield Case(
        name="sigmoid_cross_entropy",
        inputs=(x, yes),
        learned=1,
        versions={
            "shardio": ops.sigmoid_cross_entropy,
            "naive": naive_binary,
            "torch": F.binary_cross_entropy_with_logits,
        },
    )
    yield Case(
        name="binary_focal_loss",
        inputs=(x, yes),
        learned=1,
        versions={
            "shardio": ops.binary_focal_loss,
            "naive": naive_focal,
            "torch": torchvision_focal,
        },
    )
    yield Case(
        name="masked_mean",
        inputs=(x, torch.rand(4096) < 0.9),
        learned=1,
        versions={"shardio": ops.masked_mean, "naive": lambda x, valid: x[valid].mean()},
    )
    features, weight = torch.randn(4096, 256), torch.randn(50_000, 256) * 0.05
    many = torch.randint(0, 50_000, (4096,))
    yield Case(
        name="linear_cross_entropy",
        inputs=(features, weight, many),
        learned=2,
        versions={
            "shardio": ops.linear_cross_entropy,
            "torch": lambda x, w, y: F.cross_entropy(F.linear(x, w), y),
        },
        rounds=0.2,
    )


def indexing_cases() -> Iterator[Case]:
    for size, entry in ((100, ()), (100, (64,))):
        table, indices = torch.randn(4096, size, *entry), torch.randint(0, size, (4096, 5))
        yield Case(
            name=f"batch_gather {[*table.shape]}",
            inputs=(table, indices),
            learned=1,
            versions={
                "shardio": ops.batch_gather,
                "loop": gather_by_loop,
                "torch": gather_by_torch,
            },
            rounds=0.3,
        )
    table, values = torch.randn(4096, 100), torch.randn(4096, 5)
    yield Case(
        name="batch_scatter",
        inputs=(table, values, torch.randint(0, 100, (4096, 5))),
        learned=2,
        versions={
            "shardio": lambda t, v, i: ops.batch_scatter(t, i, v),
            "loop": scatter_by_loop,
            "torch": scatter_by_torch,
        },
        rounds=0.3,
    )
    merge = ops.Merge([256, 256], 64)
    linear = merge.to_linear()

    def tiled(left: Tensor, right: Tensor) -> Tensor:
        leading = torch.broadcast_shapes(left.shape[:-1], right.shape[:-1])
        parts = [part.expand(*leading, part.shape[-1]) for part in (left, right)]
        return F.linear(torch.cat(parts, -1), linear.weight, linear.bias)

    yield Case(
        name="Merge",
        inputs=(torch.randn(64, 128, 1, 256), torch.randn(64, 1, 128, 256)),
        learned=2,
        versions={"shardio": merge, "naive": tiled},
        rounds=0.2,
    )


@cache
def seed_of(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return the gradient of the result; created once, outside the measurement."""
    return torch.linspace(1, 2, shape.numel(), dtype=dtype).view(shape)


def run(function: Function, case: Case, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Compute the result and the gradients."""
    inputs = [x.to(dtype) if dtype and x.is_floating_point() else x for x in case.inputs]
    learned = [x.detach().requires_grad_() for x in inputs[: case.learned]]
    result = function(*learned, *inputs[case.learned :])
    seed = seed_of(result.shape, result.dtype)
    return [result.detach(), *torch.autograd.grad(result, learned, seed)]


def seconds(function: Function, case: Case) -> float:
    start = time.perf_counter()
    run(function, case)
    return time.perf_counter() - start


def peak_bytes(function: Function, case: Case) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run(function, case)
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    held = peak = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def compare(case: Case, rounds: int, compiled: bool) -> None:
    versions: dict[str, Any] = case.versions
    if compiled:
        versions = {name: torch.compile(one) for name, one in versions.items() if name != "loop"}
    for function in versions.values():
        run(function, case)
    times: dict[str, list[float]] = {name: [] for name in versions}
    for _ in range(max(round(rounds * case.rounds), 3)):
        for name, function in versions.items():
            times[name].append(seconds(function, case))
    own = statistics.median(times["shardio"])
    peaks = {name: peak_bytes(function, case) for name, function in versions.items()}
    print(f"{case.name:24} {own * 1e3:8.1f} ms {peaks['shardio'] / 1e6:7.1f} MB", end="")
    for name in versions:
        if name != "shardio":
            ratio = statistics.median(
                a / b for a, b in zip(times["shardio"], times[name], strict=True)
            )
            print(f"  {name} {ratio:6.3f} {peaks['shardio'] / max(peaks[name], 1):5.2f}", end="")
    print(flush=True)


def ulps(found: list[Tensor], exact: list[Tensor]) -> tuple[float, float]:
    errors = []
    for here, there in zip(found, exact, strict=True):
        wanted = there.to(here.dtype)
        unit = torch.nextafter(wanted.abs(), torch.full_like(wanted, torch.inf)) - wanted.abs()
        errors.append(((here.double() - there).abs() / unit.double()).flatten())
    whole = torch.cat(errors)
    return whole.max().item(), whole.mean().item()


def accuracy(case: Case) -> None:
    reference = case.versions.get("torch", case.versions["shardio"])
    if case.name in {"sigmoid_cross_entropy", "binary_focal_loss"}:
        reference = case.versions["shardio"]  # torch's formula loses small losses
    exact = run(reference, case, torch.float64)
    print(f"{case.name:24}", end="")
    for name, function in case.versions.items():
        worst, mean = ulps(run(function, case), exact)
        print(f"  {name} {worst:9.3g} ({mean:.2g})", end="")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", help="cases whose name holds this")
    parser.add_argument("--compiled", action="store_true", help="all of it under torch.compile")
    options = parser.parse_args()
    torch.manual_seed(0)
    cases = [*softmax_cases(), *other_cases(), *indexing_cases()]
    cases = [case for case in cases if (options.only or "") in case.name]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, with gradients")
    print("shardio's time and memory; then its ratio to each peer's time and memory")
    for case in cases:
        compare(case, options.rounds, options.compiled)
    print("\nerrors in units in the last place: the largest (the mean)")
    for case in cases:
        if "Merge" not in case.name and "linear" not in case.name:
            accuracy(case)


if __name__ == "__main__":
    main()
