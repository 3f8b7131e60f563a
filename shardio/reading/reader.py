"""Reading the samples of a plan: `SampleReader.read` is the whole read pipe in one function.

Every loop of every dataset reads by it: from the plan to references, bytes and fields, straight
into the slots of a batch. What the indexes say of the samples is looked up for several batches at
once, when the first of them is filled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from shardio.fields.base import FieldType
from shardio.fields.image import Scratch
from shardio.native import is_active
from shardio.planning.epoch import EpochPlan, References
from shardio.planning.order import uniform_numbers
from shardio.reading.batch import Batch, FillMany, FillSlot
from shardio.reading.chunks import CoreReader, chunk_of
from shardio.reading.columns import Column
from shardio.reading.delivery import Delivery
from shardio.reading.gather import Gatherer
from shardio.reading.handover import Allocate
from shardio.reading.lookup import Finder, Lookups
from shardio.reading.mapping import MappedEntries
from shardio.reading.picture_columns import Transform, column_maker
from shardio.reading.readahead import ReadAhead
from shardio.reading.shards import OpenShard
from shardio.reading.singles import Single, Singles
from shardio.reading.times import Stopwatch
from shardio.transforms import SizedTransform


class SampleReader:
    """Makes batches of references.

    Args:
        delivery: settings for reading samples.
        types: types of the alternatives of each entry, by field name.
        transform: transform of images.
        reduced: let large JPEGs be decoded at a part of their size.
        allocate: makes the arrays of batches.
        scratch: buffer where image files are decoded.
    """

    def __init__(
        self,
        delivery: Delivery,
        *,
        types: Mapping[str, Mapping[str, FieldType]],
        transform: Transform | None,
        reduced: bool,
        allocate: Allocate,
        scratch: Scratch,
    ) -> None:
        self._delivery = delivery
        self._geometry = delivery.geometry
        self._wanted = tuple(delivery.fields.values())
        self._gatherer = Gatherer(delivery.pool, self._wanted)
        make = partial(
            column_maker,
            transform=transform,
            scratch=scratch,
            reduced=reduced,
        )
        self._makers = {
            name: make(of_entry, allocate=partial(allocate, entry=name))
            for name, of_entry in types.items()
        }
        self._allocate = allocate
        self._chunk = chunk_of(delivery.pool.bytes_per_sample())
        self._core: CoreReader | None = None
        self._singles: Singles | None = None
        if is_active() and (transform is None or isinstance(transform, SizedTransform)):
            self._core = CoreReader(self._wanted, [*types.values()], delivery.geometry, self._chunk)
            firsts = [next(iter(of_entry.values())) for of_entry in types.values()]
            if transform is not None and "padded" not in {each.batching for each in firsts}:
                self._singles = Singles()
        self._finder = Finder(
            delivery.pool,
            delivery.geometry,
            self._wanted,
            strict=[at for at, name in enumerate(types) if name in delivery.several],
            for_core=self._core is not None,
            reduced=reduced,
        )

    def read(
        self,
        plan: EpochPlan,
        batches: Sequence[NDArray[np.int64]],
        key: int,
        ahead: ReadAhead | None = None,
        *,
        alone: bool = False,
    ) -> Iterator[Batch | Single]:
        """Read batches: plan → references → bytes → fields, straight into the slots → batch.

        This is the whole read pipe. The batches call its inner functions, in any thread.

        Args:
            plan: plan of an epoch.
            batches: positions in the plan, int64 [n] each, of batches that follow each other.
            key: key of the random numbers for transforms, equal in all processes of an epoch.
            ahead: asks for bytes before they are read.
            alone: whether each sample is a batch of its own.
        """

        def fill(batch: Batch, slot: int, shard: OpenShard, sample: int, watch: Stopwatch) -> None:
            watch.start()
            batch.put(slot, shard, sample, shard.read(sample, self._wanted), watch)

        def fill_many(batch: Batch, slots: range, watch: Stopwatch) -> Sequence[int]:
            if (chunks := batch.chunks(self._core)) is not None:
                return batch.put_chunk(chunks, slots, watch)
            return batch.put_rows(slots, self._gatherer.gather(batch.references, slots), watch)

        found, end = self._look_up(plan, batches, key), 0
        for count in map(len, batches):
            slots, end = slice(end, end + count), end + count
            if ahead is not None:
                ahead.enter(found.references, slots)
            make = partial(self._batch, key, fill, fill_many, found)
            yield from self._parts(slots, make, alone=alone)

    def _look_up(self, plan: EpochPlan, batches: Sequence[NDArray[np.int64]], key: int) -> Lookups:
        """Return the samples of batches, which are looked up when the first of them is filled."""
        references = plan.references(np.concatenate(batches))
        draws = uniform_numbers(key, references.positions, self._geometry.draws)
        return Lookups(self._finder, references, draws)

    def _parts(
        self, slots: slice, make: Callable[[slice], Batch], *, alone: bool
    ) -> Iterator[Batch | Single]:
        """Make the empty batch of some slots, or one for each sample."""
        if not alone:
            return iter([make(slots)])
        if self._singles is None:
            return (make(slice(slot, slot + 1)) for slot in range(slots.start, slots.stop))
        return self._singles.read(slots, make)

    def _batch(
        self, key: int, fill: FillSlot, fill_many: FillMany, found: Lookups, slots: slice
    ) -> Batch:
        """Make a batch of some samples, empty."""
        references, uniforms = found.references.part(slots), found.uniforms[slots]
        columns = self.columns(slots.stop - slots.start)
        mapped = self._map_entries(columns, references, key)
        chunk = self._chunk if self._core is None else self._core.chunk
        return Batch(
            self._delivery,
            references,
            partial(found.of, slots),
            columns,
            mapped,
            uniforms,
            chunk,
            fill,
            fill_many,
        )

    def _map_entries(
        self, columns: dict[str, Column], references: References, key: int
    ) -> MappedEntries | None:
        delivery = self._delivery
        if delivery.functions.map is None and delivery.functions.collate is None:
            return None
        return MappedEntries(
            delivery.functions,
            columns,
            optional=delivery.optional,
            keys=(key, references.positions),
            allocate=self._allocate,
        )

    def columns(self, slots: int) -> dict[str, Column]:
        """Make the entries of a batch, empty."""
        return {name: make(slots) for name, make in self._makers.items()}
