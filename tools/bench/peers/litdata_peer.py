"""LitData, with chunks of serialized samples that are read in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import litdata

from peers.common import (
    Batch,
    Sample,
    collate,
    make_pixels,
    packed_order,
    repeat,
    stored_bytes,
    use_one_thread,
)
from workloads import CORES_USED, Workload


def prepare(images: Path, out: Path, workload: Workload) -> None:
    litdata.optimize(
        partial(store, workload),
        packed_order(images),
        str(out),
        chunk_bytes="64MB",
        num_workers=1,
        reorder_files=False,
        verbose=False,
    )


def store(workload: Workload, item: tuple[str, int]) -> dict[str, Any]:
    path, label = item
    return {"data": stored_bytes(path, workload), "label": label}


def batches(out: Path, workload: Workload, repeats: int) -> Iterator[Batch]:
    return repeat(load(str(out), workload), repeats)


def load(folder: str, workload: Workload, **options: Any) -> Iterable[Batch]:
    dataset = litdata.StreamingDataset(
        folder, shuffle=True, drop_last=False, transform=partial(make_sample, workload), **options
    )
    loader: Iterable[Batch] = litdata.StreamingDataLoader(
        dataset,
        batch_size=workload.batch,
        num_workers=CORES_USED,
        persistent_workers=True,
        collate_fn=collate,
        worker_init_fn=use_one_thread,
    )
    return loader


def make_sample(workload: Workload, item: dict[str, Any]) -> Sample:
    return make_pixels(item["data"], workload), item["label"]
