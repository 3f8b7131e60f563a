"""Train on few digits, with MixUp or CutMix on the device: pictures are mixed, and their labels.

Batches reach the device as uint8 and are mixed there, whole. Usage: python examples/mixing.py
[EPOCHS]
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import shardio
from shardio import ops

try:
    from sklearn.datasets import load_digits
except ModuleNotFoundError:
    sys.exit("this example needs scikit-learn: pip install scikit-learn")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLASSES, FEW = 10, 200
Batch = dict[str, Any]
normalize = shardio.Normalize()


def pack(folder: Path) -> None:
    """Pack the first digits for training and the others for validation."""
    images, labels = load_digits(return_X_y=True)
    samples = [
        {"png": (image.reshape(8, 8, 1) * (255 / 16)).astype("uint8").repeat(3, 2), "cls": label}
        for image, label in zip(images, labels.tolist(), strict=True)
    ]
    shardio.pack(samples[:FEW], folder / "train", shards=2)
    shardio.pack(samples[FEW:], folder / "val", shards=2)


def train(folder: Path, epochs: int, mix: Callable[[Batch], Batch]) -> str:
    """Train a network, and say how good it is, and how sure of what it says."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 4 * 4, 128), nn.ReLU(), nn.Linear(128, CLASSES),
    ).to(DEVICE)  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    dataset = shardio.ShardDataset(folder / "train", shuffle=True, batch_size=40)
    held_out = shardio.ShardDataset(folder / "val", batch_size=100)
    for _ in range(epochs):
        for batch in map(mix, shardio.Loader(dataset, threads=2, device=DEVICE)):
            # Pictures are still uint8; labels are distributions if they are mixed, [B, CLASSES].
            logits = network(normalize(batch["image"]))
            loss = ops.softmax_cross_entropy(logits, batch["label"], valid=batch["valid"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    accuracy, losses = shardio.MaskedMean(), shardio.MaskedMean()
    for batch in shardio.Loader(held_out, threads=2, device=DEVICE):
        labels, valid = batch["label"], batch["valid"]
        with torch.no_grad():
            logits = network(normalize(batch["image"]))
        accuracy.add(logits.argmax(1) == labels, valid)
        losses.add(ops.softmax_cross_entropy(logits, labels, reduction="none"), valid)
    return (
        f"held-out accuracy {accuracy.result():.2%} of {accuracy.count()}, "
        f"held-out loss {losses.result():.3f}"
    )


def compare(epochs: int) -> None:
    mixup, cutmix = shardio.MixUp(CLASSES, 0.4), shardio.CutMix(CLASSES)
    ways: dict[str, Callable[[Batch], Batch]] = {
        "not mixed": lambda batch: batch,
        "MixUp": mixup,
        "CutMix": cutmix,
        "either": shardio.RandomChoice([mixup, cutmix]),
    }
    with tempfile.TemporaryDirectory() as folder:
        pack(Path(folder))
        for name, mix in ways.items():
            print(f"{name}: {train(Path(folder), epochs, mix)}")


if __name__ == "__main__":
    number = sys.argv[1] if sys.argv[1:] else "30"
    compare(int(number) if number.isdecimal() else sys.exit("give EPOCHS in digits"))
