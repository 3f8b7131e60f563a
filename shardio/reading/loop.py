"""Loops over datasets: epochs, steps, ranks and state, one contract for all of them.

A loop is a range of steps of an epoch. The subclass counts the steps of an epoch and begins the
batches of some of them. This module decides which steps those are for this rank and worker, and
keeps the position. Workers run ahead of a training loop, so its position is known from the last
batch that it received: batches carry their epoch and step.

The state of a loop is a position (epoch and step) and the identity of what it is a position in:
everything that the sequence of global batches depends on. The identity is compared entry by entry,
so that a refusal says what differs. A state holds no payload: it has a few hundred bytes.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from shardio.checks import is_whole, require, whole_number
from shardio.errors import SituationError, UsageError, argument, counted, quoted, shown
from shardio.fields.image import forbid_opencv_threads
from shardio.planning.epoch import DealtSteps, steps_of_worker
from shardio.reading.epochs import EpochCounter, Position
from shardio.reading.handover import MOST_SAMPLES, Allocate, Batches, Recycler, Sender
from shardio.reading.ranks import (
    Share,
    find_batch_size,
    find_epoch_of_reader,
    find_ranks,
    find_worker,
    refuse_second_batching,
    refuse_second_division,
)
from shardio.reading.settings import divide_batch

if TYPE_CHECKING:
    from typing_extensions import Self

_LOG = logging.getLogger("shardio")

VERSION = 1
Identity = Mapping[str, str | int | bool | None]
_PLACE = frozenset({"version", "worker", *Position._fields})
_SIZE = "global_batch_size"


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
    state: Mapping[str, Any],
    identity: Identity,
    worker: tuple[int, int] | None,
    *,
    batched: bool,
) -> Position:
    """Read the position of a state.

    Args:
        state: state that make_state made.
        identity: expected identity of the dataset and plan.
        worker: worker and num_workers, as for make_state.
        batched: whether the dataset makes batches.

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
    different = {
        name: f"{shown(str(name))} was {quoted(state.get(name))}, is {quoted(identity.get(name))}"
        for name in {**identity, **state}  # either may have names that the other lacks
        if name not in _PLACE and state.get(name) != identity.get(name)
    }
    if different:
        way = "open the dataset as it was when the state was saved"
        if batched and [*different] == [_SIZE] and is_whole(state.get(_SIZE), least=1):
            way = f"pass {_SIZE}={state[_SIZE]} in place of batch_size"
        raise UsageError(
            f"the state belongs to other batches: {'; '.join(different.values())}",
            remedy=f"{way}, or start an epoch anew with set_epoch()",
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


def _no_memory(samples: int) -> SituationError:
    return SituationError(
        f"there is no memory for a batch of {counted(samples, 'sample')}",
        remedy=f"give a smaller {argument('batch_size')}",
    )


_EPOCHS = 1 << 64  # the keys of their random numbers have 64 bits
UnfinishedBatches = Generator[UnfinishedBatch, None, None]
Finish = Callable[[UnfinishedBatches], Batches]
"""Fills and finishes batches, in order."""


def chunks_of(batch: UnfinishedBatch, least: int = 1) -> list[range]:
    """Divide the slots of a batch into chunks.

    Args:
        batch: batch in the making.
        least: minimum number of chunks, if there are as many slots.
    """
    slots = len(batch)
    count = max(least, -(-slots // batch.chunk))
    size = -(-slots // count) or 1
    return [range(start, min(start + size, slots)) for start in range(0, slots, size)]


def finish_in_turn(batches: Iterator[UnfinishedBatch]) -> Batches:
    """Finish one batch after the other in this thread."""
    for batch in batches:
        for slots in chunks_of(batch):  # between which an interrupt is heard
            batch.fill(slots)
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

    The number of ranks is asked for when a loop begins, so a dataset may be made before
    torch.distributed is initialised.

    Args:
        batch_sizes: samples of one rank in a step, and of all ranks; one is None, both to yield
            samples.
        ranks: rank and world size, see find_ranks.
        as_tuple: names of the entries of the tuples that it yields; None for dictionaries.

    Raises:
        UsageError: the ranks that are given are invalid, or the global batch does not divide among
            them.
    """

    _sealed: frozenset[str] = frozenset()

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
        self._epoch_of_reader: tuple[()] | tuple[int, int] = ()
        self._followed = False  # whether this copy is that of a worker of `follow`
        self._makes_batches = batch_sizes != (None, None)
        if ranks != (None, None):
            self.share  # noqa: B018  refuses a global batch that does not divide

    def _seal(self, *arguments: str) -> None:
        """Refuse from now on to set arguments, attributes, and names that nothing reads.

        Args:
            arguments: names of the arguments of the dataset.
        """
        self._sealed = frozenset({*arguments, *vars(self)})

    def __setattr__(self, name: str, value: Any) -> None:
        # A subclass of a user may have attributes of its own.
        ours = name in self._sealed or type(self).__module__.startswith(f"{__package__}.")
        settable = getattr(getattr(type(self), name, None), "fset", None) is not None
        if self._sealed and ours and not settable and not name.startswith("_"):
            raise UsageError(
                f"{name} cannot be set, since a {type(self).__name__} keeps what it was made with",
                remedy=(
                    "ds.replace(…) opens the same samples with other arguments"
                    if hasattr(self, "replace")
                    else f"make another {type(self).__name__}"
                ),
            )
        super().__setattr__(name, value)

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

    def _epoch_by_number(self) -> tuple[()] | tuple[int, int]:
        """Return the epoch of a DataLoader that reads samples by number, see find_epoch_of_reader.

        Raises:
            UsageError: it begins in a worker that lives on, and the dataset has changed since.
        """
        epoch = find_epoch_of_reader()
        if epoch != self._epoch_of_reader:
            self._epoch_of_reader = epoch
            self._refuse_old_copy()
        return epoch

    def _refuse_old_copy(self) -> None:
        """Raise UsageError in a worker that lives on where the dataset has changed since."""
        if get_worker_info() is not None and self._epochs.missed_change():
            raise UsageError(
                "ds.transform was set after the workers of this DataLoader had started, and they "
                "keep the old one",
                remedy=(
                    "make the DataLoader anew, pass persistent_workers=False, or use a "
                    "shardio.Loader, whose workers have it in the next loop"
                ),
            )

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
        given, of_all = self._batch_sizes
        return given if of_all is None else self.share.batch_size

    @property
    def global_batch_size(self) -> int:
        """Samples of all ranks in a step."""
        return self.share.global_batch_size

    @property
    def share(self) -> Share:
        """Share of this rank, by the environment as it is now."""
        return self._share_of(*find_ranks(*self._ranks))

    def _share_of(self, rank: int, world_size: int) -> Share:
        batch_size, global_batch_size = self._batch_sizes
        if global_batch_size is not None:
            batch_size = divide_batch(global_batch_size, world_size)
        if batch_size is not None and batch_size > MOST_SAMPLES:
            raise _no_memory(batch_size)
        return Share(rank, world_size, batch_size or 1)

    def __len__(self) -> int:
        """Batches that this rank takes in an epoch; samples if there is no batch_size."""
        return self.num_steps()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.iterate(finish_in_turn)

    def iterate(
        self, finish: Finish, allocate: Allocate | None = None, *, followed: bool = False
    ) -> Batches:
        """Begin a loop.

        In the loading process it begins with the first batch, so that an iterator that nobody uses
        takes no epoch; in a worker at once, so that a state asked for before the first batch is
        that of its epoch.

        Args:
            finish: finishes the batches, in order.
            allocate: makes their arrays; by default memory that is lent again, in a worker memory
                that it shares with the training process.
            followed: whether this is a worker of `follow`.

        Raises:
            UsageError: the batches of this rank would be divided among the ranks again.
        """
        share = self.share
        refuse_second_division(share, batches=self._makes_batches)
        if get_worker_info() is None:
            loop = self._loop(finish, allocate or Recycler(), share)
            _living.add(loop)
            return loop
        forbid_opencv_threads()
        self._followed, begun = followed, self._begin(share, followed=followed)
        if allocate is not None or not self._makes_batches:
            return self._loop(finish, allocate or Recycler(), share, begun)
        sender = Sender()
        loop = self._loop(finish, sender, share, begun)
        return sender.send(loop, as_tuple=self._as_tuple is not None and not followed)

    def read_batch(self, *, epoch: int, step: int) -> Any:
        """Read this rank's batch of one step of an epoch, whatever came before.

        Raises:
            UsageError: there is no such epoch, or it has no such step.
        """
        epoch, step = self._check_epoch(epoch), whole_number("step", step, least=0)
        share = self.share
        steps = self._count_steps(share)
        if step >= steps:
            raise UsageError(f"step {step} is outside the {steps} steps of an epoch")
        (batch,) = finish_in_turn(self._read_steps(epoch, [step], share, Recycler()))
        self._end_loop()
        return self._deliver(batch, epoch, step)

    def follow(self, start: Callable[[], Iterator[dict[str, Any]]]) -> Batches:
        """Begin a loop over batches that workers of this process make, and keep its position.

        Args:
            start: function that starts workers, which iterate with followed=True, and returns what
                they make in order.

        Raises:
            UsageError: the batches of this rank would be divided among the ranks again.
        """
        share = self.share
        refuse_second_division(share, batches=self._makes_batches)
        self._count_steps(share)  # an error of a worker would be longer
        loop = self._follow(start)
        _living.add(loop)
        return loop

    def _follow(self, start: Callable[[], Iterator[dict[str, Any]]]) -> Batches:
        self._loop_number += 1
        loop, self._position = self._loop_number, self._epochs.next
        for batch in start():
            only: list[Any] = [batch]
            del batch  # only the caller keeps a batch: memory is reused
            if loop == self._loop_number:
                self._position = _position_after(only[0])
            if self._as_tuple is not None:
                only[0] = (*self._choose_entries(only[0]).values(),)
            yield only.pop()

    def _begin(self, share: Share, *, followed: bool = False) -> tuple[int, range]:
        """Take the next epoch, and this worker's steps of it."""
        num_steps, (worker, num_workers) = self._count_steps(share), find_worker()
        own, self._own_start = self._own_start, None
        epoch, first = self._epochs.begin(own, followed=followed)
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
        if begun is None:
            begun = self._begin(share)
        else:  # at the first batch: torch loses an error of a worker when a loop begins again
            self._refuse_old_copy()
        epoch, own = begun
        steps: Sequence[int] = own
        if self._makes_batches:
            refuse_second_batching()
        elif get_worker_info() is not None:
            steps = DealtSteps(own, find_worker()[0], find_batch_size())
        loop, unfinished = self._loop_number, self._read_steps(epoch, steps, share, allocate)
        try:
            with closing(unfinished), closing(finish(unfinished)) as batches:
                for step in steps:
                    only = [next(batches)]  # only the caller keeps a batch: memory is reused
                    if loop == self._loop_number:
                        self._position = Position(epoch, step + own.step)
                    yield self._deliver(only.pop(), epoch, step)
                next(batches, None)  # they end, and are not left
        except MemoryError as error:
            raise _no_memory(share.batch_size) from error
        finally:
            self._end_loop()

    def __getstate__(self) -> dict[str, Any]:
        """Tell other processes a rank from torch.distributed, which workers do not know."""
        known = torch.distributed.is_available() and torch.distributed.is_initialized()
        return {**vars(self), "_ranks": find_ranks(*self._ranks) if known else self._ranks}

    def set_epoch(self, epoch: int) -> None:
        """Make the next loop that epoch; later loops count on from it.

        A loop that continues a loaded state of that epoch keeps its step, since trainers that
        resume set the epoch too.

        Raises:
            UsageError: it is not a whole number from 0, or too large.
        """
        refuse_second_division(self.share, batches=self._makes_batches)
        number, loaded = self._check_epoch(epoch), self._epochs.next
        self._start_at(loaded if loaded.epoch == number else Position(number, 0))

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
        position = read_state(state, self._identity(), worker, batched=self._makes_batches)
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
        """Replacements of bad samples so far, in all workers; the same sample counts each time."""
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
        place = {"__epoch__": epoch, "__step__": step}
        hides = self._makes_batches and self._as_tuple and "valid" not in self._as_tuple
        if hides and epoch == 0:  # once, not in each epoch
            _tell_hidden(batch["valid"], step)
        batch = {**batch, **place} if self._makes_batches else to_sample(batch)
        sent_on = self._makes_batches and get_worker_info() is not None
        chosen = self._choose_entries(batch)
        if self._followed:
            return {**chosen, **place}
        return (*chosen.values(),) if self._as_tuple and not sent_on else chosen

    def _choose_entries(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the entries that the dataset yields, of a batch or a sample."""
        if self._as_tuple is None:
            return batch
        lacking = [name for name in self._as_tuple if name not in batch]
        if lacking:
            raise UsageError(
                f"as_tuple: there is no entry {quoted(lacking[0])}",
                remedy=f"choose among {', '.join(map(quoted, batch))}, or make it in map=",
            )
        return {name: batch[name] for name in self._as_tuple}


def _tell_hidden(valid: torch.Tensor, step: int) -> None:
    """Warn of repeats in a batch, which a tuple without "valid" does not show.

    One a rank is what tail="even" promises, as torch's DistributedSampler does.
    """
    hidden = len(valid) - int(valid.sum())
    if hidden > 1:
        _LOG.warning(
            "%d of %s in step %d of epoch 0 are repeats or stand-ins, which as_tuple without "
            "\"valid\" does not show; pass tail='even' or tail='exact', or add \"valid\"",
            hidden,
            counted(len(valid), "sample"),
            step,
        )


def _entry_names(names: object) -> tuple[str, ...] | None:
    """Return the names of entries, as ("image", "label").

    Raises:
        UsageError: they are not names.
    """
    if names is None:
        return None
    listed = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    require(listed and names, "as_tuple", names, 'names of entries, as ("image", "label")')
    found = (*cast("Sequence[str]", names),)
    require(len({*found}) == len(found), "as_tuple", names, "names of entries, each once")
    return found


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
