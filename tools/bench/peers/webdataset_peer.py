"""webdataset in its fastest known configuration: two workers that decode, crop and batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import webdataset
from torch.utils.data import DataLoader

from peers.common import (
    Batch,
    Sample,
    collate,
    cut_shards,
    decode,
    make_pixels,
    packed_order,
    stored_bytes,
    use_one_thread,
)
from workloads import CORES_USED, SHARDS, SHUFFLE_BUFFER, Workload


def prepare(images: Path, out: Path, workload: Workload) -> None:
    out.mkdir()
    raw = out.name.endswith("raw")
    for shard, part in enumerate(cut_shards(packed_order(images))):
        with webdataset.TarWriter(str(out / f"{shard:06d}.tar")) as writer:
            for number, (path, label) in enumerate(part):
                data = stored_bytes(path, workload) if raw else Path(path).read_bytes()
                key = f"{shard:03d}-{number:06d}"
                writer.write({"__key__": key, "rgb" if raw else "image": data, "cls": label})


def many_worker_batches(out: Path, workload: Workload, repeats: int) -> Iterator[Batch]:
    return batches(out, workload, repeats, workers=SHARDS)


def batches(
    out: Path, workload: Workload, repeats: int, workers: int = CORES_USED
) -> Iterator[Batch]:
    return iter(load(sorted(map(str, out.glob("*.tar"))) * repeats, workload, workers))


def load(shards: list[str], workload: Workload, workers: int = CORES_USED) -> Iterable[Batch]:
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards), empty_check=False)
        .shuffle(SHUFFLE_BUFFER)
        .map(partial(make_sample, workload))
        .batched(workload.batch, collation_fn=collate)
    )
    return DataLoader(dataset, batch_size=None, num_workers=workers, worker_init_fn=use_one_thread)


def make_sample(workload: Workload, sample: dict[str, Any]) -> Sample:
    if "image" in sample and workload.raw:
        return decode(sample["image"]), int(sample["cls"])
    data = sample["rgb"] if workload.raw else sample.get("image") or sample["jpg"]
    return make_pixels(data, workload), int(sample["cls"])
