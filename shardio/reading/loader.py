"""Loader: threads that decode straight into the batches' slots.

The consumer's own thread plans: when it asks for a batch, the next one is cut into chunks and
handed to the threads, then it waits for the chunks of the one that is due. So at most
`prefetch` batches are in the making while the consumer works, they come in order, and nothing
runs that nobody waits for. Leaving the loop, in whatever way, ends the generator that holds the
threads: chunks that wait are dropped, those that run are awaited.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from shardio.errors import UsageError
from shardio.reading.arguments import whole_number
from shardio.reading.resumable import Job, Jobs, ResumableDataset

_DEFAULT_PREFETCH = 2
_THREADS = "shardio-loader"


class Loader:
    """Batches of a dataset, made by threads of this process.

    The batches are those of the dataset itself, whatever the number of threads; every loop is
    the next epoch.

    Args:
        dataset: a ShardDataset or Mix with a batch size.
        threads: that read and decode; by default one for each core.
        prefetch: batches that are made ahead of the loop.

    Raises:
        UsageError: the dataset yields samples, or a number is below 1.
    """

    def __init__(
        self,
        dataset: ResumableDataset,
        *,
        threads: int | None = None,
        prefetch: int = _DEFAULT_PREFETCH,
    ) -> None:
        if not isinstance(dataset, ResumableDataset) or dataset.batch_size is None:
            raise UsageError("Loader makes batches: give it a ShardDataset or Mix with batch_size")
        self.dataset = dataset
        self._threads = whole_number(
            "threads", _count_cores() if threads is None else threads, least=1
        )
        self._prefetch = whole_number("prefetch", prefetch, least=1)

    def __len__(self) -> int:
        """Batches that this rank takes in an epoch."""
        return len(self.dataset)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.dataset.iterate(self._run)

    def state_dict(self) -> dict[str, Any]:
        """Where the loop is, after the batches that it received; see ShardDataset.state_dict."""
        return self.dataset.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next loop go on there; see ShardDataset.load_state_dict."""
        self.dataset.load_state_dict(state)

    def _run(self, jobs: Jobs) -> Generator[dict[str, Any], None, None]:
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix=_THREADS)
        try:
            begun = deque[_Begun]()
            while True:
                while len(begun) <= self._prefetch and (job := next(jobs, None)) is not None:
                    begun.append(_begin(pool, job))
                if not begun:
                    return
                yield begun.popleft().finish()
        finally:
            # A collection of garbage in one of the threads may close this loop: none joins itself.
            inside = threading.current_thread().name.startswith(_THREADS)
            pool.shutdown(wait=not inside, cancel_futures=True)


class _Begun(NamedTuple):
    """A batch in the making."""

    job: Job
    chunks: list[Future[None]]

    def finish(self) -> dict[str, Any]:
        """Wait for the chunks; an error of one is raised, the first in order."""
        while self.chunks:  # no local name keeps a future, whose error would then keep this frame
            self.chunks.pop(0).result()
        return self.job.finish()


def _begin(pool: ThreadPoolExecutor, job: Job) -> _Begun:
    starts = range(0, len(job), job.chunk)
    chunks = [range(start, min(start + job.chunk, len(job))) for start in starts]
    return _Begun(job, [pool.submit(job.fill, chunk) for chunk in chunks])


def _count_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
