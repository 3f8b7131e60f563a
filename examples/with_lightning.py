"""Train under Lightning, each sample once an epoch on any number of processes, and resume.

    python tools/make_digits.py digits/images                     # or images of your own
    shardio pack digits/images digits --shards 4 --split train=0.8,val=0.2
    python examples/with_lightning.py digits [EPOCHS [PROCESSES]]

A checkpoint holds the position of a shardio.Loader. So a run that was killed goes on in the middle
of the epoch.
"""

import sys
from itertools import chain, compress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import shardio
from shardio import ops

try:
    from lightning import LightningModule, Trainer, seed_everything
    from lightning.pytorch.callbacks import ModelCheckpoint
except ModuleNotFoundError:
    sys.exit("this example needs lightning: pip install lightning")

SIDE = 8


class Classifier(LightningModule):
    """Small network that counts the samples that it gets."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers = nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 256), nn.ReLU()
        self.network = nn.Sequential(*layers, nn.Linear(256, classes))
        self.accuracy = shardio.MaskedMean()
        self.keys: list[str] = []

    def training_step(self, batch: dict[str, Any], _: int) -> torch.Tensor:
        """Return the mean loss of the valid samples."""
        self.keys += compress(batch["__key__"], batch["valid"])
        logits = self.network(shardio.to_float(batch["image"]))
        return ops.softmax_cross_entropy(logits, batch["label"], valid=batch["valid"])

    def validation_step(self, batch: dict[str, Any], _: int) -> None:
        """Add the valid samples to the accuracy."""
        found = self.network(shardio.to_float(batch["image"])).argmax(1)
        self.accuracy.add(found == batch["label"], batch["valid"])

    def on_train_epoch_end(self) -> None:
        """Print what all processes have seen."""
        lists: list[list[str]] = [[]] * self.trainer.world_size
        dist.all_gather_object(lists, self.keys)
        keys = [*chain(*lists)]
        accuracy, count = self.accuracy.result(), self.accuracy.count()
        self.print(
            f"epoch {self.current_epoch}: {len(keys)} samples, {len({*keys})} different; "
            f"held-out accuracy {accuracy:.2%} of {count}"
        )
        self.accuracy, self.keys = shardio.MaskedMean(), []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def train(folder: Path, epochs: int = 5, processes: int = 1) -> None:
    seed_everything(0)
    dataset = shardio.ShardDataset(
        folder / "train",
        transform=shardio.RandomResizedCrop(SIDE, scale=(0.8, 1), flip=0),
        shuffle=True,
        global_batch_size=32,
        tail="even",
    )
    whole = shardio.Resize((SIDE, SIDE))
    held_out = shardio.ShardDataset(folder / "val", transform=whole, batch_size=64, tail="even")
    trainer = Trainer(
        strategy="ddp",
        devices=processes,
        max_epochs=epochs,
        num_sanity_val_steps=0,
        callbacks=[ModelCheckpoint(folder / "lightning", save_last=True, every_n_train_steps=10)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loaders = shardio.Loader(dataset), shardio.Loader(held_out)
    trainer.fit(Classifier(len(dataset.classes or ())), *loaders, ckpt_path="last")
    dist.destroy_process_group()  # whose threads may else abort a process that ends


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[2:] if word.isdecimal()]
    if len(sys.argv) != 2 + len(numbers) or not Path(sys.argv[1], "val/shardio.json").exists():
        sys.exit("give a folder with the packed train and val, as the first lines of this file do")
    train(Path(sys.argv[1]), *numbers)
