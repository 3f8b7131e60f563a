"""From a folder of images to a trained ResNet: mixed precision, exact validation, resuming.

    python examples/imagenet.py IMAGES DATA [EPOCHS [SIDE]]

IMAGES has a subfolder for each class, or, as ImageNet does, train and val with these. They are
packed into DATA, once. A run that was killed goes on from the checkpoint there.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import shardio

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MIXED = DEVICE == "cuda" and torch.cuda.is_bf16_supported()
normalize = shardio.Normalize()


class Block(nn.Module):
    """Two convolutions beside a shortcut, as in ResNet-18."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after),
        )  # fmt: skip
        self.shortcut = nn.Conv2d(before, after, 1, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, before, H, W] to [B, after, H / 2, W / 2]."""
        return torch.relu(self.layers(x) + self.shortcut(x))


def pack(images: Path, data: Path) -> None:
    """Pack what is not packed yet; one image in ten is held out, unless there is a folder val."""
    given = [part for part in ("train", "val") if (images / part).is_dir()]
    for part in given:
        if not (data / part / "shardio.json").exists():
            shardio.pack(images / part, data / part, shards=16)
    if not given and not (data / "val" / "shardio.json").exists():
        shardio.pack(images, data, shards=16, split={"train": 0.9, "val": 0.1}, stratify=True)


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
    held_out = shardio.ShardDataset(data / "val", transform=whole, batch_size=64, tail="even")
    loader, test_loader = (shardio.Loader(one, device=DEVICE) for one in (train_set, held_out))
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), Block(32, 64), Block(64, 128), Block(128, 256)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, len(train_set.classes or ()))]
    channels_last: Any = {"memory_format": torch.channels_last}  # as batches are
    network = nn.Sequential(*layers).to(DEVICE, **channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, epochs * len(loader))
    parts: list[Any] = [network, optimizer, schedule, loader]
    checkpoint = data / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=DEVICE)
        for part, state in zip(parts, saved, strict=True):
            part.load_state_dict(state)
    for epoch in range(loader.state_dict()["epoch"], epochs):  # from 0, or where it was killed
        network.train()
        for batch in loader:
            with torch.autocast(DEVICE, torch.bfloat16, enabled=MIXED):
                logits = network(normalize(batch["image"]))
            loss = shardio.ops.softmax_cross_entropy(logits, batch["label"], valid=batch["valid"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if loader.state_dict()["step"] % 10 == 0:  # 0 after the last
                torch.save([part.state_dict() for part in parts], checkpoint.with_suffix(".new"))
                checkpoint.with_suffix(".new").replace(checkpoint)
        print(f"epoch {epoch}: last loss {loss.item():.3f}, {validate(network, test_loader)}")


if __name__ == "__main__":
    if len(sys.argv) < 3 or not Path(sys.argv[1]).is_dir():
        sys.exit("give a folder of images and one to pack them into: imagenet.py IMAGES DATA")
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
    train(Path(sys.argv[2]), *map(int, sys.argv[3:]))
