"""Loops over datasets: epochs, steps, ranks and state, one contract for all of them.

A loop is a range of steps of an epoch. The subclass counts the steps of an epoch and begins the
batches of some of them. This module decides which steps those are for this rank and worker, and
keeps the position. Workers run ahead of a training loop, so its position is known from the last
batch that it received: batches carry their epoch and step.

The state of a loop is a position (epoch and step) and the identity of what it is a position in:
everything that the sequence of global batches depends on. The identity is compared entry by entry,
so that a refusal says what differs. A state holds no payload: it has a few hundred bytes.

Every iteration is the next epoch. A DataLoader asks each worker's copy of the dataset for an
iterator, and nothing runs in the parent. So the copies share a small file, named after the dataset
and the process that loads (a rank), not the worker: the first worker of an iteration takes the next
epoch, or the position that was loaded; the others of the same iteration find it there. An iteration
is recognised by the DataLoader's base seed, by how often this copy was iterated (persistent
workers), and by its workers, which live as long as it does: so even a script that resets torch's
seed before every epoch gets a new epoch each time. The file holds the count of bad samples, too.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import sys
import threading
import uuid
import weakref
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from multiprocessing.util import Finalize, register_after_fork
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import torch
import torch.distributed
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from shardio.checks import is_whole, require, whole_number
from shardio.errors import UsageError, quoted
from shardio.fields.image import forbid_opencv_threads
from shardio.planning.epoch import steps_of_worker
from shardio.processes import is_alive
from shardio.reading.handover import Allocate, Batches, Recycler, Sender
from shardio.reading.settings import divide_batch
from shardio.storage.temporary import locked_contents, path_of_process

if TYPE_CHECKING:
    from typing_extensions import Self

_BATCHER = "_IterableDatasetFetcher"
"""The class of torch that draws from an iterable dataset for a DataLoader, in workers too."""
_DIVIDERS = frozenset({"IterableDatasetShard", "DataLoaderDispatcher"})
"""Classes of accelerate and transformers that give each rank a part of what a dataset yields."""
_ENTRIES = frozenset({"__iter__", "set_epoch"})
"""Their methods that call the dataset."""


class Share(NamedTuple):
    """Share of one rank in every step.

    Attributes:
        rank: number of the rank.
        world_size: number of ranks.
        batch_size: samples of the rank in a step.
    """

    rank: int
    world_size: int
    batch_size: int

    @property
    def global_batch_size(self) -> int:
        """Samples of all ranks in a step."""
        return self.batch_size * self.world_size


def find_ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Find rank and world size: as given, else of torch.distributed, else of torchrun, else 0 of 1.

    Raises:
        UsageError: only one of the two is given, or rank is outside 0 to world_size - 1.
    """
    if (rank is None) != (world_size is None):
        raise UsageError("rank and world_size go together", remedy="give both or neither")
    if rank is not None and world_size is not None:
        rank, world_size = whole_number("rank", rank), whole_number("world_size", world_size)
    elif torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    else:
        rank, world_size = _ranks_of_environment()
    if not 0 <= rank < world_size:
        raise UsageError(f"rank {rank} is outside 0 to {world_size - 1} (world_size - 1)")
    return rank, world_size


def _ranks_of_environment() -> tuple[int, int]:
    rank, world_size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None and world_size in (None, "1"):
        return 0, 1
    try:
        return int(rank or ""), int(world_size or "")
    except ValueError as error:
        raise UsageError(
            f"the environment has RANK={rank} and WORLD_SIZE={world_size}",
            remedy="set both to numbers, unset both, or pass rank and world_size",
        ) from error


def _refuse_second_division(share: Share) -> None:
    """Raise UsageError if another library divides the share of a rank among the ranks.

    accelerate's prepare and transformers' Trainer wrap an iterable dataset and drop the share of
    the other ranks. They call no method that would tell it, so the callers' frames are searched for
    the wrapper's own loop, in worker processes too.
    """
    frame: FrameType | None = sys._getframe(1) if share.world_size > 1 else None
    while frame is not None:
        kinds = type(frame.f_locals.get("self")).__mro__ if frame.f_code.co_name in _ENTRIES else ()
        if divider := next((kind for kind in kinds if kind.__name__ in _DIVIDERS), None):
            raise UsageError(
                f"{divider.__module__.partition('.')[0]} divides among the ranks what this dataset "
                "has divided already, so that samples would be lost",
                remedy=(
                    "leave its loader out of prepare(), or give prepare() a shardio.Loader, or "
                    "make the dataset with rank=0, world_size=1 and batch in the DataLoader"
                ),
            )
        frame = frame.f_back


