"""Which rank and worker this process is, as torch and torchrun tell it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from types import FrameType

import numpy as np
import torch.distributed
from torch.utils.data import get_worker_info

from shardio.errors import UsageError

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
        raise UsageError("rank and world_size go together; give both or neither")
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        else:
            rank, world_size = _ranks_of_environment()
    if not (isinstance(rank, int | np.integer) and isinstance(world_size, int | np.integer)):
        raise UsageError(f"rank={rank!r} and world_size={world_size!r} must be whole numbers")
    if not 0 <= rank < world_size:
        raise UsageError(f"rank {rank} is outside 0 to {world_size - 1} (world_size - 1)")
    return Ranks(rank=int(rank), world_size=int(world_size))


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
