"""MosaicML streaming, with MDS shards read from a local folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from streaming import MDSWriter, Stream, StreamingDataset
from streaming.base.util import clean_stale_shared_memory
from torch.utils.data import DataLoader

from peers.common import (
    Batch,
    Sample,
    collate,
    make_pixels,
    packed_order,
    stored_bytes,
    use_one_thread,
)
from workloads import CORES_USED, Workload


def prepare(images: Path, out: Path, workload: Workload) -> None:
    columns = {"data": "bytes", "label": "int"}
    with MDSWriter(out=str(out), columns=columns) as writer:
        for path, label in packed_order(images):
            writer.write({"data": stored_bytes(path, workload), "label": label})


class Samples(StreamingDataset):  # type: ignore[misc]  # it ships no type information
    """Dataset of samples as pixels."""

    def __init__(self, workload: Workload, **options: Any) -> None:
        super().__init__(batch_size=workload.batch, **options)
        self.workload = workload

    def __getitem__(self, index: int) -> Sample:
        item = super().__getitem__(index)
        return make_pixels(item["data"], self.workload), item["label"]


def batches(out: Path, workload: Workload, repeats: int) -> Iterator[Batch]:
    return iter(load(Stream(local=str(out), repeat=repeats), workload))


def load(stream: Stream, workload: Workload) -> Iterable[Batch]:
    clean_stale_shared_memory()
    dataset = Samples(workload, streams=[stream], shuffle=True, num_canonical_nodes=1)
    return DataLoader(
        dataset,
        batch_size=workload.batch,
        num_workers=CORES_USED,
        collate_fn=collate,
        worker_init_fn=use_one_thread,
    )
