"""Locks, threads and processes, safe to use across a fork.

A forked child has its parent's memory but only one of its threads. A lock that another thread held
at the time of the fork would stay locked in the child for ever. All locks of shardio are therefore
made by `new_lock`, and a child starts with all of them free. Data guarded by such a lock must
tolerate an interrupted update.

An executor is copied with its internal locks but without its threads, so shutting it down in a
child could wait for ever. `Threads` abandons its parent's executor in a child and creates another
one when it is needed. `Daemons` are for work that may wait long for another machine: nothing waits
for them, not even the end of the interpreter.

A file lock belongs to the open file, which a child shares: it would keep the lock of a parent that
was killed. Files are therefore opened for locking by `open_for_lock`, and a child closes them.
"""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

_locks: weakref.WeakSet[threading.Lock] = weakref.WeakSet()
_forked = False
WIDTH = 80  # columns where no terminal says


def new_lock() -> threading.Lock:
    """Create a lock that is free in a forked child, even if it was held in the parent."""
    lock = threading.Lock()
    _locks.add(lock)
    return lock


def is_forked() -> bool:
    """Return whether this process was forked from one that had imported shardio."""
    return _forked


_locked: set[int] = set()
"""Descriptors of the files whose lock this process holds or waits for."""
_opening = threading.RLock()  # since the collector may close a file at any point
_locks.add(_opening)  # type: ignore[arg-type]


def open_for_lock(path: str | Path, flags: int) -> int:
    """Open a file whose lock is then taken; it is created for this user alone.

    A process that another thread forks meanwhile does not hold the lock.

    Raises:
        OSError: it cannot be opened.
    """
    with _opening:  # no fork comes between
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        _locked.add(descriptor)
    return descriptor


def close_locked(descriptor: int) -> None:
    """Release the lock of a file, and close it; does nothing in a process forked since."""
    with _opening:
        if descriptor not in _locked:
            return
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a copy in a fork would keep it after a close
        _locked.discard(descriptor)
        os.close(descriptor)


def _begin_child() -> None:
    global _forked  # noqa: PLW0603  state of the process
    _forked = True
    for lock in _locks:
        lock._at_fork_reinit()  # type: ignore[attr-defined]  # as logging does with its own
    for descriptor in _locked:
        os.close(descriptor)
    _locked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_begin_child
    )


def count_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def terminal_width(*, error: bool = False) -> int:
    """Return the columns of the terminal of standard output, or error; 80 without one.

    COLUMNS overrides it.
    """
    stream, usual = sys.stderr if error else sys.stdout, os.terminal_size((WIDTH, 24))
    with suppress(AttributeError, OSError, ValueError):
        usual = os.get_terminal_size(stream.fileno())
    return shutil.get_terminal_size(usual).columns or WIDTH


def is_alive(process: int) -> bool:
    """Return whether a process of this user exists, running or not yet waited for."""
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


S = TypeVar("S")
T = TypeVar("T")

_OURS = "shardio-"

_MOST_WITH_LOCK = 8
"""Most threads that help where each sample takes the interpreter's lock several times.

With more, contention for it makes all of them slower. Measured on 16 cores, with photos: 5,800
images a second with 8 threads, 3,600 with 12 or 16.
"""


