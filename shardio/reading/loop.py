"""Which rank and worker this process is, as torch and torchrun tell it.

What is saved of a loop, and what refuses a state that belongs to another one.

A state is a position (epoch and step) and the identity of what it is a position in: everything
that the sequence of global batches depends on. The identity is compared entry by entry, so that
a refusal says what differs. Payloads are never saved: a state has the same few hundred bytes
wherever it is taken.

Which epoch an iteration is and where it starts, agreed between a DataLoader's processes.

A DataLoader starts an epoch by asking each worker's copy of the dataset for an iterator; nothing
runs in the parent. So the copies share a small file, named after the dataset and the process
that loads (a rank), not the worker: the first worker of an iteration takes the next epoch, or
the position that was loaded, the others of the same iteration find it there. An iteration is
recognised by the DataLoader's base seed, by how often this copy was iterated (persistent
workers), and by its workers, which live as long as it does: even a script that resets torch's
seed before every epoch gets a new epoch each time. The file holds the count of bad samples too.

In the loading process itself every iteration is a new epoch.

The one contract of everything that is looped over: epochs, steps, state.

A loop is a range of steps of an epoch. The subclass knows how many steps an epoch has and how to
read some of them; here is which steps those are, for this worker, and what is remembered of
them. What a training loop has received is known from the batch it holds, since workers run
ahead of it: batches carry their epoch and step.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import uuid
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.util import Finalize, register_after_fork
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.data._utils.collate import default_collate_fn_map

from shardio.checks import is_whole, whole_number
from shardio.errors import UsageError
from shardio.fields.image import forbid_opencv_threads
from shardio.planning.epoch import steps_of_worker
from shardio.processes import is_alive
from shardio.reading.handover import Allocate, Recycler, Sender
from shardio.storage.temporary import locked_contents, path_of_process

if TYPE_CHECKING:
    from typing_extensions import Self

_DIVIDERS = frozenset({"IterableDatasetShard", "DataLoaderDispatcher"})
"""Classes of accelerate and transformers that give each rank a part of what a dataset yields."""
_ENTRIES = frozenset({"__iter__", "set_epoch"})
"""Their methods that call the dataset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Rank of this process among world_size ranks."""

    rank: int
    world_size: int


def find_ranks(rank: int | None, world_size: int | None) -> Ranks:
    """What the user gave, else torch.distributed, else torchrun's environment, else one rank.

    Raises:
        UsageError: only one of the two is given, or rank is outside 0 to world_size - 1.
    """
    if (rank is None) != (world_size is None):
        raise UsageError("rank and world_size go together", remedy="give both or neither")
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        else:
            rank, world_size = _ranks_of_environment()
    rank, world_size = whole_number("rank", rank), whole_number("world_size", world_size)
    if not 0 <= rank < world_size:
        raise UsageError(f"rank {rank} is outside 0 to {world_size - 1} (world_size - 1)")
    return Ranks(rank=rank, world_size=world_size)


def _ranks_of_environment() -> tuple[int, int]:
    rank, world_size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None and world_size in (None, "1"):
        return 0, 1
    try:
        return int(rank or ""), int(world_size or "")
    except ValueError as error:
        raise UsageError(
            f"the environment has RANK={rank} and WORLD_SIZE={world_size}: set both to numbers, "
            "unset both, or pass rank and world_size"
        ) from error


def find_divider() -> str | None:
    """Name the library that divides among the ranks what the calling method yields, if one does.

    accelerate's prepare and transformers' Trainer wrap an iterable dataset and drop the share of
    the other ranks. They ask it nothing from which it could know, so the frames of the callers are
    looked at, which are the wrapper's own loop, in worker processes too.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in _ENTRIES:
            for kind in type(frame.f_locals.get("self")).__mro__:
                if kind.__name__ in _DIVIDERS:
                    return kind.__module__.partition(".")[0]
        frame = frame.f_back
    return None


