"""Epochs of a dataset, counted for all processes that load from it.

Every iteration is the next epoch. A DataLoader asks each worker's copy of the dataset for an
iterator, and nothing runs in the parent. So the copies share a small file, named after the dataset
and the process that loads (a rank), not the worker: the first worker of an iteration takes the next
epoch, or the position that was loaded; the others of the same iteration find it there. An iteration
is recognised by the DataLoader's base seed, by how often this copy was iterated (persistent
workers), and by its workers, which live as long as it does: so even a script that resets torch's
seed before every epoch gets a new epoch each time. The file holds the count of bad samples, too,
and of changes, by which a worker that lives on knows that it is out of date.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.util import Finalize, register_after_fork
from typing import Any, NamedTuple

from torch.utils.data import get_worker_info

from shardio.processes import is_alive
from shardio.storage.temporary import locked_contents, path_of_process


class Position(NamedTuple):
    """Position of a loop.

    Attributes:
        epoch: epoch, counted from 0.
        step: next step, counted from 0.
    """

    epoch: int
    step: int


_REMEMBERED = 64


class EpochCounter:
    """Epochs and bad samples of a dataset, counted for each process that loads from it."""

    def __init__(self) -> None:
        self._token = uuid.uuid4().hex
        self._made_in = os.getpid()
        self._start = {
            "next": [0, 0], "by_workers": False, "bad": 0, "changes": 0, "iterations": [],
        }  # fmt: skip
        self._iterations_here = 0
        self._changes = 0  # that this copy knows of
        self._compared_in: int | None = None
        self._remove_at_end()

    def __getstate__(self) -> dict[str, Any]:
        with self._shared() as state:
            return {**vars(self), "_start": {**state, "iterations": []}}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        vars(self).update(attributes)
        if self._made_in == os.getpid():  # a copy beside the original counts alone
            self._token = uuid.uuid4().hex
        self._made_in = os.getpid()
        self._remove_at_end()

    def begin(self, own: Position | None = None, *, followed: bool = False) -> Position:
        """Begin an iteration in this process, and return its first position.

        Args:
            own: first position of this worker, if it has one; the next iteration is the epoch
                after.
            followed: whether the loading process keeps the position of what workers make.
        """
        self._iterations_here += 1
        worker = get_worker_info()
        with self._shared() as state:
            state["by_workers"] = worker is not None and not followed
            if worker is None:
                return Position(*_take_next(state))
            if own is not None:
                state["next"] = [own.epoch + 1, 0]
                return own
            name = [worker.seed - worker.id, self._iterations_here]
            for entry in reversed(state["iterations"]):
                others = entry["workers"]
                if (
                    entry["name"] == name
                    and str(worker.id) not in others
                    and all(map(is_alive, others.values()))
                ):
                    others[str(worker.id)] = os.getpid()
                    return Position(*entry["start"])
            start = _take_next(state)
            entry = {"name": name, "start": start, "workers": {str(worker.id): os.getpid()}}
            state["iterations"] = [*state["iterations"], entry][-_REMEMBERED:]
            return Position(*start)

    def count_change(self) -> None:
        """Count one more change of the dataset, which workers that live on do not see."""
        with self._shared() as state:
            state["changes"] = self._changes = self._changes + 1

    def missed_change(self) -> bool:
        """Tell whether the dataset has changed since this worker first asked."""
        first, self._compared_in = self._compared_in != os.getpid(), os.getpid()
        with self._shared() as state:
            return not first and bool(state["changes"] != self._changes)

    def set_next(self, position: Position) -> None:
        """Make the next iteration, in whatever process, start at a position."""
        with self._shared() as state:
            state["next"] = position
            state["by_workers"] = False

    @property
    def next(self) -> Position:
        """First position of the next iteration."""
        with self._shared() as state:
            return Position(*state["next"])

    @property
    def by_workers(self) -> bool:
        """Whether the last iteration was one of a DataLoader's workers."""
        with self._shared() as state:
            return bool(state["by_workers"])

    def count_bad_sample(self) -> None:
        """Count one more sample that was replaced."""
        with self._shared() as state:
            state["bad"] += 1

    @property
    def num_bad_samples(self) -> int:
        """Samples that were replaced so far, in all processes."""
        with self._shared() as state:
            return int(state["bad"])

    @contextmanager
    def _shared(self) -> Iterator[dict[str, Any]]:
        parent = multiprocessing.parent_process()
        loading = os.getpid()
        if get_worker_info() is not None and parent is not None and parent.pid is not None:
            loading = parent.pid
        with locked_contents(path_of_process(loading, self._token)) as contents:
            state = _parse(contents.data) or self._inherited()
            yield state
            contents.data = json.dumps(state).encode()

    def _inherited(self) -> dict[str, Any]:
        """Return the parent's count, with which a process starts that has counted nothing yet."""
        found = None
        if self._made_in != os.getpid():
            with suppress(OSError):
                found = _parse(path_of_process(self._made_in, self._token).read_bytes())
        return {**(found or self._start), "iterations": []}

    def _remove_at_end(self) -> None:
        """Have this process, and those that it forks, remove its file when the dataset goes."""
        # Unlike weakref.finalize, this also runs where a child of multiprocessing ends.
        path = path_of_process(os.getpid(), self._token)
        Finalize(self, path.unlink, kwargs={"missing_ok": True}, exitpriority=-1)
        register_after_fork(self, EpochCounter._remove_at_end)


def _parse(data: bytes) -> dict[str, Any] | None:
    """Read the state in a file; None if nothing or, by a killed process, half of it was written."""
    try:
        state: dict[str, Any] = json.loads(data)
    except ValueError:
        return None
    return state


def _take_next(state: dict[str, Any]) -> list[int]:
    start: list[int] = state["next"]
    state["next"] = [start[0] + 1, 0]
    return start