def _refuse_second_batching() -> None:
    """Raise UsageError if a DataLoader stacks what the calling generator yields.

    A DataLoader with a batch size hands a list to its collate_fn, and calls no method of the
    dataset that would tell it. Its own loop is among the callers' frames.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "fetch":
            loader: Any = frame.f_locals.get("self")
            batches = type(loader).__name__ == _BATCHER and loader.auto_collation
            if batches and loader.collate_fn is default_collate:
                raise UsageError(
                    "the dataset makes batches already, and the DataLoader batches them again",
                    remedy="pass batch_size=None to the DataLoader",
                )
        frame = frame.f_back


def find_worker() -> tuple[int, int]:
    """Find worker and num_workers of this process; the main process is worker 0 of 1."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


VERSION = 1
Identity = Mapping[str, str | int | bool | None]


class Position(NamedTuple):
    """Position of a loop.

    Attributes:
        epoch: epoch, counted from 0.
        step: next step, counted from 0.
    """

    epoch: int
    step: int


def make_state(
    identity: Identity, position: Position, worker: tuple[int, int] | None
) -> dict[str, Any]:
    """Make a state.

    Args:
        identity: identity of the dataset and plan.
        position: position of the next step.
        worker: worker and num_workers, if the position is of one worker's own steps.
    """
    state = {"version": VERSION, **position._asdict(), **identity}
    return state if worker is None else {**state, "worker": list(worker)}


def read_state(
    state: Mapping[str, Any], identity: Identity, worker: tuple[int, int] | None
) -> Position:
    """Read the position of a state.

    Args:
        state: state that make_state made.
        identity: expected identity of the dataset and plan.
        worker: worker and num_workers, as for make_state.

    Raises:
        UsageError: it is not a state, or one of another version, dataset, plan or worker.
    """
    version = state.get("version") if isinstance(state, Mapping) else None
    if type(version) is not int:
        raise UsageError(
            f"{quoted(state)} is not a state of a dataset", remedy="pass a result of state_dict()"
        )
    if version != VERSION:
        raise UsageError(
            f"the state has version {version}, this shardio reads {VERSION}",
            remedy="install the shardio that wrote it",
        )
    different = [
        f"{name} was {quoted(state.get(name))}, is {quoted(value)}"
        for name, value in identity.items()
        if state.get(name) != value
    ]
    if different:
        raise UsageError(
            f"the state belongs to other batches: {'; '.join(different)}",
            remedy=(
                "open the dataset as it was when the state was saved, or start an epoch anew with "
                "set_epoch()"
            ),
        )
    _check_worker(state.get("worker"), worker)
    epoch, step = state.get("epoch"), state.get("step")
    if not (is_whole(epoch, least=0) and is_whole(step, least=0)):
        raise UsageError(
            f"the state has epoch {quoted(epoch)} and step {quoted(step)}: it was changed"
        )
    return Position(epoch, step)


def _check_worker(saved: object, worker: tuple[int, int] | None) -> None:
    here = None if worker is None else list(worker)
    if saved == here:
        return
    if saved is None:
        raise UsageError(
            "a worker was given the state of a whole loop",
            remedy="load it into the dataset before the DataLoader starts its workers",
        )
    raise UsageError(
        f"the state is of worker and num_workers {saved}, here they are {here}",
        remedy=(
            "load the state of StatefulDataLoader with as many workers as it was saved with, or "
            "save that of ds.state_dict(batch), which fits any number"
        ),
    )


_REMEMBERED = 64