def find_worker() -> tuple[int, int]:
    """Worker and num_workers of this process; the main process is worker 0 of 1."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


VERSION = 1
Identity = Mapping[str, str | int | bool | None]


class Position(NamedTuple):
    """Where a loop is.

    Attributes:
        epoch: from 0.
        step: the next one, from 0.
    """

    epoch: int
    step: int


def make_state(
    identity: Identity, position: Position, worker: tuple[int, int] | None
) -> dict[str, Any]:
    """A state.

    Args:
        identity: of the dataset and plan.
        position: of the next step.
        worker: the worker and num_workers, if the position is of one worker's own steps.
    """
    state = {"version": VERSION, **position._asdict(), **identity}
    return state if worker is None else {**state, "worker": list(worker)}


def read_state(
    state: Mapping[str, Any], identity: Identity, worker: tuple[int, int] | None
) -> Position:
    """The position of a state.

    Args:
        state: from make_state.
        identity: what the state should be of.
        worker: what make_state was given.

    Raises:
        UsageError: it is no state, or of another version, dataset, plan or worker.
    """
    version = state.get("version") if isinstance(state, Mapping) else None
    if type(version) is not int:
        raise UsageError(f"{_short(state)} is no state of a dataset: pass what state_dict() gave")
    if version != VERSION:
        raise UsageError(
            f"the state has version {version}, this shardio reads {VERSION}: install the shardio "
            "that wrote it"
        )
    different = [
        f"{name} was {state.get(name)!r}, is {value!r}"
        for name, value in identity.items()
        if state.get(name) != value
    ]
    if different:
        raise UsageError(
            f"the state belongs to other batches: {'; '.join(different)}. Open the dataset as it "
            "was when the state was saved, or start an epoch anew with set_epoch()"
        )
    _check_worker(state.get("worker"), worker)
    epoch, step = state.get("epoch"), state.get("step")
    if not (is_whole(epoch, least=0) and is_whole(step, least=0)):
        raise UsageError(f"the state has epoch {epoch!r} and step {step!r}: it was changed")
    return Position(epoch, step)


def _check_worker(saved: object, worker: tuple[int, int] | None) -> None:
    here = None if worker is None else list(worker)
    if saved == here:
        return
    if saved is None:
        raise UsageError(
            "a worker was given the state of a whole loop: load it into the dataset before the "
            "DataLoader starts its workers"
        )
    raise UsageError(
        f"the state is of worker and num_workers {saved}, here they are {here}",
        remedy=(
            "load the state of StatefulDataLoader with as many workers as it was saved with, or "
            "save that of ds.state_dict(batch), which fits any number"
        ),
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


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
        """Where the iteration that starts now in this process starts.

        Args:
            own: where this worker starts, if it knows; the next iteration is the epoch after.
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
        """Make the next iteration, in whatever process, start there."""
        with self._shared() as state:
            state["next"] = position
            state["by_workers"] = False

    @property
    def next(self) -> Position:
        """Where the next iteration will start."""
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
        with locked_contents(self._file_of(loading)) as contents:
            state = _parse(contents.data) or self._inherited()
            yield state
            contents.data = json.dumps(state).encode()

    def _inherited(self) -> dict[str, Any]:
        """What a process that has counted nothing yet starts with: its parent's count."""
        found = None
        if self._made_in != os.getpid():
            with suppress(OSError):
                found = _parse(self._file_of(self._made_in).read_bytes())
        return {**(found or self._start), "iterations": []}

    def _file_of(self, loading: int) -> Path:
        return path_of_process(loading, self._token)

    def _remove_at_end(self) -> None:
        """Have this process, and those that it forks, remove its file when the dataset goes."""
        # Unlike weakref.finalize, this also runs where a child of multiprocessing ends.
        path = self._file_of(os.getpid())
        Finalize(self, path.unlink, kwargs={"missing_ok": True}, exitpriority=-1)
        register_after_fork(self, EpochCounter._remove_at_end)


def _parse(data: bytes) -> dict[str, Any] | None:
    """The state in a file; None where none was written, or a killed process wrote half of it."""
    try:
        state: dict[str, Any] = json.loads(data)
    except ValueError:
        return None
    return state


def _take_next(state: dict[str, Any]) -> list[int]:
    start: list[int] = state["next"]
    state["next"] = [start[0] + 1, 0]
    return start


class Job(Protocol):
    """One batch to be made: its slots are filled, in any order and by any threads, then it is."""

    @property
    def chunk(self) -> int:
        """How many slots a thread best fills at once."""

    def __len__(self) -> int:
        """How many slots it has."""

    def fill(self, slots: range) -> None:
        """Read and decode the samples of some slots."""

    def finish(self) -> dict[str, Any]:
        """The batch, when all slots are filled."""


class Place(int):
    """An epoch or step in a batch: an int that refuses to be batched again.

    Saved or sent elsewhere it is a plain int.
    """

    def __reduce__(self) -> tuple[type[int], tuple[str]]:
        return int, (str(int(self)),)


def _refuse_to_batch(batch: object, **_: object) -> None:
    del batch
    raise UsageError(
        "the dataset makes batches already, and the DataLoader batches them again: pass "
        "batch_size=None to the DataLoader"
    )


