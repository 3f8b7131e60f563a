"""Train on several processes, be killed at any moment, and go on with more or fewer.

torchrun --nproc-per-node 2 examples/train_ddp.py FOLDER [EPOCHS]   makes, trains, saves in FOLDER
torchrun --nproc-per-node 3 examples/train_ddp.py FOLDER [EPOCHS]   goes on where that one stopped
"""

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import shardio
from shardio import ops

GLOBAL_BATCH_SIZE = 48  # divides among 1, 2, 3, 4, 6, 8 … ranks; every one gives the same batches
STEPS_BETWEEN_SAVES = 5


def make_shards(folder: Path) -> None:
    """Write the digits, every fifth held out, as 7 shards: no number of ranks has to divide it."""
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        part = "train" if number % 5 else "test"
        path = folder / "images" / part / f"{label}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), (image * (255 / 16)).astype("uint8"))
    for part in ("train", "test"):
        shardio.pack(folder / "images" / part, folder / part, shards=7)


def make_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 4 * 64, 10),
    )  # fmt: skip


def save(path: Path, network: nn.Module, optimizer: Any, data: dict[str, Any]) -> None:
    """Write a checkpoint so that a kill leaves the old one or the new one."""
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "data": data}
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


@torch.no_grad()
def accuracy(network: nn.Module, folder: Path) -> float:
    """Held-out accuracy over all ranks; padded samples count for nothing."""
    mean = shardio.MaskedMean()
    dataset = shardio.ShardDataset(folder / "test", batch_size=64)
    for batch in DataLoader(dataset, batch_size=None):
        hits = network(batch["image"].float() / 255).argmax(1) == batch["label"]
        mean.add(hits, batch["valid"])
    return mean.result()


def train(folder: Path, epochs: int) -> None:
    rank = dist.get_rank()
    if rank == 0 and not (folder / "test/shardio.json").exists():
        make_shards(folder)
    dist.barrier()
    torch.manual_seed(0)
    network = DistributedDataParallel(make_network())
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    dataset = shardio.ShardDataset(
        folder / "train", shuffle=True, global_batch_size=GLOBAL_BATCH_SIZE
    )
    checkpoint, first_epoch = folder / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        network.module.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        dataset.load_state_dict(saved["data"])
        first_epoch = saved["data"]["epoch"]
    loader = DataLoader(dataset, batch_size=None, num_workers=1)
    with (folder / f"batches-of-{dist.get_world_size()}-{rank}.jsonl").open("a") as log:
        for epoch in range(first_epoch, epochs):
            for batch in loader:
                print(
                    json.dumps([epoch, batch["__step__"], batch["__key__"]]), file=log, flush=True
                )
                logits, valid = network(batch["image"].float() / 255), batch["valid"]
                count = valid.sum()
                dist.all_reduce(count)  # the ranks' gradients are averaged, their pads are unequal
                loss = ops.softmax_cross_entropy(
                    logits, batch["label"], valid=valid, reduction="sum"
                )
                optimizer.zero_grad()
                (loss * dist.get_world_size() / count).backward()
                optimizer.step()
                if rank == 0 and batch["__step__"] % STEPS_BETWEEN_SAVES == 0:
                    state = dataset.state_dict(batch)  # after this batch, whatever was prefetched
                    save(checkpoint, network.module, optimizer, state)
            print_once(f"epoch {epoch}: held-out accuracy {accuracy(network, folder):.2%}")
    dist.barrier()


def print_once(text: str) -> None:
    if dist.get_rank() == 0:
        print(text, flush=True)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    train(Path(sys.argv[1]), epochs=int(sys.argv[2]) if sys.argv[2:] else 3)
    dist.destroy_process_group()
