"""Train a small network on scikit-learn's handwritten digits: from image files to accuracy.

Usage: python examples/train.py [EPOCHS]
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import nn
from torch.utils.data import DataLoader

import shardio
from shardio import ops

try:
    from sklearn.datasets import load_digits
except ModuleNotFoundError:
    sys.exit("this example needs scikit-learn: pip install scikit-learn")


class Network(nn.Module):
    """Network that merges image features on a grid with the amount of ink in each quadrant."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.merge = ops.Merge([64, 4], 32, activation=torch.relu)
        self.classify = nn.Linear(4 * 4 * 32, 10)

    def forward(self, images: torch.Tensor) -> Any:
        """Map uint8 [B, 3, 8, 8] to logits, float32 [B, 10]."""
        gray = images[:, :1].float() / 255
        grid = self.features(gray).permute(0, 2, 3, 1)  # [B, 4, 4, 64]
        ink = nn.functional.adaptive_avg_pool2d(gray, 2).reshape(-1, 1, 1, 4)
        return self.classify(self.merge(grid, ink).flatten(1))  # ink is broadcast over the grid


def make_loaders(folder: Path) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Write, pack and open the digits; every fifth digit is held out."""
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / "images" / ("train" if number % 5 else "test") / f"{label}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), (image * (255 / 16)).astype("uint8"))
    loaders = []
    for part in ("train", "test"):
        shardio.pack(folder / "images" / part, folder / part, shards=8)
        dataset = shardio.ShardDataset(folder / part, shuffle=part == "train", batch_size=32)
        loaders.append(DataLoader(dataset, batch_size=None))  # num_workers=… for larger images
    return loaders[0], loaders[1]


@torch.no_grad()
def accuracy(network: Network, loader: DataLoader[Any]) -> float:
    mean = shardio.MaskedMean()
    for batch in loader:
        mean.add(network(batch["image"]).argmax(1) == batch["label"], batch["valid"])  # not pads
    return mean.result()


def train(epochs: int) -> None:
    torch.manual_seed(0)
    network = Network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    with tempfile.TemporaryDirectory() as folder:
        train_loader, test_loader = make_loaders(Path(folder))
        for epoch in range(epochs):
            losses = scores = waited = count = 0.0
            start = asked = time.perf_counter()
            for batch in train_loader:
                waited += time.perf_counter() - asked
                logits, labels, valid = network(batch["image"]), batch["label"], batch["valid"]
                loss = ops.softmax_cross_entropy(logits, labels, valid=valid)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                true_class = ops.batch_gather(ops.softmax(logits.detach()), labels)[valid]
                losses += loss.item() * len(true_class)
                scores += true_class.sum().item()
                count += len(true_class)
                asked = time.perf_counter()
            seconds = asked - start
            print(
                f"epoch {epoch:2}: loss {losses / count:.4f}, true class {scores / count:.1%}, "
                f"held-out accuracy {accuracy(network, test_loader):.2%}, "
                f"{count / seconds:,.0f} img/s, {waited / seconds:.0%} waiting for data"
            )


if __name__ == "__main__":
    number = sys.argv[1] if sys.argv[1:] else "15"
    train(int(number) if number.isdecimal() else sys.exit("give EPOCHS in digits"))
