"""shardio, with threads of one process or workers of torch's DataLoader on the same shards."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from peers.common import Batch, be_busy, random_crop
from shardio import Loader, RandomResizedCrop, ShardDataset
from shardio.native import is_active
from shardio.packing.pack import pack
from workloads import CORES_USED, SHARDS, Workload


def prepare(images: Path, out: Path, workload: Workload) -> None:
    pack(images, out, shards=SHARDS, store="raw" if workload.raw else "original")


def thread_batches(out: Path, workload: Workload, repeats: int) -> Iterator[Batch]:
    return deliver(Loader(open_dataset(out, workload, repeats), threads=CORES_USED))


def python_batches(out: Path, workload: Workload, repeats: int) -> Iterator[Batch]:
    os.environ["SHARDIO_NATIVE"] = "0"
    if is_active():
        raise RuntimeError("the native core was loaded before it was switched off")
    return thread_batches(out, workload, repeats)


def all_pixel_batches(out: Path, workload: Workload, repeats: int) -> Iterator[Batch]:
    dataset = open_dataset(out, workload, repeats).replace(reduced_decoding=False)
    return deliver(Loader(dataset, threads=CORES_USED))


def worker_batches(out: Path, workload: Workload, repeats: int) -> Iterator[Batch]:
    dataset = open_dataset(out, workload, repeats)
    return deliver(DataLoader(dataset, batch_size=None, num_workers=CORES_USED))


def open_dataset(
    out: Path | str, workload: Workload, repeats: int = 1, **options: Any
) -> ShardDataset:
    transform: Any = None
    if workload.busy:
        transform = BusyCrop(workload.size)
    elif workload.crop:
        transform = RandomResizedCrop(workload.size)
    return ShardDataset(
        [out] * repeats,
        shuffle=True,
        transform=transform,
        batch_size=workload.batch,
        **options,
    )


def deliver(loader: Iterable[dict[str, Any]]) -> Iterator[Batch]:
    for batch in loader:
        images, labels, valid = batch["image"], batch["label"], batch["valid"]
        yield (images, labels) if valid.all() else (images[valid], labels[valid])


class BusyCrop:
    """Random resized crop, followed by Python code."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Transform an image, uint8 [3, H, W]."""
        pixels = random_crop(image.permute(1, 2, 0).numpy(), self.size)
        be_busy()
        return torch.from_numpy(pixels).permute(2, 0, 1)
