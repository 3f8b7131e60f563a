"""Running tasks: in processes of this machine, or on a Ray cluster.

Small files take most of their time in Python, so processes, not threads, make use of the cores.
What they write does not depend on their number. The first error, Ctrl-C too, ends all of them:
tasks that wait never begin, those that run stop at their next samples. If this process is killed,
the others end at once, so that nobody writes to a folder that another pack takes.

The machines of a cluster see source and output in one file system, under the same paths, and have
shardio. A worker that dies is replaced and its task done again: a task that finds its receipt is
done.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event, Semaphore
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar, get_args

from shardio.checks import one_of, whole_number
from shardio.errors import PackError, SituationError, UsageError, argument
from shardio.processes import count_cores

Advance = Callable[[int], None]
"""Called with the number of samples done since the last call."""

EngineName = Literal["local", "ray"]

_TICKS = 16  # samples counted at once
_SECONDS = 0.05  # between looks at the count
_PATIENCE = 30.0  # seconds in which tasks that must stop come to their next samples
_IDLE_PATIENCE = 1.0  # seconds for processes without tasks: one that was killed may have locked all


class Ticker(Protocol):
    """Takes note of a task's progress."""

    def tick(self, count: int) -> None:
        """Count samples.

        Raises:
            CancelledError: the task must stop.
        """


T = TypeVar("T", bound=Sized)
R = TypeVar("R")
Work: TypeAlias = Callable[[T, Ticker], R]
"""A function of a module that does a task: samples, as a value that pickles and has a length."""


class Engine(Protocol):
    """Runs tasks somewhere.

    Attributes:
        elsewhere: whether tasks run outside this process's working folder, so that they need
            absolute paths.
    """

    elsewhere: bool

    def run(self, work: Work[T, R], tasks: Sequence[T], advance: Advance | None) -> list[R]:
        """Do all tasks.

        Args:
            work: function that does a task.
            tasks: tasks in order.
            advance: callback for the number of samples done.

        Returns:
            Results of the tasks, in their order.

        Raises:
            Exception: the error of a task; of several at once, that of the first task.
        """


class _Shared(NamedTuple):
    """Objects shared by all processes of a run.

    Attributes:
        counter: number of samples done.
        start: semaphore that each process acquires once, released when all tasks are submitted.
        stop: event that tells tasks to stop.
    """

    counter: Synchronized[int]
    start: Semaphore
    stop: Event

    def let_begin(self, jobs: int) -> None:
        """Have processes begin with their tasks."""
        for _ in range(jobs):
            self.start.release()


class LocalEngine:
    """Runs tasks in processes of this machine; see Engine.

    Args:
        jobs: number of processes; 1 runs the tasks in this one, None takes one for each core.
    """

    elsewhere = False

    def __init__(self, jobs: int | None = None) -> None:
        self._jobs = jobs or count_cores()

    def run(self, work: Work[T, R], tasks: Sequence[T], advance: Advance | None) -> list[R]:
        """See Engine."""
        jobs = min(self._jobs, len(tasks))
        if jobs <= 1:
            here = _Here(advance)
            return [work(task, here) for task in tasks]
        context = multiprocessing.get_context()
        shared = _Shared(context.Value("q", 0), context.Semaphore(0), context.Event())
        with _without_opencv_threads(), _processes(jobs, shared) as pool:
            running: list[Future[R]] = [pool.submit(_do, work, task) for task in tasks]
            shared.let_begin(jobs)
            _watch(running, shared.counter, advance)
            # If one failed; cancelled here, others would break the pool's own thread.
            shared.stop.set()
            return _results(running)


def _without_opencv_threads() -> AbstractContextManager[None]:
    """Return a context to fork in: OpenCV in a child would wait for threads that it lacks."""
    if "cv2" not in sys.modules:
        return nullcontext()
    from shardio.fields.image import one_opencv_thread  # noqa: PLC0415  only if it is loaded

    return one_opencv_thread()


