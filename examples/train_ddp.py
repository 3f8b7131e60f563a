"""Train on several processes, be killed at any moment, and resume with more or fewer.

torchrun --nproc-per-node 2 examples/train_ddp.py FOLDER [EPOCHS]   trains, with its files in FOLDER
torchrun --nproc-per-node 3 examples/train_ddp.py FOLDER [EPOCHS]   resumes where that one stopped
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import cv2
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader

import shardio
from shardio import ops

try:
    from sklearn.datasets import load_digits
except ModuleNotFoundError:
    sys.exit("this example needs scikit-learn: pip install scikit-learn")

GLOBAL_BATCH = 48  # divides among 1, 2, 3, 4, 6, 8 … ranks; every one gives the same batches
STEPS_BETWEEN_SAVES = 5


def make_shards(folder: Path) -> None:
    """Write the digits as 7 shards, which the ranks need not divide; every fifth is held out."""
    for number, (image, label) in enumerate(zip(*load_digits(return_X_y=True), strict=True)):
        path = folder / "images" / ("train" if number % 5 else "test") / f"{label}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), (image.reshape(8, 8) * (255 / 16)).astype("uint8"))
    for part in ("train", "test"):
        if not (folder / part / "shardio.json").exists():  # a pack that was killed is done again
            shardio.pack(folder / "images" / part, folder / part, shards=7)


def save(path: Path, network: nn.Module, optimizer: Any, data: dict[str, Any]) -> None:
    """Write a checkpoint, so that a kill leaves either the old or the new one."""
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "data": data}
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


@torch.no_grad()
def accuracy(network: nn.Module, folder: Path) -> float:
    """Compute the accuracy on held-out digits over all ranks, the same for any number of ranks."""
    mean = shardio.MaskedMean()
    dataset = shardio.ShardDataset(folder / "test", batch_size=64, tail="even")
    for batch in DataLoader(dataset, batch_size=None):
        mean.add(network(batch["image"].float() / 255).argmax(1) == batch["label"], batch["valid"])
    return mean.result()


def train(folder: Path, epochs: int = 3) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if rank == 0:
        make_shards(folder)
    dist.barrier()
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(3 * 8 * 8, 256), nn.ReLU(), nn.Linear(256, 10)
    network = nn.parallel.DistributedDataParallel(nn.Sequential(*layers))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    dataset = shardio.ShardDataset(folder / "train", shuffle=True, global_batch_size=GLOBAL_BATCH)
    if (checkpoint := folder / "checkpoint.pt").exists():
        saved = torch.load(checkpoint, weights_only=True)
        network.module.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        dataset.load_state_dict(saved["data"])
    loader = DataLoader(dataset, batch_size=None, num_workers=1)
    log = (folder / f"batches-of-{ranks}-{rank}.jsonl").open("a", buffering=1)
    for epoch in range(dataset.state_dict()["epoch"], epochs):  # from 0, or where it was killed
        for batch in loader:
            log.write(json.dumps([epoch, batch["__step__"], batch["__key__"]]) + "\n")
            logits, valid = network(batch["image"].float() / 255), batch["valid"]
            count = valid.sum()
            dist.all_reduce(count)  # the mean is over all ranks' valid samples, not each rank's
            loss = ops.softmax_cross_entropy(logits, batch["label"], valid=valid, reduction="sum")
            optimizer.zero_grad()
            (loss / count * ranks).backward()  # times ranks: DDP averages over them
            optimizer.step()
            state = dataset.state_dict(batch)  # after it, however far the worker has read ahead
            if rank == 0 and state["step"] % STEPS_BETWEEN_SAVES == 0:  # 0 after the last
                save(checkpoint, network.module, optimizer, state)
        held_out = accuracy(network, folder)
        if rank == 0:
            print(f"epoch {epoch}: held-out accuracy {held_out:.2%}", flush=True)


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[2:] if word.isdecimal()]
    if len(sys.argv) != 2 + len(numbers) or "RANK" not in os.environ:
        sys.exit("give torchrun this file and a folder for its files, as its first lines show")
    dist.init_process_group("gloo")
    train(Path(sys.argv[1]), *numbers)
    dist.destroy_process_group()
