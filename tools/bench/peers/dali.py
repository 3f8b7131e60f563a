"""DALI on the CPU, with its own file reader, decoder and resize."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvidia.dali import fn, pipeline_def, types

from peers.common import Batch
from sources import files_and_labels
from workloads import CORES_USED, SHUFFLE_BUFFER, Workload

AREA, RATIO = [0.08, 1.0], [3 / 4, 4 / 3]


def batches(out: Path, workload: Workload, repeats: int, *, roi: bool = False) -> Iterator[Batch]:
    found = files_and_labels(out) * repeats
    pipeline = read_and_crop(
        [path for path, _ in found],
        [label for _, label in found],
        workload,
        roi=roi,
        batch_size=workload.batch,
        num_threads=CORES_USED,
        device_id=None,
    )
    pipeline.build()
    for start in range(0, len(found), workload.batch):
        images, labels = (output.as_array() for output in pipeline.run())
        kept = len(found) - start
        yield images[:kept].transpose(0, 3, 1, 2), labels[:kept, 0]


def roi_batches(out: Path, workload: Workload, repeats: int) -> Iterator[Batch]:
    return batches(out, workload, repeats, roi=True)


@pipeline_def  # type: ignore[misc]  # it ships no type information
def read_and_crop(files: list[str], numbers: list[int], workload: Workload, *, roi: bool) -> Any:
    data, labels = fn.readers.file(
        files=files,
        labels=numbers,
        random_shuffle=True,
        initial_fill=SHUFFLE_BUFFER,
        pad_last_batch=True,
    )
    size = {"size": [workload.size] * 2, "interp_type": types.INTERP_LINEAR, "antialias": False}
    if not workload.crop:
        return fn.decoders.image(data), labels
    if roi:
        crops = fn.decoders.image_random_crop(
            data, random_area=AREA, random_aspect_ratio=RATIO, num_attempts=10
        )
        images = fn.resize(crops, **size)
    else:
        images = fn.random_resized_crop(
            fn.decoders.image(data), random_area=AREA, random_aspect_ratio=RATIO, **size
        )
    return fn.flip(images, horizontal=fn.random.coin_flip()), labels
