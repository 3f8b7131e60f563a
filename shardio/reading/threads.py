"""Threads of a loop, which end with it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

_OURS = "shardio-"

MOST_USEFUL_THREADS = 8
"""For photos; of 12 and more, each waits so often for the interpreter's lock that all together are
slower (measured on 16 cores: 5,800 images a second by 8 threads, 3,600 by 12 or 16)."""


def start_threads(name: str, count: int) -> ThreadPoolExecutor:
    """Threads for a loop, at most `count`, whose names tell what they are for."""
    return ThreadPoolExecutor(count, thread_name_prefix=_OURS + name)


def end_threads(pool: ThreadPoolExecutor) -> None:
    """Drop tasks that wait, await those that run, and end the threads."""
    # A collection of garbage in one of the threads may end a loop: none joins itself.
    inside = threading.current_thread().name.startswith(_OURS)
    pool.shutdown(wait=not inside, cancel_futures=True)
