"""Code around a loader, the same for every peer that lets the user choose.

JPEGs are decoded by simplejpeg and everything else by OpenCV. Crops are those of torchvision's
RandomResizedCrop, with one bilinear resize.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray

import shardio
from sources import files_and_labels
from workloads import SHARDS, Workload

Pixels = NDArray[np.uint8]
Sample = tuple[Pixels, int]
Batch = tuple[Any, Any]
BUSY_STEPS = 30_000


def be_busy() -> int:
    """Hold the GIL for about a millisecond."""
    total = 0
    for number in range(BUSY_STEPS):
        total += number
    return total


def decode(data: bytes) -> Pixels:
    if data[:2] == b"\xff\xd8":
        return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB"), np.uint8)
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB), np.uint8)


@lru_cache
def crop_to(size: int) -> shardio.RandomResizedCrop:
    return shardio.RandomResizedCrop(size)


def random_crop(pixels: Pixels, size: int, out: Pixels | None = None) -> Pixels:
    """Crop a random part of an image, resize it, and perhaps flip it."""
    crop = crop_to(size)
    height, width, _ = pixels.shape
    box = crop.crop(height, width, [random.random() for _ in range(crop.draws)])  # noqa: S311
    part = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    resized = cv2.resize(part, (size, size), dst=out, interpolation=cv2.INTER_LINEAR)
    if box.flip:
        resized = cv2.flip(resized, 1, dst=resized)
    return np.asarray(resized, np.uint8)


def make_pixels(data: bytes, workload: Workload) -> Pixels:
    """Convert a sample's bytes to its final pixels, uint8 [H, W, 3]."""
    if workload.raw:
        return np.frombuffer(data, np.uint8).reshape(workload.size, workload.size, 3)
    return transform(decode(data), workload)


def transform(pixels: Pixels, workload: Workload) -> Pixels:
    """Crop decoded pixels and run Python code, if the workload does."""
    if workload.crop:
        pixels = random_crop(pixels, workload.size)
    if workload.busy:
        be_busy()
    return pixels


def collate(samples: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack samples to a batch, uint8 [B, 3, H, W] in channels-last memory."""
    images = torch.from_numpy(np.stack([pixels for pixels, _ in samples])).permute(0, 3, 1, 2)
    return images, torch.tensor([label for _, label in samples])


def repeat(loader: Iterable[Any], repeats: int) -> Iterator[Any]:
    """Iterate over a loader again and again."""
    return itertools.chain.from_iterable(itertools.repeat(loader, repeats))


def use_one_thread(_worker: int = 0) -> None:
    """Limit OpenCV and torch to one thread per worker."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def packed_order(images: Path) -> list[tuple[str, int]]:
    """Return files and labels in the random order in which all peers' data are written."""
    found = files_and_labels(images)
    return [found[number] for number in np.random.default_rng(0).permutation(len(found))]


def cut_shards(found: list[tuple[str, int]]) -> list[list[tuple[str, int]]]:
    """Divide a list into the contents of the shards."""
    return [found[len(found) * n // SHARDS : len(found) * (n + 1) // SHARDS] for n in range(SHARDS)]


def stored_bytes(path: str | Path, workload: Workload) -> bytes:
    """Return what a peer stores of an image file: the file, or its pixels."""
    data = Path(path).read_bytes()
    return decode(data).tobytes() if workload.raw else data
