"""SPDL, with a pipeline of threads over lists of files; each task makes a whole batch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from spdl.pipeline import PipelineBuilder

from peers.common import Batch, collate, make_pixels, use_one_thread
from sources import files_and_labels
from workloads import CORES_USED, Workload

Part = list[tuple[str, int]]


def batches(out: Path, workload: Workload, repeats: int) -> Iterator[Batch]:
    use_one_thread()
    found = files_and_labels(out) * repeats
    random.shuffle(found)
    starts = range(0, len(found), workload.batch)
    pipeline = (
        PipelineBuilder()
        .add_source(found[start : start + workload.batch] for start in starts)
        .pipe(partial(make_batch, workload), concurrency=CORES_USED)
        .add_sink(2)
        .build(num_threads=CORES_USED, max_failures=0)
    )
    with pipeline.auto_stop():
        yield from pipeline


def make_batch(workload: Workload, part: Part) -> Batch:
    return collate(
        [(make_pixels(Path(path).read_bytes(), workload), label) for path, label in part]
    )