class EpochCounter:
    """Epochs and bad samples of a dataset, counted for each process that loads from it."""

    def __init__(self) -> None:
        self._token = uuid.uuid4().hex
        self._made_in = os.getpid()
        self._start = {"next": [0, 0], "by_workers": False, "bad": 0, "iterations": []}
        self._iterations_here = 0
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

    def begin(self, own: Position | None = None) -> Position:
        """Begin an iteration in this process, and return its first position.

        Args:
            own: first position of this worker, if it has one; the next iteration is the epoch
                after.
        """
        self._iterations_here += 1
        worker = get_worker_info()
        with self._shared() as state:
            state["by_workers"] = worker is not None
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


class UnfinishedBatch(Protocol):
    """A batch in the making: its slots are filled, in any order, by any threads, then it ends."""

    @property
    def chunk(self) -> int:
        """Number of slots that a thread best fills at once."""

    def __len__(self) -> int:
        """Count the slots."""

    def fill(self, slots: range) -> None:
        """Read and decode the samples of some slots."""

    def finish(self) -> dict[str, Any]:
        """Return the batch, when all slots are filled."""

    def abandon(self) -> None:
        """Have threads that fill it, or other batches of the loop, wait for no store any more."""


_EPOCHS = 1 << 64  # the keys of their random numbers have 64 bits
UnfinishedBatches = Generator[UnfinishedBatch, None, None]
Finish = Callable[[UnfinishedBatches], Batches]
"""Fills and finishes batches, in order."""


def finish_in_turn(batches: Iterator[UnfinishedBatch]) -> Batches:
    """Finish one batch after the other in this thread."""
    for batch in batches:
        batch.fill(range(len(batch)))
        only = [batch]
        del batch  # only the caller keeps a batch, so that its memory is reused
        yield only.pop().finish()


_living: weakref.WeakSet[Batches] = weakref.WeakSet()


def _end_loops() -> None:
    """End all loops before the global names are gone that they need for that."""
    for loop in [*_living]:
        with suppress(ValueError):  # another thread is in it
            loop.close()


# Before executors, which register so, wait for threads that may wait for a store.
getattr(threading, "_register_atexit", atexit.register)(_end_loops)
os.register_at_fork(after_in_child=_living.clear)  # the parent's


