"""Train a ResNet as on ImageNet: RandAugment, MixUp, CutMix, mixed precision, EMA, resuming.

    python tools/make_digits.py digits/images                     # or images of your own
    shardio pack digits/images digits --shards 4 --split train=0.8,val=0.2
    torchrun --nproc-per-node 2 examples/classification.py digits [EPOCHS]

A run that was killed goes on from its checkpoint. RandAugment is left out without torchvision.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import shardio

try:
    from torchvision.transforms import v2
except ImportError:
    v2 = None

LOCAL_RANK = int(os.environ.get("LOCAL_RANK", "0"))
DEVICE = torch.device("cuda", LOCAL_RANK) if torch.cuda.is_available() else torch.device("cpu")
normalize = shardio.Normalize()


class Residual(nn.Module):
    """Layers beside a shortcut; GroupNorm needs no statistics of other processes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.convolution = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, width, H, W] to the same shape."""
        return torch.relu(x + self.convolution(torch.relu(self.norm(x))))


def validate(network: nn.Module, loader: shardio.Loader) -> str:
    """Measure the accuracy over all processes, without the samples that pad the last step."""
    accuracy = shardio.MaskedMean()
    for batch in loader:
        with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16):
            found = network(normalize(batch["image"])).argmax(1)
        accuracy.add(found == batch["label"], batch["valid"])
    return f"{accuracy.result():.2%} of {accuracy.count()} samples"


def train(folder: Path, epochs: int = 5) -> None:
    images = shardio.ShardDataset(folder / "train", shuffle=True, global_batch_size=32, tail="drop",
        transform=shardio.RandomResizedCrop(16, scale=(0.5, 1), flip=0),
        map=v2.RandAugment(magnitude=5) if v2 else None)  # fmt: skip
    whole = shardio.CenterCrop(16, resize=16)
    held_out = shardio.ShardDataset(folder / "val", transform=whole, batch_size=64, tail="even")
    loader = shardio.Loader(images, workers=1, device=DEVICE)  # more workers on more cores
    classes = len(images.classes or ())
    mix = shardio.RandomChoice([shardio.MixUp(classes, 0.2), shardio.CutMix(classes, p=0.5)])
    torch.manual_seed(0)
    sizes = (3, 32, 1), (32, 64, 2), (64, 128, 2)
    layers = [nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), Residual(b)) for a, b, stride in sizes]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes))
    model = nn.parallel.DistributedDataParallel(network.to(DEVICE))
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.97))
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    parts: list[Any] = [network, average, optimizer, loader]
    if (checkpoint := folder / "checkpoint.pt").exists():
        for part, state in zip(parts, torch.load(checkpoint, weights_only=True), strict=True):
            part.load_state_dict(state)
    for epoch in range(loader.state_dict()["epoch"], epochs):  # from 0, or where it was killed
        for batch in map(mix, loader):
            done = (epoch + batch["__step__"] / len(loader)) / epochs  # of all steps
            optimizer.param_groups[0]["lr"] = 5e-3 * min(4 * done + 0.04, 1 - done)  # up, then down
            with torch.autocast(DEVICE.type, torch.bfloat16):
                logits = model(normalize(batch["image"]))
            loss = shardio.ops.softmax_cross_entropy(logits, batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(network)
            if dist.get_rank() == 0 and loader.state_dict()["step"] % 10 == 0:  # 0 after the last
                torch.save([part.state_dict() for part in parts], folder / "new.pt")
                (folder / "new.pt").replace(checkpoint)
        result = validate(average, shardio.Loader(held_out, device=DEVICE))
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: last loss {loss.item():.3f}, held-out accuracy {result}")


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[2:] if word.isdecimal()]
    packed = sys.argv[1:] and Path(sys.argv[1], "val/shardio.json").exists()
    if not packed or len(sys.argv) != 2 + len(numbers) or "RANK" not in os.environ:
        sys.exit("give torchrun this file and a folder with the packed train and val, see its top")
    dist.init_process_group()
    train(Path(sys.argv[1]), *numbers)
    dist.destroy_process_group()
