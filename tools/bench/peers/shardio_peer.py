"""shardio: threads of one process, or workers of torch's DataLoader; the same shards."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

import shardio
from peers.common import Batch, be_busy, cut_shards, decode, packed_order, random_crop
from shardio.packing.pack import pack
from workloads import CORES_USED, SHARDS, Workload


def prepare(images: Path, out: Path, workload: Workload) -> None:
    if workload.raw:
        write_raw_shards(images, out)
    else:
        pack(images, out, shards=SHARDS)


def write_raw_shards(images: Path, out: Path) -> None:
    out.mkdir()
    for shard, part in enumerate(cut_shards(packed_order(images))):
        with tarfile.open(out / f"shard-{shard:06d}.tar", "w") as archive:
            for number, (path, label) in enumerate(part):
                stored = io.BytesIO()
                np.save(stored, decode(Path(path).read_bytes()))
                add_member(archive, f"{number:06d}.cls", str(label).encode())
                add_member(archive, f"{number:06d}.image.npy", stored.getvalue())


def add_member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def thread_batches(out: Path, workload: Workload, repeats: int) -> Iterator[Batch]:
    return deliver(shardio.Loader(open_dataset(out, workload, repeats), threads=CORES_USED))


def worker_batches(out: Path, workload: Workload, repeats: int) -> Iterator[Batch]:
    dataset = open_dataset(out, workload, repeats)
    return deliver(DataLoader(dataset, batch_size=None, num_workers=CORES_USED))


def open_dataset(out: Path, workload: Workload, repeats: int) -> shardio.ShardDataset:
    transform: Any = None
    if workload.busy:
        transform = BusyCrop(workload.size)
    elif workload.crop:
        transform = shardio.RandomResizedCrop(workload.size)
    return shardio.ShardDataset(
        [out] * repeats,
        fields={"image": "image.npy", "label": "cls"} if workload.raw else None,
        shuffle=True,
        transform=transform,
        batch_size=workload.batch,
    )


def deliver(loader: Iterable[dict[str, Any]]) -> Iterator[Batch]:
    for batch in loader:
        images, labels, valid = batch["image"], batch["label"], batch["valid"]
        if images.shape[1] != 3:
            images = images.permute(0, 3, 1, 2)
        yield (images, labels) if valid.all() else (images[valid], labels[valid])


class BusyCrop:
    """A random resized crop, then Python code."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Transform uint8 [3, H, W]."""
        pixels = random_crop(image.permute(1, 2, 0).numpy(), self.size)
        be_busy()
        return torch.from_numpy(pixels).permute(2, 0, 1)
