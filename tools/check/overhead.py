"""Measure the overhead of monitoring: CPU time per sample with and without it, in turn.

The loop runs over photos (--photos, or photos made here) with shardio.Loader and with workers of a
DataLoader: plain, under `shardio.profiling.monitor`, and with the recording of `shardio profile`.
Each is compared with the plain epochs just before and after it. The CPU time of all processes is
used, because it shows a difference of one percent even if the machine's speed drifts by ten.

Usage: python tools/check/overhead.py [--photos DIR] [--rounds 40]
"""

import argparse
import math
import resource
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

import shardio
from bottlenecks import make_pictures, photos, several
from shardio.profiling import monitor

BUDGETS = {"monitor": 0.005, "profile": 0.02}


def loader_of(kind: str, out: Path) -> Iterable[Any]:
    if kind == "threads":
        return shardio.Loader(photos(out), threads=2)
    return DataLoader(photos(out), batch_size=None, num_workers=2)


def cpu_time(batches: Iterable[Any]) -> float:
    """Return the CPU time of an epoch in seconds, in this process and in ended workers."""
    before = cpu_time_so_far()
    for _ in batches:
        pass
    return cpu_time_so_far() - before


def cpu_time_so_far() -> float:
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def watched(kind: str, out: Path, budget: float) -> float:
    with monitor(loader_of(kind, out), live=False, budget=budget) as seen:
        return cpu_time(seen)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="class folders of JPEGs")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "out"
        source = options.photos or make_pictures(Path(work) / "pictures")
        shardio.pack(several(source, Path(work) / "source"), out, shards=8)
        for kind in ("threads", "processes"):
            costs: dict[str, list[float]] = {name: [] for name in BUDGETS}
            cpu_time(loader_of(kind, out))
            before = cpu_time(loader_of(kind, out))
            for _ in range(options.rounds):
                for name, budget in BUDGETS.items():
                    seen = watched(kind, out, budget)
                    after = cpu_time(loader_of(kind, out))
                    costs[name].append(2 * seen / (before + after) - 1)
                    before = after
            for name, values in costs.items():
                low, middle, high = statistics.quantiles(values, n=4)
                error = 0.93 * (high - low) / math.sqrt(options.rounds)  # of a median
                print(
                    f"{kind}: {name} costs {middle:.1%} ± {error:.1%} of the CPU time "
                    f"(half of the rounds {low:.1%} to {high:.1%})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
