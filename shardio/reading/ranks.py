"""Which share of the steps is this process's, and that nobody divides or batches it again.

Other libraries wrap a dataset and call no method that would tell it, so the callers' frames are
searched for them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sized
from types import FrameType
from typing import Any, NamedTuple
from weakref import ref

import torch
import torch.distributed
from torch.utils.data import Subset, default_collate, get_worker_info

from shardio.checks import whole_number
from shardio.errors import UsageError

_BATCHER = "_IterableDatasetFetcher"
"""The class of torch that draws from an iterable dataset for a DataLoader, in workers too."""
_DIVIDERS = frozenset({"IterableDatasetShard", "DataLoaderDispatcher"})
"""Classes of accelerate and transformers that give each rank a part of what a dataset yields."""
_READER = "_MapDatasetFetcher"
"""The class of torch that reads samples by number for one epoch of a DataLoader."""
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
            remedy=(
                "set both to numbers, unset both, pass rank and world_size, or begin the loop when "
                "torch.distributed is initialised"
            ),
        ) from error


def refuse_second_division(share: Share, *, batches: bool) -> None:
    """Raise UsageError if another library divides among the ranks what it would lose some of.

    That is the share of a rank, batches, and samples whose loop it means to continue from a state.

    accelerate's prepare and transformers' Trainer wrap an iterable dataset and drop the share of
    the other ranks. They call no method that would tell it, so the callers' frames are searched for
    the wrapper's own loop, in worker processes too. They cannot divide batches that hold text.
    """
    divided = share.world_size > 1
    for frame in _callers() if divided or _has_ranks() else ():
        owner = frame.f_locals.get("self") if frame.f_code.co_name in _ENTRIES else None
        divider = next((kind for kind in type(owner).__mro__ if kind.__name__ in _DIVIDERS), None)
        name = divider and divider.__module__.partition(".")[0]
        if divider and (divided or batches):
            what = "this dataset has divided already, so that samples would be lost"
            raise UsageError(
                f"{name} divides among the ranks what "
                f"{what if divided else 'are batches already, which it can only do with samples'}",
                remedy=(
                    "leave its loader out of prepare(), or give prepare() a shardio.Loader, or "
                    "make the dataset with rank=0, world_size=1 and batch in the DataLoader"
                ),
            )
        if divider and getattr(owner, "use_stateful_dataloader", False):
            raise UsageError(
                f"{name} divides among the ranks what one of them reads, and a state that "
                "it saves with use_stateful_dataloader is ahead of them, so that samples would be "
                "lost",
                remedy="pass dispatch_batches=False, or give prepare() a shardio.Loader",
            )


def _has_ranks() -> bool:
    known = torch.distributed.is_available() and torch.distributed.is_initialized()
    return known and torch.distributed.get_world_size() > 1


def refuse_second_batching() -> None:
    """Raise UsageError if a DataLoader stacks what the calling generator yields.

    A DataLoader with a batch size hands a list to its collate_fn, and calls no method of the
    dataset that would tell it. Its own loop is among the callers' frames.
    """
    for loader, _ in _find_batchers():
        if loader.collate_fn is default_collate:
            raise UsageError(
                "the dataset makes batches already, and the DataLoader batches them again",
                remedy="pass batch_size=None to the DataLoader",
            )


def find_batch_size() -> int:
    """Return how many samples a DataLoader joins that draws from the calling generator.

    It is 1 if none does, and under torchdata's StatefulDataLoader, since the positions that its
    workers save hold for batches of any size.
    """
    if any(frame.f_globals.get("__name__", "").startswith("torchdata.") for frame in _callers()):
        return 1
    return next(iter(_find_batchers()), (None, 1))[1]


def _find_batchers() -> list[tuple[Any, int]]:
    """Find the objects of torch that draw batches from the calling generator, with their sizes."""
    found = []
    for frame in _callers():
        if frame.f_code.co_name == "fetch":
            loader: Any = frame.f_locals.get("self")
            if type(loader).__name__ == _BATCHER and loader.auto_collation:
                found.append((loader, len(frame.f_locals["possibly_batched_index"])))
    return found


def _callers() -> list[FrameType]:
    """List the callers' frames, the nearest first."""
    frame: FrameType | None = sys._getframe(1)
    found = []
    while frame is not None:
        found.append(frame)
        frame = frame.f_back
    return found


def refuse_subset(dataset: Sized, samples: int) -> None:
    """Raise UsageError if a Subset of torch takes the steps of a dataset for its samples.

    torch's random_split and Subset number the samples up to len(dataset), which counts what a loop
    of this rank yields.
    """
    caller = sys._getframe(3)  # of the method that reads samples by number
    if isinstance(caller.f_locals.get("self"), Subset) and len(dataset) != samples:
        raise UsageError(
            f"torch's Subset and random_split number the {samples} samples by len(dataset), "
            f"which is {len(dataset)}: it counts what a loop of this rank yields",
            remedy="use ds.split(0.9, 0.1) and ds.subset(numbers)",
        )


def find_epoch_of_reader() -> tuple[()] | tuple[int, int]:
    """Find the epoch of a DataLoader that reads samples by number.

    Returns:
        Nothing where none does. Else its base seed, which it draws from torch's generator for every
        epoch, but once for workers that live on; and the number of the epoch in this worker, since
        each has a new object that reads.
    """
    info, frames = get_worker_info(), iter(_callers())
    for frame in frames:
        reader = frame.f_locals.get("self") if frame.f_code.co_name == "fetch" else None
        if type(reader).__name__ == _READER:
            if info is None:
                loop: Any = next(frames).f_locals["self"]
                return loop._base_seed, 0
            known, number = _readers.get(os.getpid(), (None, -1))
            if known is None or known() is not reader:
                number += 1
                _readers[os.getpid()] = ref(reader), number
            return info.seed - info.id, number
    return ()


_readers: dict[int, tuple[ref[Any], int]] = {}
"""Object that reads in each worker process, this one and those that it was forked from."""


def find_worker() -> tuple[int, int]:
    """Find worker and num_workers of this process; the main process is worker 0 of 1."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)
