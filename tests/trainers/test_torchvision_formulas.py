"""MixUp, CutMix and the padded crops beside torchvision's own, with the numbers that ours drew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import shardio
from shardio.fields.image import write_crop

v2 = pytest.importorskip("torchvision.transforms.v2")
functional = pytest.importorskip("torchvision.transforms.v2.functional")


def pair(step: int) -> dict[str, Any]:
    """Two samples, which are each other's partners, as torchvision's roll makes them too."""
    images = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(step))
    place = {"__key__": ["a", "b"], "__epoch__": 0, "__step__": step}
    return {"image": images, "label": torch.tensor([0, 1]), **place}


@pytest.mark.parametrize("step", range(20))
def test_mixup_is_torchvisions(step: int) -> None:
    batch = pair(step)
    mixed = shardio.MixUp(3)(batch)
    how = {"labels": batch["label"], "batch_size": 2, "lam": float(mixed["label"][0, 0])}
    theirs = v2.MixUp(num_classes=3)
    torch.testing.assert_close(mixed["image"], theirs.transform(batch["image"], how))
    torch.testing.assert_close(mixed["label"], theirs.transform(batch["label"], how))


@pytest.mark.parametrize("step", range(20))
def test_cutmix_is_torchvisions(step: int) -> None:
    batch = pair(step)
    mixed = shardio.CutMix(3)(batch)
    rows, columns = (mixed["image"] != batch["image"]).any(0).any(0).nonzero(as_tuple=True)
    box = (0, 0, 0, 0)
    if len(rows):
        edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        box = tuple(map(int, edges))  # type: ignore[assignment]
    lam = 1 - (box[2] - box[0]) * (box[3] - box[1]) / 600
    how = {"labels": batch["label"], "batch_size": 2, "box": box, "lam_adjusted": lam}
    theirs = v2.CutMix(num_classes=3)
    torch.testing.assert_close(mixed["image"], theirs.transform(batch["image"], how))
    torch.testing.assert_close(mixed["label"], theirs.transform(batch["label"], how))


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("shape", [(32, 32), (25, 60)])
def test_a_padded_crop_is_torchvisions(shape: tuple[int, int], mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    fill: Any = 7 if mode == "constant" else "reflect"
    transform = shardio.RandomCrop(32, padding=4, fill=fill, flip=0)
    theirs = functional.pad(image, [4, 4, 4, 4], fill=7, padding_mode=mode)
    for seed in range(50):
        uniforms = np.random.default_rng(seed).random(2).tolist()
        crop = transform.crop(*shape, uniforms)
        out = np.zeros((32, 32, 3), np.uint8)
        write_crop(pixels, crop, out)
        top, left = crop.top + crop.window[0] + 4, crop.left + crop.window[1] + 4
        expected = functional.crop(theirs, top, left, 32, 32)
        np.testing.assert_array_equal(out, expected.permute(1, 2, 0))
