"""Loader: threads that decode straight into the batches' slots.

The consumer's own thread plans: when it asks for a batch, the next one is cut into chunks and
handed to the threads, then it waits for the chunks of the one that is due. So at most
`prefetch` batches are in the making while the consumer works, they come in order, and nothing
runs that nobody waits for. Leaving the loop, in whatever way, ends the generator that holds the
threads: chunks that wait are dropped, those that run are awaited. For a device, a batch that is
finished early starts its copy early, beside the step of the one before.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.data import IterableDataset

from shardio.codecs.opencv import one_opencv_thread
from shardio.errors import UsageError
from shardio.reading.arguments import whole_number
from shardio.reading.processes import count_cores
from shardio.reading.resumable import Job, Jobs, ResumableDataset
from shardio.reading.threads import MOST_USEFUL_THREADS, Threads
from shardio.reading.transfer import Moving, Transfer

if TYPE_CHECKING:
    from typing_extensions import Self

_DEFAULT_PREFETCH = 2


class Loader(IterableDataset[dict[str, Any]]):
    """Batches of a dataset, made by threads of this process.

    The batches are those of the dataset itself, whatever the number of threads; every loop is
    the next epoch. A DataLoader takes it for a dataset, so that each of its workers has threads:
    `DataLoader(Loader(ds, threads=2), batch_size=None, num_workers=2)`. As a context it ends its
    loops, threads included, when the context ends.

    Args:
        dataset: a ShardDataset or Mix with a batch size.
        threads: that read and decode; by default one for each core, but no more than 8. More
            cores are for workers: `DataLoader(ds, batch_size=None, num_workers=16)`.
        prefetch: batches that are made ahead of the loop.
        device: where the batches' tensors shall be, as "cuda". They are copied from page-locked
            memory on a stream of their own, and the current stream waits for them.

    Attributes:
        dataset: that the batches are of.
        threads: how many read and decode.

    Raises:
        UsageError: the dataset yields samples, a number is below 1, or there is no such device.
    """

    def __init__(
        self,
        dataset: ResumableDataset,
        *,
        threads: int | None = None,
        prefetch: int = _DEFAULT_PREFETCH,
        device: torch.device | str | None = None,
    ) -> None:
        if not isinstance(dataset, ResumableDataset) or dataset.batch_size is None:
            raise UsageError("Loader makes batches: give it a ShardDataset or Mix with batch_size")
        self.dataset = dataset
        default = min(count_cores(), MOST_USEFUL_THREADS)
        self.threads = whole_number("threads", default if threads is None else threads, least=1)
        self._prefetch = whole_number("prefetch", prefetch, least=1)
        self._transfer = None if device is None else Transfer(device)
        self._loops = weakref.WeakSet[Generator[dict[str, Any], None, None]]()

    def __len__(self) -> int:
        """Batches that this rank takes in an epoch."""
        return len(self.dataset)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        allocate = self._transfer.allocate if self._transfer else None
        loop = self.dataset.iterate(self._run, allocate)
        self._loops.add(loop)
        return loop

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for loop in [*self._loops]:
            loop.close()

    def __getstate__(self) -> dict[str, Any]:
        if self._transfer is not None:
            raise UsageError(
                "a Loader with a device cannot go to other processes: workers cannot share a "
                "device's memory; leave device out, and copy in the training process"
            )
        return {**vars(self), "_loops": weakref.WeakSet()}

    def state_dict(self, batch: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Where the loop is, after the batches that it received; see ShardDataset.state_dict."""
        return self.dataset.state_dict(batch)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next loop go on there; see ShardDataset.load_state_dict."""
        self.dataset.load_state_dict(state)

    def set_epoch(self, epoch: int) -> None:
        """Make the next loop that epoch; later loops count on from it."""
        self.dataset.set_epoch(epoch)

    @property
    def num_bad_samples(self) -> int:
        """See ShardDataset.num_bad_samples."""
        return self.dataset.num_bad_samples

    def _run(self, jobs: Jobs) -> Generator[dict[str, Any], None, None]:
        threads = Threads("loader", self.threads)
        try:
            with one_opencv_thread():
                ahead = _Ahead(threads, jobs, self._prefetch)
                if self._transfer is not None:
                    yield from _transferred(ahead, self._transfer)
                else:
                    while ahead.fill():
                        yield ahead.pop()
        finally:
            threads.end()


class _Begun(NamedTuple):
    """A batch in the making."""

    job: Job
    chunks: list[Future[None]]


class _Failed:
    """A batch that could not be planned; a Job that raises why.

    Args:
        error: to raise.
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


class _Ahead:
    """The batches in the making, in order.

    Args:
        threads: workers.
        jobs: to be done.
        prefetch: how many are begun beside the one that is due.
    """

    def __init__(self, threads: Threads, jobs: Jobs, prefetch: int) -> None:
        self._threads = threads
        self._process = os.getpid()
        self._jobs: Jobs | None = jobs
        self._prefetch = prefetch
        self._begun = deque[_Begun]()

    def fill(self) -> bool:
        """Begin as many as may be; False if there is none."""
        if self._process != os.getpid():  # a fork, which lacks the threads at work
            self._process = os.getpid()
            self._begun = deque(self._begin(begun.job) for begun in self._begun)
        while self._jobs is not None and len(self._begun) <= self._prefetch:
            try:
                job = next(self._jobs, None)
            except Exception as error:  # whatever it is, it comes after the batches before it
                job, self._jobs = _Failed(error), None
            if job is None:
                self._jobs = None
                break
            self._begun.append(self._begin(job))
        return bool(self._begun)

    def is_finished(self) -> bool:
        """Tell whether the batch that is due is there, without an error."""
        chunks = self._begun[0].chunks if self._begun else ()
        return bool(chunks) and all(chunk.done() and not chunk.exception() for chunk in chunks)

    def pop(self) -> dict[str, Any]:
        """Wait for the batch that is due; an error of a chunk is raised, the first in order."""
        job, chunks = self._begun.popleft()
        while chunks:  # no local name keeps a future, whose error would then keep this frame
            chunks.pop(0).result()
        return job.finish()

    def _begin(self, job: Job) -> _Begun:
        starts = range(0, len(job), job.chunk)
        slots = [range(start, min(start + job.chunk, len(job))) for start in starts]
        return _Begun(job, [self._threads.submit(job.fill, part) for part in slots])


def _transferred(ahead: _Ahead, transfer: Transfer) -> Iterator[dict[str, Any]]:
    moving = deque[Moving]()
    while ahead.fill() or moving:
        if not moving:
            moving.append(transfer.begin(ahead.pop()))
        if ahead.is_finished():
            moving.append(transfer.begin(ahead.pop()))
        yield transfer.deliver(moving.popleft())
