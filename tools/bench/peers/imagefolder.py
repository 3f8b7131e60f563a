"""torchvision's ImageFolder with torchvision's transforms, the usual starting point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, DataLoader, default_collate
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode, v2

from peers.common import Batch, be_busy, collate, use_one_thread
from workloads import CORES_USED, Workload


def batches(out: Path, workload: Workload, repeats: int) -> Iterator[Batch]:
    return read(out, workload, repeats, default_loader, collate)


def tensor_batches(out: Path, workload: Workload, repeats: int) -> Iterator[Batch]:
    decode = partial(decode_image, mode=ImageReadMode.RGB)
    return read(out, workload, repeats, decode, default_collate)


def read(
    out: Path,
    workload: Workload,
    repeats: int,
    loader: Callable[[str], Any],
    collate_fn: Callable[[Any], Any],
) -> Iterator[Batch]:
    steps: list[torch.nn.Module] = []
    if workload.crop:
        bilinear = InterpolationMode.BILINEAR
        crop = v2.RandomResizedCrop(workload.size, interpolation=bilinear, antialias=False)
        steps = [crop, v2.RandomHorizontalFlip()]
    transform = partial(make_pixels, v2.Compose([*steps, v2.Identity()]), workload)
    folder = ImageFolder(out, transform, loader=loader)
    dataset: ConcatDataset[Any] = ConcatDataset([folder] * repeats)
    return iter(
        DataLoader(
            dataset,
            batch_size=workload.batch,
            shuffle=True,
            num_workers=CORES_USED,
            collate_fn=collate_fn,
            worker_init_fn=use_one_thread,
        )
    )


def make_pixels(transform: v2.Transform, workload: Workload, image: Any) -> Any:
    made = transform(image)
    pixels = made if isinstance(made, torch.Tensor) else np.array(made)
    if workload.busy:
        be_busy()
    return pixels
