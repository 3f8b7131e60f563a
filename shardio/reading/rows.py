"""A field of many samples at once, gathered from memory maps of their shards.

Where the members of a batch are alike, as arrays of one shape and class numbers are, one gather
for each shard takes the place of a system call and a dozen of Python's steps for each sample.
Every byte still has its checksum verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardio.reading.checksums import MOST_SHORT, check_rows
from shardio.reading.shards import Alternatives, OpenShard, ShardPool

Groups = list[tuple[OpenShard, NDArray[np.int64], slice]]


class Rows(NamedTuple):
    """One field of several samples.

    Attributes:
        field: its name.
        block: uint8 [n, w], where w is the greatest size.
        sizes: int64 [n], how many bytes of each row belong to it.
    """

    field: str
    block: NDArray[np.uint8]
    sizes: NDArray[np.int64]


class Gathered(NamedTuple):
    """Several fields of several samples.

    Attributes:
        order: int64 [n], which sample each row is of.
        keys: of the rows.
        fields: one Rows a wanted field.
    """

    order: NDArray[np.int64]
    keys: list[str]
    fields: list[Rows]


def gather(
    pool: ShardPool,
    shards: NDArray[np.int64],
    samples: NDArray[np.int64],
    wanted: Sequence[Alternatives],
) -> Gathered | None:
    """Read fields of samples of several shards.

    Args:
        pool: of the shards.
        shards: int64 [n], where each sample is.
        samples: int64 [n], its position there.
        wanted: fields with their alternatives.

    Returns:
        None if the samples are not alike, or not what the index recorded: reading them one by
        one tells.

    Raises:
        TarError: a shard was changed or cut off.
    """
    order = np.argsort(shards, kind="stable")
    shards, samples = shards[order], samples[order]
    bounds = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(order)]
    groups: Groups = [
        (pool.get(int(shards[start])), samples[start:end], slice(start, end))
        for start, end in pairwise(bounds)
    ]
    fields: list[Rows] = []
    for alternatives in wanted:
        rows = _gather_field(groups, alternatives, len(order))
        if rows is None:
            return None
        fields.append(rows)
    keys = [key for shard, part, _ in groups for key in shard.keys(part)]
    return Gathered(order, keys, fields)


def _gather_field(groups: Groups, alternatives: Alternatives, count: int) -> Rows | None:
    places = [shard.places(part, alternatives) for shard, part, _ in groups]
    found = [place for place in places if place is not None]
    if len(found) < len(places) or len({place.field for place in found}) > 1:
        return None
    sizes = np.concatenate([place.sizes for place in found])
    sums = [place.checksums for place in found if place.checksums is not None]
    width = int(sizes.max())
    if len(sums) not in {0, len(found)} or (width > MOST_SHORT and int(sizes.min()) < width):
        return None
    block = np.empty((count, width), np.uint8)
    for (shard, _, rows), place in zip(groups, found, strict=True):
        if not shard.copy(place.offsets, block[rows]):
            return None
    if sums and not check_rows(block, sizes, np.concatenate(sums)):
        return None
    return Rows(found[0].field, block, sizes)
