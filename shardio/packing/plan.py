"""Which samples go into which shard: arithmetic on the list of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shardio.errors import PackError
from shardio.packing.sources import SourceSample
from shardio.packing.store import Store
from shardio.plan.shuffle import KeyedPermutation, derive_key

SHARD_PATTERN = "shard-*.tar"
_PACKING = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """One shard to write; everything a process needs to write it.

    Attributes:
        source: folder that the samples' paths start from.
        out: folder of the shard.
        name: file name of the shard.
        samples: in order.
        store: how their images are stored.
    """

    source: str
    out: str
    name: str
    samples: tuple[SourceSample, ...]
    store: Store


def plan_shards(
    samples: Sequence[SourceSample],
    *,
    source: str,
    out: str,
    shards: int,
    seed: int | None,
    store: Store,
) -> list[ShardTask]:
    """Split samples into shards whose sizes differ by at most one sample.

    Args:
        samples: sorted.
        source: folder that their paths start from.
        out: folder of the shards.
        shards: how many.
        seed: of the order; None keeps the samples sorted.
        store: how images are stored.

    Raises:
        PackError: there are fewer samples than shards.
    """
    if not samples:
        raise PackError(f"{source}: no file in it can be packed; name a folder of images")
    if shards > len(samples):
        raise PackError(
            f"{source}: {len(samples)} samples do not fill {shards} shards; "
            f"pass --shards {len(samples)} or less"
        )
    order = np.arange(len(samples))
    if seed is not None:
        order = KeyedPermutation(len(samples), derive_key(seed, _PACKING))(order)
    return [
        ShardTask(
            source=source,
            out=out,
            name=SHARD_PATTERN.replace("*", f"{number:06d}"),
            samples=tuple(samples[i] for i in part.tolist()),
            store=store,
        )
        for number, part in enumerate(np.array_split(order, shards))
    ]
