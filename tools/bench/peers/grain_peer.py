"""Grain: ArrayRecord files, each worker decodes and batches."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grain
from array_record.python.array_record_module import ArrayRecordWriter

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

LABEL = struct.Struct("<q")


def prepare(images: Path, out: Path, workload: Workload) -> None:
    out.mkdir()
    writer = ArrayRecordWriter(str(out / "samples.array_record"), "group_size:1")
    for path, label in packed_order(images):
        writer.write(LABEL.pack(label) + stored_bytes(path, workload))
    writer.close()


def batches(out: Path, workload: Workload, repeats: int) -> Iterator[Batch]:
    use_one_thread()
    source = grain.sources.ArrayRecordDataSource([str(out / "samples.array_record")])
    dataset = (
        grain.MapDataset.source(source)
        .shuffle(seed=0)
        .repeat(repeats)
        .map(partial(make_sample, workload))
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=16))
        .batch(workload.batch, batch_fn=collate)
        .mp_prefetch(grain.MultiprocessingOptions(num_workers=CORES_USED, per_worker_buffer_size=2))
    )
    return iter(dataset)


def make_sample(workload: Workload, record: bytes) -> Sample:
    return make_pixels(record[LABEL.size :], workload), LABEL.unpack_from(record)[0]
