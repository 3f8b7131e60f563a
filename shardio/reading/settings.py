"""From the arguments of a dataset to its order and store; what does not fit together is refused.

Nothing here needs torch, so that the command line plans what a training loop would read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from shardio.errors import SituationError, UsageError, counted
from shardio.planning.epoch import Shuffle, Tail, count_steps
from shardio.planning.samples import Samples
from shardio.storage.location import Options


def make_shuffle(
    shuffle: bool | Literal["full"], *, seed: int, window: int, streams: int
) -> Shuffle:
    """Make the order that the arguments of ShardDataset ask for."""
    return Shuffle(
        seed=seed,
        on=bool(shuffle),
        window=None if shuffle == "full" else window,
        streams=streams,
    )


def store_options(given: Mapping[str, Any]) -> Options:
    """Return the options of a store that the arguments of a dataset are."""
    folder = given["cache_dir"]
    return {
        "cache_dir": None if folder is None else os.fspath(folder),
        "cache_limit": given["cache_limit"],
        "retries": given["download_retry"],
        "timeout": given["download_timeout"],
        **(given["storage_options"] or {}),
    }


def ranks_of(group: Any, rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return rank and world size of this process in a group.

    Args:
        group: process group, or device mesh of one dimension, of torch.distributed.
        rank: rank given beside it, which must be None.
        world_size: world size given beside it, which must be None.

    Raises:
        UsageError: the group is none of these, or this process is not in it.
    """
    if rank is not None or world_size is not None:
        raise UsageError("group says rank and world_size, which exclude it", remedy="give one")
    if (dimensions := getattr(group, "ndim", 1)) != 1:
        raise UsageError(
            f"group={group}: the device mesh has {dimensions} dimensions",
            remedy='give that of the ranks with different samples, as mesh["dp"]; several become '
            'one by mesh["dp_replicate", "dp_shard"]._flatten("dp")',
        )
    rank_in = getattr(group, "get_local_rank", getattr(group, "rank", None))  # mesh or group
    if not (callable(rank_in) and callable(getattr(group, "size", None))):
        raise UsageError(
            f"group={group!r}: it must be a process group or a device mesh of torch.distributed "
            "that this process is in"
        )
    return int(rank_in()), int(group.size())


def divide_batch(global_batch_size: int, world_size: int) -> int:
    """Return the samples of one rank in a step.

    Raises:
        UsageError: they are not a whole number.
    """
    share, rest = divmod(global_batch_size, world_size)
    if rest:
        raise UsageError(
            f"global_batch_size={global_batch_size} does not divide among "
            f"{counted(world_size, 'rank')}",
            remedy=f"make it a multiple of {world_size}",
        )
    return share


def check_plan(
    dataset: object,
    samples: Samples,
    shuffle: Shuffle,
    *,
    tail: Tail,
    world_size: int,
    global_batch_size: int,
) -> int:
    """Count the steps of an epoch; refuse one without steps, or with unequal ones for the ranks.

    Args:
        dataset: dataset or its source, to be named by an error.
        samples: samples of the dataset.
        shuffle: order of the samples.
        tail: rule for the end of an epoch, see shardio.planning.epoch.
        world_size: number of ranks.
        global_batch_size: samples of all ranks in a step.

    Raises:
        UsageError: there is no such plan.
    """
    count, streams = len(samples), shuffle.streams
    if not count:
        raise SituationError("the dataset has no samples", where=dataset)
    if tail == "short" and world_size > 1:
        raise UsageError(
            f"tail='short' with {world_size} ranks would give them unequal steps, or "
            "batches of unequal size",
            remedy="pass tail='pad' and weigh by batch['valid'], or tail='drop'",
        )
    if streams > 1 and streams % world_size:
        raise UsageError(
            f"{world_size} ranks do not divide streams={streams}: each rank reads whole streams, "
            f"so use {_divisors(streams)} ranks, or streams=1 for any number"
        )
    if global_batch_size % streams:
        raise UsageError(
            f"streams={streams} do not divide the global batch size {global_batch_size}: "
            "each stream fills an equal part of it",
            remedy=f"make it a multiple of {streams}",
        )
    if streams > count:
        raise SituationError(f"streams={streams} are more than its {count} samples", where=dataset)
    steps = count_steps(count, global_batch_size, tail)
    if not steps:
        raise SituationError(
            f"{counted(count, 'sample')} do not fill one global batch, which "
            "tail='drop' leaves out",
            where=dataset,
            remedy="make the batch smaller or pass tail='pad'",
        )
    return steps


def _divisors(number: int) -> str:
    found = [str(part) for part in range(1, number + 1) if number % part == 0]
    return f"{', '.join(found[:-1])} or {found[-1]}"
