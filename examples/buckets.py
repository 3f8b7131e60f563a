"""Train on wide, square and high pictures, each batch of one shape, near the pictures' own.

Bars are drawn across the long side of pictures; a network that sees them uncut counts them.
Usage: python examples/buckets.py [EPOCHS]
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import compress
from typing import Any

import numpy as np
import torch
from torch import nn

import shardio
from shardio import ops

MOST, LONG = 5, (96, 160)  # bars, and pixels of the long side
AREA, STEP = 64 * 64, 16


def draw(count: int) -> Iterator[dict[str, Any]]:
    """Yield samples with the fields png and cls, the number of bars."""
    numbers = np.random.default_rng(0)
    for number in range(count):
        bars = number % (MOST + 1)
        long = int(numbers.integers(*LONG))
        short = int(long * numbers.uniform(0.5, 1))
        picture = numbers.integers(0, 90, (short, long, 3), np.uint8)
        step = long // (MOST + 1)
        for place in numbers.permutation(MOST)[:bars].tolist():
            x = step // 2 + place * step + int(numbers.integers(step // 3))
            picture[:, x : x + step // 3] += 140
        if numbers.random() < 0.5:
            picture = np.ascontiguousarray(picture.transpose(1, 0, 2))
        yield {"png": picture, "cls": bars}


def train(epochs: int) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 5, 2, 2), nn.BatchNorm2d(after), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Conv2d(32, 8, 1), nn.ReLU())
    classify = nn.Linear(8, MOST + 1)
    optimizer = torch.optim.AdamW([*network.parameters(), *classify.parameters()], lr=3e-3)
    normalize = shardio.Normalize()
    with tempfile.TemporaryDirectory() as folder:
        shardio.pack(draw(1200), folder, shards=4)
        train_set, held_out = shardio.ShardDataset(
            folder, transform=shardio.Buckets(AREA, step=STEP), shuffle=True, batch_size=16
        ).split(0.8)
        centre = shardio.Buckets(AREA, step=STEP, place="center")
        held_out = held_out.replace(transform=centre, shuffle=False)
        for epoch in range(epochs):
            shapes, keys, accuracy = Counter[str](), list[str](), shardio.MaskedMean()
            for part in (train_set, held_out):
                for batch in shardio.Loader(part, threads=2):
                    labels, valid = batch["label"], batch["valid"]
                    with torch.set_grad_enabled(part is train_set):
                        # As many pixels of bars in a picture of any shape are as many bars.
                        logits = classify(network(normalize(batch["image"])).sum((2, 3)) / 100)
                    if part is train_set:
                        _, _, height, width = batch["image"].shape
                        shapes[f"{height} × {width}"] += int(valid.sum())
                        keys += compress(batch["__key__"], valid)
                        loss = ops.softmax_cross_entropy(logits, labels, valid=valid)
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
                    else:
                        accuracy.add(logits.argmax(1) == labels, valid)
            print(
                f"epoch {epoch}: {len(keys)} samples, {len({*keys})} different, of "
                f"{len(shapes)} shapes; {accuracy.result():.1%} of {accuracy.count()} counted right"
            )
        print(", ".join(f"{count} of {shape}" for shape, count in sorted(shapes.items())))


if __name__ == "__main__":
    number = sys.argv[1] if sys.argv[1:] else "6"
    train(int(number) if number.isdecimal() else sys.exit("give EPOCHS in digits"))
