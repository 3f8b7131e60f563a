"""Loader: threads that decode straight into the batches' slots, or workers; copies to a device.

The consumer's own thread plans: when it asks for a batch, the next one is cut into chunks and
handed to the threads, then it waits for the chunks of the one that is due. So at most `prefetch`
batches are in the making while the consumer works, they come in order, and nothing runs that nobody
waits for. Leaving the loop, in whatever way, ends the generator that holds the threads: chunks that
wait are dropped, those that run are awaited.

For a device, batches are made in page-locked memory, from which a device copies on its own. The
copy runs on a stream of its own; the stream that the loop computes on waits for it, the loop's
thread does not. A batch that is finished early starts its copy early, beside the step of the one
before. The memory is lent again when the copy has ended. On the CPU the same steps are taken, with
nothing to copy.

With workers, torch's DataLoader starts processes, and the dataset keeps the position of what comes
from them.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from shardio.checks import whole_number
from shardio.errors import UsageError, quoted, shown
from shardio.fields.image import one_opencv_thread
from shardio.native import is_active
from shardio.processes import Threads, count_threads
from shardio.reading.handover import Batches, Recycler
from shardio.reading.kinds import map_values
from shardio.reading.loop import (
    Finish,
    ResumableDataset,
    UnfinishedBatch,
    UnfinishedBatches,
    chunks_of,
    finish_in_turn,
)

if TYPE_CHECKING:
    from typing_extensions import Self


class Event(Protocol):
    """Mark in a stream, reached when the work before it is done; as torch.cuda.Event."""

    def query(self) -> bool:
        """Tell whether it was reached."""

    def wait(self) -> None:
        """Make the current stream wait for it."""


class Stream(Protocol):
    """Queue of work of a device."""

    def entered(self) -> AbstractContextManager[object]:
        """Return a context in which work is put into it."""

    def record(self) -> Event:
        """Return a mark after all work put into it so far."""


class Moving(NamedTuple):
    """A batch on its way.

    Attributes:
        batch: entries on the device.
        done: mark that is reached when their values are there.
    """

    batch: dict[str, Any]
    done: Event


class Transfer:
    """Copies batches to a device.

    Args:
        device: device such as "cuda", "cuda:1" or "cpu".

    Attributes:
        pins: whether batches are copied from page-locked memory.
        allocate: function that makes the host memory to copy batches from.

    Raises:
        UsageError: there is no such device.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = _find(device)
        self.pins = self._device.type == "cuda"
        self.allocate = Recycler(_make_pinned if self.pins else None)
        self._stream: Stream = _CudaStream(self._device) if self.pins else _NoStream()
        self._copying: deque[tuple[Event, dict[str, Any]]] = deque()

    def begin(self, batch: dict[str, Any]) -> Moving:
        """Start to copy a batch; its memory is held until the copy has ended."""
        while self._copying and self._copying[0][0].query():
            self._copying.popleft()
        with self._stream.entered():
            moved = map_values(self._move, batch)
        done = self._stream.record()
        self._copying.append((done, batch))
        return Moving(moved, done)

    def deliver(self, moving: Moving) -> dict[str, Any]:
        """Return the batch to the stream that the loop computes on."""
        moving.done.wait()
        if self.pins:
            stream = torch.cuda.current_stream(self._device)
            map_values(partial(_record, stream), moving.batch)
        return moving.batch

    def _move(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if self.pins and not value.is_pinned():
            value = value.pin_memory()  # else the copy would wait for those before it
        return value.to(self._device, non_blocking=True)


def _record(stream: Any, value: Any) -> Any:
    """Tell a tensor's memory that a stream reads it."""
    if isinstance(value, torch.Tensor):
        value.record_stream(stream)
    return value


class _CudaStream:
    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def entered(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream)

    def record(self) -> Event:
        event: Event = self._stream.record_event()
        return event


class _NoStream:
    """Stream of a device whose copies have ended when they return."""

    def entered(self) -> AbstractContextManager[object]:
        return nullcontext()

    def record(self) -> Event:
        return _Reached()


class _Reached:
    def query(self) -> bool:
        return True

    def wait(self) -> None:
        pass


def _find(device: torch.device | str) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = shown(str(error).partition("\n")[0])
        raise UsageError(f"device={quoted(str(device))} cannot be used here: {reason}") from error
    return found


def _make_pinned(size: int) -> NDArray[np.uint8]:
    pinned: NDArray[np.uint8] = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
    return pinned


_DEFAULT_PREFETCH = 2


class Loader(IterableDataset[dict[str, Any]]):
    """Batches of a dataset, made by threads of this process or by worker processes.

    The batches are those of the dataset itself, whatever the number of threads and workers; every
    loop is the next epoch, and the state is that of the loop. A DataLoader takes it for a dataset,
    so that each of its workers has threads. As a context it ends its loops, threads and workers
    included, when the context ends.

    Args:
        dataset: a ShardDataset or Mix with a batch size.
        threads: number of threads that read and decode; by default one for each core that this
            process may use, divided by LOCAL_WORLD_SIZE, and without the native core no more than
            8. With workers, the number of threads of each, by default 1.
        workers: number of processes that make the batches, for functions that hold the
            interpreter's lock; 0 for threads of this process.
        prefetch: number of batches made ahead of the loop, by each worker.
        device: target device of the batches' tensors, such as "cuda". They are copied from
            page-locked memory on a stream of their own, and the current stream waits for them.

    Attributes:
        dataset: dataset of the batches.
        threads: number of threads, of each worker if there are any.
        workers: number of processes.

    Raises:
        UsageError: the dataset yields samples, a number is below 1, or there is no such device.
    """

    def __init__(
        self,
        dataset: ResumableDataset,
        *,
        threads: int | None = None,
        workers: int = 0,
        prefetch: int = _DEFAULT_PREFETCH,
        device: torch.device | str | None = None,
    ) -> None:
        if not isinstance(dataset, ResumableDataset) or not dataset._makes_batches:
            raise UsageError("Loader makes batches: give it a ShardDataset or Mix with batch_size")
        self.dataset = dataset
        self.workers = whole_number("workers", workers, least=0)
        default = 1 if self.workers else count_threads(without_lock=is_active())
        self.threads = whole_number("threads", default if threads is None else threads, least=1)
        self._check_threads()
        self._prefetch = whole_number("prefetch", prefetch, least=1)
        self._transfer = None if device is None else Transfer(device)
        self._loops = weakref.WeakSet[Generator[dict[str, Any], None, None]]()

    def __len__(self) -> int:
        """Batches that this rank takes in an epoch."""
        return len(self.dataset)

    @property
    def sampler(self) -> ResumableDataset:
        """The dataset, which says what this rank gets, for loops that look for a sampler."""
        return self.dataset

    @property
    def batch_sampler(self) -> None:
        """None, as that of a DataLoader without batch size."""

    @property
    def drop_last(self) -> bool:
        """Not there, which accelerate's skip_first_batches is told."""
        raise AttributeError(
            "a shardio.Loader has no drop_last, and skip_first_batches of accelerate cannot copy "
            "it; loader.load_state_dict(state) continues inside an epoch"
        )

    def _check_threads(self) -> None:
        """Refuse a function of the dataset that draws from what its threads would share."""
        if not self.workers or self.threads > 1:
            self.dataset.check_threads()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._check_threads()  # again, for a transform that was set meanwhile
        if self.workers:
            if get_worker_info() is not None:
                raise UsageError(
                    "a Loader with workers is read by a worker of another loader",
                    remedy="leave workers out, or the DataLoader around it",
                )
            loop = self.dataset.follow(self._start_workers)
        else:
            allocate = self._transfer.allocate if self._transfer else None
            loop = self.dataset.iterate(self._finish, allocate)
        self._loops.add(loop)
        return loop

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for loop in [*self._loops]:
            loop.close()

    def _start_workers(self) -> Iterator[dict[str, Any]]:
        finish: Finish = finish_in_turn
        if self.threads > 1:
            finish = Loader(self.dataset, threads=self.threads)._finish
        batches = DataLoader(
            _Work(self.dataset, finish),
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=self._prefetch,
            pin_memory=self._transfer is not None and self._transfer.pins,
        )
        return iter(batches) if self._transfer is None else _in_turn(batches, self._transfer)

    def __getstate__(self) -> dict[str, Any]:
        if self._transfer is not None:
            raise UsageError(
                "a Loader with a device cannot go to other processes: workers cannot "
                "share a device's memory",
                remedy="leave device out, and copy in the training process",
            )
        return {**vars(self), "_loops": weakref.WeakSet()}

    def state_dict(self, batch: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Save the position of the loop; see ShardDataset.state_dict."""
        return self.dataset.state_dict(batch)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next loop continue at a position; see ShardDataset.load_state_dict."""
        self.dataset.load_state_dict(state)

    def set_epoch(self, epoch: int) -> None:
        """Make the next loop that epoch; later loops count on from it."""
        self.dataset.set_epoch(epoch)

    @property
    def num_bad_samples(self) -> int:
        """See ShardDataset.num_bad_samples."""
        return self.dataset.num_bad_samples

    def _finish(self, unfinished: UnfinishedBatches) -> Batches:
        threads = Threads("loader", self.threads)
        ahead = _Ahead(threads, self.threads, unfinished, self._prefetch)
        try:
            with one_opencv_thread():
                if self._transfer is not None:
                    yield from _transferred(ahead, self._transfer)
                else:
                    while ahead.fill():
                        yield ahead.pop()
        finally:
            ahead.abandon()
            threads.end()


class _Work(IterableDataset[dict[str, Any]]):
    """What the workers of a Loader read."""

    def __init__(self, dataset: ResumableDataset, finish: Finish) -> None:
        self._dataset = dataset
        self._finish = finish

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._dataset.iterate(self._finish, followed=True)


class _Begun(NamedTuple):
    """A batch that threads are filling.

    Attributes:
        batch: batch in the making.
        chunks: task of each chunk of its slots.
    """

    batch: UnfinishedBatch
    chunks: list[Future[None]]


class _Failed:
    """A batch that could not be planned; an UnfinishedBatch that raises the reason.

    Args:
        error: error to raise.
    """

    chunk = 1

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __len__(self) -> int:
        return 0

    def fill(self, slots: range) -> None:
        """Do nothing, as there are no slots."""

    def finish(self) -> dict[str, Any]:
        """Raise the error, when its turn has come."""
        raise self._error

    def abandon(self) -> None:
        """Do nothing, as nothing is read."""


class _Ahead:
    """The batches in the making, in order.

    Args:
        threads: pool of the threads that fill batches.
        num_threads: number of threads in the pool.
        unfinished: batches to fill.
        prefetch: number of batches begun beside the one that is due.
    """

    def __init__(
        self, threads: Threads, num_threads: int, unfinished: UnfinishedBatches, prefetch: int
    ) -> None:
        self._threads = threads
        self._least_chunks = -(-num_threads // (prefetch + 1))  # so that no thread lacks work
        self._process = os.getpid()
        self._unfinished: UnfinishedBatches | None = unfinished
        self._prefetch = prefetch
        self._begun = deque[_Begun]()

    def fill(self) -> bool:
        """Begin as many as may be; False if there is none."""
        if self._process != os.getpid():  # a fork, which lacks the threads at work
            self._process = os.getpid()
            self._begun = deque(self._begin(begun.batch) for begun in self._begun)
        while self._unfinished is not None and len(self._begun) <= self._prefetch:
            try:
                batch = next(self._unfinished, None)
            except Exception as error:  # whatever it is, it comes after the batches before it
                batch, self._unfinished = _Failed(error), None
            if batch is None:
                self._unfinished = None
                break
            self._begun.append(self._begin(batch))
        return bool(self._begun)

    def is_finished(self) -> bool:
        """Tell whether the batch that is due is there, without an error."""
        chunks = self._begun[0].chunks if self._begun else ()
        return bool(chunks) and all(chunk.done() and not chunk.exception() for chunk in chunks)

    def pop(self) -> dict[str, Any]:
        """Wait for the batch that is due; an error of a chunk is raised, the first in order."""
        batch, chunks = self._begun.popleft()
        try:
            while chunks:  # no local name keeps a future, whose error would then keep this frame
                chunks.pop(0).result()
        except BaseException:
            batch.abandon()
            raise
        return batch.finish()

    def abandon(self) -> None:
        """Have the threads wait for no store any more."""
        for begun in self._begun:
            begun.batch.abandon()

    def _begin(self, batch: UnfinishedBatch) -> _Begun:
        parts = chunks_of(batch, self._least_chunks)
        chunks = [self._threads.submit(batch.fill, slots) for slots in parts]
        return _Begun(batch, chunks)


def _transferred(ahead: _Ahead, transfer: Transfer) -> Iterator[dict[str, Any]]:
    moving = deque[Moving]()
    while ahead.fill() or moving:
        if not moving:
            moving.append(transfer.begin(ahead.pop()))
        if ahead.is_finished():
            moving.append(transfer.begin(ahead.pop()))
        yield transfer.deliver(moving.popleft())


def _in_turn(batches: Iterable[dict[str, Any]], transfer: Transfer) -> Iterator[dict[str, Any]]:
    """Copy batches that others make; the copy runs beside what the device still computes."""
    for batch in batches:
        moving = transfer.begin(batch)
        del batch
        yield transfer.deliver(moving)
        del moving