class ResumableDataset(IterableDataset[dict[str, Any]]):
    """A dataset whose loop can be left and taken up again at any step.

    Args:
        batch_sizes: samples of one rank in a step, and of all ranks; one is None, both to yield
            samples.
        ranks: rank and world size, see find_ranks.
        as_tuple: names of the entries of the tuples that it yields; None for dictionaries.

    Raises:
        UsageError: the global batch does not divide among the ranks, or rank is outside them.
    """

    def __init__(
        self,
        *,
        batch_sizes: tuple[int | None, int | None],
        ranks: tuple[int | None, int | None],
        as_tuple: Sequence[str] | None = None,
    ) -> None:
        if None not in batch_sizes:
            raise UsageError(
                "batch_size and global_batch_size exclude each other", remedy="give one"
            )
        self._batch_sizes = batch_sizes
        self._ranks = ranks
        self._as_tuple = _entry_names(as_tuple)
        self._epochs = EpochCounter()
        self._position: Position | None = None
        self._own_start: Position | None = None
        self._loop_number = 0  # of the loop that says where the dataset is
        self._makes_batches = batch_sizes != (None, None)
        self.share  # noqa: B018  refuses a global batch that does not divide

    @abstractmethod
    def _count_steps(self, share: Share) -> int:
        """Count the steps of an epoch, or raise UsageError for an epoch that cannot be."""

    @abstractmethod
    def _identity(self) -> Identity:
        """Everything that the sequence of global batches depends on."""

    @abstractmethod
    def _read_steps(
        self, epoch: int, steps: Sequence[int], share: Share, allocate: Allocate
    ) -> UnfinishedBatches:
        """Begin the batches, or samples, of a rank in some ascending steps of an epoch."""

    def _end_loop(self) -> None:
        """Do what is due when a loop ends."""

    def check_threads(self) -> None:
        """Refuse what cannot run beside other threads.

        Raises:
            UsageError: a function of the user draws from generators that threads share.
        """

    def num_steps(self) -> int:
        """Count the steps of an epoch.

        Raises:
            UsageError: no epoch can be made, or none with equal steps for the number of ranks.
        """
        return self._count_steps(self.share)

    @property
    def batch_size(self) -> int | None:
        """Samples of this rank in a step; None if samples are yielded."""
        return self.share.batch_size if self._makes_batches else None

    @property
    def global_batch_size(self) -> int:
        """Samples of all ranks in a step."""
        return self.share.global_batch_size

    @property
    def share(self) -> Share:
        """Share of this rank, by the environment as it is now."""
        rank, world_size = find_ranks(*self._ranks)
        batch_size, global_batch_size = self._batch_sizes
        if global_batch_size is not None:
            batch_size = divide_batch(global_batch_size, world_size)
        return Share(rank, world_size, batch_size or 1)

    def __len__(self) -> int:
        """Batches that this rank takes in an epoch; samples if there is no batch_size."""
        return self.num_steps()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.iterate(finish_in_turn)

    def iterate(self, finish: Finish, allocate: Allocate | None = None) -> Batches:
        """Begin a loop.

        In the loading process it begins with the first batch, so that an iterator that nobody uses
        takes no epoch; in a worker at once, so that a state asked for before the first batch is
        that of its epoch.

        Args:
            finish: finishes the batches, in order.
            allocate: makes their arrays; by default memory that is lent again, in a worker memory
                that it shares with the training process.

        Raises:
            UsageError: the batches of this rank would be divided among the ranks again.
        """
        share = self.share
        _refuse_second_division(share)
        if get_worker_info() is None:
            loop = self._loop(finish, allocate or Recycler(), share)
            _living.add(loop)
            return loop
        forbid_opencv_threads()
        if allocate is not None or not self._makes_batches:
            return self._loop(finish, allocate or Recycler(), share, self._begin(share))
        sender = Sender()
        loop = self._loop(finish, sender, share, self._begin(share))
        return sender.send(loop, as_tuple=self._as_tuple is not None)

    def _begin(self, share: Share) -> tuple[int, range]:
        """Take the next epoch, and this worker's steps of it."""
        num_steps, (worker, num_workers) = self._count_steps(share), find_worker()
        own, self._own_start = self._own_start, None
        epoch, first = self._epochs.begin(own)
        steps = steps_of_worker(first, num_steps, worker, num_workers)
        if own is not None:
            steps = range(own.step, num_steps, num_workers)
        self._position = Position(epoch, steps.start)
        self._loop_number += 1
        return epoch, steps

    def _loop(
        self,
        finish: Finish,
        allocate: Allocate,
        share: Share,
        begun: tuple[int, range] | None = None,
    ) -> Batches:
        epoch, steps = begun or self._begin(share)
        if self._makes_batches:
            _refuse_second_batching()
        loop, unfinished = self._loop_number, self._read_steps(epoch, steps, share, allocate)
        try:
            with closing(unfinished), closing(finish(unfinished)) as batches:
                for step in steps:
                    only = [next(batches)]  # only the caller keeps a batch: memory is reused
                    if loop == self._loop_number:
                        self._position = Position(epoch, step + steps.step)
                    yield self._deliver(only.pop(), epoch, step)
                next(batches, None)  # they end, and are not left
        finally:
            self._end_loop()

    def __getstate__(self) -> dict[str, Any]:
        """Tell other processes a rank from torch.distributed, which workers do not know."""
        known = torch.distributed.is_available() and torch.distributed.is_initialized()
        return {**vars(self), "_ranks": find_ranks(*self._ranks) if known else self._ranks}

    def set_epoch(self, epoch: int) -> None:
        """Make the next loop that epoch; later loops count on from it.

        Raises:
            UsageError: it is not a whole number from 0, or too large.
        """
        _refuse_second_division(self.share)
        self._start_at(Position(self._check_epoch(epoch), 0))

    def state_dict(self, batch: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Save the position of the loop, in less than 1 KB, for load_state_dict.

        Args:
            batch: last batch that the loop received. It is needed if a DataLoader's workers read,
                since they run ahead of the loop; without workers it may be left out.

        Returns:
            Version, epoch, next step, and identity of the dataset and plan: values for JSON.

        Raises:
            UsageError: workers read and no batch is given, or it has no epoch and step.
        """
        worker = find_worker() if get_worker_info() is not None else None
        if batch is not None:
            position, worker = _position_after(batch), None
        elif worker is None and self._epochs.by_workers:
            raise UsageError(
                "DataLoader workers read ahead of the loop, so its position is not known",
                remedy=(
                    "pass the last batch that it received, state_dict(batch); without batch_size, "
                    "use torchdata's StatefulDataLoader or num_workers=0"
                ),
            )
        else:
            position = self._position or self._epochs.next
        if worker is None and position.step >= self.num_steps():
            position = Position(position.epoch + 1, 0)
        return make_state(self._identity(), position, worker)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next loop continue at a saved position; later loops are later epochs.

        Args:
            state: state_dict of a dataset with the same shards, seed, shuffle and global batch
                size; ranks, workers and transforms may differ.

        Raises:
            UsageError: the state is of another dataset, plan or version.
        """
        worker = find_worker() if get_worker_info() is not None else None
        position = read_state(state, self._identity(), worker)
        self._check_epoch(position.epoch)
        if worker is None:
            if position.step > self.num_steps():
                raise UsageError(
                    f"the state has step {position.step}, an epoch has {self.num_steps()}: it was "
                    "changed"
                )
            self._start_at(position)
        else:
            self._own_start = position

    @property
    def num_bad_samples(self) -> int:
        """Bad samples replaced so far, in all worker processes, under on_bad_sample="skip"."""
        return self._epochs.num_bad_samples

    def _count_epochs(self) -> int:
        """Count the epochs that have an order of their own."""
        return _EPOCHS

    def _check_epoch(self, epoch: object) -> int:
        """Return an epoch as int.

        Raises:
            UsageError: there is no such epoch.
        """
        number, count = whole_number("epoch", epoch, least=0), self._count_epochs()
        if number >= count:
            raise UsageError(f"epoch={number}: it must be below {count}")
        return number

    def _copy(self) -> Self:
        """Copy the dataset; the copy counts epochs of its own."""
        copy = object.__new__(type(self))
        vars(copy).update(vars(self))
        copy._epochs = EpochCounter()
        copy._position = copy._own_start = None
        return copy

    def _start_at(self, position: Position) -> None:
        self._position = None
        self._loop_number += 1
        self._epochs.set_next(position)

    def _deliver(self, batch: dict[str, Any], epoch: int, step: int) -> Any:
        """Return a batch with its epoch and step, or the one sample in it, or a tuple of either.

        Where a worker sends a batch on, that makes the tuple; see Sender.send.
        """
        if self._makes_batches:
            batch["__epoch__"], batch["__step__"] = epoch, step
        else:
            batch = to_sample(batch)
        sent_on = self._makes_batches and get_worker_info() is not None
        chosen = self._choose_entries(batch)
        return (*chosen.values(),) if self._as_tuple and not sent_on else chosen

    def _choose_entries(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the entries that the dataset yields, of a batch or a sample."""
        if self._as_tuple is None:
            return batch
        lacking = [name for name in self._as_tuple if name not in batch]
        if lacking:
            raise UsageError(
                f"as_tuple: there is no entry {quoted(lacking[0])}",
                remedy=f"choose among {', '.join(map(quoted, batch))}",
            )
        return {name: batch[name] for name in self._as_tuple}


def _entry_names(names: object) -> tuple[str, ...] | None:
    """Return the names of entries, as ("image", "label").

    Raises:
        UsageError: they are not names.
    """
    if names is None:
        return None
    listed = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    require(listed and names, "as_tuple", names, 'names of entries, as ("image", "label")')
    return (*cast("Sequence[str]", names),)


def to_sample(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the one sample of a batch of one; dictionaries hold what a batch holds."""
    return {name: _only(value) for name, value in batch.items()}


def _only(entry: Any) -> Any:
    """Return the value of the one slot of an entry; a number for a tensor of one."""
    if isinstance(entry, dict):
        return to_sample(entry)
    value = entry[0]
    return value.item() if isinstance(entry, torch.Tensor) and value.ndim == 0 else value


def _position_after(batch: Mapping[str, Any]) -> Position:
    try:
        return Position(int(batch["__epoch__"]), int(batch["__step__"]) + 1)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            "the batch has no '__epoch__' and '__step__'",
            remedy=(
                "pass a batch as a dataset with batch_size yields it, or with as_tuple= take the "
                "state from a shardio.Loader"
            ),
        ) from error
