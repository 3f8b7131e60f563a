"""Do processes that fork after reading get other batches, or hang?

Each of 200 starts is a process that has used the dataset, a Loader, or the threads of OpenCV or
torch, in any combination. Then it forks: children, workers of a DataLoader with and without
threads, persistent workers, workers that are killed and restarted, and two ranks of
torch.distributed with two workers each.

Right: the same batches as in a plain loop. Refused: a worker was killed, torch reported it, and the
next epoch was right. Wrong: other batches, another error, or a hang, in which case the stacks of
all processes are printed.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import campaign
import children
import shardio
import workers
from shardio.testing import make_images

Batch = dict[str, Any]
STARTS = 200
EPOCHS = 2
WAYS = (
    "children",
    "workers",
    "persistent workers",
    "workers with threads",
    "killed workers",
    "ranks",
)
BARRED = {"children", "ranks"}
"""Ways in which torch works in a fork without being told to use one thread, which may hang."""


def digest(batch: Batch) -> int:
    return zlib.crc32(batch["image"].numpy().tobytes(), zlib.crc32(str(batch["__key__"]).encode()))


class Start:
    """Process that reads and then forks.

    Args:
        packed: images to read.
        scratch: folder of its own.
        choose: source of random choices.
    """

    def __init__(self, packed: Packed, scratch: Path, choose: random.Random) -> None:
        self._wanted, self._keys, self._choose = packed.wanted, packed.keys, choose
        self._scratch = scratch
        self._dataset = open_dataset(packed.folder)
        self._kept: list[Any] = []
        self.uses: dict[str, Callable[[], object]] = {
            "a sample": lambda: self._dataset[3],
            "a half-left loop": lambda: self._keep(iter(self._other())),
            "a Loader at work": lambda: self._keep(iter(shardio.Loader(self._other(), threads=3))),
            "OpenCV's threads": use_opencv,
            "torch's threads": lambda: torch.ones(600, 600) @ torch.ones(600, 600),
        }
        functions: tuple[Callable[[], bool], ...] = (
            self.children,
            lambda: self.workers(self._dataset),
            lambda: self.workers(self._dataset, persistent_workers=True),
            lambda: self.workers(shardio.Loader(self._dataset, threads=2)),
            self.killed_workers,
            self.ranks,
        )
        self.ways = dict(zip(WAYS, functions, strict=True))

    def children(self) -> bool:
        """Fork at any moment of a Loader's threads."""
        steps = iter(shardio.Loader(self._other(), threads=2))
        children = []
        for _ in range(5):
            next(steps)
            time.sleep(self._choose.random() * 0.003)
            children.append(fork(lambda: self._read_in_child(steps)))
        wait(children)
        return True

    def workers(self, source: Any, **options: Any) -> bool:
        """Read all epochs with a DataLoader."""
        loader = load(source, **options)
        for epoch in range(EPOCHS):
            self._compare(loader, epoch)
        return True

    def killed_workers(self) -> bool:
        """Kill a worker in an epoch and read the next; return False if torch raised an error."""
        loader = load(self._dataset)

        def read_and_kill() -> None:
            for number, _ in enumerate(loader):
                if number == 2:
                    os.kill(self._choose.choice(worker_pids()), signal.SIGKILL)

        steps = (read_and_kill, lambda: time.sleep(0.5))  # torch's signal handler may come late
        errors = [error for error in map(error_of, steps) if error is not None]
        for error in errors:
            if not workers.is_of_torch(error):
                raise campaign.Wrong(f"raises {type(error).__name__}", error)
        self._compare(loader, 1)
        return not errors

    def ranks(self) -> bool:
        """Train on two ranks with two workers each."""
        wait([fork(partial(self._train, rank)) for rank in range(2)])
        return True

    def _train(self, rank: int) -> None:
        torch.set_num_threads(1)  # a fork of torch's own threads hangs
        method = f"file://{self._scratch}/ranks"
        torch.distributed.init_process_group("gloo", init_method=method, rank=rank, world_size=2)
        model = DistributedDataParallel(torch.nn.Linear(3, 1))
        loader = load(self._dataset)
        for epoch in range(EPOCHS):
            count = 0
            for batch, keys in zip(loader, self._keys[epoch], strict=True):
                model(batch["image"].float().mean((2, 3))).mean().backward()
                if not set(batch["__key__"]) <= set(keys):
                    raise campaign.Wrong(
                        "other samples on a rank", f"rank {rank}, epoch {epoch}: {batch['__key__']}"
                    )
                count += len(batch["__key__"])
            if count * 2 != sum(map(len, self._keys[epoch])):
                raise campaign.Wrong("other samples on a rank", f"{count} in epoch {epoch}")
        torch.distributed.destroy_process_group()

    def _read_in_child(self, steps: Iterable[Batch]) -> None:
        way = self._choose.randrange(4)
        if way == 0:
            self._compare(shardio.Loader(self._dataset, threads=2), 0)
        elif way == 1:
            self._compare(self._dataset, 0)
        elif way == 2:
            next(iter(steps))
        self._dataset[self._choose.randrange(len(self._dataset.samples))]
        self._kept.clear()

    def _compare(self, batches: Iterable[Batch], epoch: int) -> None:
        found = [digest(batch) for batch in batches]
        if found != self._wanted[epoch]:
            raise campaign.Wrong(
                "other batches than a plain loop's", f"{len(found)} in epoch {epoch}"
            )

    def _other(self) -> shardio.ShardDataset:
        """Return a dataset of the same samples that counts epochs separately."""
        return self._dataset.replace()

    def _keep(self, steps: Any) -> None:
        next(steps)
        self._kept.append(steps)


