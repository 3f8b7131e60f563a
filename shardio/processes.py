"""Locks, threads and processes, safe to use across a fork.

A forked child has its parent's memory but only one of its threads. A lock that another thread held
at the time of the fork would stay locked in the child for ever. All locks of shardio are therefore
made by `new_lock`, and a child starts with all of them free. Data guarded by such a lock must
tolerate an interrupted update.

An executor is copied with its internal locks but without its threads, so shutting it down in a
child could wait for ever. `Threads` abandons its parent's executor in a child and creates another
one when it is needed.
"""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

_locks: weakref.WeakSet[threading.Lock] = weakref.WeakSet()
_forked = False


def new_lock() -> threading.Lock:
    """Create a lock that is free in a forked child, even if it was held in the parent."""
    lock = threading.Lock()
    _locks.add(lock)
    return lock


def is_forked() -> bool:
    """Return whether this process was forked from one that had imported shardio."""
    return _forked


def _begin_child() -> None:
    global _forked  # noqa: PLW0603  state of the process
    _forked = True
    for lock in _locks:
        lock._at_fork_reinit()  # type: ignore[attr-defined]  # as logging does with its own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_child)


def count_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_alive(process: int) -> bool:
    """Return whether a process of this user exists, running or not yet waited for."""
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


T = TypeVar("T")

_OURS = "shardio-"

MOST_USEFUL_THREADS = 8
"""Maximum number of threads for decoding photos.

With more threads, contention for the interpreter lock makes all of them slower. Measured on 16
cores: 5,800 images a second with 8 threads, 3,600 with 12 or 16.
"""


class Threads:
    """Thread pool that replaces itself in a forked child.

    Args:
        name: purpose of the threads, used in their names.
        most: maximum number of threads.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name = _OURS + name
        self._most = most
        self._begin()

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Call a function in a thread."""
        if self._process != os.getpid():
            self._begin()
        return self._pool.submit(work, *arguments)

    def end(self) -> None:
        """Cancel pending tasks, wait for running ones, and end the threads.

        The garbage collector may call this in any thread, at any point. It then returns without
        waiting, since a running task may need a lock that the interrupted thread holds.
        """
        if self._process != os.getpid():
            return
        inside = threading.current_thread().name.startswith(_OURS)
        wait = not inside and _collector != threading.get_ident()
        self._pool.shutdown(wait=wait, cancel_futures=True)

    def _begin(self) -> None:
        self._process = os.getpid()
        self._pool = ThreadPoolExecutor(self._most, thread_name_prefix=self._name)


_collector: int | None = None  # the thread that is collecting garbage


def _note_collection(
    phase: str, _: dict[str, int], ident: Callable[[], int] = threading.get_ident
) -> None:
    """Record which thread is collecting; works at interpreter exit, when globals are gone."""
    global _collector  # noqa: PLW0603  state of the process
    _collector = ident() if phase == "start" else None


gc.callbacks.append(_note_collection)
