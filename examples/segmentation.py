"""Train a small network to segment shapes: photos and masks, scaled, padded and cropped as one.

Pictures of bright and dark discs are drawn, with a class number for each pixel. A quarter is held
out, to measure by intersection over union. Usage: python examples/segmentation.py [EPOCHS]
"""

import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

import shardio
from shardio.ops import softmax_cross_entropy

CLASSES = {"background": 128, "bright": 210, "dark": 50}
MARGIN = 255  # class number beside a picture that is smaller than the crop


def draw(count: int) -> Iterator[dict[str, Any]]:
    """Yield samples with the fields png and mask.png."""
    numbers = np.random.default_rng(0)
    for _ in range(count):
        mask = np.zeros(numbers.integers(80, 120, 2), np.uint8)
        for _ in range(4):
            at, radius = numbers.integers(mask.shape[::-1]).tolist(), int(numbers.integers(8, 20))
            cv2.circle(mask, at, radius, int(numbers.integers(1, 3)), -1)
        grays = np.array([*CLASSES.values()], np.uint8)[mask][..., None]
        yield {"png": grays + numbers.integers(0, 40, (*mask.shape, 3), np.uint8), "mask.png": mask}


def train(epochs: int) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 16)):
        layers += [nn.Conv2d(before, after, 5, padding=2), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Conv2d(16, len(CLASSES), 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    normalize = shardio.Normalize()
    with tempfile.TemporaryDirectory() as folder:
        shardio.pack(draw(128), folder, shards=4)
        train_set, held_out = shardio.ShardDataset(
            folder,
            fields={"image": "png", "mask": shardio.Mask("mask.png", fill=MARGIN)},
            transform=shardio.ScaleJitter(64, scale=(0.5, 2)),
            shuffle=True,
            batch_size=8,
            tail="even",
        ).split(0.75)
        held_out = held_out.replace(transform=shardio.Letterbox(64), shuffle=False)
        for epoch in range(epochs):
            for batch in shardio.Loader(train_set, threads=2):
                logits = network(normalize(batch["image"]))  # [8, 3, 64, 64]
                masks, valid = batch["mask"], batch["valid"]  # uint8 [8, 64, 64] and bool [8]
                loss = softmax_cross_entropy(logits, masks, dim=1, ignore_index=MARGIN, valid=valid)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            pairs = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.int64)  # pixels by class
            for batch in shardio.Loader(held_out, threads=2):
                with torch.no_grad():
                    found = network(normalize(batch["image"])).argmax(1)
                counts = (batch["mask"] != MARGIN) & batch["valid"][:, None, None]
                both = len(CLASSES) * batch["mask"][counts].int() + found[counts]
                pairs += both.bincount(minlength=pairs.numel()).reshape(pairs.shape)
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(pairs)
            shares = pairs.diag() / (pairs.sum(0) + pairs.sum(1) - pairs.diag())
            named = zip(CLASSES, shares, strict=True)
            said = ", ".join(f"{name} {share:.1%}" for name, share in named)
            print(f"epoch {epoch}: intersection over union of {said}")


if __name__ == "__main__":
    number = sys.argv[1] if sys.argv[1:] else "5"
    train(int(number) if number.isdecimal() else sys.exit("give EPOCHS in digits"))
