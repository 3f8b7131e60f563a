"""Locks, threads and other processes, where a process may fork.

A forked child has its parent's memory and one of its threads. A lock that another thread held at
that moment would be held in the child for ever, so every lock of shardio is made here and is free
in a child. What it guards is written so that an update that was cut short does no harm.

An executor is copied with its locks, one of which a thread holds whenever it submits a task, and
without its threads. A child that ends a loop of its parent would wait for that lock, so it leaves
the parent's executor alone, and has one of its own if it goes on. OpenCV's threads are the matter
of shardio.fields.image.
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
    """Make a lock that is free in a forked child, whoever held it in the parent."""
    lock = threading.Lock()
    _locks.add(lock)
    return lock


def is_forked() -> bool:
    """Tell whether this process was forked from one that had loaded shardio."""
    return _forked


def _begin_child() -> None:
    global _forked  # noqa: PLW0603  a fact about the process
    _forked = True
    for lock in _locks:
        lock._at_fork_reinit()  # type: ignore[attr-defined]  # as logging does with its own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_child)


def count_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_alive(process: int) -> bool:
    """Tell whether a process of ours with that number runs, or has not been waited for."""
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


T = TypeVar("T")

_OURS = "shardio-"

MOST_USEFUL_THREADS = 8
"""For photos; of 12 and more, each waits so often for the interpreter's lock that all together are
slower (measured on 16 cores: 5,800 images a second by 8 threads, 3,600 by 12 or 16)."""


class Threads:
    """Threads for tasks of a loop; other ones in a forked child.

    Args:
        name: purpose of the threads, for their names.
        most: maximum number of threads.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name = _OURS + name
        self._most = most
        self._begin()

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Have a thread call a function."""
        if self._process != os.getpid():
            self._begin()
        return self._pool.submit(work, *arguments)

    def end(self) -> None:
        """Drop tasks that wait, await those that run, and end the threads.

        A collection of garbage may end a loop in any thread and anywhere. It does not await
        tasks, since they may need what the thread holds that it interrupts.
        """
        if self._process != os.getpid():
            return
        inside = threading.current_thread().name.startswith(_OURS)
        wait = not inside and _collector != threading.get_ident()
        self._pool.shutdown(wait=wait, cancel_futures=True)

    def _begin(self) -> None:
        self._process = os.getpid()
        self._pool = ThreadPoolExecutor(self._most, thread_name_prefix=self._name)


_collector: int | None = None  # the thread that collects garbage


def _note_collection(
    phase: str, _: dict[str, int], ident: Callable[[], int] = threading.get_ident
) -> None:
    """Note which thread collects; at the interpreter's end, too, when global names are gone."""
    global _collector  # noqa: PLW0603  a fact about the process
    _collector = ident() if phase == "start" else None


gc.callbacks.append(_note_collection)
