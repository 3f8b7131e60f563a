"""What can be told of a loader before it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from shardio.profiling.evidence import Kind
from shardio.profiling.system import cached_share
from shardio.reading.dataset import ShardDataset
from shardio.reading.loader import Loader
from shardio.reading.mix import Mix

_SHARDS_LOOKED_AT = 8
_USUALLY_AHEAD = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderFacts:
    """A loader, as far as it says.

    Attributes:
        datasets: of shardio, whose reading can be recorded.
        kind: of producers; None where the loader does not say.
        number: of producers; 0 where it does not say, or the loop's own thread makes batches.
        ahead: batches made before the first is asked for, or nearly so.
        steps: of an epoch; None where it does not say.
        restarts: each epoch starts workers.
        cached: share of some shards that is in the page cache; None where that is not known.
    """

    datasets: tuple[ShardDataset, ...]
    kind: Kind | None
    number: int
    ahead: int
    steps: int | None
    restarts: bool
    cached: float | None


def look_at(loader: Any) -> LoaderFacts:
    """Tell what a loader says of itself."""
    datasets = _datasets_of(loader)
    kind, number = _producers_of(loader)
    ahead = _USUALLY_AHEAD
    if isinstance(loader, DataLoader):
        ahead = loader.num_workers * (loader.prefetch_factor or 0)
    return LoaderFacts(
        datasets=datasets,
        kind=kind,
        number=number,
        ahead=ahead,
        steps=_count_steps(loader),
        restarts=kind == "processes" and not getattr(loader, "persistent_workers", False),
        cached=_cached_share(datasets),
    )


def count_samples(batch: Any) -> int:
    """Samples in a batch: the length of its first entry that has one; 1 if none has."""
    if isinstance(batch, Mapping):
        batch = [batch["__key__"]] if "__key__" in batch else [*batch.values()]
    entries = [batch] if hasattr(batch, "shape") else batch
    if isinstance(entries, Sequence):
        for entry in entries:
            if hasattr(entry, "__len__") and not isinstance(entry, str | bytes):
                try:
                    return len(entry)
                except TypeError:  # a tensor without dimensions
                    continue
    return 1


def _datasets_of(loader: Any) -> tuple[ShardDataset, ...]:
    found = loader
    while isinstance(found, Loader | DataLoader):  # DataLoader(Loader(dataset))
        found = found.dataset
    if isinstance(found, Mix):
        return tuple(dict.fromkeys(found.sources))
    return (found,) if isinstance(found, ShardDataset) else ()


def _producers_of(loader: Any) -> tuple[Kind | None, int]:
    if isinstance(loader, Loader):
        return "threads", loader.threads
    if isinstance(loader, ShardDataset | Mix):
        return "here", 0
    if isinstance(loader, DataLoader):
        return ("processes", loader.num_workers) if loader.num_workers else ("here", 0)
    return None, 0


def _count_steps(loader: Any) -> int | None:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def _cached_share(datasets: Sequence[ShardDataset]) -> float | None:
    shards = [shard.path for dataset in datasets for shard in dataset.catalog.shards]
    some = shards[:: max(len(shards) // _SHARDS_LOOKED_AT, 1)][:_SHARDS_LOOKED_AT]
    known = [share for share in map(cached_share, some) if share is not None]
    return sum(known) / len(known) if known else None
