"""shardio beside webdataset: packing with TarWriter, reading with two workers.

Usage: python tools/bench/versus_webdataset.py [IMAGES] [--rounds 5]

IMAGES is a folder of JPEG files, a subfolder a class; without it, crops of scikit-learn's two
photos are used. Both sides run in turn, each in a process of its own with warm page cache; the
ratio is that of the medians. The machine should be idle. Held equal, and printed:

- packing: the same files, 8 shards, image and label a sample, in a new folder of one disk.
  webdataset copies bytes; shardio also checks every image, writes CRC-32, SHA-256 and an index,
  and syncs everything to disk. In the third row webdataset's shards are synced, too.
- reading: the same shards, two worker processes, shuffled, batches of 64, uint8 [64, 3, 224, 224]
  by torchvision's random resized crop, linear interpolation. webdataset decodes with simplejpeg,
  too, crops and resizes with OpenCV, and batches in its workers: its fastest configuration.
  Every batch is consumed, and the labels must add up.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
import webdataset
from numpy.typing import NDArray
from torch.utils.data import DataLoader

import shardio
from shardio.packing.pack import pack

SHARDS = 8
BATCH = 64
SIZE = 224
WORKERS = 2
REPEATS = 8
Pixels = NDArray[np.uint8]


def make_photos(folder: Path) -> Path:
    """600 JPEG crops of two real photos, 500 × 375 pixels."""
    numbers = np.random.default_rng(0)
    source = resources.files("sklearn.datasets.images")
    photos = [np.asarray(cv2.imread(str(source / f"{name}.jpg"))) for name in ("china", "flower")]
    for number in range(600):
        photo = photos[number % len(photos)]
        top, left = numbers.integers(photo.shape[0] - 374), numbers.integers(photo.shape[1] - 499)
        crop = photo[top : top + 375, left : left + 500]
        path = folder / f"class{number % 10}" / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), crop, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return folder


def files_and_labels(images: Path) -> list[tuple[Path, int]]:
    classes = sorted(path.name for path in images.iterdir())
    files = sorted(images.rglob("*.jpg"))
    return [(path, classes.index(path.relative_to(images).parts[0])) for path in files]


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
                key = str(path.relative_to(images).with_suffix(""))
                writer.write({"__key__": key, "jpg": path.read_bytes(), "cls": label})


def pack_webdataset_and_sync(images: Path, out: Path) -> None:
    pack_webdataset(images, out)
    for shard in out.iterdir():
        with shard.open("rb") as stream:
            os.fsync(stream.fileno())


def read_shardio(folder: Path) -> Iterator[Any]:
    dataset = shardio.ShardDataset(
        [folder] * REPEATS,
        shuffle=True,
        transform=shardio.RandomResizedCrop(SIZE),
        batch_size=BATCH,
    )
    for batch in DataLoader(dataset, batch_size=None, num_workers=WORKERS):
        yield batch["image"], batch["label"][batch["valid"]]


def read_webdataset(folder: Path) -> Iterator[Any]:
    shards = sorted(str(path) for path in folder.glob("*.tar")) * REPEATS
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards), empty_check=False)
        .shuffle(1000)
        .map(crop_sample)
        .batched(BATCH, collation_fn=collate)
    )
    yield from DataLoader(dataset, batch_size=None, num_workers=WORKERS)


def crop_sample(sample: dict[str, Any]) -> tuple[Pixels, int]:
    pixels = simplejpeg.decode_jpeg(sample["jpg"], colorspace="RGB")
    crop = shardio.RandomResizedCrop(SIZE)
    height, width, _ = pixels.shape
    box = crop.crop(height, width, [random.random() for _ in range(crop.draws)])  # noqa: S311
    part = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    resized = cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized[:, ::-1] if box.flip else resized, np.uint8), int(sample["cls"])


def collate(samples: list[tuple[Pixels, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(np.stack([image for image, _ in samples])).permute(0, 3, 1, 2)
    return images, torch.tensor([label for _, label in samples])


PACKERS = {
    "shardio": pack_shardio,
    "webdataset": pack_webdataset,
    "webdataset, synced": pack_webdataset_and_sync,
}
READERS = {"shardio": read_shardio, "webdataset": read_webdataset}
JOBS: dict[str, tuple[list[str], str, str]] = {
    "pack": ([*PACKERS], "s", "of the time of"),
    "read": ([*READERS], "img/s", "times the rate of"),
}


def measure(job: str, side: str, images: Path, packed: Path) -> float:
    """Seconds of packing, or images a second of reading; in the process that is measured."""
    if job == "pack":
        with tempfile.TemporaryDirectory(dir=packed.parent) as folder:
            start = time.perf_counter()
            PACKERS[side](images, Path(folder, "out"))
            return time.perf_counter() - start
    expected = [label for _, label in files_and_labels(images)] * REPEATS
    start, count, total = time.perf_counter(), 0, 0
    for pixels, labels in READERS[side](packed):
        assert pixels.dtype == torch.uint8
        assert pixels.shape[1:] == (3, SIZE, SIZE)
        count, total = count + len(labels), total + int(labels.sum())
    assert (count, total) == (len(expected), sum(expected))
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        job, side, images, packed = json.loads(arguments.child)
        print(measure(job, side, Path(images), Path(packed)))
        return
    print(__doc__.partition("Held equal")[2].partition(":\n\n")[2])
    with tempfile.TemporaryDirectory() as folder:
        images = arguments.images or make_photos(Path(folder, "images"))
        packed = Path(folder, "packed")
        pack(images, packed, shards=SHARDS)
        stored = [path.stat().st_size for path, _ in files_and_labels(images)]
        print(f"{len(stored)} images of {sum(stored) / len(stored) / 1e3:.0f} kB on average")
        for job, (sides, unit, relation) in JOBS.items():
            figures: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(arguments.rounds):
                for side, values in figures.items():
                    values.append(start_child(job, images, packed, side))
            report(job, unit, relation, figures)


def start_child(job: str, images: Path, packed: Path, side: str) -> float:
    request = json.dumps([job, side, str(images), str(packed)])
    command = [sys.executable, __file__, "--child", request]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    return float(done.stdout)


def report(job: str, unit: str, relation: str, figures: dict[str, list[float]]) -> None:
    medians = {side: statistics.median(values) for side, values in figures.items()}
    for side, values in figures.items():
        spread = f"{min(values):,.4g} to {max(values):,.4g}"
        print(f"{job} {side:18}  {medians[side]:8,.4g} {unit}  ({spread})")
    for side, median in medians.items():
        if side != "shardio":
            print(f"{job}: {medians['shardio'] / median:.2f} {relation} {side}")
    print()


if __name__ == "__main__":
    main()
