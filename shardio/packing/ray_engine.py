"""Running tasks on a Ray cluster.

The machines see source and output in one file system, under the same paths, and have shardio. A
worker that dies is replaced and its task done again: a task that finds its receipt is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shardio.errors import PackError, SituationError
from shardio.packing.engine import Advance, R, T, Ticker, Work

_RETRIES = 5
_AT_ONCE, _SECONDS = 64, 0.5  # tasks that are waited for, and how long
_PATIENCE = 30.0  # seconds in which tasks that are cancelled end


class RayEngine:
    """Runs tasks on the cluster that this process is connected to, or connects to.

    Without a connection `ray.init()` makes one: to the cluster that RAY_ADDRESS or `ray start`
    names, else to one that it starts on this machine.
    """

    elsewhere = True

    def run(self, work: Work[T, R], tasks: Sequence[T], advance: Advance | None) -> list[R]:
        """See shardio.packing.engine.Engine."""
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
    remote = ray.remote(max_retries=_RETRIES)(_do)
    running = [remote.remote(work, task) for task in tasks]
    number = {reference: place for place, reference in enumerate(running)}
    results: dict[int, R] = {}
    waiting = running
    try:
        while waiting:
            at_once = min(len(waiting), _AT_ONCE)
            ended, waiting = ray.wait(waiting, num_returns=at_once, timeout=_SECONDS)
            for reference in ended:
                place = number[reference]
                results[place] = ray.get(reference)
                if advance is not None:
                    advance(len(tasks[place]))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise PackError(
            f"a task was lost on the cluster ({error}); run the same pack again to go on"
        ) from error
    finally:
        for reference in waiting:
            ray.cancel(reference)
        if waiting:  # nobody may write when the folder is let go
            ray.wait(waiting, num_returns=len(waiting), timeout=_PATIENCE)
    return [results[place] for place in range(len(tasks))]


class _Silent:
    """Ray's tasks tell nothing until they are done; a task that shall stop is cancelled."""

    def tick(self, count: int) -> None:
        """Do nothing."""


def _do(work: Work[T, R], task: T) -> R:
    ticker: Ticker = _Silent()
    return work(task, ticker)


def _import_ray() -> Any:
    try:
        import ray  # noqa: PLC0415  an extra
        import ray.exceptions  # noqa: PLC0415
    except ImportError as error:
        raise SituationError("engine='ray' needs Ray; pip install 'shardio[ray]'") from error
    return ray
