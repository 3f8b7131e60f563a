"""What this machine can do with these shards, each part alone: the limits of any loader.

Storage, decoding, copying and the hand-over from a worker are measured one after the other, and
loops over the dataset in processes and in threads, in turns, since the speed of a machine drifts.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from shardio.errors import CodecError, ShardioError
from shardio.fields.defaults import type_of
from shardio.fields.image import one_opencv_thread
from shardio.processes import count_cores
from shardio.profiling.evidence import Ceilings
from shardio.profiling.system import drop_from_cache, thread_uses
from shardio.reading.columns import Column
from shardio.reading.dataset import ShardDataset
from shardio.reading.handover import Recycler, Sender
from shardio.reading.shards import FieldBytes, ShardPool
from shardio.reading.times import Stopwatch

_SLICE = 0.3  # of the seconds, for each turn of what is measured in turns
_ROUNDS = 7
_PAIR = 2
_SAMPLES = 256
_SLOTS = 64
_MOST_DRAWS = 64  # random numbers of a sample's transform
_READERS = 8
_PIECE = 1 << 20
_MOST_READ = 256 << 20
_COPIED = 64 << 20
_BATCHES_SKIPPED = 8
_HANDOFFS = 300

Stored = list[FieldBytes | None]
MakeColumns = Callable[[], dict[str, Column]]
T = TypeVar("T")


def measure_ceilings(dataset: ShardDataset, seconds: float) -> dict[str, Any]:
    """Measure the Ceilings of a dataset of batches, as values for JSON.

    Args:
        dataset: dataset of batches.
        seconds: seconds for each part.

    Raises:
        ShardioError: the dataset cannot be read.
    """
    shards = [shard.path for shard in dataset.catalog.shards]
    some, total = [], 0
    for path in dict.fromkeys(shards):
        if total < _MOST_READ:
            some.append(path)
            total += Path(path).stat().st_size
    cold = _read_all(some, seconds) if drop_from_cache(some) else None
    warm = max(_read_all(some, seconds) for _ in range(2))
    stored, columns = _in_memory(dataset)
    return asdict(
        Ceilings(
            cold=cold,
            warm=warm,
            **_rates(dataset, stored, columns, seconds),
            copy=_copy(),
            **_hand_over(next(iter(dataset.replace(shuffle=False))), seconds),
            to_device=_to_device() if torch.cuda.is_available() else None,
            side=_side(stored),
        )
    )


def loop_speed(dataset: ShardDataset, cores: int, seconds: float) -> float:
    """Return samples per second of one loop per core at once, each in a process of its own.

    It is measured beside each loader, since the speed of a machine drifts: others share its caches,
    its memory and its clock. What the loader loses beside it is the price of working together.

    Args:
        dataset: dataset of batches.
        cores: number of loops.
        seconds: length of each loop.
    """
    return sum(_on_cores(partial(_loop, dataset, seconds), cores))


def _rates(
    dataset: ShardDataset, stored: list[Stored], columns: MakeColumns, seconds: float
) -> dict[str, Any]:
    """Measure loops, in turns, and bare decoding, on one core and on all."""
    cores, found, turn = count_cores(), defaultdict[str, list[float]](list), _SLICE * seconds
    for _ in range(_ROUNDS):
        one, every = (loop_speed(dataset, number, turn) for number in (1, cores))
        found["one"].append(one)
        found["handoff"].append(_hand_on())
        found["speedup"].append(every / one)
        if cores > 1:
            apart = every if cores == _PAIR else loop_speed(dataset, _PAIR, turn)
            together = _loops_in_threads(dataset, _PAIR, turn)
            found["sharing"].append((_PAIR / together - _PAIR / apart) * 1e6)
        if cores > _PAIR:
            found["threads"].append(_loops_in_threads(dataset, cores, turn))
    one = median(found["one"])
    rates: dict[str, Any] = {
        "loop_one": one,
        "handoff": median(found["handoff"]),
        "loop_all": one * median(found["speedup"]),
        "sharing": max(median(found["sharing"] or [0.0]), 0.0),
        "loop_threads": median(found["threads"]) if found["threads"] else None,
        "decode_one": None,
        "decode_all": None,
        "decode_share": None,
    }
    if stored:
        rates["decode_one"], rates["decode_share"] = _decode_at_most(stored, columns, 1, seconds)
        rates["decode_all"], _ = _decode_at_most(stored, columns, cores, seconds)
    return rates


def _loops_in_threads(dataset: ShardDataset, threads: int, seconds: float) -> float:
    """Return samples per second of several loops in threads of this process."""
    datasets = [dataset.replace() for _ in range(threads)]
    return sum(
        _on_cores(lambda number: _loop(datasets[number], seconds, number), threads, forks=False)
    )


def _read_all(paths: list[str], seconds: float) -> float:
    """Return bytes per second of reading files in large pieces, several at once."""
    pieces = [
        (path, offset) for path in paths for offset in range(0, Path(path).stat().st_size, _PIECE)
    ]
    end = time.perf_counter() + 2 * seconds

    def read(piece: tuple[str, int]) -> int:
        if time.perf_counter() > end:
            return 0
        with Path(piece[0]).open("rb", buffering=0) as stream:
            stream.seek(piece[1])
            return len(stream.read(_PIECE))

    start = time.perf_counter()
    with ThreadPoolExecutor(_READERS) as pool:
        total = sum(pool.map(read, pieces))
    return total / (time.perf_counter() - start)


def _in_memory(dataset: ShardDataset) -> tuple[list[Stored], MakeColumns]:
    """Read some samples into memory.

    Returns:
        The stored bytes of the samples, none if fields are gathered as arrays, and a function that
        makes columns to decode them into.
    """
    pool = ShardPool(dataset.catalog.shards)
    reader = dataset.reader(pool, Recycler())
    columns = reader.columns(1)
    if all(hasattr(column, "place_rows") for column in columns.values()):
        return [], lambda: reader.columns(_SLOTS)
    plan = dataset.plan(0)
    steps = range(min(plan.num_steps, -(-_SAMPLES // dataset.global_batch_size)))
    references = plan.references(plan.share(steps, 0, dataset.share.world_size))
    wanted = tuple(dataset.fields.values())
    found: list[Stored] = []
    for shard, sample in zip(references.shards.tolist(), references.indices.tolist(), strict=True):
        try:
            fields = pool.get(shard).read(sample, wanted)
        except ShardioError:
            continue
        found.append([one and one._replace(data=bytes(one.data)) for one in fields])
    return found[:_SAMPLES], lambda: reader.columns(_SLOTS)


def _side(stored: list[Stored]) -> float | None:
    sides = []
    for sample in stored:
        for found in sample:
            with suppress(CodecError):
                info = None if found is None else type_of(found.field).probe(found.data)
                if info is not None:
                    sides.append(min(info.height, info.width))
    return sum(sides) / len(sides) if sides else None


def _decode_at_most(
    stored: list[Stored], columns: MakeColumns, cores: int, seconds: float
) -> tuple[float, float]:
    """Return samples per second, and the share of decoding in the time."""
    found = _on_cores(partial(_decode, stored, columns, seconds), cores)
    decode, transform = (sum(part[at] for part in found) for at in (1, 2))
    return sum(part[0] for part in found), decode / max(decode + transform, 1)


def _on_cores(work: Callable[[int], T], cores: int, *, forks: bool = True) -> list[T]:
    """Call a function in several processes at once, with their numbers, and return the results.

    Where processes cannot be forked, threads call it, which share the interpreter's lock.
    """
    pool: Executor
    _work.append(work)
    if forks and "fork" in multiprocessing.get_all_start_methods():
        pool = ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("fork"))
    else:
        pool = ThreadPoolExecutor(cores)
    try:
        with one_opencv_thread(), pool:
            return [*pool.map(_do, range(cores))]
    finally:
        _work.pop()


_work: list[Callable[[int], Any]] = []  # for forks, which need not pickle it


def _do(number: int) -> Any:
    return _work[-1](number)


def _loop(dataset: ShardDataset, seconds: float, number: int) -> float:
    """Return samples per second of a loop over an epoch of its own."""
    batches = chain.from_iterable(iter(dataset) for _ in repeat(None))
    dataset.set_epoch(number)
    next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += len(next(batches)["__key__"])
    return count / (time.perf_counter() - start)


def _decode(
    stored: list[Stored], columns: MakeColumns, seconds: float, number: int
) -> tuple[float, int, int]:
    """Return samples per second, and ns of decoding and of transforming."""
    slots, watch = [*columns().values()], Stopwatch()
    numbers = np.random.default_rng(0).random((len(stored), _MOST_DRAWS)).tolist()
    start, at = time.perf_counter(), number * len(stored) // 2
    while time.perf_counter() - start < seconds:
        watch.start()
        with suppress(CodecError):  # of a broken sample, which the runs replace
            for column, found in zip(slots, stored[at % len(stored)], strict=True):
                if found is not None:
                    column.decode(at % _SLOTS, found, numbers[at % len(stored)], watch)
            watch.stop()
        at += 1
    rate = watch.times.samples / (time.perf_counter() - start)
    return rate, watch.times.decode, watch.times.transform


def _copy() -> float:
    source = np.ones(_COPIED, np.uint8)
    target = np.ones(_COPIED, np.uint8)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        best = max(best, _COPIED / (time.perf_counter() - start))
    return best


def _hand_on() -> float:
    """Return microseconds from the release of a lock until a thread runs that waited for it."""
    here, there = threading.Semaphore(0), threading.Semaphore(0)

    def answer() -> None:
        for _ in range(_HANDOFFS):
            there.acquire()
            here.release()

    other = threading.Thread(target=answer)
    other.start()
    start = time.perf_counter()
    for _ in range(_HANDOFFS):
        there.release()
        here.acquire()
    seconds = time.perf_counter() - start
    other.join()
    return seconds / _HANDOFFS / 2 * 1e6


class _Ready(IterableDataset[dict[str, Any]]):
    """Dataset of batches that take no time to make.

    Args:
        shapes: shape and dtype of each tensor of a batch.
    """

    def __init__(self, shapes: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        self._shapes = shapes

    def __iter__(self) -> Iterator[dict[str, Any]]:
        sender = Sender()
        return sender.send(self._make(sender))

    def _make(self, sender: Sender) -> Any:
        while True:
            yield {name: sender(shape, dtype) for name, (shape, dtype) in self._shapes.items()}


def _hand_over(batch: dict[str, Any], seconds: float) -> dict[str, float]:
    shapes = {
        name: (tuple(value.shape), value.dtype)
        for name, value in batch.items()
        if isinstance(value, torch.Tensor)
    }
    batches = iter(DataLoader(_Ready(shapes), batch_size=None, num_workers=1))
    for _ in range(_BATCHES_SKIPPED):
        next(batches)
    (worker,) = batches._workers  # type: ignore[attr-defined]
    before, cpu, start, count = _cpu_of(worker.pid), time.thread_time(), time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        count += 1
    return {
        "handover": count / (time.perf_counter() - start),
        "handover_loop": (time.thread_time() - cpu) / count * 1e6,
        "handover_worker": (_cpu_of(worker.pid) - before) / count / 1e3,
    }


def _cpu_of(process: int) -> int:
    return sum(use.cpu for use in thread_uses(process).values())


def _to_device() -> float:
    source = torch.empty(_COPIED, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(_COPIED, dtype=torch.uint8, device="cuda")
    best = 0.0
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        best = max(best, _COPIED / (time.perf_counter() - start))
    return best
