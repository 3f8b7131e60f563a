"""What watching a loop costs: the same loop with and without, in turns.

The loop runs over photos (--photos, or pictures made here) with shardio.Loader and with
DataLoader's workers, plain, under `shardio.profiling.monitor`, and with the recording that
`shardio profile` does. The rates of each round are compared with the plain one of that round.

Usage: python tools/check/overhead.py [--photos DIR] [--rounds 9]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bottlenecks import make_pictures, photos, several
from torch.utils.data import DataLoader

import shardio
from shardio.profiling import monitor

SECONDS = 3.0
BUDGETS = {"monitor": 0.005, "profile": 0.02}


def loader_of(kind: str, out: Path) -> Iterable[Any]:
    if kind == "threads":
        return shardio.Loader(photos(out), threads=2)
    return DataLoader(photos(out), batch_size=None, num_workers=2)


def rate(batches: Iterable[Any]) -> float:
    """Samples per second of whole epochs, workers' starts included."""
    count = 0
    start = time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        for batch in batches:
            count += len(batch["__key__"])
    return count / (time.perf_counter() - start)


def watched(kind: str, out: Path, budget: float) -> float:
    with monitor(loader_of(kind, out), live=False, budget=budget) as seen:
        return rate(seen)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="class folders of JPEGs")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "out"
        source = options.photos or make_pictures(Path(work) / "pictures")
        shardio.pack(several(source, Path(work) / "source"), out, shards=8)
        for kind in ("threads", "processes"):
            ratios: dict[str, list[float]] = {name: [] for name in BUDGETS}
            for _ in range(options.rounds):
                plain = rate(loader_of(kind, out))
                for name, budget in BUDGETS.items():
                    ratios[name].append(watched(kind, out, budget) / plain)
            for name, values in ratios.items():
                cost = 1 - statistics.median(values)
                spread = f"{1 - max(values):.1%} to {1 - min(values):.1%}"
                print(f"{kind}: {name} costs {cost:.1%} of the rate ({spread})", flush=True)


if __name__ == "__main__":
    main()
