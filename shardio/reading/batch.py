"""A batch while it is filled: read the bytes, decode them into the slots.

A sample that cannot be delivered raises an error that names it, or, under the user's policy, is
replaced by the next good sample of its shard, marked as not valid and counted: shapes and steps
stay as planned, whatever the topology.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from shardio.errors import (
    CodecError,
    SampleError,
    SituationError,
    TransformError,
    UsageError,
    quoted,
    shown,
)
from shardio.forks import new_lock
from shardio.plan.epoch import References
from shardio.plan.samples import Samples
from shardio.reading.columns import Column, RowColumn
from shardio.reading.fields import Fields
from shardio.reading.rows import Gatherer
from shardio.reading.shards import FieldBytes, OpenShard, ShardPool
from shardio.reading.times import StageTimes, Stopwatch

if TYPE_CHECKING:
    import threading

_LOG = logging.getLogger("shardio")
_CHUNK = 16  # samples decoded by one task; one task an image costs 15 % of the rate
_ROWS = 1024  # samples gathered by one task


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What all batches of a loop are read from, and how.

    Attributes:
        pool: of the dataset's shards.
        samples: of the dataset, which alone may stand in for a bad one.
        fields: see shardio.reading.fields.
        missing_ok: leave out an entry that a sample has no field for.
        one_image: refuse a sample that has several of an entry's alternatives.
        on_replaced: called for each bad sample that was replaced; None raises instead.
        times: of the dataset, to which those of the batches are added.
        stopwatch: makes one for each chunk.
        lock: of the times.
    """

    pool: ShardPool
    samples: Samples
    fields: Fields
    missing_ok: bool
    one_image: bool
    on_replaced: Callable[[], None] | None
    times: StageTimes
    stopwatch: Callable[[], Stopwatch]
    lock: threading.Lock = field(default_factory=new_lock)


class _Slot(NamedTuple):
    """One place in a batch.

    Attributes:
        number: of the slot in each column.
        uniforms: random numbers for its transform.
        watch: of the thread that fills it.
    """

    number: int
    uniforms: Sequence[float]
    watch: Stopwatch


