"""Running pack tasks on this machine's cores.

Threads suffice: reading, decoding, checksums, writing and syncing all happen outside the GIL, and
what they write does not depend on their number. There are more threads than cores so that a core
has work while a shard is being synced to disk. The first error, Ctrl-C too, ends all of them:
tasks that wait never begin, those that run stop at their next sample.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial

from shardio.packing.plan import ShardTask
from shardio.packing.shard import PackedShard, find_problem, pack_shard
from shardio.packing.sources import Problem, SourceSample
from shardio.packing.store import Store

_THREADS_PER_CORE = 2
_CHUNK = 64  # samples that a thread checks at a time


def run_tasks(
    tasks: Sequence[ShardTask], on_sample: Callable[[], None] | None = None
) -> list[PackedShard]:
    """Write all shards.

    Args:
        tasks: in order.
        on_sample: called after each sample, from several threads.

    Returns:
        What was written, in the order of the tasks.

    Raises:
        PackError: a source file cannot be packed; of several met at once, the first in
            order of tasks.
        OSError: a shard cannot be written.
    """
    stop = threading.Event()
    raw = any(task.store.kind == "raw" for task in tasks)
    with _pool(len(tasks), raw=raw) as pool:
        try:
            running = [pool.submit(pack_shard, task, on_sample, stop) for task in tasks]
            wait(running, return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            stop.set()
    for future in running:
        with suppress(CancelledError):
            future.result()
    return [future.result() for future in running]


def find_problems(
    source: str, samples: Sequence[SourceSample], store: Store
) -> list[Problem | None]:
    """Why each sample cannot be packed, or None, in order."""
    check = partial(_find_in_chunk, source, store)
    chunks = [samples[start : start + _CHUNK] for start in range(0, len(samples), _CHUNK)]
    with _pool(len(chunks), raw=store.kind == "raw") as pool:
        try:
            return [problem for found in pool.map(check, chunks) for problem in found]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _find_in_chunk(
    source: str, store: Store, samples: Sequence[SourceSample]
) -> list[Problem | None]:
    return [find_problem(source, sample, store) for sample in samples]


@contextmanager
def _pool(calls: int, *, raw: bool) -> Iterator[ThreadPoolExecutor]:
    """Threads for a number of calls; where they decode, OpenCV adds none of its own."""
    threads = max(1, min(calls, _THREADS_PER_CORE * (os.cpu_count() or 1)))
    alone: AbstractContextManager[None] = nullcontext()
    if raw:
        from shardio.codecs.opencv import one_opencv_thread  # noqa: PLC0415  loads OpenCV

        alone = one_opencv_thread()
    with alone, ThreadPoolExecutor(threads, thread_name_prefix="shardio-pack") as pool:
        yield pool
