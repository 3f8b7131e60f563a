"""Train a small network to segment shapes: photos and palette masks, cropped as one.

Pictures of bright and dark discs are drawn, with masks as Pascal VOC has them: PNGs whose palette
is for people and whose indices are the classes. Usage: python examples/segmentation.py [EPOCHS]
"""

import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn

import shardio

CLASSES = ["background", "bright", "dark"]
PALETTE = [0, 0, 0, 224, 32, 32, 32, 32, 224]


def draw(folder: Path, count: int) -> None:
    """Write pictures `7.jpg` beside masks `7.mask.png`."""
    numbers = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        height, width = numbers.integers(80, 120, 2).tolist()
        picture, mask = np.full((height, width, 3), 128, np.uint8), np.zeros((height, width), "u1")
        for _ in range(4):
            label, radius = int(numbers.integers(1, 3)), int(numbers.integers(8, 20))
            at = int(numbers.integers(width)), int(numbers.integers(height))
            cv2.circle(picture, at, radius, [(210,) * 3, (50,) * 3][label - 1], -1)
            cv2.circle(mask, at, radius, label, -1)
        noise = numbers.integers(0, 40, picture.shape, np.uint8)
        cv2.imwrite(str(folder / f"{number}.jpg"), picture + noise)
        indices = Image.fromarray(mask)
        indices.putpalette(PALETTE)
        indices.save(folder / f"{number}.mask.png")


def train(epochs: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 5, padding=2), nn.ReLU(),
        nn.Conv2d(16, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, len(CLASSES), 1),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    normalize = shardio.Normalize()
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder, "images"), 96)
        shardio.pack(Path(folder, "images"), Path(folder, "seg"), shards=4, fields="jpg,mask.png")
        dataset = shardio.ShardDataset(
            Path(folder, "seg"),
            fields={"image": "jpg", "mask": shardio.Mask("mask.png")},
            transform=shardio.RandomResizedCrop(48, scale=(0.3, 1)),
            shuffle=True,
            batch_size=8,
        )
        for epoch in range(epochs):
            inside, outside = torch.zeros(2, len(CLASSES))
            for batch in shardio.Loader(dataset, threads=2):
                masks = batch["mask"].long()  # uint8 [8, 48, 48] with 0, 1 and 2
                logits = network(normalize(batch["image"]))
                loss = nn.functional.cross_entropy(logits, masks)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                found, valid = logits.argmax(1), batch["valid"][:, None, None]
                for label in range(len(CLASSES)):
                    ours, true = (found == label) & valid, (masks == label) & valid
                    inside[label] += (ours & true).sum()
                    outside[label] += (ours | true).sum()
            shares = zip(CLASSES, inside / outside, strict=True)
            said = ", ".join(f"{name} {share:.1%}" for name, share in shares)
            print(f"epoch {epoch}: intersection over union of {said}")


if __name__ == "__main__":
    train(epochs=int(sys.argv[1]) if sys.argv[1:] else 5)
