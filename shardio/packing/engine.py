"""Running pack tasks on this machine's cores.

Threads suffice: reading, checksums, writing and syncing all happen outside the GIL, and what
they write does not depend on their number. There are more threads than cores so that a core
has work while a shard is being synced to disk. The first error, Ctrl-C too, ends all of them:
tasks that wait never begin, those that run stop at their next sample.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from contextlib import suppress

from shardio.packing.plan import ShardTask
from shardio.packing.shard import PackedShard, pack_shard

_THREADS_PER_CORE = 2


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
    threads = min(len(tasks), _THREADS_PER_CORE * (os.cpu_count() or 1))
    stop = threading.Event()
    with ThreadPoolExecutor(threads, thread_name_prefix="shardio-pack") as pool:
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
