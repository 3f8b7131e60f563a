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


def check_plan(
    dataset: object,
    samples: Samples,
    shuffle: Shuffle,
    *,
    tail: Tail,
    world_size: int,
    global_batch_size: int,
) -> None:
    """Refuse a plan that has no steps, or none that are equal for all ranks.

    Args:
        dataset: dataset or its source, to be named by an error.
        samples: samples of the dataset.
        shuffle: order of the samples.
        tail: rule for the end of an epoch, see shardio.planning.epoch.
        world_size: number of ranks.
        global_batch_size: samples of all ranks in a step.

    Raises:
        UsageError: always with the way out.
    """
    streams = shuffle.streams
    if not len(samples):
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
    if streams > len(samples):
        raise SituationError(
            f"streams={streams} are more than its {len(samples)} samples", where=dataset
        )
    if count_steps(len(samples), global_batch_size, tail) == 0:
        raise SituationError(
            f"{counted(len(samples), 'sample')} do not fill one global batch, which "
            "tail='drop' leaves out",
            where=dataset,
            remedy="make the batch smaller or pass tail='pad'",
        )


def _divisors(number: int) -> str:
    found = [str(part) for part in range(1, number + 1) if number % part == 0]
    return f"{', '.join(found[:-1])} or {found[-1]}"
