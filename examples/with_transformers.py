"""Train under transformers' Trainer, each sample once an epoch on any number of processes; resume.

    python tools/make_digits.py digits/images                     # or images of your own
    shardio pack digits/images digits --shards 4 --split train=0.8,val=0.2
    torchrun --nproc-per-node 2 examples/with_transformers.py digits [EPOCHS]

Trainer would divide a dataset again, so it gets loaders. A killed run goes on in mid-epoch.
"""

import json
import sys
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from torch import nn

import shardio
from shardio import ops

try:
    from accelerate.utils import gather_object
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint
except ModuleNotFoundError:
    sys.exit("this example needs transformers: pip install transformers")

SIDE = 8
WHOLE = shardio.Resize((SIDE, SIDE))


class Classifier(nn.Module):
    """Small network that computes its loss, as Trainer expects, and counts the samples."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, classes))
        self.keys: list[str] = []

    def forward(self, **batch: Any) -> dict[str, torch.Tensor]:
        """Return the logits, and the mean loss of the valid samples."""
        if self.training:
            self.keys += compress(batch["__key__"], batch["valid"])
        logits = self.network(shardio.to_float(batch["image"]))
        loss = ops.softmax_cross_entropy(logits, batch["label"], valid=batch["valid"])
        return {"loss": loss, "logits": logits}


class ShardTrainer(Trainer):
    """Trainer that reads shards."""

    def get_train_dataloader(self) -> Any:
        """Return the loader, which stands where the checkpoint was saved."""
        return self.loaders[0]

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure the accuracy over all processes, without the samples that pad the last batch."""
        accuracy = shardio.MaskedMean()
        for batch in self.loaders[1]:
            with torch.no_grad():
                found = self.model.eval()(**batch)["logits"].argmax(1)
            accuracy.add(found == batch["label"], batch["valid"])
        keys, result, count = gather_object(self.model.keys), accuracy.result(), accuracy.count()
        self.accelerator.print(
            f"epoch {self.loaders[0].state_dict()['epoch'] - 1}: {len(keys)} samples, "
            f"{len({*keys})} different; held-out accuracy {result:.2%} of {count}"
        )
        self.model.keys = []
        return {"eval_accuracy": result}


def train(folder: Path, epochs: int = 5) -> None:
    options: dict[str, Any] = {"transform": WHOLE, "global_batch_size": 32, "tail": "even"}
    dataset = shardio.ShardDataset(folder / "train", shuffle=True, **options)
    val = shardio.ShardDataset(folder / "val", **options)
    arguments = TrainingArguments(
        str(folder / "transformers"), num_train_epochs=epochs, learning_rate=1e-2, save_steps=20,
        lr_scheduler_type="constant", eval_strategy="epoch", ddp_find_unused_parameters=False,
        use_cpu=not torch.cuda.is_available(), report_to="none", disable_tqdm=True,
        ignore_data_skip=True,  # the loader begins at its position, and reads nothing before it
    )  # fmt: skip
    network, device = Classifier(len(dataset.classes or ())), arguments.device
    trainer = ShardTrainer(network, arguments, train_dataset=dataset, eval_dataset=val)
    loader, _ = trainer.loaders = [shardio.Loader(d, device=device) for d in (dataset, val)]
    Path(arguments.output_dir).mkdir(exist_ok=True)  # another process may not have made it yet
    checkpoint = get_last_checkpoint(arguments.output_dir)
    if checkpoint:  # the number of steps is all that the loader needs
        state = json.loads(Path(checkpoint, "trainer_state.json").read_text("utf-8"))
        epoch, step = divmod(state["global_step"], len(loader))
        loader.load_state_dict(loader.state_dict() | {"epoch": epoch, "step": step})
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.accelerator.end_training()  # whose threads may else abort a process that ends


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[2:] if word.isdecimal()]
    if len(sys.argv) != 2 + len(numbers) or not Path(sys.argv[1], "val/shardio.json").exists():
        sys.exit("give a folder with the packed train and val, as the first lines of this file do")
    train(Path(sys.argv[1]), *numbers)
