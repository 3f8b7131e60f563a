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
        torch: a DataLoader makes the batches.
    """

    datasets: tuple[ShardDataset, ...]
    kind: Kind | None
    number: int
    ahead: int
    steps: int | None
    restarts: bool
    cached: float | None
    torch: bool


def look_at(loader: Any) -> LoaderFacts:
    """Tell what a loader says of itself."""
    inner = _inside(loader)
    datasets = _datasets_of(inner)
    kind, number = _producers_of(inner)
    ahead = _USUALLY_AHEAD
    if isinstance(inner, DataLoader):
        ahead = inner.num_workers * (inner.prefetch_factor or 0)
    return LoaderFacts(
        datasets=datasets,
        kind=kind,
        number=number,
        ahead=ahead,
        steps=_count_steps(loader),
        restarts=kind == "processes" and not getattr(inner, "persistent_workers", False),
        cached=_cached_share(datasets),
        torch=isinstance(inner, DataLoader),
    )


def count_samples(batch: Any) -> int | None:
    """Samples in a batch; None if nothing tells.

    That is the number of its keys; or else the first dimension of its tensors and arrays, those of
    the outermost level first; or else the length of its first list.
    """
    if isinstance(batch, Mapping) and "__key__" in batch:
        keys = batch["__key__"]
        return 1 if isinstance(keys, str) else len(keys)
    if hasattr(batch, "shape"):
        return _first_dimension(batch)
    entries = _entries_of(batch)
    own = [size for entry in entries if (size := _first_dimension(entry)) is not None]
    if own:
        return own[0]
    nested = {size for entry in entries if (size := count_samples(entry)) is not None}
    lists = [len(entry) for entry in entries if isinstance(entry, Sequence) and _entries_of(entry)]
    if len(nested) == 1 and any(map(_has_tensors, entries)):
        return nested.pop()
    return lists[0] if lists else next(iter(nested), None)


def _entries_of(batch: Any) -> list[Any]:
    if isinstance(batch, Mapping):
        return [*batch.values()]
    return [*batch] if isinstance(batch, Sequence) and not isinstance(batch, str | bytes) else []


def _first_dimension(entry: Any) -> int | None:
    shape = getattr(entry, "shape", None)
    return int(shape[0]) if shape is not None and len(shape) else None


def _has_tensors(batch: Any) -> bool:
    return _first_dimension(batch) is not None or any(map(_has_tensors, _entries_of(batch)))


def _inside(loader: Any) -> Any:
    """The DataLoader that webdataset's WebLoader wraps, as the first stage of a pipeline."""
    stages = getattr(loader, "pipeline", None)
    if isinstance(stages, list) and stages and isinstance(stages[0], DataLoader):
        return stages[0]
    return loader


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
    stages = getattr(loader, "pipeline", None)
    if not hasattr(loader, "__len__") and isinstance(stages, list) and len(stages) == 1:
        loader = _inside(loader)  # nothing after it makes other batches
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def _cached_share(datasets: Sequence[ShardDataset]) -> float | None:
    shards = [shard.path for dataset in datasets for shard in dataset.catalog.shards]
    some = shards[:: max(len(shards) // _SHARDS_LOOKED_AT, 1)][:_SHARDS_LOOKED_AT]
    known = [share for share in map(cached_share, some) if share is not None]
    return sum(known) / len(known) if known else None