def count_threads(*, without_lock: bool) -> int:
    """Return how many threads this process should decode with.

    That is one for each core that it may use, shared among the processes of the machine that
    torchrun started, by LOCAL_WORLD_SIZE.

    Args:
        without_lock: whether the threads seldom need the interpreter's lock.
    """
    given = os.environ.get("LOCAL_WORLD_SIZE", "")
    ranks = int(given) if given.isdecimal() and int(given) > 0 else 1
    threads = max(1, count_cores() // ranks)
    return threads if without_lock else min(threads, _MOST_WITH_LOCK)


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
        """Cancel pending tasks, wait for running ones, and for the end of the threads.

        Python's own waiting ends before the system's threads do. While they end, they hold locks of
        C++ libraries such as OpenCV, which a child that is forked then would wait for for ever.

        The garbage collector may call this in any thread, at any point. It then returns without
        waiting, since a running task may need a lock that the interrupted thread holds.
        """
        if self._process != os.getpid():
            return
        inside = threading.current_thread().name.startswith(_OURS)
        wait = not inside and _collector != threading.get_ident()
        self._pool.shutdown(wait=wait, cancel_futures=True)
        if wait:
            _wait_for_end(self._threads)

    def _begin(self) -> None:
        self._process = os.getpid()
        self._threads: list[int] = []
        self._pool = ThreadPoolExecutor(
            self._most,
            thread_name_prefix=self._name,
            initializer=_note_thread,
            initargs=(self._threads,),
        )


def in_threads(work: Callable[[S], T], values: Sequence[S], most: int = 16) -> list[T]:
    """Call a function for each value, several at once, and return the results in order.

    Of several errors that of the first value is raised.
    """
    if len(values) < 2:
        return [*map(work, values)]
    threads = Threads("some", most)
    try:
        return [each.result() for each in [threads.submit(work, value) for value in values]]
    finally:
        threads.end()


_LONGEST_END, _POLL = 0.1, 0.0002  # seconds


def _note_thread(threads: list[int]) -> None:
    threads.append(threading.get_native_id())


def _wait_for_end(threads: list[int]) -> None:
    """Wait until threads have ended, where the system tells."""
    latest = time.monotonic() + _LONGEST_END
    for thread in threads:
        while os.path.exists(f"/proc/self/task/{thread}"):  # noqa: PTH110  a Path takes longer
            if time.monotonic() > latest:
                return
            time.sleep(_POLL)


class Daemons:
    """Threads that end with the process, whatever they wait for, and start when there is work.

    Args:
        name: purpose of the threads, used in their names.
        most: maximum number of threads.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name = _OURS + name
        self._most = most
        self._lock = new_lock()
        self._reason: Exception | None = None
        self._begin()

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Call a function in a thread.

        Raises:
            RuntimeError: this process may start no thread.
        """
        if self._process != os.getpid():
            self._begin()
        future: Future[T] = Future()
        with self._lock:
            if self._reason is not None:
                future.set_exception(self._reason)
                return future
            task = future, partial(work, *arguments)
            self._waiting.append(task)
            more = self._threads < self._most
            self._threads += more
        if more:
            try:
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
            except RuntimeError:
                with self._lock:
                    self._threads -= 1
                    if not self._threads and task in self._waiting:  # else another thread does it
                        self._waiting.remove(task)
                        raise
        return future

    def end(self, reason: Exception) -> None:
        """Have all that is pending or running end with an error; returns without waiting."""
        if self._process != os.getpid():
            return
        with self._lock:
            self._reason = reason
            futures = [*(future for future, _ in self._waiting), *self._running]
            self._waiting.clear()
        for future in futures:
            with suppress(InvalidStateError):  # it has just ended
                future.set_exception(reason)

    def _begin(self) -> None:
        self._process = os.getpid()
        self._waiting = deque[tuple[Future[Any], Callable[[], Any]]]()
        self._running = set[Future[Any]]()
        self._threads = 0
        self._reason = None

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                future, work = self._waiting.popleft()
                self._running.add(future)
            with suppress(InvalidStateError):  # nobody waits for it any more
                try:
                    result = work()
                except BaseException as error:  # whatever it is, who waits for the result raises it
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            with self._lock:
                self._running.discard(future)
            del future, work


_collector: int | None = None  # the thread that is collecting garbage


def _note_collection(
    phase: str, _: dict[str, int], ident: Callable[[], int] = threading.get_ident
) -> None:
    """Record which thread is collecting; works at interpreter exit, when globals are gone."""
    global _collector  # noqa: PLW0603  state of the process
    _collector = ident() if phase == "start" else None


def outside_collection(work: Callable[[], None]) -> None:
    """Call a function that takes locks, in a thread of its own where garbage is being collected.

    The thread that is interrupted may hold these locks.
    """
    if _collector != threading.get_ident():
        work()
        return
    with suppress(RuntimeError):  # the interpreter ends
        threading.Thread(target=work, name=f"{_OURS}end", daemon=True).start()


gc.callbacks.append(_note_collection)