class Batch:
    """Slots to be filled in any order, by any threads, each once; a Job.

    Args:
        delivery: how its samples are read.
        gatherer: of the wanted fields.
        references: of n samples.
        columns: with n slots, by entry.
        numbers: random numbers for the transforms, float64 [n, draws].

    Attributes:
        chunk: how many slots to fill at once.
    """

    def __init__(
        self,
        delivery: Delivery,
        gatherer: Gatherer,
        references: References,
        columns: dict[str, Column],
        numbers: NDArray[np.float64],
    ) -> None:
        self._delivery = delivery
        self._gatherer = gatherer
        self._columns = columns
        self._references = references
        self._numbers = numbers
        self._valid = references.valid.copy()
        self._keys = [""] * len(references)
        self._missing: list[str] = []  # entries of the one sample where some may be missing
        fields = delivery.fields
        self._wanted = tuple(fields[name] for name in columns)
        several = {name: fields[name] for name in columns if len(fields[name]) > 1}
        self._several = several if delivery.one_image else {}
        self._in_rows = all(hasattr(column, "place_rows") for column in columns.values())
        self.chunk = _ROWS if self._in_rows else _CHUNK

    def __len__(self) -> int:
        return len(self._keys)

    def fill(self, slots: range) -> None:
        """Read and decode the samples of some slots.

        Raises:
            SampleError: a sample cannot be delivered.
            TarError: a shard was changed or cut off.
        """
        watch = self._delivery.stopwatch()
        at_once = False
        if self._in_rows:
            with self._gatherer.lock:
                at_once = self._fill_at_once(slots, watch)
        if not at_once:
            self._fill_one_by_one(slots, watch)
        times = watch.finish()
        with self._delivery.lock:
            self._delivery.times.add(times)

    def finish(self) -> dict[str, Any]:
        """Entries by name, with n slots each, and "valid" (bool [n]) and "__key__"."""
        batch = {
            name: column.collect()
            for name, column in self._columns.items()
            if name not in self._missing
        }
        batch["valid"] = torch.from_numpy(self._valid)
        batch["__key__"] = self._keys
        return batch

    def _fill_at_once(self, slots: range, watch: Stopwatch) -> bool:
        """Gather all fields of the slots; False if the samples are not alike."""
        watch.start()
        inside = slice(slots.start, slots.stop)
        columns = [cast("RowColumn", column) for column in self._columns.values()]
        references, keys = self._references, np.empty(len(slots), object)
        for found in self._gatherer.gather(references.shards[inside], references.indices[inside]):
            if found is None:
                return False
            watch.read(sum(int(rows.sizes.sum()) for rows in found.fields))
            numbers = found.order + slots.start
            for column, rows in zip(columns, found.fields, strict=True):
                if not column.place_rows(numbers, rows):
                    return False
            keys[found.order] = found.keys
            watch.decoded()
        self._keys[inside] = keys.tolist()
        watch.stop(len(slots))
        return True

    def _fill_one_by_one(self, slots: range, watch: Stopwatch) -> None:
        inside = slice(slots.start, slots.stop)
        shards = self._references.shards[inside].tolist()
        samples = self._references.indices[inside].tolist()
        numbers: list[list[float]] = self._numbers[inside].tolist()
        for number, shard, sample, uniforms in zip(slots, shards, samples, numbers, strict=True):
            self._valid[number] &= self._fill(_Slot(number, uniforms, watch), shard, sample)
            watch.stop()

    def _fill(self, slot: _Slot, shard_number: int, sample: int) -> bool:
        """Fill a slot; False if another sample had to take it."""
        shard = self._delivery.pool.get(shard_number)
        self._keys[slot.number] = shard.key(sample)
        try:
            self._put(slot, shard, sample)
        except TransformError:
            raise
        except SampleError as error:
            if self._delivery.on_replaced is None:
                raise
            shard.bad.add(sample)
            positions = self._delivery.samples.in_shard(shard_number).tolist()
            after = bisect_right(positions, sample)
            substitute = self._replace(slot, shard, [*positions[after:], *positions[: after - 1]])
            _LOG.warning("%s; sample %s takes its place", error, quoted(substitute))
            self._delivery.on_replaced()
            return False
        return True

    def _replace(self, slot: _Slot, shard: OpenShard, substitutes: list[int]) -> str:
        for substitute in substitutes:
            if substitute in shard.bad:
                continue
            try:
                self._put(slot, shard, substitute)
            except TransformError:
                raise
            except SampleError:
                shard.bad.add(substitute)
                continue
            return shard.key(substitute)
        raise SampleError(
            f"{shard.name}: none of its {len(substitutes) + 1} samples in the dataset can be "
            "delivered; remove the shard",
            shard=shard.name,
        )

    def _put(self, slot: _Slot, shard: OpenShard, sample: int) -> None:
        """Decode all of a sample, then place all of it."""
        slot.watch.start()
        stored = self._read(shard, sample)
        slot.watch.read(sum(len(found.data) for found in stored if found is not None))
        values, name = [], ""
        try:
            for column, found in zip(self._columns.values(), stored, strict=True):
                if found is not None:
                    name = found.field
                    value = column.decode(slot.number, found, slot.uniforms, slot.watch)
                    values.append((column, name, value))
            for column, name, value in values:  # noqa: B007  the error below names the field
                column.place(slot.number, value)
        except (CodecError, TransformError, UsageError) as error:
            raise self._located(error, shard, sample, name) from error

    def _read(self, shard: OpenShard, sample: int) -> list[FieldBytes | None]:
        if self._several:
            self._check_one(shard, sample)
        stored = shard.read(sample, self._wanted)
        missing = [*compress(self._columns, [found is None for found in stored])]
        if self._delivery.missing_ok:
            self._missing = missing
        elif missing:
            error = CodecError(
                f"the sample has no such field, wanted for {quoted(missing[0])}; name in fields= "
                "those that all samples have, or read samples without batch_size"
            )
            wanted = ";".join(self._delivery.fields[missing[0]])
            raise self._located(error, shard, sample, wanted)
        return stored

    def _check_one(self, shard: OpenShard, sample: int) -> None:
        for name, alternatives in self._several.items():
            present = shard.present(sample, alternatives)
            if len(present) > 1:
                error = UsageError(
                    f"the sample has {' and '.join(map(shown, present))} for {quoted(name)}; say "
                    f"which with fields={{{quoted(present[0])}: {quoted(present[0])}, …}}"
                )
                raise self._located(error, shard, sample, present[0])

    def _located(
        self,
        error: CodecError | TransformError | UsageError,
        shard: OpenShard,
        sample: int,
        field: str,
    ) -> SampleError | UsageError:
        kind: type[SampleError | UsageError] = SampleError
        remedy = ""
        if isinstance(error, TransformError):
            kind = TransformError
        elif isinstance(error, UsageError):
            kind = SituationError
        elif self._delivery.on_replaced is None:
            remedy = '; pass on_bad_sample="skip" to go on without it, or choose other fields'
        return kind(
            f"{shard.place(sample, field)}: {error}{remedy}",
            shard=shard.name,
            key=shard.key(sample),
            field=field,
        )
