"""torchvision's ImageFolder with torchvision's transforms: what most people start with."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from peers.common import Batch, Sample, be_busy, collate, use_one_thread
from workloads import CORES_USED, Workload


def batches(out: Path, workload: Workload, repeats: int) -> Iterator[Batch]:
    steps: list[torch.nn.Module] = []
    if workload.crop:
        bilinear = InterpolationMode.BILINEAR
        crop = v2.RandomResizedCrop(workload.size, interpolation=bilinear, antialias=False)
        steps = [crop, v2.RandomHorizontalFlip()]
    transform = partial(make_pixels, v2.Compose([*steps, v2.Identity()]), workload)
    dataset: ConcatDataset[Sample] = ConcatDataset([ImageFolder(out, transform)] * repeats)
    return iter(
        DataLoader(
            dataset,
            batch_size=workload.batch,
            shuffle=True,
            num_workers=CORES_USED,
            collate_fn=collate,
            worker_init_fn=use_one_thread,
        )
    )


def make_pixels(transform: v2.Transform, workload: Workload, image: Image.Image) -> object:
    pixels = np.array(transform(image))
    if workload.busy:
        be_busy()
    return pixels
