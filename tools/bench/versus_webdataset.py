"""Packing beside webdataset's TarWriter; compare.py measures reading.

Usage: python tools/bench/versus_webdataset.py [IMAGES] [--rounds 5]

IMAGES is a folder of JPEG files, a subfolder a class; without it, crops of scikit-learn's two
photos are used. Both sides run in turn, each in a process of its own with warm page cache; the
ratio is that of the medians. The machine should be idle. Held equal: the same files, 8 shards,
image and label a sample, in a new folder of one disk. webdataset copies bytes; shardio also checks
every image, writes CRC-32, SHA-256 and an index, and syncs everything to disk. In the third row
webdataset's shards are synced, too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import webdataset

from shardio.packing.pack import pack
from sources import files_and_labels, make_source
from workloads import SHARDS

PHOTOS = 600


def pack_shardio(images: Path, out: Path) -> None:
    pack(images, out, shards=SHARDS)


def pack_webdataset(images: Path, out: Path) -> None:
    out.mkdir()
    found = files_and_labels(images)
    order = np.random.default_rng(0).permutation(len(found))
    for shard, part in enumerate(np.array_split(order, SHARDS)):
        with webdataset.TarWriter(str(out / f"{shard:06d}.tar")) as writer:
            for number in part:
                path, label = found[number]
                key = str(Path(path).relative_to(images).with_suffix(""))
                writer.write({"__key__": key, "jpg": Path(path).read_bytes(), "cls": label})


def pack_webdataset_and_sync(images: Path, out: Path) -> None:
    pack_webdataset(images, out)
    for shard in out.iterdir():
        with shard.open("rb") as stream:
            os.fsync(stream.fileno())


PACKERS = {
    "shardio": pack_shardio,
    "webdataset": pack_webdataset,
    "webdataset, synced": pack_webdataset_and_sync,
}


def measure(side: str, images: Path, place: Path) -> float:
    """Seconds of packing, in the process that is measured."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        start = time.perf_counter()
        PACKERS[side](images, Path(folder, "out"))
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        side, images, place = json.loads(arguments.child)
        print(measure(side, Path(images), Path(place)))
        return
    print(__doc__.partition("Held equal: ")[2])
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        images = arguments.images or make_source("photos", place / "images", PHOTOS, None)
        stored = [Path(path).stat().st_size for path, _ in files_and_labels(images)]
        print(f"{len(stored)} images of {sum(stored) / len(stored) / 1e3:.0f} kB on average")
        figures: dict[str, list[float]] = {side: [] for side in PACKERS}
        for _ in range(arguments.rounds):
            for side, values in figures.items():
                values.append(start_child(side, images, place))
        report(figures)


def start_child(side: str, images: Path, place: Path) -> float:
    request = json.dumps([side, str(images), str(place)])
    command = [sys.executable, __file__, "--child", request]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    return float(done.stdout)


def report(figures: dict[str, list[float]]) -> None:
    medians = {side: statistics.median(values) for side, values in figures.items()}
    for side, values in figures.items():
        spread = f"{min(values):,.4g} to {max(values):,.4g}"
        print(f"pack {side:18}  {medians[side]:8,.4g} s  ({spread})")
    for side, median in medians.items():
        if side != "shardio":
            print(f"pack: {medians['shardio'] / median:.2f} of the time of {side}")


if __name__ == "__main__":
    main()
