"""Threads of a loop, which end with it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

_OURS = "shardio-"


def start_threads(name: str, count: int) -> ThreadPoolExecutor:
    """Threads for a loop, at most `count`, whose names tell what they are for."""
    return ThreadPoolExecutor(count, thread_name_prefix=_OURS + name)


def end_threads(pool: ThreadPoolExecutor) -> None:
    """Drop tasks that wait, await those that run, and end the threads."""
    # A collection of garbage in one of the threads may end a loop: none joins itself.
    inside = threading.current_thread().name.startswith(_OURS)
    pool.shutdown(wait=not inside, cancel_futures=True)
