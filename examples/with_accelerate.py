"""Train under accelerate, each sample once an epoch on any number of processes; resume.

    python tools/make_digits.py digits/images                     # or images of your own
    shardio pack digits/images digits --shards 4 --split train=0.8,val=0.2
    accelerate launch --num_processes 2 examples/with_accelerate.py digits [EPOCHS]

shardio divides the samples among the processes. accelerate would divide those of a DataLoader
again, and leaves a shardio.Loader as it is. A run that was killed goes on after its last epoch.
"""

import sys
from itertools import compress
from pathlib import Path

import torch
from torch import nn

import shardio
from shardio import ops

try:
    from accelerate import Accelerator
    from accelerate.utils import gather_object
except ModuleNotFoundError:
    sys.exit("this example needs accelerate: pip install accelerate")

SIDE = 8


def train(folder: Path, epochs: int = 5) -> None:
    accelerator = Accelerator()
    dataset = shardio.ShardDataset(
        folder / "train",
        transform=shardio.RandomResizedCrop(SIDE, scale=(0.8, 1), flip=0),
        shuffle=True,
        global_batch_size=32,
        tail="even",
    )
    held_out = shardio.ShardDataset(
        folder / "val", transform=shardio.Resize((SIDE, SIDE)), batch_size=64, tail="even"
    )
    loader = shardio.Loader(dataset, device=accelerator.device)
    test_loader = shardio.Loader(held_out, device=accelerator.device)
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 256), nn.ReLU()
    network = nn.Sequential(*layers, nn.Linear(256, len(dataset.classes or ())))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    network, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    accelerator.register_for_checkpointing(loader)
    checkpoint = folder / "accelerate"
    if checkpoint.exists():
        accelerator.load_state(str(checkpoint))
    for epoch in range(loader.state_dict()["epoch"], epochs):  # from 0, or where it was killed
        keys: list[str] = []
        for batch in loader:
            logits = network(shardio.to_float(batch["image"]))
            loss = ops.softmax_cross_entropy(logits, batch["label"], valid=batch["valid"])
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            keys += compress(batch["__key__"], batch["valid"])
        accelerator.save_state(str(checkpoint))
        accuracy = shardio.MaskedMean()
        for batch in test_loader:
            with torch.no_grad():
                found = network(shardio.to_float(batch["image"])).argmax(1)
            accuracy.add(found == batch["label"], batch["valid"])
        trained, result, count = gather_object(keys), accuracy.result(), accuracy.count()
        accelerator.print(
            f"epoch {epoch}: {len(trained)} samples, {len({*trained})} different; "
            f"held-out accuracy {result:.2%} of {count}"
        )
    accelerator.end_training()


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[2:] if word.isdecimal()]
    if len(sys.argv) != 2 + len(numbers) or not Path(sys.argv[1], "val/shardio.json").exists():
        sys.exit("give a folder with the packed train and val, as the first lines of this file do")
    train(Path(sys.argv[1]), *numbers)
