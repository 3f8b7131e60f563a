"""Compare packing with GNU tar, webdataset's TarWriter, and plain copying.

Usage: python tools/bench/packing.py [--photos DIR] [--small] [--count N] [--rounds 5] [--json]

Without --photos (one subfolder per class), crops of scikit-learn's two photos are packed; --small
packs 20,000 PNG files of 2 KB. The machine should be idle. Reading is measured by compare.py.

Held equal:

- the same files, in the order of their paths (shardio with --no-shuffle), are written to 8 files
  with equal numbers of images, in a new folder of the same file system, removed after each run
- the page cache is warm; the ways take turns in each round, in a different order in each
- seconds are those of the whole command, from start to end; beside them are the seconds that the
  command measured itself, without the start of Python and its imports
- two processes write every second shard each

What differs:

- shardio checks header and end of every image, writes class numbers, CRC-32, SHA-256, an index and
  a manifest, and syncs every shard to disk (fsync)
- GNU tar and plain copying write only the images, webdataset images and class numbers; they sync
  nothing, except in the rows that say so, where each shard is synced after it is written
- plain copying, the lower bound, reads each file and appends its bytes to another, in Python
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from packing_child import sync
from results import Spread, ratios, spread
from sources import EXTENSIONS, files_and_labels, make_source
from workloads import SHARDS

PHOTOS, SMALL = 2400, 20_000
PROCESSES = (1, 2)
OURS = ("shardio --jobs 1", "shardio --jobs 2")
CHILD = Path(__file__).with_name("packing_child.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Files to pack.

    Attributes:
        images: folder of the files.
        lists: folder of the lists of files: `0.list` and so on for GNU tar, one file per shard, and
            `2-0.json` and so on for children, where 2 is their number.
        count: number of images.
        bytes: total size of the files.
    """

    images: Path
    lists: Path
    count: int
    bytes: int


@dataclass(slots=True)
class Runs:
    """Runs of one way of packing.

    Attributes:
        seconds: duration of the whole command in each run.
        own: duration that the command measured itself, if any.
        cpu: CPU time of all its processes.
    """

    seconds: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


Way = Callable[[Load, Path], float | None]
"""Packs into a new folder; gives the seconds that it counted itself, if it did."""


def shardio(jobs: int) -> Way:
    def pack(load: Load, out: Path) -> float:
        command = [sys.executable, "-m", "shardio", "pack", str(load.images), str(out / "out")]
        options = ["--shards", str(SHARDS), "--no-shuffle", "--jobs", str(jobs), "--json"]
        summary = json.loads(run([*command, *options]))
        assert summary["samples"] == load.count
        return float(summary["seconds"])

    return pack


def gnu_tar(jobs: int, *, synced: bool = False) -> Way:
    def pack(load: Load, out: Path) -> None:
        place = ["--directory", str(load.images), "--null", "--files-from"]

        def write(shard: int) -> None:
            path = str(out / f"{shard:06d}.tar")
            run(["tar", "--create", "--file", path, *place, str(load.lists / f"{shard}.list")])
            if synced:
                sync(path)

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(write, range(SHARDS)))

    return pack


def in_children(way: str, processes: int = 1) -> Way:
    def pack(load: Load, out: Path) -> float:
        def start(number: int) -> float:
            share = load.lists / f"{processes}-{number}.json"
            command = [sys.executable, str(CHILD), way, str(load.images), str(out), str(share)]
            return float(run(command))

        with ThreadPoolExecutor(processes) as pool:
            return max(pool.map(start, range(processes)))

    return pack


WAYS: dict[str, Way] = {
    OURS[0]: shardio(1),
    OURS[1]: shardio(2),
    "GNU tar": gnu_tar(1),
    "GNU tar, 2 at once": gnu_tar(2),
    "GNU tar, synced": gnu_tar(1, synced=True),
    "GNU tar, 2 at once, synced": gnu_tar(2, synced=True),
    "webdataset": in_children("webdataset"),
    "webdataset, synced": in_children("webdataset, synced"),
    "copy": in_children("copy"),
    "copy, 2 processes": in_children("copy", 2),
}


