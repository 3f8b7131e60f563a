"""Fork processes that read from processes that have read, in every way, and compare the batches.

Usage: python tools/check/forks.py [--starts 200] [--seed 0] [--limit 120]

Each start is a process that has used the dataset, a Loader, OpenCV's threads or torch's, each or
none of them, and then forks: children, a DataLoader's workers with and without threads, persistent
ones, some that are killed and started again, and two ranks of torch.distributed with two workers
each. All must give the batches that a plain loop gives. A start that does not end in time is
wrong, and all its processes say where they stand.

A start is refused where a worker was killed, torch said so, and the next epoch was right.
"""

from __future__ import annotations

import argparse
import faulthandler
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import shardio
from shardio.testing import make_images

Batch = dict[str, Any]
REFUSED = 3  # exit code
EPOCHS = 2
BARRED = {"children", "ranks"}
"""Ways in which torch works in a fork without being told to use one thread, which may hang."""


class WrongError(Exception):
    """Batches that are not those of a plain loop."""


def digest(batch: Batch) -> int:
    return zlib.crc32(batch["image"].numpy().tobytes(), zlib.crc32(str(batch["__key__"]).encode()))


class Start:
    """A process that reads and then forks.

    Args:
        folder: packed images.
        wanted: batches of a plain loop over all epochs, as digests.
        keys: their keys.
        choose: source of random choices.
    """

    def __init__(
        self,
        folder: Path,
        wanted: Sequence[Sequence[int]],
        keys: Sequence[Sequence[Sequence[str]]],
        choose: random.Random,
    ) -> None:
        self._wanted, self._keys, self._choose = wanted, keys, choose
        self._scratch = folder
        self._dataset = open_dataset(folder)
        self._kept: list[Any] = []
        self.uses: dict[str, Callable[[], object]] = {
            "a sample": lambda: self._dataset[3],
            "a half-left loop": lambda: self._keep(iter(self._other())),
            "a Loader at work": lambda: self._keep(iter(shardio.Loader(self._other(), threads=3))),
            "OpenCV's threads": use_opencv,
            "torch's threads": lambda: torch.ones(600, 600) @ torch.ones(600, 600),
        }
        self.ways: dict[str, Callable[[], int]] = {
            "children": self.children,
            "workers": lambda: self.workers(self._dataset),
            "persistent workers": lambda: self.workers(self._dataset, persistent_workers=True),
            "workers with threads": lambda: self.workers(shardio.Loader(self._dataset, threads=2)),
            "killed workers": self.killed_workers,
            "ranks": self.ranks,
        }

    def children(self) -> int:
        """Fork at any moment of a Loader's threads."""
        steps = iter(shardio.Loader(self._other(), threads=2))
        children = []
        for _ in range(5):
            next(steps)
            time.sleep(self._choose.random() * 0.003)
            children.append(fork(lambda: self._read_in_child(steps)))
        wait(children)
        return 0

    def workers(self, source: Any, **options: Any) -> int:
        """Read all epochs with a DataLoader."""
        loader = load(source, **options)
        for epoch in range(EPOCHS):
            self._compare(loader, epoch)
        return 0

    def killed_workers(self) -> int:
        """Kill a worker inside an epoch, and read the next epoch."""
        loader, code = load(self._dataset), 0
        try:
            for number, _ in enumerate(loader):
                if number == 2:
                    os.kill(self._choose.choice(worker_pids()), signal.SIGKILL)
        except (RuntimeError, OSError, EOFError):  # by when torch met it
            code = REFUSED
        self._compare(loader, 1)
        return code

    def ranks(self) -> int:
        """Train on two ranks with two workers each."""
        wait([fork(partial(self._train, rank)) for rank in range(2)])
        return 0

    def _train(self, rank: int) -> None:
        torch.set_num_threads(1)  # a fork of torch's own threads hangs
        method = f"file://{self._scratch}/ranks-{os.getppid()}"
        torch.distributed.init_process_group("gloo", init_method=method, rank=rank, world_size=2)
        model = DistributedDataParallel(torch.nn.Linear(3, 1))
        loader = load(self._dataset)
        for epoch in range(EPOCHS):
            count = 0
            for batch, keys in zip(loader, self._keys[epoch], strict=True):
                model(batch["image"].float().mean((2, 3))).mean().backward()
                if not set(batch["__key__"]) <= set(keys):
                    raise WrongError(f"rank {rank}, epoch {epoch}: {batch['__key__']}")
                count += len(batch["__key__"])
            if count * 2 != sum(map(len, self._keys[epoch])):
                raise WrongError(f"rank {rank}, epoch {epoch}: {count} samples")
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
            raise WrongError(f"epoch {epoch}: {len(found)} batches, not those of a plain loop")

    def _other(self) -> shardio.ShardDataset:
        """The same samples, counting epochs of its own."""
        return self._dataset.replace()

    def _keep(self, steps: Any) -> None:
        next(steps)
        self._kept.append(steps)


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
        code = int(action() or 0)  # type: ignore[call-overload]
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(children: Iterable[int]) -> None:
    for child in children:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:
            raise WrongError(f"a child ended with {code}")


def run(start: Callable[[], int], limit: float) -> int | None:
    """The exit code of a start; None if it had to be ended."""

    def lead() -> int:
        os.setsid()
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        return start()

    process, end = fork(lead), time.monotonic() + limit
    code = None
    while time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.005)
    else:
        os.killpg(process, signal.SIGUSR1)
        time.sleep(1)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # what it may have left
    return code


def main(words: Sequence[str] | None = None) -> int:
    """Run the campaign; the exit code is 1 if a start was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--starts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for a start")
    arguments = parser.parse_args(words)
    counts = Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shardio.pack(make_images(folder / "in", classes=2, per_class=60, size=40), folder, shards=4)
        dataset = open_dataset(folder)
        plain = [[*dataset] for _ in range(EPOCHS)]
        wanted = [[digest(batch) for batch in epoch] for epoch in plain]
        keys = [[batch["__key__"] for batch in epoch] for epoch in plain]
        for number in range(arguments.starts):
            choose = random.Random(f"{arguments.seed} {number}")  # noqa: S311
            start = Start(folder, wanted, keys, choose)
            way = [*start.ways][number % len(start.ways)]
            # torch's threads are not to be forked but by a DataLoader, nor twice
            uses = [use for use in start.uses if choose.random() < 0.5]
            uses = [use for use in uses if way not in {"ranks", "children"} or "torch" not in use]

            def begin(start: Start = start, way: str = way, uses: list[str] = uses) -> int:
                for use in uses:
                    start.uses[use]()
                return start.ways[way]()

            code = run(begin, arguments.limit)
            result = {0: "right", REFUSED: "refused"}.get(-1 if code is None else code, "wrong")
            counts[result] += 1
            if result == "wrong":
                how = "did not end" if code is None else f"ended with {code}"
                print(f"start {number}: {way} after {', '.join(uses) or 'nothing'} {how}")
    tried = counts.total()
    print(
        f"forks: {tried} tried, {counts['right']} right, {counts['refused']} refused, "
        f"{counts['wrong']} wrong"
    )
    return int(counts["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
