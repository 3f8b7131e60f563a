"""Train with torchdata's StatefulDataLoader, and resume in the middle of an epoch.

    python tools/make_digits.py digits/images                     # or images of your own
    shardio pack digits/images digits --shards 4 --split train=0.8,val=0.2
    python examples/with_torchdata.py digits [EPOCHS]

The state of the loader has that of each worker, so as many workers take it up. A run that was
killed goes on in the middle of the epoch, with the batches that would have come.
"""

import sys
from itertools import compress
from pathlib import Path

import torch
from torch import nn

import shardio
from shardio import ops

try:
    from torchdata.stateful_dataloader import StatefulDataLoader
except ModuleNotFoundError:
    sys.exit("this example needs torchdata: pip install torchdata")

SIDE, WORKERS, STEPS_BETWEEN_SAVES = 8, 2, 10


def train(folder: Path, epochs: int = 5) -> None:
    crop = shardio.RandomResizedCrop(SIDE, scale=(0.8, 1), flip=0)
    dataset = shardio.ShardDataset(folder / "train", transform=crop, shuffle=True, batch_size=32)
    whole = shardio.Resize((SIDE, SIDE))
    held_out = shardio.ShardDataset(folder / "val", transform=whole, batch_size=64)
    loader = StatefulDataLoader(dataset, batch_size=None, num_workers=WORKERS)
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 256), nn.ReLU()
    network = nn.Sequential(*layers, nn.Linear(256, len(dataset.classes or ())))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    checkpoint, first_epoch = folder / "torchdata.pt", 0

    def save(epoch: int) -> None:
        parts = {"network": network, "optimizer": optimizer, "loader": loader}
        states = {name: part.state_dict() for name, part in parts.items()}
        torch.save({"epoch": epoch, **states}, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)  # a kill leaves the old or the new one

    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
        first_epoch = saved["epoch"]
    for epoch in range(first_epoch, epochs):
        keys: list[str] = []
        for batch in loader:
            logits = network(shardio.to_float(batch["image"]))
            loss = ops.softmax_cross_entropy(logits, batch["label"], valid=batch["valid"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            keys += compress(batch["__key__"], batch["valid"])
            if (batch["__step__"] + 1) % STEPS_BETWEEN_SAVES == 0:
                save(epoch)
        save(epoch + 1)
        accuracy = shardio.MaskedMean()
        for batch in shardio.Loader(held_out):
            with torch.no_grad():
                found = network(shardio.to_float(batch["image"])).argmax(1)
            accuracy.add(found == batch["label"], batch["valid"])
        print(
            f"epoch {epoch}: {len(keys)} samples, {len({*keys})} different; "
            f"held-out accuracy {accuracy.result():.2%} of {accuracy.count()}; "
            f"last loss {loss.item():.6f}"
        )


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[2:] if word.isdecimal()]
    if len(sys.argv) != 2 + len(numbers) or not Path(sys.argv[1], "val/shardio.json").exists():
        sys.exit("give a folder with the packed train and val, as the first lines of this file do")
    train(Path(sys.argv[1]), *numbers)
