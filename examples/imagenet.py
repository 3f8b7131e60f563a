"""From a folder of images to a trained ResNet: mixed precision, exact validation, resuming.

    python examples/imagenet.py IMAGES DATA [EPOCHS [SIDE]]

IMAGES has a folder a class, or train and val with these. DATA gets the shards, and the checkpoint.
"""

import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import shardio

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MIXED = DEVICE == "cuda" and torch.cuda.is_bf16_supported()
normalize = shardio.Normalize()


class Residual(nn.Sequential):
    """Layers beside a shortcut."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, width, H, W] to the same shape."""
        return torch.relu(x + super().forward(x))  # type: ignore[no-untyped-call]  # torch's


def pack(images: Path, data: Path) -> None:
    """Pack what is not packed yet; one image in ten is held out, unless there is a folder val."""
    for part in [name for name in ("train", "val") if (images / name).is_dir()] or [""]:
        if not (data / (part or "val") / "shardio.json").exists():
            split: Any = {} if part else {"split": {"train": 0.9, "val": 0.1}, "stratify": True}
            done = shardio.pack(images / part, data / part, shards=16, on_error="skip", **split)
            print(f"packed {done.samples} images; left out {done.skipped}, see skipped.jsonl")


def validate(network: nn.Module, loader: shardio.Loader) -> str:
    """Measure the accuracy; samples that pad the last batch count for nothing."""
    network.eval()
    accuracy = shardio.MaskedMean()
    for batch in loader:
        with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16, enabled=MIXED):
            found = network(normalize(batch["image"])).argmax(1)
        accuracy.add(found == batch["label"], batch["valid"])
    return f"{accuracy.result():.2%} of {accuracy.count()} held-out images"


def train(data: Path, epochs: int = 5, side: int = 224) -> None:
    crop = shardio.RandomResizedCrop(side, scale=(0.35, 1), flip=0.5)
    train_set = shardio.ShardDataset(data / "train", shuffle=True, transform=crop, batch_size=64)
    whole = shardio.CenterCrop(side, resize=side * 8 // 7)
    held_out = shardio.ShardDataset(data / "val", transform=whole, batch_size=64)
    loader, test_loader = (shardio.Loader(one, device=DEVICE) for one in (train_set, held_out))
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in ((3, 32), (32, 64), (64, 128), (128, 256)):
        layers += nn.Conv2d(a, b, 3, 2, 1), Residual(nn.BatchNorm2d(b), nn.Conv2d(b, b, 3, 1, 1))
    layers += nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, len(train_set.classes or ()))
    channels_last: Any = {"memory_format": torch.channels_last}  # as batches are
    network = nn.Sequential(*layers).to(DEVICE, **channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    parts: list[Any] = [loader, network, optimizer]
    saved, asked = data / "checkpoint.pt", list[int]()
    if saved.exists():
        for part, state in zip(parts, torch.load(saved, DEVICE, weights_only=True), strict=True):
            part.load_state_dict(state)
        print("resuming at epoch {epoch}, step {step}".format(**loader.state_dict()))
    signal.signal(signal.SIGINT, lambda number, _: asked.append(number))  # a step is not cut short
    for epoch in range(loader.state_dict()["epoch"], epochs):  # from 0, or where it was stopped
        network.train()
        for batch in loader:
            done = (epoch + batch["__step__"] / len(loader)) / epochs  # of all steps
            optimizer.param_groups[0]["lr"] = 3e-3 * min(4 * done + 0.04, 1 - done)  # up, then down
            with torch.autocast(DEVICE, torch.bfloat16, enabled=MIXED):
                logits = network(normalize(batch["image"]))
            loss = shardio.ops.softmax_cross_entropy(logits, batch["label"], valid=batch["valid"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if asked or loader.state_dict()["step"] % 10 == 0:  # 0 after the last
                torch.save([part.state_dict() for part in parts], saved.with_suffix(".new"))
                saved.with_suffix(".new").replace(saved)
            if asked:
                raise KeyboardInterrupt
        print(f"epoch {epoch}: last loss {loss.item():.3f}, {validate(network, test_loader)}")
    print(f"trained for {loader.state_dict()['epoch']} epochs, see {saved}")


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[3:5] if word.isdecimal()]
    if len(sys.argv) != 3 + len(numbers) or not Path(sys.argv[1]).is_dir():
        sys.exit("give a folder of images and one to pack into: IMAGES DATA [EPOCHS [SIDE]]")
    try:
        pack(Path(sys.argv[1]), Path(sys.argv[2]))
        train(Path(sys.argv[2]), *numbers)
    except (shardio.ShardioError, KeyboardInterrupt) as error:
        sys.exit(str(error) or "stopped; the same command goes on from here")
