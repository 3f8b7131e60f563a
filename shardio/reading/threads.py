"""Threads of a loop, which end with it.

A ThreadPoolExecutor would do, were it not for two moments. A collection of garbage may end a loop
at any point of any thread: inside the executor's submit, say, whose lock ending takes as well.
And a fork copies its locks and its list of threads, but not the threads. Here nothing takes a
lock, a collection waits for no thread, and a child begins anew.
"""

from __future__ import annotations

import atexit
import gc
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

_OURS = "shardio-"

MOST_USEFUL_THREADS = 8
"""For photos; of 12 and more, each waits so often for the interpreter's lock that all together are
slower (measured on 16 cores: 5,800 images a second by 8 threads, 3,600 by 12 or 16)."""


class Threads:
    """Threads that do tasks in order, started when there are more tasks than idle threads.

    In a forked child it has no threads and no tasks, and starts its own.

    Args:
        name: purpose of the threads, for their names.
        most: maximum number of threads.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name = _OURS + name
        self._most = most
        self._ended = False
        self._begin()
        _all.add(self)

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Have a thread call a function; after the end the future is cancelled at once."""
        if self._process != os.getpid():
            self._begin()
        future: Future[T] = Future()
        if self._ended:
            future.cancel()
            return future
        self._tasks.put(_Task(future, work, arguments))
        try:
            self._idle.pop()
        except IndexError:
            if len(self._threads) < self._most:
                self._start()
        return future

    def end(self) -> None:
        """Drop tasks that wait, await those that run, and end the threads.

        Nothing is awaited in a collection of garbage, as the thread that collects may hold what a
        task waits for, and in one of the threads, which would wait for itself.
        """
        if self._process != os.getpid():  # the threads are the parent's
            return
        self._ended = True
        with suppress(Empty):
            while True:
                task = self._tasks.get_nowait()
                if task is not None:
                    task.future.cancel()
        self._tasks.put(None)
        ours = threading.current_thread().name.startswith(_OURS)
        if not ours and _collector != threading.get_ident():
            for thread in self._threads:
                thread.join()

    def __del__(self) -> None:
        """Let the threads end."""
        self._tasks.put(None)

    def _begin(self) -> None:
        self._process = os.getpid()
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._idle: deque[None] = deque()  # one for each thread that waits for a task
        self._threads: list[threading.Thread] = []

    def _start(self) -> None:
        name = f"{self._name}_{len(self._threads)}"
        thread = threading.Thread(
            target=_work, args=(self._tasks, self._idle), name=name, daemon=True
        )
        thread.start()
        self._threads.append(thread)


class _Task(NamedTuple):
    """A function to be called.

    Attributes:
        future: receives the result or the error.
        work: function.
        arguments: positional arguments.
    """

    future: Future[Any]
    work: Callable[..., Any]
    arguments: tuple[Any, ...]


def _work(tasks: SimpleQueue[_Task | None], idle: deque[None]) -> None:
    """Do tasks until None comes, and leave it to the other threads."""
    while (task := tasks.get()) is not None:
        place = [task]
        del task
        _do(place)
        idle.append(None)
    tasks.put(None)


def _do(place: list[_Task]) -> None:
    """Do a task; no local name keeps it afterwards, since an error keeps this frame."""
    if not place[0].future.set_running_or_notify_cancel():
        return
    try:
        result = place[0].work(*place[0].arguments)
    except BaseException as error:
        place.pop().future.set_exception(error)
    else:
        place.pop().future.set_result(result)


_all: weakref.WeakSet[Threads] = weakref.WeakSet()
_collector: int | None = None  # the thread that collects garbage


def _note_collection(
    phase: str, _: dict[str, int], ident: Callable[[], int] = threading.get_ident
) -> None:
    global _collector  # noqa: PLW0603  a fact about the process
    _collector = ident() if phase == "start" else None


@atexit.register
def _end_all() -> None:
    """End the threads of loops that were not left, before the interpreter ends."""
    for threads in [*_all]:
        threads.end()
    gc.callbacks.remove(_note_collection)


gc.callbacks.append(_note_collection)
