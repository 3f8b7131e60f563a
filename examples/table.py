"""Train on a table: several labels and a number for each picture, from columns of a CSV file.

Pictures of discs are drawn. The table says of each which colours it has, in a column of 0 and 1 for
each colour, and how much of it they cover. Usage: python examples/table.py [EPOCHS]
"""

import csv
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

import shardio
from shardio import ops

COLOURS = {"red": (40, 40, 220), "green": (60, 200, 40), "blue": (230, 80, 50)}  # as OpenCV: BGR
SIDE = 32


def draw(folder: Path, count: int) -> Path:
    """Write pictures and their table, and return the table's path."""
    numbers = np.random.default_rng(0)
    with (folder / "train.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", *COLOURS, "covered"])
        for number in range(count):
            picture = numbers.integers(0, 60, (SIDE, SIDE, 3), np.uint8)
            for _ in range(numbers.integers(0, 4)):
                colour = [*COLOURS][numbers.integers(len(COLOURS))]
                place, radius = numbers.integers(SIDE, size=2).tolist(), numbers.integers(3, 9)
                cv2.circle(picture, place, int(radius), COLOURS[colour], -1)
            cv2.imwrite(str(folder / f"{number}.png"), picture)
            seen = [(picture == colour).all(2) for colour in COLOURS.values()]  # some are hidden
            covered = f"{10 * np.mean(np.any(seen, 0)):.3f}"  # tenths
            table.writerow([f"{number}.png", *(int(one.any()) for one in seen), covered])
    return folder / "train.csv"


def train(epochs: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, len(COLOURS) + 1),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    normalize = shardio.Normalize()
    with tempfile.TemporaryDirectory() as folder:
        shardio.pack(
            draw(Path(folder), 1000),
            Path(folder, "out"),
            shards=4,
            multilabel_columns=["colours=" + ",".join(COLOURS)],
            target_columns=["covered"],
        )
        train_set, held_out = shardio.ShardDataset(
            Path(folder, "out"),
            fields={"image": "png", "colours": "colours.npy", "covered": "covered.npy"},
            shuffle=True,
            batch_size=25,
        ).split(0.8)
        for epoch in range(epochs):
            for batch in shardio.Loader(train_set, threads=2):
                found = network(normalize(batch["image"]))
                labels, number = found[:, :-1], found[:, -1]
                loss = ops.sigmoid_cross_entropy(labels, batch["colours"], valid=batch["valid"])
                loss = loss + (number - batch["covered"])[batch["valid"]].square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            all_right, error, mean, square = (shardio.MaskedMean() for _ in range(4))
            for batch in shardio.Loader(held_out, threads=2):
                with torch.no_grad():
                    found = network(normalize(batch["image"]))
                right = (found[:, :-1] > 0) == batch["colours"]
                all_right.add(right.all(1), batch["valid"])
                error.add((found[:, -1] - batch["covered"]).square(), batch["valid"])
                mean.add(batch["covered"], batch["valid"])
                square.add(batch["covered"].square(), batch["valid"])
            explained = 1 - error.result() / (square.result() - mean.result() ** 2)
            print(
                f"epoch {epoch}: all colours right of {all_right.result():.1%} of "
                f"{all_right.count()} held-out pictures, {explained:.1%} of the variance explained"
            )


if __name__ == "__main__":
    number = sys.argv[1] if sys.argv[1:] else "5"
    train(int(number) if number.isdecimal() else sys.exit("give EPOCHS in digits"))
