"""Compare loaders on pipelines with other people's functions: RandAugment, CLIP, albumentations.

Usage: python tools/bench/pipelines.py [--photos DIR] [--only a,b] [--rounds 5] [--cache DIR]
       [--json FILE] [--markdown FILE]

The packages of tools/bench/requirements-peers.txt and an idle machine are required; on a busy one
the CPU time of a sample still tells. Without --photos (one subfolder per class), photos are made
from scikit-learn's two. In each round, every loader runs once, in a process of its own, and repeats
its data for about three seconds. `identity` is shardio alone, with and without `map=lambda s: s`,
on small pictures, where a difference of microseconds shows.

Held equal:

- two worker processes; OpenCV and torch start no threads of their own
- the same JPEG, PNG and text files; JPEGs are decoded by simplejpeg to all of their pixels, PNGs by
  OpenCV; random crops have torchvision's distribution, and are resized linearly without
  antialiasing
- the same v2.RandAugment() on a uint8 tensor [3, H, W]; the same SimpleTokenizer of open_clip on
  captions of 20 English words, with its cache warm; the same albumentations on image and mask
- batches of 64; before anything is timed, all loaders give the same shapes and dtypes with the same
  means

What differs:

- batches of shardio's pictures, and of others' that come as arrays, are in channels-last memory;
  what RandAugment gives others is stacked as it is, [B, 3, H, W] in this order
- for albumentations, the others have one Compose of RandomResizedCrop, HorizontalFlip and
  RandomBrightnessContrast; so has "shardio DataLoader, map alone". "shardio DataLoader" crops and
  flips by its own transform=, as its users would, and leaves RandomBrightnessContrast to map=
- cv2 gives no indices of a palette, so the masks of the others are gray PNGs of the same indices
- shardio checks CRC-32 of every member, decodes no rows below its own crop, and seeds the functions
  for each sample
- v2.RandAugment alone takes over 1 ms of CPU time a picture, more than half of its pipeline in any
  loader
"""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import cv2
import numpy as np

import rounds
from peers.tasks import UNMAPPED
from results import spread
from sources import files_and_labels, make_source
from tasks import write_mask

WORDS = 20  # of a caption
MOST = 10.0  # microseconds of map=lambda s: s


def write_samples(task: str, files: Path, photos: Path) -> None:
    """Write the files of a task: pictures, and what belongs to each."""
    if task == "identity":
        count = len(files_and_labels(photos))
        photos = make_source("tiny", files.parent / "pictures", count, None)
    words = " ".join(topics[name] for name in sorted(topics)).split()
    numbers = np.random.default_rng(0)
    for number, (path, label) in enumerate(files_and_labels(photos)):
        key, source = f"{number:05d}", Path(path)
        (files / f"{key}{source.suffix}").write_bytes(source.read_bytes())
        write_what_belongs(task, files, key, source, label, words, numbers)


def write_what_belongs(
    task: str,
    files: Path,
    key: str,
    source: Path,
    label: int,
    words: list[str],
    numbers: Any,
) -> None:
    if task == "clip":
        start = int(numbers.integers(len(words) - WORDS))
        (files / f"{key}.txt").write_text(" ".join(words[start : start + WORDS]), "utf-8")
    elif task == "albumentations":
        write_mask(files, key, np.asarray(cv2.imread(str(source))), numbers)
    else:
        (files / f"{key}.cls").write_text(str(label), "utf-8")


def verdict(task: str, found: rounds.Found) -> str:
    """Say how shardio compares; for `identity`, what the map costs."""
    if task != "identity":
        return rounds.faster_and_cheaper(task, found)
    mapped, plain = found.costs("shardio DataLoader"), found.costs(UNMAPPED)
    dearer = [1e3 * (ours - bare) for ours, bare in zip(mapped, plain, strict=True)]
    return f"map=lambda s: s costs {spread(dearer).show('.3g')} µs a sample; the goal is {MOST:g}."


if __name__ == "__main__":
    rounds.compare(__doc__, "pipelines", write_samples, verdict)
