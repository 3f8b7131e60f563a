"""Mix: several datasets as one, in exact proportions.

The mixture is one endless sequence of samples. A schedule says which source each position takes
(see shardio.planning.mixture); a source gives its samples in the order of its own epochs, one after
the other, so that none of them is lost or doubled whatever the mixture's epoch is. An epoch of
the mixture is a fixed number of steps of that sequence; ranks and workers slice it like that of
one dataset.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from math import isfinite
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from shardio.checks import one_of
from shardio.errors import UsageError, quoted
from shardio.planning.epoch import EpochPlan
from shardio.planning.mixture import LEAST_WEIGHT, Mixture
from shardio.planning.order import grouped
from shardio.reading.dataset import ShardDataset
from shardio.reading.handover import Allocate
from shardio.reading.kinds import shape_and_dtype
from shardio.reading.loop import (
    Identity,
    ResumableDataset,
    UnfinishedBatch,
    UnfinishedBatches,
)
from shardio.reading.ranks import Share
from shardio.reading.shards import ShardPool

Stop = Literal["first", "all"]
_LONGEST_LIST = 300
_POSITIONS = 1 << 56  # of the mixture; more would overflow 64 bits on the way to an epoch's order


class _Draw(NamedTuple):
    """Samples that a batch takes of one epoch of one source.

    Attributes:
        source: number of the source.
        epoch: epoch of the source.
        positions: positions of the samples in that epoch, [n] int64.
        slots: slots of the samples in the batch, [n] int64.
    """

    source: int
    epoch: int
    positions: NDArray[np.int64]
    slots: NDArray[np.int64]


class Mix(ResumableDataset):
    """A mixture of datasets, deterministic and resumable like each of them.

    Every batch holds samples of all sources, in the proportion of the weights: in any 1,000
    consecutive samples of the mixture, each source has its share to within one sample. Each
    source delivers its samples exactly once in each of its own epochs, which follow one another
    through the epochs of the mixture; nothing is padded. A batch also has `__source__`, int64
    [B], the position of each sample's source.

    Args:
        sources: datasets with the same entries, batch size and ranks, and with streams=1.
        weights: share of each source, positive and in proportion, as [0.7, 0.3] or [7, 3]; counted
            in 1/100,000 of their sum.
        as_tuple: names of entries of which batches are tuples; see ShardDataset.
        stop: end of an epoch of the mixture: with the first epoch of the source that ends "first",
            down to whole steps, or when "all" sources have ended one, up to whole steps.

    Attributes:
        sources: datasets of the mixture.

    Raises:
        UsageError: the weights are not shares, or the sources do not fit together.
    """

    def __init__(
        self,
        sources: Sequence[ShardDataset],
        *,
        weights: Sequence[float],
        stop: Stop = "first",
        as_tuple: Sequence[str] | None = None,
    ) -> None:
        if not isinstance(sources, list | tuple):
            raise UsageError(f"Mix takes a list of datasets, not {quoted(sources)}")
        self.sources = tuple(sources)
        self._weights = _shares(weights, len(self.sources))
        one_of("stop", stop, get_args(Stop))
        _check_sources(self.sources)
        first = self.sources[0]
        super().__init__(batch_sizes=first._batch_sizes, ranks=first._ranks, as_tuple=as_tuple)
        self._stop: Stop = stop
        self._mixture = Mixture(self._weights)
        self._digests = _compact([_digest_of(source) for source in self.sources])
        self._padded = first.padded_entries()
        self._seal("weights", "stop")

    def check_threads(self) -> None:
        """See ShardDataset.check_threads."""
        for source in self.sources:
            source.check_threads()

    def _refuse_old_copy(self) -> None:
        for source in self.sources:
            source._refuse_old_copy()

    def _count_steps(self, share: Share) -> int:
        sizes, taken = [*map(_epoch_length, self.sources)], share.global_batch_size
        if self._stop == "all":
            lasts = [self._mixture.position(s, size - 1) for s, size in enumerate(sizes)]
            return -(-(max(lasts) + 1) // taken)
        ends = [self._mixture.position(s, size) for s, size in enumerate(sizes)]
        steps = min(ends) // taken
        if not steps:
            raise UsageError(
                f"the source that ends first gives {min(ends)} samples of the mixture, "
                f"less than one global batch of {taken}",
                remedy="make the batch smaller, or pass stop='all'",
            )
        return steps

    def _count_epochs(self) -> int:
        share = self.share
        return _POSITIONS // (self._count_steps(share) * share.global_batch_size)

    @property
    def num_bad_samples(self) -> int:
        """Bad samples replaced so far in all sources, under on_bad_sample="skip"."""
        return sum(source.num_bad_samples for source in set(self.sources))

    def _read_steps(
        self, epoch: int, steps: Sequence[int], share: Share, allocate: Allocate
    ) -> UnfinishedBatches:
        size, taken = share.batch_size, share.global_batch_size
        start = epoch * self._count_steps(share) * taken + share.rank * size
        with ExitStack() as stack:
            readers = [_SourceReader(source, allocate) for source in self.sources]
            for reader in readers:
                stack.push(reader.close)
            for step in steps:
                draws = [*self._draw(start + step * taken, size)]
                parts = [readers[draw.source].begin(draw.epoch, draw.positions) for draw in draws]
                yield _MixedBatch(draws, parts, size, allocate, self._padded)
            for reader in readers:
                reader.finish()

    def _draw(self, position: int, size: int) -> Iterator[_Draw]:
        """List the draws of some consecutive positions of the mixture."""
        taken = self._mixture.sources(np.arange(position, position + size))
        for source, inside in grouped(taken):
            slots = np.arange(size)[inside]
            numbers = self._mixture.count(source, position) + np.arange(len(slots))
            epochs, positions = np.divmod(numbers, _epoch_length(self.sources[source]))
            for epoch, now in grouped(epochs):
                yield _Draw(source, epoch, positions[now], slots[now])

    def _end_loop(self) -> None:
        for source in self.sources:
            source._end_loop()

    def _identity(self) -> Identity:
        return {
            "samples": sum(len(source.samples) for source in self.sources),
            "sources": self._digests,
            "weights": _compact([repr(weight) for weight in self._weights]),
            "stop": self._stop,
            "global_batch_size": self.global_batch_size,
        }


class _SourceReader:
    """Reads one source, epoch after epoch."""

    def __init__(self, dataset: ShardDataset, allocate: Allocate) -> None:
        self._dataset = dataset
        self._pool = ShardPool(dataset.catalog.shards)
        self._reader = dataset.reader(self._pool, allocate)
        self._epoch = -1
        self._plan: EpochPlan
        self._ahead = dataset.read_ahead([], self._pool, 0)

    def finish(self) -> None:
        """Have fetched what the last batches need, and wait for shards that come."""
        self._ahead.finish()
        self._pool.finish()

    def close(self, error: object, *_: object) -> None:
        """End what runs beside it; without an error the last batches may still be read."""
        if error is not None:
            self._pool.close()  # before the threads of `_ahead` end, which may wait for a store
        self._ahead.close()

    def begin(self, epoch: int, positions: NDArray[np.int64]) -> UnfinishedBatch:
        """Begin a batch of the samples at some positions of an epoch."""
        dataset = self._dataset
        if epoch != self._epoch:
            self._epoch = epoch
            self._pool.compare_anew()
            self._plan = EpochPlan(
                dataset.samples, dataset.shuffle, global_batch_size=1, epoch=epoch
            )
            self._ahead.close()
            self._ahead = dataset.read_ahead(self._plan.orders, self._pool, epoch)
        key = dataset.transform_key(epoch)
        return next(self._reader.read(self._plan, [positions], key, self._ahead))


class _MixedBatch:
    """A batch of parts, each of which fills some slots; an UnfinishedBatch."""

    def __init__(
        self,
        draws: list[_Draw],
        parts: list[UnfinishedBatch],
        size: int,
        allocate: Allocate,
        padded: frozenset[str],
    ) -> None:
        self._draws = draws
        self._padded = padded
        self._parts = parts
        self._size = size
        self._allocate = allocate
        self.chunk = min(part.chunk for part in parts)

    def __len__(self) -> int:
        return self._size

    def fill(self, slots: range) -> None:
        for draw, part in zip(self._draws, self._parts, strict=True):
            first, last = np.searchsorted(draw.slots, [slots.start, slots.stop]).tolist()
            if first < last:
                part.fill(range(first, last))

    def abandon(self) -> None:
        for part in self._parts:
            part.abandon()

    def finish(self) -> dict[str, Any]:
        parts = [part.finish() for part in self._parts]
        batch = parts[0]
        if len(parts) > 1:
            for draw, part in zip(self._draws, parts, strict=True):
                if other := sorted(part.keys() ^ batch.keys()):
                    raise UsageError(
                        f"{quoted(other[0])} is in the samples of source {draw.source} or of "
                        f"source {self._draws[0].source}, not of both",
                        remedy="give the sources maps that return the same entries",
                    )
            batch = {name: self._join(name, parts) for name in batch}
        sources = torch.empty(self._size, dtype=torch.int64)
        for draw in self._draws:
            sources[torch.from_numpy(draw.slots)] = draw.source
        return batch | {"__source__": sources}

    def _join(self, name: str, parts: list[dict[str, Any]]) -> Any:
        """Make an entry of the batch from those of its parts.

        A part whose samples all lack the entry does not know what the others hold: its slots are
        blank, as those of single samples that lack it.
        """
        has = [part.get(f"has_{name}") for part in parts]
        pieces = [
            _Piece(draw.source, draw.slots, part[name])
            for draw, part, present in zip(self._draws, parts, has, strict=True)
            if present is None or present.any()
        ]
        if not pieces:
            pieces = [_Piece(self._draws[0].source, self._draws[0].slots, parts[0][name])]
        allocate = partial(self._allocate, entry=name)
        return _scatter(name, pieces, self._size, allocate, padded=name in self._padded)


class _Piece(NamedTuple):
    """An entry in one part of a batch.

    Attributes:
        source: number of the source.
        slots: slots of the samples in the batch, [n] int64.
        value: entry of n samples.
    """

    source: int
    slots: NDArray[np.int64]
    value: Any


def _scatter(
    name: str, pieces: list[_Piece], size: int, allocate: Allocate, *, padded: bool = False
) -> Any:
    """Put the pieces of an entry together, blank where no piece has a slot.

    Args:
        name: name of the entry in errors.
        pieces: one piece or more.
        size: number of slots.
        allocate: makes tensors.
        padded: whether tensors are padded to the longest last axis.

    Raises:
        UsageError: the entry is of another kind in one of the pieces.
    """
    first = pieces[0]
    for piece in pieces[1:]:
        if _kind(piece.value, padded=padded) != _kind(first.value, padded=padded):
            raise UsageError(
                f"{name if '[' in name else quoted(name)} is {_shown(first.value)} in source "
                f"{first.source} and {_shown(piece.value)} in source {piece.source}",
                remedy="give the sources transforms and field types that make them equal",
            )
    if isinstance(first.value, dict):
        path = name if "[" in name else quoted(name)
        return {
            key: _scatter(
                f"{path}[{quoted(key)}]",
                [piece._replace(value=piece.value[key]) for piece in pieces],
                size,
                allocate,
            )
            for key in first.value
        }
    if isinstance(first.value, torch.Tensor):
        return _scatter_tensors(pieces, size, allocate, padded=padded)
    entry: list[Any] = [None] * size
    for piece in pieces:
        for slot, item in zip(piece.slots.tolist(), piece.value, strict=True):
            entry[slot] = item
    return entry


def _scatter_tensors(
    pieces: list[_Piece], size: int, allocate: Allocate, *, padded: bool
) -> torch.Tensor:
    values: list[torch.Tensor] = [piece.value for piece in pieces]
    channels_last = values[0].ndim == 4 and values[0].permute(0, 2, 3, 1).is_contiguous()
    if channels_last and not padded:
        values = [value.permute(0, 2, 3, 1) for value in values]
    shape = [size, *values[0].shape[1:]]
    if padded:
        shape[-1] = max(value.shape[-1] for value in values)
    batch = allocate(tuple(shape), values[0].dtype)
    if padded or sum(map(len, values)) < size:
        batch.zero_()
    for piece, value in zip(pieces, values, strict=True):
        slots = torch.from_numpy(piece.slots)
        if padded:
            batch[slots, ..., : value.shape[-1]] = value
        else:
            batch[slots] = value
    return batch.permute(0, 3, 1, 2) if channels_last and not padded else batch


def _kind(value: Any, *, padded: bool) -> object:
    """What must be equal for an entry of two parts to be put together."""
    if isinstance(value, torch.Tensor):
        return value.shape[1:-1] if padded else value.shape[1:], value.ndim, value.dtype
    return {*value} if isinstance(value, dict) else type(value)


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return shape_and_dtype(value.shape[1:], value.dtype)
    if isinstance(value, dict):
        return f"a dictionary of {', '.join(map(quoted, value)) or 'nothing'}"
    return "a list"


def _shares(weights: Sequence[float], sources: int) -> tuple[float, ...]:
    """Return the weights of some sources as shares that add up to 1.

    Raises:
        UsageError: they are not weights of these sources.
    """
    if not isinstance(weights, list | tuple):
        raise UsageError(f"weights={quoted(weights)}: give a list, one for each source")
    if not all(isinstance(weight, int | float) for weight in weights):
        raise UsageError(f"weights {quoted([*weights])}: each must be a number")
    if len(weights) != sources or not sources:
        raise UsageError(
            f"{len(weights)} weights for {sources} sources", remedy="give one for each"
        )
    total = sum(weights)
    if abs(total - 1) <= 1e-6:  # as rounded shares do
        total = 1
    if not all(weight >= LEAST_WEIGHT * total > 0 for weight in weights) or not isfinite(total):
        raise UsageError(
            f"weights {quoted([*weights])}: each must be at least {LEAST_WEIGHT} of their sum",
            remedy="leave out a source that is to give nothing",
        )
    return tuple(weight / total for weight in weights)


_OF_WHOLE_BATCHES = {
    "as_tuple": "give it to Mix",
    "collate": "join the samples of a mixture after it, or change them with map=",
}
"""Arguments of a source that the batches of a mixture cannot keep, and what to do instead."""


def _check_sources(sources: Sequence[ShardDataset]) -> None:
    for number, source in enumerate(sources):
        if not isinstance(source, ShardDataset):
            raise UsageError(f"source {number} is not a ShardDataset: {quoted(source)}")
        if not len(source.samples):
            raise UsageError(f"source {number} has no samples")
        for name, way in _OF_WHOLE_BATCHES.items():
            if source._arguments[name] is not None:
                raise UsageError(f"source {number} has {name}=", remedy=way)
        if source.shuffle.streams > 1:
            raise UsageError(
                f"source {number} has streams={source.shuffle.streams}",
                remedy="a mixture slices its own sequence: open the sources with streams=1",
            )
        if source._buckets is not None:
            raise UsageError(
                f"source {number} has transform=Buckets(…), whose sizes differ from step to step",
                remedy="open the sources with a transform to one size",
            )
    facts: dict[str, list[Any]] = {
        "entries": [sorted(source.fields) for source in sources],
        "optional entries": [sorted(source.optional_entries()) for source in sources],
        "crops": [source._arguments["crops"] for source in sources],
        "batch_size": [source._batch_sizes[0] for source in sources],
        "global_batch_size": [source._batch_sizes[1] for source in sources],
        "rank and world_size": [source._ranks for source in sources],
    }
    for name, values in facts.items():
        for number, value in enumerate(values):
            if value != values[0]:
                raise UsageError(
                    f"the sources do not fit together: source {number} has other {name} than "
                    f"source 0: {value!s:.200} and {values[0]!s:.200}"
                )
    _check_entries([source.describe_entries() for source in sources])
    labelled = [source for source in sources if "label" in source.fields]
    unnamed = [number for number, each in enumerate(sources) if _has_no_names(each)]
    if unnamed and len({source.classes for source in labelled}) > 1:
        raise UsageError(
            f"source {unnamed[0]} has no class names, which other sources have",
            remedy="copy the manifest of its pack beside its shards, or leave the label out with "
            "fields=",
        )
    if len({source.classes for source in labelled}) > 1:
        raise UsageError(
            "the sources were packed with different classes, so that equal labels mean "
            "different things",
            remedy=(
                "pack them with the same class folders, empty ones too, or leave the "
                "label out with fields="
            ),
        )


def _has_no_names(source: ShardDataset) -> bool:
    return "label" in source.fields and source.classes is None


def _check_entries(entries: Sequence[dict[str, str]]) -> None:
    for number, held in enumerate(entries):
        for name, what in held.items():
            if what != entries[0][name]:
                raise UsageError(
                    f"the sources do not fit together: {quoted(name)} is "
                    f"{entries[0][name]} in source 0 and {what} in source {number}",
                    remedy="choose other fields for one of them, or the same decode=",
                )


def _epoch_length(source: ShardDataset) -> int:
    return source.shuffle.epoch_length(source.samples)


def _digest_of(source: ShardDataset) -> str:
    order = source.shuffle.identity()
    renamed = {"on" if name == "shuffle" else name: value for name, value in order.items()}
    facts = [source.contents, renamed]  # as they were named when states were first written
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]


def _compact(parts: list[str]) -> str:
    text = ",".join(parts)
    return text if len(text) <= _LONGEST_LIST else hashlib.sha256(text.encode()).hexdigest()[:16]
