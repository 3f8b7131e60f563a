"""Train a small network to measure depth with two eyes: left, right and depth, cropped as one.

Boards are drawn at several distances, as cameras see them. Depth is a PNG of 16 bits, as KITTI's:
256 steps a metre, and 0 where nothing was measured. Usage: python examples/stereo.py [EPOCHS]
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

HEIGHT, WIDTH, SIDE = 80, 112, 64
NEAREST, FARTHEST, FOCAL = 2.0, 16.0, 16.0  # metres, metres, pixels times metres of baseline
MOST = int(FOCAL / NEAREST)  # the largest disparity, in pixels


def draw(count: int) -> Iterator[dict[str, Any]]:
    """Yield samples with the fields left.png, right.png and depth.png."""
    numbers = np.random.default_rng(0)
    for _ in range(count):
        left = numbers.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        right, depth = np.roll(left, -1, 1), np.full((HEIGHT, WIDTH), FARTHEST)
        for disparity in sorted(numbers.integers(2, MOST + 1, 4).tolist()):  # the nearest hides
            height, width = numbers.integers(20, 50, 2).tolist()
            y, x = (int(numbers.integers(n)) for n in (HEIGHT - height, WIDTH - width - MOST))
            board = numbers.integers(0, 256, (height, width, 3), np.uint8)
            rows, columns = slice(y, y + height), slice(x + MOST, x + MOST + width)
            left[rows, columns], depth[rows, columns] = board, FOCAL / disparity
            right[rows, x + MOST - disparity : x + MOST - disparity + width] = board
        depth[numbers.random(depth.shape) < 0.3] = 0  # as a lidar, which does not see everything
        png = cv2.imencode(".png", (depth * 256).round().astype(np.uint16))[1].tobytes()
        yield {"left.png": left, "right.png": right, "depth.png": png}


class Network(nn.Module):
    """Features of both pictures, how alike they are at each disparity, and what that means."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))
        self.choose = nn.Sequential(
            nn.Conv2d(MOST + 1, 32, 5, padding=2), nn.ReLU(), nn.Conv2d(32, MOST + 1, 5, padding=2)
        )

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Map two float32 [B, 3, H, W] to disparity in pixels, [B, 1, H, W]."""
        one, other = self.features(left), self.features(right)
        alike = [(one * other.roll(shift, 3)).mean(1) for shift in range(MOST + 1)]
        share = shardio.ops.softmax(self.choose(torch.stack(alike, 1)), dim=1)
        return (share * torch.arange(MOST + 1.0)[:, None, None]).sum(1, keepdim=True)


def train(epochs: int) -> None:
    torch.manual_seed(0)
    network, normalize = Network(), shardio.Normalize()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    with tempfile.TemporaryDirectory() as folder:
        shardio.pack(draw(160), folder, shards=4)
        depth = shardio.Depth("depth.png", scale=1 / 256)
        train_set, held_out = shardio.ShardDataset(
            folder,
            fields={"left": "left.png", "right": "right.png", "depth": depth},
            transform=shardio.RandomCrop(SIDE, flip=0),  # mirrored, left would be right
            shuffle=True,
            batch_size=8,
        ).split(0.8)
        whole = shardio.CenterCrop(SIDE, resize=HEIGHT)
        held_out = held_out.replace(transform=whole, shuffle=False)
        for epoch in range(epochs):
            metres, guess = shardio.MaskedMean(), shardio.MaskedMean()
            for part in (train_set, held_out):
                for batch in shardio.Loader(part, threads=2):
                    depth, known = batch["depth"], batch["depth"] > 0
                    known &= batch["valid"][:, None, None, None]
                    with torch.set_grad_enabled(part is train_set):
                        found = network(normalize(batch["left"]), normalize(batch["right"]))
                    if part is train_set:
                        loss = nn.functional.smooth_l1_loss(found[known], FOCAL / depth[known])
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
                    else:
                        off = (FOCAL / found.clamp(min=1) - depth).abs()
                        metres.add(off.flatten(), known.flatten())
                        guess.add((FARTHEST - depth).abs().flatten(), known.flatten())
            print(f"epoch {epoch}: {metres.result():.2f} m off, {guess.result():.2f} m by guessing")


if __name__ == "__main__":
    number = sys.argv[1] if sys.argv[1:] else "5"
    train(int(number) if number.isdecimal() else sys.exit("give EPOCHS in digits"))
