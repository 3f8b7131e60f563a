"""The one contract of everything that is looped over: epochs, steps, state.

A loop is a range of steps of an epoch. The subclass knows how many steps an epoch has and how to
read some of them; here is which steps those are, for this worker, and what is remembered of
them. What a training loop has received is known from the batch it holds, since workers run
ahead of it: batches carry their epoch and step.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.data._utils.collate import default_collate_fn_map

from shardio.codecs.opencv import forbid_opencv_threads
from shardio.errors import UsageError
from shardio.plan.epoch import steps_of_worker
from shardio.reading.arguments import whole_number
from shardio.reading.epochs import EpochCounter
from shardio.reading.handover import Sender
from shardio.reading.memory import Allocate, Recycler
from shardio.reading.state import Identity, Position, make_state, read_state
from shardio.reading.topology import Ranks, find_divider, find_ranks, find_worker

if TYPE_CHECKING:
    from typing_extensions import Self


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
            raise UsageError("batch_size and global_batch_size exclude each other; give one")
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
                "DataLoader workers read ahead of the loop: pass the last batch that it received, "
                "state_dict(batch). A dataset without batch_size has no such batch; use "
                "torchdata's StatefulDataLoader, or num_workers=0"
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
                f"{ranks.world_size} ranks; make it a multiple of {ranks.world_size}"
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
