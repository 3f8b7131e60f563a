"""Running pack tasks on this machine's cores.

Threads suffice: reading, checksums, writing and syncing all happen outside the GIL, and what
they write does not depend on their number. There are more threads than cores so that a core
has work while a shard is being synced to disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

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
        PackError: a source file cannot be packed; of several, the first in order of tasks.
        OSError: a shard cannot be written.
    """
    threads = min(len(tasks), _THREADS_PER_CORE * (os.cpu_count() or 1))
    with ThreadPoolExecutor(threads, thread_name_prefix="shardio-pack") as pool:
        running = [pool.submit(pack_shard, task, on_sample) for task in tasks]
        wait(running, return_when=FIRST_EXCEPTION)
        for future in running:
            future.cancel()
        return [future.result() for future in running]
