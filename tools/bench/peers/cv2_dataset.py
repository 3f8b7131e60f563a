"""Plain torch Dataset over single files, with simplejpeg and OpenCV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch.utils.data import DataLoader, Dataset

from peers.common import Batch, Sample, collate, make_pixels, use_one_thread
from sources import files_and_labels
from workloads import CORES_USED, Workload

MANY = 16  # workers that wait for storage together


class Files(Dataset[Sample]):
    """Dataset of the images of a folder, each `repeats` times."""

    def __init__(self, images: Path, workload: Workload, repeats: int) -> None:
        self.found = files_and_labels(images) * repeats
        self.workload = workload

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> Sample:
        path, label = self.found[index]
        return make_pixels(Path(path).read_bytes(), self.workload), label


def many_worker_batches(out: Path, workload: Workload, repeats: int) -> Iterator[Batch]:
    return batches(out, workload, repeats, workers=MANY)


def batches(
    out: Path, workload: Workload, repeats: int, workers: int = CORES_USED
) -> Iterator[Batch]:
    return iter(
        DataLoader(
            Files(out, workload, repeats),
            batch_size=workload.batch,
            shuffle=True,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=use_one_thread,
        )
    )
