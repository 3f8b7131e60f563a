"""Train a small network to find a square: photos and boxes, resized as one.

A network says of each cell of a grid whether it has a centre: python examples/detection.py [EPOCHS]
"""

import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

import shardio
from shardio import ops

SIDE, CELL = 64, 8


def draw(count: int) -> Iterator[dict[str, Any]]:
    """Yield samples with the fields png and json."""
    numbers = np.random.default_rng(0)
    for _ in range(count):
        height, width = numbers.integers(150, 250, 2).tolist()
        picture, boxes = numbers.integers(0, 90, (height, width, 3), np.uint8), []
        for side in numbers.integers(24, 60, numbers.integers(1, 4)).tolist():
            x, y = int(numbers.integers(width - side)), int(numbers.integers(height - side))
            picture[y : y + side, x : x + side] = numbers.integers(140, 256, 3)
            boxes.append([x, y, side, side])
        yield {"png": picture, "json": {"boxes": boxes, "labels": [1] * len(boxes)}}


def centres(targets: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Return which cells of the grid have a centre, float32 [B, n, n].

    The targets are a list of B dictionaries with boxes, float32 [count, 4], and labels.
    """
    has = torch.zeros(len(targets), SIDE // CELL, SIDE // CELL)
    for number, target in enumerate(targets):
        for left, top, right, bottom in target["boxes"].tolist():
            has[number, int((top + bottom) / 2 // CELL), int((left + right) / 2 // CELL)] = 1
    return has


def train(epochs: int) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 1, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    with tempfile.TemporaryDirectory() as folder:
        shardio.pack(draw(200), folder, shards=4)
        target = shardio.Boxes("json", format="xywh", also=["labels"])
        dataset = shardio.ShardDataset(
            folder,
            fields={"image": "png", "target": target},
            transform=shardio.Resize((SIDE, SIDE), flip=0.5),
            shuffle=True,
            batch_size=20,
        )
        for epoch in range(epochs):
            right = total = 0
            for batch in shardio.Loader(dataset, threads=2):
                valid, has = batch["valid"], centres(batch["target"])
                found = network(shardio.to_float(batch["image"]))[:, 0]
                loss = ops.sigmoid_cross_entropy(found, has, valid=valid)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                ours, true = found[valid] > 0, has[valid] > 0
                right += int((ours & true).sum())
                total += int((ours | true).sum())
            print(f"epoch {epoch}: {right / total:.1%} of all centres, true or found, are both")


if __name__ == "__main__":
    number = (*sys.argv, "8")[1]
    train(int(number) if number.isdecimal() else sys.exit("give EPOCHS in digits"))
