"""Train on rare and frequent classes: as they are, with class weights, with balanced sampling.

Noisy pictures of three classes are drawn, 90, 9 and 1 in a hundred; those held out are as many of
each. Usage: python examples/imbalanced.py [EPOCHS]
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

import shardio
from shardio import ops

SIDE, SHARES = 16, {"disc": 90, "square": 9, "cross": 1}


def draw(counts: list[int], seed: int) -> Iterator[dict[str, Any]]:
    """Yield samples with the fields png and cls."""
    numbers = np.random.default_rng(seed)
    for label in np.repeat(range(len(counts)), counts).tolist():
        shape = np.zeros((SIDE, SIDE, 3), np.uint8)
        x, y = numbers.integers(5, SIDE - 5, 2).tolist()
        if label == 0:
            cv2.circle(shape, (x, y), 4, (120,) * 3, -1)
        elif label == 1:
            cv2.rectangle(shape, (x - 4, y - 4), (x + 4, y + 4), (120,) * 3, -1)
        else:
            cv2.drawMarker(shape, (x, y), (120,) * 3, cv2.MARKER_CROSS, 9, 3)
        yield {"png": shape + numbers.integers(0, 136, shape.shape, np.uint8), "cls": label}


def recalls(network: nn.Module, held_out: shardio.ShardDataset) -> list[float]:
    """Compute for each class the share of its samples that the network finds."""
    means = [shardio.MaskedMean() for _ in SHARES]
    for batch in shardio.Loader(held_out, threads=2):
        with torch.no_grad():
            right = network(shardio.to_float(batch["image"])).argmax(1) == batch["label"]
        for label, mean in enumerate(means):
            mean.add(right, batch["valid"] & (batch["label"] == label))
    return [mean.result() for mean in means]


def train(dataset: shardio.ShardDataset, epochs: int, weights: torch.Tensor) -> nn.Module:
    """Train a network whose loss counts each class by its weight."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * (SIDE // 4) ** 2, len(SHARES)),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    seen = Counter[int]()
    for _ in range(epochs):
        for batch in shardio.Loader(dataset, threads=2):
            logits, labels = network(shardio.to_float(batch["image"])), batch["label"]
            losses = ops.softmax_cross_entropy(logits, labels, reduction="none")
            loss = (losses * weights[labels])[batch["valid"]].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.update(labels[batch["valid"]].tolist())
    print("samples an epoch:", [seen[label] // epochs for label in range(len(SHARES))], end="; ")
    return network


def compare(epochs: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, counts = Path(place), [20 * share for share in SHARES.values()]
        shardio.pack(draw(counts, 0), folder / "train", shards=4)
        shardio.pack(draw([100] * len(SHARES), 1), folder / "val", shards=1)
        dataset = shardio.ShardDataset(folder / "train", shuffle=True, batch_size=50)
        balanced = dataset.replace(weights="balanced")
        held_out = shardio.ShardDataset(folder / "val", batch_size=50)
        equal = torch.ones(len(SHARES))
        inverse = sum(counts) / len(counts) / torch.tensor(counts)  # of mean 1 over all samples
        ways = {
            "as they are": (dataset, equal),
            "class weights": (dataset, inverse),
            "balanced sampling": (balanced, equal),
        }
        for name, (way, weights) in ways.items():
            found = recalls(train(way, epochs, weights), held_out)
            said = ", ".join(f"{a} {b:.0%}" for a, b in zip(SHARES, found, strict=True))
            print(f"{name}: found {said}; mean {sum(found) / len(found):.1%}")


if __name__ == "__main__":
    number = sys.argv[1] if sys.argv[1:] else "5"
    compare(int(number) if number.isdecimal() else sys.exit("give EPOCHS in digits"))