def error_of(function: Callable[[], None]) -> Exception | None:
    try:
        function()
    except (RuntimeError, OSError, EOFError) as error:
        return error
    return None


def open_dataset(folder: Path) -> shardio.ShardDataset:
    return shardio.ShardDataset(
        folder,
        global_batch_size=20,
        shuffle=True,
        transform=shardio.RandomResizedCrop(200),  # large enough to go through shared memory
    )


def use_opencv() -> None:
    cv2.setNumThreads(4)
    cv2.GaussianBlur(np.zeros((1500, 1500, 3), np.uint8), (15, 15), 5)


def load(source: Any, **options: Any) -> DataLoader[Batch]:
    return DataLoader(
        source, batch_size=None, num_workers=2, multiprocessing_context="fork", **options
    )


def worker_pids() -> list[int]:
    return [process.pid or 0 for process in multiprocessing.active_children()]


def fork(action: Callable[[], object]) -> int:
    """Call a function in a forked child, whose exit code is 0 if it raises nothing."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        action()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(children: Iterable[int]) -> None:
    for child in children:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:
            raise campaign.Wrong("a process that was forked fails", f"it ended with {code}")


class Packed:
    """Packed images, and the batches of a plain loop in each epoch.

    Attributes:
        folder: folder of the images.
        wanted: digests of the batches by epoch.
        keys: keys of the batches by epoch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "packed"
        source = make_images(folder / "images", classes=2, per_class=60, size=40)
        shardio.pack(source, self.folder, shards=4)
        dataset = open_dataset(self.folder)
        plain = [[*dataset] for _ in range(EPOCHS)]
        self.wanted = [[digest(batch) for batch in epoch] for epoch in plain]
        self.keys = [[batch["__key__"] for batch in epoch] for epoch in plain]


def begin(packed: Packed, way: str, trial: campaign.Trial) -> None:
    def start() -> bool:
        process = Start(packed, trial.folder, trial.random)
        for use, function in process.uses.items():
            # torch's threads are not to be forked but by a DataLoader, nor twice
            if trial.random.random() < 0.5 and not (way in BARRED and "torch" in use):
                function()
        return process.ways[way]()

    ended = children.in_child(start)
    replace(ended, output=workers.without_pythons(ended.output)).check()
    if ended.error:
        raise campaign.Wrong(f"raises {ended.error}", ended.message)
    if ended.value:
        trial.right(way)
    else:
        trial.refused("a worker was killed, and torch said so")


def cases(folder: Path) -> list[campaign.Case]:
    packed = Packed(folder)
    ways = [WAYS[number % len(WAYS)] for number in range(STARTS)]
    return [
        campaign.Case(f"{way} {number}", partial(begin, packed, way))
        for number, way in enumerate(ways)
    ]


if __name__ == "__main__":
    campaign.main(__doc__, cases)