default_collate_fn_map[Place] = _refuse_to_batch
_EPOCHS = 1 << 64  # the keys of their random numbers have 64 bits
torch.serialization.add_safe_globals([int])  # for torch.load(weights_only=True) of a Place
Jobs = Generator[Job, None, None]
Loop = Generator[dict[str, Any], None, None]
Run = Callable[[Jobs], Loop]


def run_in_turn(jobs: Iterator[Job]) -> Loop:
    """Make one batch after the other in this thread."""
    for job in jobs:
        job.fill(range(len(job)))
        place = [job]
        del job  # as in ResumableDataset._loop
        yield place.pop().finish()


class ResumableDataset(IterableDataset[dict[str, Any]]):
    """A dataset whose loop can be left and taken up again at any step.

    Args:
        batch_sizes: samples of one rank in a step, and of all ranks; one is None, both to yield
            samples.
        ranks: rank and world size as find_ranks takes them.

    Raises:
        UsageError: the global batch does not divide among the ranks, or rank is outside them.
    """

    def __init__(
        self,
        *,
        batch_sizes: tuple[int | None, int | None],
        ranks: tuple[int | None, int | None],
    ) -> None:
        if None not in batch_sizes:
            raise UsageError(
                "batch_size and global_batch_size exclude each other", remedy="give one"
            )
        self._batch_sizes = batch_sizes
        self._ranks = ranks
        self._epochs = EpochCounter()
        self._position: Position | None = None
        self._own_start: Position | None = None
        self._loop_number = 0  # of the loop that says where the dataset is
        self._divide()

    @abstractmethod
    def num_steps(self) -> int:
        """Steps of an epoch."""

    @abstractmethod
    def _identity(self) -> Identity:
        """Everything that the sequence of global batches depends on."""

    @abstractmethod
    def _read_steps(self, epoch: int, steps: Sequence[int], allocate: Allocate) -> Jobs:
        """The batches, or samples, of this rank in some ascending steps of an epoch, to be made."""

    @property
    def batch_size(self) -> int | None:
        """Samples of this rank in a step; None where samples are yielded."""
        return None if self._batch_sizes == (None, None) else self._divide()

    @property
    def global_batch_size(self) -> int:
        """Samples of all ranks in a step."""
        return self._divide() * self.ranks.world_size

    @property
    def ranks(self) -> Ranks:
        """Rank and world size."""
        return find_ranks(*self._ranks)

    def __len__(self) -> int:
        """Batches that this rank takes in an epoch; samples if there is no batch_size."""
        return self.num_steps()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.iterate(run_in_turn)

    def iterate(self, run: Run, allocate: Allocate | None = None) -> Loop:
        """Begin a loop.

        Args:
            run: makes the batches, in order.
            allocate: makes their arrays; by default memory that is lent again, in a worker
                memory that it shares with the training process.

        Raises:
            UsageError: the batches of this rank would be divided among the ranks again.
        """
        self._refuse_second_division()
        if get_worker_info() is None:
            return self._begin_late(run, allocate or Recycler())
        forbid_opencv_threads()
        if allocate is not None or self.batch_size is None:
            return self._begin(run, allocate or Recycler())
        sender = Sender()
        return sender.send(self._begin(run, sender))

    def _begin_late(self, run: Run, allocate: Allocate) -> Loop:
        """Begin with the first batch, so that an iterator that nobody uses takes no epoch."""
        yield from self._begin(run, allocate)

    def _begin(self, run: Run, allocate: Allocate) -> Loop:
        """Begin now: what asks a worker for its state before the first batch gets the epoch."""
        num_steps, (worker, num_workers) = self.num_steps(), find_worker()
        own, self._own_start = self._own_start, None
        start = self._epochs.begin(own)
        steps = steps_of_worker(start.step, num_steps, worker, num_workers)
        if own is not None:
            steps = range(own.step, num_steps, num_workers)
        self._position = Position(start.epoch, steps.start)
        self._loop_number += 1
        jobs = self._read_steps(start.epoch, steps, allocate)
        return self._loop(start.epoch, steps, run, jobs)

    def __getstate__(self) -> dict[str, Any]:
        """What other processes get: a rank from torch.distributed, which workers do not know."""
        known = torch.distributed.is_available() and torch.distributed.is_initialized()
        ranks = (self.ranks.rank, self.ranks.world_size) if known else self._ranks
        return {**vars(self), "_ranks": ranks}

    def set_epoch(self, epoch: int) -> None:
        """Make the next loop that epoch; later loops count on from it.

        Raises:
            UsageError: it is no whole number from 0, or too large.
        """
        self._refuse_second_division()
        self._start_at(Position(self._check_epoch(epoch), 0))

    def state_dict(self, batch: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Where the loop is, in less than 1 KB, for load_state_dict on any number of ranks.

        Args:
            batch: the last one that the loop received. It is needed where a DataLoader's workers
                read, since they run ahead of the loop; without workers it may be left out.

        Returns:
            Version, epoch, next step, and what identifies dataset and plan: values for JSON.

        Raises:
            UsageError: workers read and no batch is given, or it has no place.
        """
        worker = find_worker() if get_worker_info() is not None else None
        if batch is not None:
            position, worker = _position_after(batch), None
        elif worker is None and self._epochs.by_workers:
            raise UsageError(
                "DataLoader workers read ahead of the loop: pass the last batch that it "
                "received, state_dict(batch). A dataset without batch_size has no such "
                "batch",
                remedy="use torchdata's StatefulDataLoader, or num_workers=0",
            )
        else:
            position = self._position or self._epochs.next
        if worker is None and position.step >= self.num_steps():
            position = Position(position.epoch + 1, 0)
        return make_state(self._identity(), position, worker)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next loop go on where a state was taken; later loops are later epochs.

        Args:
            state: from state_dict of a dataset with the same shards, seed, shuffle and global
                batch size; ranks, workers and transforms may differ.

        Raises:
            UsageError: the state is of another dataset, plan or version; it says what differs.
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
        """How many epochs there are, of which each has an order of its own."""
        return _EPOCHS

    def _check_epoch(self, epoch: object) -> int:
        """An epoch as int.

        Raises:
            UsageError: there is no such epoch.
        """
        number, count = whole_number("epoch", epoch, least=0), self._count_epochs()
        if number >= count:
            raise UsageError(f"epoch={number}: it must be below {count}")
        return number

    def _copy(self) -> Self:
        """The same dataset, counting epochs of its own."""
        copy = object.__new__(type(self))
        vars(copy).update(vars(self))
        copy._epochs = EpochCounter()
        copy._position = copy._own_start = None
        return copy

    def _start_at(self, position: Position) -> None:
        self._position = None
        self._loop_number += 1
        self._epochs.set_next(position)

    def _loop(self, epoch: int, steps: range, run: Run, jobs: Jobs) -> Loop:
        loop = self._loop_number
        with closing(jobs), closing(run(jobs)) as batches:
            for step in steps:
                place = [next(batches)]  # only the caller keeps a batch, so that memory is reused
                if loop == self._loop_number:
                    self._position = Position(epoch, step + steps.step)
                yield self._deliver(place.pop(), epoch, step)

    def _deliver(self, batch: dict[str, Any], epoch: int, step: int) -> dict[str, Any]:
        """A batch with its place, or the one sample of it."""
        if self.batch_size is None:
            return to_sample(batch)
        return batch | {"__epoch__": Place(epoch), "__step__": Place(step)}

    def _refuse_second_division(self) -> None:
        """Raise UsageError if another library divides the share of this rank among the ranks."""
        if self.ranks.world_size > 1 and (divider := find_divider()) is not None:
            raise UsageError(
                f"{divider} divides among the ranks what this dataset has divided already, so that "
                "samples would be lost: leave its loader out of prepare(), or give prepare() a "
                "shardio.Loader, or make the dataset with rank=0, world_size=1 and batch in the "
                "DataLoader"
            )

    def _divide(self) -> int:
        ranks, (batch_size, global_batch_size) = self.ranks, self._batch_sizes
        if global_batch_size is None:
            return batch_size or 1
        share, rest = divmod(global_batch_size, ranks.world_size)
        if rest:
            raise UsageError(
                f"global_batch_size={global_batch_size} does not divide among "
                f"{ranks.world_size} ranks",
                remedy=f"make it a multiple of {ranks.world_size}",
            )
        return share


def to_sample(batch: dict[str, Any]) -> dict[str, Any]:
    """The one sample of a batch of one."""
    sample = {name: value[0] for name, value in batch.items()}
    return {
        name: value.item() if isinstance(value, torch.Tensor) and value.ndim == 0 else value
        for name, value in sample.items()
    }


def _position_after(batch: Mapping[str, Any]) -> Position:
    try:
        return Position(int(batch["__epoch__"]), int(batch["__step__"]) + 1)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            "the batch has no '__epoch__' and '__step__': pass one as a dataset with batch_size "
            "yields it"
        ) from error
