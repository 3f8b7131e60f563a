"""Measure the cost of a large dataset before the first sample: 1,000 shards, 10,000,000 samples.

The shards are one file with a thousand names, so they take 10 MB of disk. New processes, which have
imported torch, OpenCV and NumPy, open them, read a batch, load a state near the end, and continue.
A collection of torch's objects by Python's garbage collector may be due meanwhile. It takes several
times as long and is left out. Private memory is counted, since indexes are mapped and shared by all
processes.

Usage: python tools/bench/scale.py [--json] [--once]

With --once, each order is measured in one process instead of three.
"""

import gc
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from itertools import islice
from pathlib import Path
from statistics import median

import cv2  # noqa: F401  a training loop has it, so it is no cost of opening
import numpy as np
import torch  # noqa: F401  like cv2

import shardio
from shardio.indexing.manifest import Manifest, index_path, receipt_of, write_manifest
from shardio.indexing.shard_index import read_index
from shardio.planning.samples import Samples
from shardio.storage.folder import Folder

SHARDS, SAMPLES = 1000, 10_000
ROUNDS, EPOCHS, STEPS = 3, 6, 60
ORDERS = ("windows", "full")


def make_shards(folder: Path) -> None:
    first = folder / "shard-000000.tar"
    with tarfile.open(first, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number in range(SAMPLES):
            info = tarfile.TarInfo(f"class{number % 10}/{number:08d}.cls")
            info.size = 1
            archive.addfile(info, io.BytesIO(b"%d" % (number % 10)))
    shardio.index(str(folder))
    index = read_index(index_path(first))
    names = [f"shard-{number:06d}.tar" for number in range(SHARDS)]
    for name in names[1:]:
        os.link(first, folder / name)
        os.link(index_path(first), index_path(folder / name))
    shards = tuple(receipt_of(name, index) for name in names)
    with Folder.open(folder) as held:
        write_manifest(held, Manifest(shards=shards, fields=index.fields, classes=None))


def private_bytes() -> int:
    """Return the memory of this process that is not shared and that the system cannot drop.

    Unchanged pages of a library count as shared or not by what other processes run.
    """
    lines = Path("/proc/self/smaps_rollup").read_text("ascii").splitlines()
    (size,) = (line.split()[1] for line in lines if line.startswith("Private_Dirty:"))
    return int(size) * 1024


def measure(folder: str, order: str) -> dict[str, float]:
    """Open, read and resume once, in this process."""
    gc.collect()
    before, start = private_bytes(), time.perf_counter()
    shardio.ShardDataset.__doc__  # noqa: B018  the module is imported when its name is first used
    imported = time.perf_counter() - start
    start = time.perf_counter()
    dataset = shardio.ShardDataset(
        folder, shuffle="full" if order == "full" else True, decode=False, batch_size=64
    )
    opened = time.perf_counter() - start
    steps = iter(dataset)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    first_batch = time.perf_counter() - start
    added, memory = private_bytes() - before, []
    for _ in range(EPOCHS):
        for _ in islice(dataset, STEPS):
            pass
        memory.append(private_bytes())
    state = dataset.state_dict() | {"step": len(dataset) - 1}
    start = time.perf_counter()
    dataset.load_state_dict(state)
    loaded = time.perf_counter() - start
    vars(dataset)["samples"] = Samples(
        np.full(SHARDS, 10**9 // SHARDS)
    )  # as if the shards held so many
    state = dataset.state_dict() | {"epoch": 7, "step": len(dataset) - 1}
    start = time.perf_counter()
    dataset.load_state_dict(state)
    plan = dataset.plan(state["epoch"])
    plan.references(plan.share([state["step"]], 0, 1))
    return {
        "imported_ms": imported * 1e3,
        "opened_ms": opened * 1e3,
        "first_batch_ms": first_batch * 1e3,
        "resumed_ms": loaded * 1e3,
        "resumed_billion_ms": (time.perf_counter() - start) * 1e3,
        "added_mb": added / 1e6,
        "grown_mb": (memory[-1] - memory[1]) / 1e6,
    }


def main() -> None:
    if sys.argv[1:] and sys.argv[1] in ORDERS:
        print(json.dumps(measure(sys.argv[2], sys.argv[1])))
        return
    rounds = 1 if "--once" in sys.argv else ROUNDS
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_shards(Path(folder))
        for order in ORDERS:
            runs = [
                json.loads(
                    subprocess.run(  # noqa: S603  this file itself
                        [sys.executable, __file__, order, folder], capture_output=True, check=True
                    ).stdout
                )
                for _ in range(rounds)
            ]
            found[order] = {name: median(run[name] for run in runs) for name in runs[0]}
    if "--json" in sys.argv:
        print(json.dumps(found))
        return
    print(f"{SHARDS:,} shards, {SHARDS * SAMPLES:,} samples, medians of {rounds} fresh processes")
    for order, figures in found.items():
        print(
            f"{order}: imported in {figures['imported_ms']:.0f} ms, opened in "
            f"{figures['opened_ms']:.0f} ms, first batch {figures['first_batch_ms']:.0f} ms after "
            f"that began, {figures['added_mb']:.1f} MB private memory "
            f"added, {figures['grown_mb']:+.1f} MB over {EPOCHS - 2} epochs begun and left; a "
            f"state taken up in {figures['resumed_ms']:.1f} ms, in a plan of 1,000,000,000 "
            f"samples with its next batch in {figures['resumed_billion_ms']:.1f} ms"
        )


if __name__ == "__main__":
    main()
