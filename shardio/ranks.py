"""The rank of this process, and how many there are: one rule for all that divides by rank."""

from __future__ import annotations

import os

import torch.distributed

from shardio.checks import whole_number
from shardio.errors import UsageError


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
