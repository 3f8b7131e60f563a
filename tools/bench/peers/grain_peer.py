"""Grain, with ArrayRecord files decoded by two threads, or by processes if Python holds the GIL."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from peers.common import (
    Batch,
    Sample,
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
    samples = (
        grain.MapDataset.source(source)
        .shuffle(seed=0)
        .repeat(repeats)
        .map(partial(make_sample, workload))
    )
    if workload.busy:  # processes, which pay where Python holds the GIL
        alone = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        workers = grain.MultiprocessingOptions(num_workers=CORES_USED, per_worker_buffer_size=2)
        made = samples.batch(workload.batch, batch_fn=stack).to_iter_dataset(alone)
        dataset = made.mp_prefetch(workers)
    elif not workload.crop:  # small: a thread makes whole batches
        threads = grain.ReadOptions(num_threads=CORES_USED, prefetch_buffer_size=2 * CORES_USED)
        dataset = samples.batch(workload.batch, batch_fn=stack).to_iter_dataset(threads)
    else:
        threads = grain.ReadOptions(num_threads=CORES_USED, prefetch_buffer_size=2 * workload.batch)
        dataset = samples.to_iter_dataset(threads).batch(workload.batch, batch_fn=stack)
    for pixels, labels in dataset:
        yield pixels.transpose(0, 3, 1, 2), labels


def stack(samples: Sequence[Sample]) -> Batch:
    """Stack samples as numpy arrays, which Grain moves between processes faster than tensors."""
    return np.stack([pixels for pixels, _ in samples]), np.array([label for _, label in samples])


def make_sample(workload: Workload, record: bytes) -> Sample:
    return make_pixels(record[LABEL.size :], workload), LABEL.unpack_from(record)[0]