@contextmanager
def _processes(jobs: int, shared: _Shared) -> Iterator[ProcessPoolExecutor]:
    """Start processes, which have ended in one way or another when the context ends."""
    pool = ProcessPoolExecutor(
        jobs,
        mp_context=multiprocessing.get_context(),
        initializer=_begin,
        initargs=(shared,),
    )
    patience = _PATIENCE
    try:
        yield pool
        patience = _IDLE_PATIENCE
    except BrokenProcessPool as error:
        raise PackError(
            "a process was killed, perhaps for lack of memory",
            remedy="run the same command again to go on, with fewer jobs",
        ) from error
    finally:
        shared.stop.set()
        shared.let_begin(jobs)  # those that wait since not all tasks were taken, to stop
        ours = [*(pool._processes or {}).values()]  # from Python 3.14 on kill_workers does this
        pool.shutdown(wait=False, cancel_futures=True)
        end = time.monotonic() + patience
        for process in ours:
            process.join(max(0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        pool.shutdown()


def _watch(
    running: Sequence[Future[Any]], counter: Synchronized[int], advance: Advance | None
) -> None:
    """Wait for all tasks, or the first error, and report progress meanwhile."""
    over, ended = threading.Event(), itertools.count(1)

    def note(future: Future[Any]) -> None:
        if next(ended) == len(running) or future.cancelled() or future.exception() is not None:
            over.set()

    for future in running:
        future.add_done_callback(note)
    told, waiting = 0, True
    while waiting:
        waiting = not over.wait(_SECONDS)
        count = counter.value
        if advance is not None and count > told:
            advance(count - told)
        told = count


def _results(running: Sequence[Future[R]]) -> list[R]:
    for future in running:
        with suppress(CancelledError):
            future.result()
    return [future.result() for future in running]


class _Here:
    """The ticker of tasks in this process."""

    def __init__(self, advance: Advance | None) -> None:
        self._advance = advance

    def tick(self, count: int) -> None:
        if self._advance is not None:
            self._advance(count)


class _There:
    """The ticker of tasks in another process, by a counter and an event that all share."""

    def __init__(self, shared: _Shared) -> None:
        self._counter = shared.counter
        self.stop = shared.stop
        self._kept = 0

    def tick(self, count: int) -> None:
        self._kept += count
        if self._kept >= _TICKS:
            self.flush()
            self.check()

    def check(self) -> None:
        if self.stop.is_set():
            raise CancelledError

    def flush(self) -> None:
        with self._counter.get_lock():
            self._counter.value += self._kept
        self._kept = 0


_tickers: list[_There] = []  # of a process that runs tasks, one


def _begin(shared: _Shared) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and says what to do
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _tickers.append(_There(shared))
    shared.start.acquire()  # so that no task ends a process while others are submitted


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(work: Work[T, R], task: T) -> R:
    ticker = _tickers[0]
    ticker.check()
    try:
        return work(task, ticker)
    except BaseException:
        ticker.stop.set()  # at once: the next task is in this process's queue already
        raise
    finally:
        ticker.flush()


_RETRIES = 5
_RAY_AT_ONCE, _RAY_SECONDS = 64, 0.5  # tasks that are waited for, and how long
_RAY_PATIENCE = 30.0  # seconds in which tasks that are cancelled end


class RayEngine:
    """Runs tasks on the cluster that this process is connected to, or connects to.

    Without a connection `ray.init()` makes one: to the cluster that RAY_ADDRESS or `ray start`
    names, else to one that it starts on this machine.
    """

    elsewhere = True

    def run(self, work: Work[T, R], tasks: Sequence[T], advance: Advance | None) -> list[R]:
        """See Engine."""
        ray = _import_ray()
        ours = not ray.is_initialized()
        if ours:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
        try:
            return _run(ray, work, tasks, advance)
        finally:
            if ours:
                ray.shutdown()


def _run(ray: Any, work: Work[T, R], tasks: Sequence[T], advance: Advance | None) -> list[R]:
    remote = ray.remote(max_retries=_RETRIES)(_do_on_ray)
    running = [remote.remote(work, task) for task in tasks]
    number = {reference: place for place, reference in enumerate(running)}
    results: dict[int, R] = {}
    waiting = running
    try:
        while waiting:
            at_once = min(len(waiting), _RAY_AT_ONCE)
            ended, waiting = ray.wait(waiting, num_returns=at_once, timeout=_RAY_SECONDS)
            for reference in ended:
                place = number[reference]
                results[place] = ray.get(reference)
                if advance is not None:
                    advance(len(tasks[place]))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise PackError(
            f"a task was lost on the cluster ({error})", remedy="run the same pack again to go on"
        ) from error
    finally:
        for reference in waiting:
            ray.cancel(reference)
        if waiting:  # nobody may write when the folder is let go
            ray.wait(waiting, num_returns=len(waiting), timeout=_RAY_PATIENCE)
    return [results[place] for place in range(len(tasks))]


def _do_on_ray(work: Work[T, R], task: T) -> R:
    return work(task, _Here(None))  # it is counted when it is done; to stop it is to cancel it


def _import_ray() -> Any:
    try:
        import ray  # noqa: PLC0415  an extra
        import ray.exceptions  # noqa: PLC0415
    except ImportError as error:
        raise SituationError(
            f"{argument('engine', 'ray')} needs Ray", remedy="pip install 'shardio[ray]'"
        ) from error
    return ray


def make_engine(name: EngineName, jobs: int | None) -> Engine:
    """Make the engine of a name.

    Args:
        name: "local" or "ray".
        jobs: number of processes; None takes one for each core. Only for "local".

    Raises:
        UsageError: there is no such engine, or the number of jobs is invalid.
    """
    one_of("engine", name, get_args(EngineName))
    if jobs is not None:
        jobs = whole_number("jobs", jobs, least=1)
    if name == "ray" and jobs is not None:
        raise UsageError(
            f"{argument('jobs')} is for {argument('engine', 'local')}",
            remedy="a Ray cluster runs as many as it has cores",
        )
    return RayEngine() if name == "ray" else LocalEngine(jobs)
