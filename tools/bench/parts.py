"""Show where time goes in packing photos, and in reading photos and small raw pixels.

Usage: python tools/bench/parts.py [--photos DIR] [--count N] [--rounds 5] [--place DIR]

--photos names a folder with one subfolder per class. Without it, crops of scikit-learn's two photos
are used. The machine should be idle.

Packing: each part is measured alone, in one thread, then the whole command with one job and two.
All take the same files, with a warm page cache. The row "calculated" is the start of the command,
and half of the other parts. GNU tar writes the same files to one tar, which is synced.

Reading: one thread, in shuffled order. The native core measures its own stages; its column "read"
includes the CRC-32 check. The column "Python" is the time of the loop outside the core.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import shardio
from packing import Load, count_images, make_load
from packing import shardio as packing_by
from packing_child import sync
from results import Spread, spread
from shardio.native.checking import are_sound_jpegs
from shardio.native.checksum import crc32
from shardio.native.table import SampleTable, Totals, Worker
from sources import EXTENSIONS
from workloads import SHARDS, WORKLOADS

PIECE = 1 << 20  # bytes that are packed at once
BATCHES = 100
STAGES = ("read", "decode", "resize")
START, TAR = "starting the command", "GNU tar, synced"
HALVED = ("copying and syncing", "checking the JPEGs' codes", "SHA-256", "CRC-32")


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that a function takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def pieces(files: Sequence[bytes]) -> Iterator[list[memoryview]]:
    """Yield files that are packed at once."""
    piece, size = list[memoryview](), 0
    for data in files:
        if piece and size + len(data) > PIECE:
            yield piece
            piece, size = [], 0
        piece.append(memoryview(data))
        size += len(data)
    yield piece


def copy(paths: Sequence[str], out: Path) -> None:
    """Append all files to another, and sync it."""
    target = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        os.write(target, os.read(file, os.fstat(file).st_size))
        os.close(file)
    os.close(target)
    sync(str(out))


def pack_with_tar(load: Load, out: Path) -> None:
    """Have GNU tar write all files to one tar, and sync it."""
    place = ["--directory", str(load.images), "--file", str(out)]
    subprocess.run(["tar", "--create", *place, "."], check=True)  # noqa: S603, S607
    sync(str(out))


def start() -> None:
    """Start the command, and end it before it packs."""
    command = [sys.executable, "-m", "shardio", "pack", "--help"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)  # noqa: S603


def parts_of_packing(load: Load, place: Path, rounds: int) -> dict[str, Spread]:
    """Measure the parts in turn, round by round."""
    paths = sorted(str(path) for path in load.images.rglob("*") if path.is_file())
    files = [Path(path).read_bytes() for path in paths]
    packed = place / "packed"
    packed.mkdir()

    def whole(jobs: int) -> Callable[[], object]:
        def pack() -> object:
            subprocess.run(["rm", "-rf", str(packed / "out")], check=True)  # noqa: S603, S607
            return packing_by(jobs)(load, packed)

        return pack

    ways: dict[str, Callable[[], object]] = {
        START: start,
        "copying and syncing": lambda: copy(paths, place / "copied"),
        "checking the JPEGs' codes": lambda: [are_sound_jpegs(piece) for piece in pieces(files)],
        "SHA-256": lambda: [hashlib.sha256(data).digest() for data in files],
        "CRC-32": lambda: [crc32(data) for data in files],
        "shardio pack --jobs 1": whole(1),
        "shardio pack --jobs 2": whole(2),
        TAR: lambda: pack_with_tar(load, place / "tar"),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            found[name].append(timed(work))
    return {name: spread(seconds) for name, seconds in found.items()}


def take(loop: Iterator[object], count: int) -> None:
    """Take some batches of a loop."""
    for _ in range(count):
        next(loop)


def show_packing(load: Load, found: dict[str, Spread]) -> list[str]:
    """Format the parts, and the bound."""
    bound = found[START].median + sum(found[name].median for name in HALVED) / 2
    tar = found[TAR].median
    lines = [f"Packing {load.count:,} photos of {load.bytes / load.count / 1e3:,.3g} kB.", ""]
    lines += ["| part | seconds | × the time of GNU tar |", "|---|---|---|"]
    for name, seconds in found.items():
        lines.append(f"| {name} | {seconds.show('.3g')} | {seconds.median / tar:.3g} |")
    lines.append(f"| calculated: these parts in two processes | {bound:.3g} | {bound / tar:.3g} |")
    return lines


def parts_of_reading(letter: str, images: Path, place: Path, rounds: int) -> dict[str, Spread]:
    """Measure µs a sample by stage, in one thread."""
    workload = WORKLOADS[letter]
    out = place / letter
    shardio.pack(images, out, shards=SHARDS, store="raw" if workload.raw else "original")
    transform = shardio.RandomResizedCrop(workload.size) if workload.crop else None
    warm, count = 10, BATCHES if workload.raw else BATCHES // 4
    wanted = (warm + rounds * count + 1) * workload.batch
    epochs = -(-wanted // sum(path.suffix in EXTENSIONS for path in images.rglob("*")))
    dataset = shardio.ShardDataset(
        [out] * epochs, shuffle=True, transform=transform, batch_size=workload.batch
    )
    known = dict.fromkeys((*STAGES, "core"), 0.0)
    fill = SampleTable.fill

    def counted(table: SampleTable, first: int, stop: int, worker: Worker | None = None) -> Totals:
        begun = time.perf_counter()
        totals = fill(table, first, stop, worker)
        known["core"] += time.perf_counter() - begun
        for stage in STAGES:
            known[stage] += getattr(totals, stage) * 1e-9
        return totals

    found: dict[str, list[float]] = {}
    with mock.patch.object(SampleTable, "fill", counted):
        loop = iter(dataset)
        take(loop, warm)
        for _ in range(rounds):
            known |= dict.fromkeys(known, 0.0)
            seconds = timed(partial(take, loop, count))
            samples = count * workload.batch
            row = {stage: known[stage] for stage in STAGES}
            row["rest of the core"] = known["core"] - sum(row.values())
            row["Python"] = seconds - known["core"]
            row["whole"] = seconds
            for name, value in row.items():
                found.setdefault(name, []).append(value / samples * 1e6)
    return {name: spread(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="images, a subfolder a class")
    parser.add_argument("--count", type=int, help="how many photos; given ones repeat")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--place", type=Path, help="folder to work in, on the disk to measure")
    options = parser.parse_args()
    count = options.count or (count_images(options.photos) if options.photos else 2400)
    with tempfile.TemporaryDirectory(dir=options.place) as folder:
        place = Path(folder)
        load = make_load(place, options.photos, count, small=False)
        print("\n".join(show_packing(load, parts_of_packing(load, place, options.rounds))))
        (place / "small").mkdir()
        tiny = make_load(place / "small", None, 20_000, small=True)
        reading = {
            f"{WORKLOADS[letter].title}, batches of {WORKLOADS[letter].batch}": parts_of_reading(
                letter, images, place, options.rounds
            )
            for letter, images in (("a", load.images), ("c", tiny.images))
        }
    print("\nReading in one thread, µs a sample.\n")
    print("| | " + " | ".join(next(iter(reading.values()))) + " |")
    print("|---" * 7 + "|")
    for title, found in reading.items():
        print(f"| {title} | " + " | ".join(each.show(".3g") for each in found.values()) + " |")


if __name__ == "__main__":
    main()
