"""Ways to read a shard under a trainer, run by each of two ranks.

    python ways.py accelerate SHARD OUT

The result of a way is the labels of the valid samples that this rank received, epoch by epoch, or
the error that it met. The file OUT/<rank> has a line for each way. The name of a way begins with
what is expected, see test_trainers.py.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.utils.data import DataLoader

import shardio

SHARD, OUT = Path(sys.argv[2]), Path(sys.argv[3])
ONE = {"rank": 0, "world_size": 1}
warnings.filterwarnings("ignore")


def samples(**options: Any) -> shardio.ShardDataset:
    return shardio.ShardDataset(SHARD, shuffle=True, **options)


def batches(**options: Any) -> shardio.ShardDataset:
    return samples(batch_size=4, **options)


def collate(found: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([sample[name] for sample in found]) for name in ("label", "valid")}


def labels_of(batch: dict[str, Any]) -> list[int]:
    labels: list[int] = batch["label"][batch["valid"]].tolist()
    return labels


def epoch_of(loader: Iterable[dict[str, Any]]) -> list[int]:
    return [label for batch in loader for label in labels_of(batch)]


def report(name: str, work: Callable[[], list[list[int]]]) -> None:
    """Note the result of a way."""
    try:
        found: Any = work()
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    with (OUT / str(torch.distributed.get_rank())).open("a") as stream:
        stream.write(json.dumps([name, found]) + "\n")


def accelerate() -> None:
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration as Configuration

    def batched(workers: int = 0, size: int = 4, **options: Any) -> DataLoader[Any]:
        return DataLoader(
            samples(**options), batch_size=size, collate_fn=collate, num_workers=workers
        )

    def whole(**options: Any) -> DataLoader[Any]:
        return DataLoader(batches(**options), batch_size=None)

    def prepared(loader: Any, **configuration: Any) -> Any:
        chosen = Configuration(**configuration)
        return Accelerator(cpu=True, dataloader_config=chosen).prepare(loader)

    each, split = {"dispatch_batches": False}, {"split_batches": True}
    stateful = {"use_stateful_dataloader": True}

    def resumed(make: Callable[[], Any]) -> list[list[int]]:
        loader, received = make(), []
        for batch in islice(loader, 4):
            received += labels_of(batch)
            state = loader.state_dict()
        again = make()
        again.load_state_dict(state)
        return [received + epoch_of(again), epoch_of(again)]

    def ahead() -> Any:
        return prepared(batched(**ONE), **stateful)

    def behind() -> Any:
        return prepared(batched(**ONE), **stateful, **each)

    def own() -> Any:
        return prepared(shardio.Loader(batches(), threads=1), **stateful)

    ways: dict[str, Callable[[], Any]] = {
        "refused: samples": lambda: prepared(batched()),
        "refused: samples, workers": lambda: prepared(batched(1)),
        "refused: samples, each rank reads": lambda: prepared(batched(), **each),
        "refused: samples, each rank reads, workers": lambda: prepared(batched(1), **each),
        "refused: samples, split": lambda: prepared(batched(size=8), **split),
        "refused: samples, each rank reads, split": lambda: prepared(
            batched(size=8), **each, **split
        ),
        "refused: batches": lambda: prepared(whole()),
        "refused: batches, each rank reads": lambda: prepared(whole(), **each),
        "refused: batches for one rank": lambda: prepared(whole(**ONE)),
        "refused: batches for one rank, each rank reads": lambda: prepared(whole(**ONE), **each),
        "whole: Loader": lambda: prepared(shardio.Loader(batches(), threads=1)),
        "whole: Loader with workers": lambda: prepared(shardio.Loader(batches(), workers=1)),
        "whole: not prepared": whole,
        "repeats: for one rank": lambda: prepared(batched(**ONE)),
        "repeats: for one rank, split": lambda: prepared(batched(size=8, **ONE), **split),
        "repeats: for one rank, each rank reads": lambda: prepared(batched(**ONE), **each),
        "repeats: for one rank, each rank reads, workers": lambda: prepared(
            batched(1, **ONE), **each
        ),
        "repeats: for one rank, each rank reads, split": lambda: prepared(
            batched(size=8, **ONE), **each, **split
        ),
    }
    for name, make in ways.items():
        report(name, lambda make=make: [epoch_of(loader) for loader in [make()] * 2])  # type: ignore[misc]
    report("refused: for one rank, stateful", lambda: resumed(ahead))
    report("repeats: for one rank, stateful, each rank reads, resumed", lambda: resumed(behind))
    report("whole: Loader, resumed", lambda: resumed(own))


def ignite() -> None:
    import ignite.distributed as idist
    from ignite.engine import Engine, Events

    idist.initialize("gloo")

    found: list[list[int]] = []

    def begin() -> Any:
        found[:] = [[], []]
        return Engine(lambda engine, batch: found[engine.state.epoch - 1].extend(labels_of(batch)))

    def run(loader: Any) -> list[list[int]]:
        begin().run(loader, max_epochs=2)
        return [*found]

    def resumed() -> list[list[int]]:
        loader, again = shardio.Loader(batches(), workers=1), shardio.Loader(batches(), threads=1)
        engine = begin()
        at = Events.ITERATION_COMPLETED(once=10)  # the third step of the second epoch
        engine.add_event_handler(at, engine.interrupt)
        engine.run(loader, max_epochs=2)
        again.load_state_dict(loader.state_dict())
        first, second = found
        engine, state = begin(), engine.state_dict()
        engine.load_state_dict(state)
        engine.run(again)
        return [first, second + found[1]]

    report("whole: DataLoader", lambda: run(DataLoader(batches(), batch_size=None)))
    report(
        "whole: DataLoader with workers",
        lambda: run(DataLoader(batches(), batch_size=None, num_workers=2)),
    )
    report("whole: Loader", lambda: run(shardio.Loader(batches(), threads=1)))
    report(
        "whole: auto_dataloader",
        lambda: run(idist.auto_dataloader(samples(), batch_size=8, collate_fn=collate)),
    )
    report("whole: resumed", resumed)


def torchdata() -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    torch.distributed.init_process_group("gloo")

    def stateful(workers: int, **options: Any) -> Any:
        return StatefulDataLoader(batches(), batch_size=None, num_workers=workers, **options)

    def resumed(workers: int, **options: Any) -> list[list[int]]:
        loader = stateful(workers, **options)
        first = epoch_of(loader)
        second = [label for batch in islice(loader, 3) for label in labels_of(batch)]
        again = stateful(workers, **options)
        again.load_state_dict(loader.state_dict())
        return [first, second + epoch_of(again), *(epoch_of(again) for _ in range(2))]

    report("whole: resumed alone", lambda: resumed(0))
    report("whole: resumed with workers", lambda: resumed(2))
    report("whole: resumed with persistent workers", lambda: resumed(2, persistent_workers=True))


def _tokenize(sample: dict[str, Any]) -> dict[str, Any]:
    return {"labels": int(sample["text"])}


def transformers() -> None:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.received: list[list[int]] = []

        def forward(self, labels: Any, valid: Any, **_: Any) -> Any:
            if self.training:
                self.received[-1] += labels[valid].tolist()
            return {"loss": self.weight * labels.sum(), "logits": labels[:, None].float()}

    class Begin(TrainerCallback):
        def __init__(self, model: Model) -> None:
            self.model = model

        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            self.model.received.append([])

    class OwnLoader(Trainer):
        def get_train_dataloader(self) -> Any:
            return shardio.Loader(self.train_dataset, workers=1)

    def trainer(dataset: Any, kind: Any = Trainer, **options: Any) -> Any:
        model = Model()
        settings = {
            "output_dir": str(OUT / "hf"),
            "use_cpu": True,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
        }
        arguments = TrainingArguments(**(settings | options))
        return kind(
            model=model,
            args=arguments,
            train_dataset=dataset,
            eval_dataset=dataset,
            callbacks=[Begin(model)],
        )

    def train(dataset: Any, kind: Any = Trainer, **options: Any) -> list[list[int]]:
        made = trainer(dataset, kind, **options)
        made.train()
        received: list[list[int]] = made.model.received
        return received

    def at_ten(name: str) -> dict[str, Any]:
        saves = {"save_strategy": "steps", "save_steps": 10, "max_steps": 10}
        return saves | {"output_dir": str(OUT / name)}

    def resumed() -> list[list[int]]:
        options = at_ten("resumed")
        before = trainer(labels(**ONE), **options)
        before.train()
        again = trainer(labels(**ONE), **options | {"max_steps": 14})
        again.train(resume_from_checkpoint=True)
        first, second = before.model.received
        return [first, second + again.model.received[0]]

    def loader_resumed() -> list[list[int]]:
        options = at_ten("loader")
        before = trainer(labels(batch_size=4), OwnLoader, **options)
        before.train()
        dataset = labels(batch_size=4)
        dataset.load_state_dict(before.train_dataset.state_dict())  # as loader.state_dict()
        options |= {"max_steps": 14, "ignore_data_skip": True}
        again = trainer(dataset, OwnLoader, **options)
        again.train(resume_from_checkpoint=True)
        first, second = before.model.received
        return [first, second + again.model.received[0]]

    def labels(**options: Any) -> shardio.ShardDataset:
        return samples(fields={"labels": "cls"}, **options)

    def mapped() -> list[list[int]]:
        return train(samples(fields={"text": "txt"}, map=_tokenize, **ONE))

    def predicted() -> list[list[int]]:
        found = trainer(labels(**ONE)).predict(labels(**ONE)).predictions
        return [found[:, 0].astype(int).tolist()]

    each = {"accelerator_config": {"dispatch_batches": False}}
    split = {"accelerator_config": {"split_batches": True}, "per_device_train_batch_size": 8}
    report("refused: samples", lambda: train(labels()))
    report("refused: samples, each rank reads", lambda: train(labels(), **each))
    report("refused: batches", lambda: train(labels(batch_size=4)))
    report("refused: batches for one rank", lambda: train(labels(batch_size=4, **ONE)))
    report("whole: Loader", lambda: train(labels(batch_size=4), OwnLoader))
    report("whole: Loader, resumed", loader_resumed)
    report("repeats: for one rank", lambda: train(labels(**ONE)))
    report("repeats: for one rank, each rank reads", lambda: train(labels(**ONE), **each))
    report("repeats: for one rank, split", lambda: train(labels(**ONE), **split))
    report("repeats: mapped before columns are removed", mapped)
    report("repeats: resumed", resumed)
    report("everywhere: predicted", predicted)


def _lightning(steps: Any, strategy: str = "ddp") -> tuple[Any, Any]:
    """Return a module that notes what it receives, and a trainer."""
    import lightning as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.received: list[list[int]] = []
            self.saved: Path | None = None
            self.reported = ""

        def on_train_end(self) -> None:
            if self.reported:
                report(self.reported, lambda: self.received)

        def on_train_batch_end(self, *_: Any) -> None:
            if self.saved and self.trainer.global_step == steps:
                self.trainer.save_checkpoint(self.saved)

        def training_step(self, batch: dict[str, Any], _: int) -> Any:
            self.received += [[] for _ in range(self.current_epoch + 1 - len(self.received))]
            self.received[-1] += labels_of(batch)
            return self.weight * batch["label"].sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return Module(), trainer


def lightning_launches() -> None:
    """Lightning starts the other rank itself, by running this script again without RANK."""
    assert "RANK" not in os.environ
    dataset = batches()
    module, trainer = _lightning(14)
    trainer.fit(module, DataLoader(dataset, batch_size=None))
    report("whole: made before launch", lambda: module.received)
    report("whole: made after fit", lambda: [epoch_of(batches())])


def lightning_forks() -> None:
    """Lightning forks both ranks, as in a notebook, and sets no variable of theirs."""
    assert not {"RANK", "WORLD_SIZE"} & {*os.environ}
    dataset = batches()
    module, trainer = _lightning(14, "ddp_notebook")
    module.reported = "whole: made before the fork"
    trainer.fit(module, DataLoader(dataset, batch_size=None, num_workers=1))


def lightning() -> None:
    import lightning as pl

    class Module(pl.LightningDataModule):
        def __init__(self, make: Callable[[], Any]) -> None:
            super().__init__()
            self.make = make

        def train_dataloader(self) -> Any:
            return self.make()

    def fit(make: Callable[[], Any]) -> list[list[int]]:
        module, trainer = _lightning(14)
        trainer.fit(module, datamodule=Module(make))
        received: list[list[int]] = module.received
        return received

    def resumed(make: Callable[[], Any]) -> list[list[int]]:
        before, trainer = _lightning(10)  # the third step of the second epoch
        before.saved = OUT / "resumed.ckpt"
        trainer.fit(before, make())
        after, trainer = _lightning(21)
        trainer.fit(after, make(), ckpt_path=before.saved, weights_only=False)
        first, second = before.received
        _, rest, third = after.received
        return [first, second + rest, third]

    from torchdata.stateful_dataloader import StatefulDataLoader

    ways: dict[str, Callable[[], Any]] = {
        "DataLoader": lambda: DataLoader(batches(), batch_size=None, num_workers=2),
        "Loader": lambda: shardio.Loader(batches(), threads=1),
        "Loader with workers": lambda: shardio.Loader(batches(), workers=2),
        "StatefulDataLoader": lambda: StatefulDataLoader(batches(), batch_size=None, num_workers=1),
    }
    for name, make in ways.items():
        report(f"whole: {name}", lambda make=make: fit(make))  # type: ignore[misc]
        if name != "DataLoader":  # Lightning itself warns that it cannot resume
            report(f"whole: {name}, resumed", lambda make=make: resumed(make))  # type: ignore[misc]


FUNCTIONS = accelerate, ignite, lightning, lightning_forks, lightning_launches
WAYS = {f.__name__: f for f in (*FUNCTIONS, torchdata, transformers)}

if sys.version_info < (3, 12):  # gh-112275: a worker hangs in its fork if a thread of gloo, which
    # lets go of the tensors of a collective, asks for the interpreter's lock at the same time
    os.register_at_fork(before=lambda: time.sleep(0.05))

if __name__ == "__main__":
    faulthandler.enable()  # in its workers, too
    faulthandler.register(signal.SIGUSR1)
    WAYS[sys.argv[1]]()
    if torch.distributed.is_initialized():  # not where it forked the ranks
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()  # gloo's threads may abort a process that ends