def run(command: Sequence[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    return done.stdout


def make_load(place: Path, photos: Path | None, count: int, *, small: bool) -> Load:
    """Make the files and their lists, and read the files once."""
    images = make_source("tiny" if small else "photos", place / "images", count, photos)
    lists = place / "lists"
    lists.mkdir()
    found = files_and_labels(images)
    size = sum(len(Path(path).read_bytes()) for path, _ in found)
    files = [(os.path.relpath(path, images), label) for path, label in found]
    bounds = [len(files) * number // SHARDS for number in range(SHARDS + 1)]
    shards = [files[start:end] for start, end in pairwise(bounds)]
    for number, shard in enumerate(shards):
        names = b"".join(os.fsencode(name) + b"\0" for name, _ in shard)
        (lists / f"{number}.list").write_bytes(names)
    named = [(f"{number:06d}.tar", shard) for number, shard in enumerate(shards)]
    for processes in PROCESSES:
        for number in range(processes):
            share = json.dumps(named[number::processes])
            (lists / f"{processes}-{number}.json").write_text(share, "utf-8")
    return Load(images=images, lists=lists, count=len(files), bytes=size)


def measure(name: str, load: Load, place: Path, runs: Runs) -> None:
    """Pack once and remove the output."""
    out = place / "run"
    out.mkdir()
    before, start = cpu_of_children(), time.perf_counter()
    own = WAYS[name](load, out)
    runs.seconds.append(time.perf_counter() - start)
    runs.cpu.append(cpu_of_children() - before)
    if own is not None:
        runs.own.append(own)
    written = sum(path.stat().st_size for path in out.rglob("*.tar"))
    assert written >= load.bytes, f"{name} wrote {written} of {load.bytes} bytes"
    shutil.rmtree(out)


def cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def table(load: Load, found: dict[str, Runs]) -> list[str]:
    """Format one row per way, with the median, minimum and maximum of all rounds."""
    ours = [f"{name} takes × its time" for name in OURS]
    head = ("", "seconds", "own seconds", "img/s", "MB/s", "CPU s", *ours)
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, runs in found.items():
        rates = [load.count / seconds for seconds in runs.seconds]
        megabytes = [load.bytes / 1e6 / seconds for seconds in runs.seconds]
        cells = [
            name,
            spread(runs.seconds).show(".3g"),
            spread(runs.own).show(".3g") if runs.own else "",
            spread(rates).show(",.4g"),
            f"{spread(megabytes).median:,.4g}",
            f"{spread(runs.cpu).median:.3g}",
        ]
        for mine in OURS:
            ratio: Spread | None = ratios(found[mine].seconds, runs.seconds)
            cells.append("" if ratio is None or mine == name else ratio.show(".3g"))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def count_images(folder: Path) -> int:
    return sum(path.suffix.lower() in EXTENSIONS for path in folder.rglob("*"))


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=Path, help="images, a subfolder a class")
    parser.add_argument("--small", action="store_true", help="files of 2 KB")
    parser.add_argument("--count", type=int, help="how many files; given photos repeat")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--place", type=Path, help="folder to work in, on the disk to measure")
    parser.add_argument("--json", action="store_true", help="print every run as JSON")
    arguments = parser.parse_args()
    usual = count_images(arguments.photos) if arguments.photos else PHOTOS
    count = arguments.count or (SMALL if arguments.small else usual)
    with tempfile.TemporaryDirectory(dir=arguments.place) as folder:
        load = make_load(Path(folder), arguments.photos, count, small=arguments.small)
        found = {name: Runs() for name in WAYS}
        names = [*WAYS]
        for number in range(arguments.rounds):
            turn = number * 3 % len(names)  # another way is the first in each round
            for name in names[turn:] + names[:turn]:
                measure(name, load, Path(folder), found[name])
    if arguments.json:
        runs = {name: {"seconds": each.seconds, "own": each.own} for name, each in found.items()}
        print(json.dumps({"images": load.count, "bytes": load.bytes, "runs": runs}))
        return
    print(f"{load.count:,} files of {load.bytes / load.count / 1e3:,.3g} kB, ", end="")
    print(f"medians of {arguments.rounds} rounds, least to most in brackets.\n")
    print("\n".join(table(load, found)))
    print("\nHeld equal:" + __doc__.partition("Held equal:")[2].rstrip())


if __name__ == "__main__":
    main()
