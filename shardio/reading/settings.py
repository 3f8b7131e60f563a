"""From the arguments of a dataset to its order; what does not fit together is refused.

Nothing here needs torch, so that the command line plans what a training loop would read.
"""

from __future__ import annotations

from typing import Literal

from shardio.errors import SituationError, UsageError, counted
from shardio.planning.epoch import Shuffle, Tail, count_steps
from shardio.planning.samples import Samples


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
            remedy="pass tail='even' and weigh by batch['valid'], or tail='drop'",
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
