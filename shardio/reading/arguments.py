"""What ShardDataset accepts, and what fits together; each refusal names the way out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from shardio.errors import UsageError
from shardio.plan.epoch import Shuffle
from shardio.plan.samples import Samples
from shardio.plan.tail import Tail, count_steps
from shardio.transforms import SizedTransform

OnBadSample = Literal["raise", "skip"]


def check_arguments(*, transform: object, decode: bool, **given: Any) -> None:
    """Refuse arguments of ShardDataset that cannot be meant.

    Raises:
        UsageError: for the first of them.
    """
    for name in ("batch_size", "global_batch_size"):
        whole = given[name] is None or _is_whole(given[name])
        _check(name, given[name], whole, "a whole number, at least 1")
    _check("seed", given["seed"], isinstance(given["seed"], int), "a whole number")
    fields = given["fields"]
    _check("fields", fields, fields is None or isinstance(fields, Mapping),
           "a mapping such as {'image': 'jpg;png'}")  # fmt: skip
    usable = callable(transform) or isinstance(transform, SizedTransform)
    usable = transform is None or (usable and not isinstance(transform, type))
    _check("transform", transform, usable, "callable, such as shardio.CenterCrop(224)")
    _check("transform", transform, decode or transform is None, "left out with decode=False")
    _check("shuffle", given["shuffle"], given["shuffle"] in (True, False, "full"),
           "True, False or 'full'")  # fmt: skip
    _check("window", given["window"], _is_whole(given["window"]), "at least 1 shard")
    _check("streams", given["streams"], _is_whole(given["streams"]), "at least 1")
    _check("tail", given["tail"], given["tail"] in get_args(Tail), "'pad', 'drop' or 'short'")
    _check("on_bad_sample", given["on_bad_sample"],
           given["on_bad_sample"] in get_args(OnBadSample), "'raise' or 'skip'")  # fmt: skip


def check_plan(
    name: str,
    samples: Samples,
    shuffle: Shuffle,
    *,
    tail: Tail,
    world_size: int,
    global_batch_size: int,
) -> None:
    """Refuse a plan that has no steps, or none that are equal for all ranks.

    Args:
        name: of the dataset, for the message.
        samples: of the dataset.
        shuffle: their order.
        tail: see shardio.plan.tail.
        world_size: number of ranks.
        global_batch_size: samples of all ranks in a step.

    Raises:
        UsageError: always with the way out.
    """
    streams = shuffle.streams
    if not len(samples):
        raise UsageError(f"{name}: the dataset has no samples")
    if tail == "short" and world_size > 1:
        raise UsageError(
            f"tail='short' with {world_size} ranks would give them unequal steps, or batches of "
            "unequal size; pass tail='pad' and weigh by batch['valid'], or tail='drop'"
        )
    if streams > 1 and streams % world_size:
        raise UsageError(
            f"{world_size} ranks do not divide streams={streams}: each rank reads whole streams, "
            f"so use {_divisors(streams)} ranks, or streams=1 for any number"
        )
    if global_batch_size % streams:
        raise UsageError(
            f"streams={streams} do not divide the global batch size {global_batch_size}: each "
            f"stream fills an equal part of it; make it a multiple of {streams}"
        )
    if streams > len(samples):
        raise UsageError(f"{name}: streams={streams} are more than its {len(samples)} samples")
    if count_steps(len(samples), global_batch_size, tail) == 0:
        raise UsageError(
            f"{name}: {len(samples)} samples do not fill one global batch, which "
            "tail='drop' leaves out; make the batch smaller or pass tail='pad'"
        )


def _divisors(number: int) -> str:
    found = [str(part) for part in range(1, number + 1) if number % part == 0]
    return f"{', '.join(found[:-1])} or {found[-1]}"


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and value >= 1


def _check(name: str, value: object, good: bool, wanted: str) -> None:
    if not good:
        raise UsageError(f"{name}={value!r}: it must be {wanted}")
