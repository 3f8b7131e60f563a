"""Compare two versions of shardio on classification: photos with labels, random crops of 224.

Usage: python tools/bench/versions.py OLD_CHECKOUT NEW_CHECKOUT [--photos DIR] [--rounds 7]

A checkout is a folder with the package `shardio`, such as a git worktree of a commit. The versions
take turns in each round, each in a process of its own, on shards that the older one packed. Printed
are samples per second and the CPU time of a sample, as medians of the rounds, and their ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import ratios, spread
from sources import make_source

COUNT, EPOCHS = 2400, 2
MODES = ("threads", "workers")


def read(mode: str, out: str) -> dict[str, float]:
    """Read a packed folder with the version of this process; the first epoch is not measured."""
    import torch.utils.data  # noqa: PLC0415  only in the processes that read

    import shardio  # noqa: PLC0415

    transform = shardio.RandomResizedCrop(224)
    dataset = shardio.ShardDataset(out, shuffle=True, transform=transform, batch_size=64)
    threads = mode == "threads"
    loader = (
        shardio.Loader(dataset, threads=2)
        if threads
        else torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2)
    )
    for _ in loader:
        pass
    before, start, count = os.times(), time.perf_counter(), 0
    for _ in range(EPOCHS):
        for batch in loader:
            count += int(batch["valid"].sum())
    seconds, after = time.perf_counter() - start, os.times()
    cpu = sum(after[:4]) - sum(before[:4])
    return {"rate": count / seconds, "cpu": 1e3 * cpu / count}


def in_version(checkout: Path, *words: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", *words]
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)  # noqa: S603
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def pack(images: str, out: str) -> dict[str, float]:
    import shardio  # noqa: PLC0415

    return {"samples": shardio.pack(images, out, shards=8).samples}


def compare(versions: dict[str, Path], photos: Path | None, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        images = make_source("photos", Path(temporary, "images"), COUNT, photos)
        out = str(Path(temporary, "out"))
        in_version(versions["old"], "pack", str(images), out)
        for mode in MODES:
            found: dict[str, list[dict[str, float]]] = {"old": [], "new": []}
            for number in range(rounds):
                for name in ("old", "new") if number % 2 else ("new", "old"):
                    found[name].append(in_version(versions[name], mode, out))
            print(f"\n{mode}:")
            for key, unit, digits in (("rate", "samples/s", ",.4g"), ("cpu", "CPU ms", ".3g")):
                old, new = ([run[key] for run in found[name]] for name in ("old", "new"))
                change = ratios(new, old)
                assert change is not None
                print(
                    f"  {unit}: old {spread(old).show(digits)}, new {spread(new).show(digits)}, "
                    f"new / old {change.show('.3f')}",
                    flush=True,
                )


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        words = sys.argv[2:]
        found = pack(*words[1:]) if words[0] == "pack" else read(*words)
        print(json.dumps(found))
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--photos", type=Path, help="a folder of photos, a subfolder a class")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    compare({"old": arguments.old, "new": arguments.new}, arguments.photos, arguments.rounds)


if __name__ == "__main__":
    main()
