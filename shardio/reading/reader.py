"""References to batches: read the bytes, decode them into the batch's slots.

A sample that cannot be delivered raises an error that names it, or, under the user's policy, is
replaced by the next good sample of its shard, marked as not valid and counted: shapes and steps
stay as planned, whatever the topology.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from shardio.codecs.image import Scratch
from shardio.codecs.registry import kind_of
from shardio.errors import CodecError, SampleError, TransformError, UsageError
from shardio.plan.epoch import References
from shardio.plan.samples import Samples
from shardio.plan.shuffle import uniforms
from shardio.reading.columns import Arrays, Column, SizedImages, Transform, Values
from shardio.reading.fields import Fields
from shardio.reading.shards import FieldBytes, OpenShard, ShardPool
from shardio.reading.times import StageTimes
from shardio.transforms import SizedTransform

_LOG = logging.getLogger("shardio")


class _Slot(NamedTuple):
    """One place in a batch.

    Attributes:
        number: of the slot in each column.
        uniforms: random numbers for its transform.
        times: of the thread that fills it.
    """

    number: int
    uniforms: Sequence[float]
    times: StageTimes


class SampleReader:
    """Makes batches of references.

    Args:
        pool: of the dataset's shards.
        samples: of the dataset, which alone may stand in for a bad one.
        fields: see shardio.reading.fields.
        decode: False leaves every field as bytes.
        transform: for images.
        missing_ok: leave out an entry that a sample has no field for.
        one_image: refuse a sample that has several of an entry's alternatives.
        on_replaced: called for each bad sample that was replaced; None raises instead.
        times: to add to.
        shared: allocate batches in shared memory.
    """

    def __init__(
        self,
        pool: ShardPool,
        *,
        samples: Samples,
        fields: Fields,
        decode: bool,
        transform: Transform | None,
        missing_ok: bool,
        one_image: bool,
        on_replaced: Callable[[], None] | None,
        times: StageTimes,
        shared: bool,
    ) -> None:
        self.pool = pool
        self.samples = samples
        self.fields = fields
        self.missing_ok = missing_ok
        self.one_image = one_image
        self.on_replaced = on_replaced
        self._decode = decode
        self._sized = transform if isinstance(transform, SizedTransform) else None
        self._callable = None if isinstance(transform, SizedTransform) else transform
        self._shared = shared
        self._scratch = Scratch()
        self._times = times
        self._lock = threading.Lock()

    def start(self, references: References, key: int) -> Batch:
        """A batch with empty slots.

        Args:
            references: of n samples.
            key: of the random numbers for transforms, equal in all processes of an epoch.
        """
        columns = {name: self._column(name, len(references)) for name in self.fields}
        draws = self._sized.draws if self._sized else 0
        return Batch(self, references, columns, uniforms(key, references.positions, draws))

    def count(self, times: StageTimes) -> None:
        """Add to the times, from any thread."""
        with self._lock:
            self._times.add(times)

    def _column(self, name: str, slots: int) -> Column:
        kind = kind_of(self.fields[name][0]) if self._decode else "bytes"
        if kind == "image" and self._sized is not None:
            return SizedImages(slots, self._sized, self._scratch, shared=self._shared)
        if kind in {"image", "cls", "npy"}:
            image = kind == "image"
            transform = self._callable if image else None
            return Arrays(slots, transform, image=image, shared=self._shared)
        return Values(slots, decode=self._decode)


class Batch:
    """A batch while it is filled: slots in any order, by any threads, each once.

    Args:
        reader: that started it.
        references: of n samples.
        columns: with n slots, by entry.
        numbers: random numbers for the transforms, float64 [n, draws].
    """

    def __init__(
        self,
        reader: SampleReader,
        references: References,
        columns: dict[str, Column],
        numbers: NDArray[np.float64],
    ) -> None:
        self._reader = reader
        self._columns = columns
        self._places = [*zip(references.shards.tolist(), references.indices.tolist(), strict=True)]
        self._numbers: list[list[float]] = numbers.tolist()
        self._valid: list[bool] = references.valid.tolist()
        self._keys = [""] * len(references)

    def __len__(self) -> int:
        return len(self._keys)

    def fill(self, slots: range) -> None:
        """Read and decode the samples of some slots.

        Raises:
            SampleError: a sample cannot be delivered.
            TarError: a shard was changed or cut off.
        """
        times = StageTimes(samples=len(slots))
        for number in slots:
            shard_number, index = self._places[number]
            slot = _Slot(number, self._numbers[number], times)
            self._valid[number] &= self._fill(slot, shard_number, index)
        self._reader.count(times)

    def finish(self) -> dict[str, Any]:
        """Entries by name, with n slots each, and "valid" (bool [n]) and "__key__"."""
        batch = {name: column.collect() for name, column in self._columns.items()}
        batch["valid"] = torch.tensor(self._valid)
        batch["__key__"] = self._keys
        return batch

    def _fill(self, slot: _Slot, shard_number: int, index: int) -> bool:
        """Fill a slot; False if another sample had to take it."""
        shard = self._reader.pool.get(shard_number)
        self._keys[slot.number] = shard.index.key(index)
        try:
            self._put(slot, shard, index)
        except TransformError:
            raise
        except SampleError as error:
            if self._reader.on_replaced is None:
                raise
            positions = self._reader.samples.in_shard(shard_number).tolist()
            after = bisect_right(positions, index)
            substitute = self._replace(slot, shard, [*positions[after:], *positions[: after - 1]])
            _LOG.warning("%s; sample %r takes its place", error, substitute)
            self._reader.on_replaced()
            return False
        return True

    def _replace(self, slot: _Slot, shard: OpenShard, substitutes: list[int]) -> str:
        for substitute in substitutes:
            try:
                self._put(slot, shard, substitute)
            except TransformError:
                raise
            except SampleError:
                continue
            return shard.index.key(substitute)
        raise SampleError(
            f"{shard.name}: none of its {len(substitutes) + 1} samples in the dataset can be "
            "delivered; remove the shard",
            shard=shard.name,
        )

    def _put(self, slot: _Slot, shard: OpenShard, index: int) -> None:
        start = perf_counter_ns()
        stored = {name: self._read(name, shard, index) for name in self._columns}
        slot.times.read += perf_counter_ns() - start
        for name, found in stored.items():
            if found is None:
                continue
            slot.times.bytes += len(found.data)
            try:
                self._columns[name].put(slot.number, found, slot.uniforms, slot.times)
            except (CodecError, TransformError, UsageError) as error:
                for column in self._columns.values():
                    column.forget(slot.number)
                raise self._located(error, shard, index, found.field) from error
        for name in [name for name, found in stored.items() if found is None]:
            self._columns.pop(name)

    def _read(self, name: str, shard: OpenShard, index: int) -> FieldBytes | None:
        alternatives = self._reader.fields[name]
        if self._reader.one_image and len(alternatives) > 1:
            present = shard.present(index, alternatives)
            if len(present) > 1:
                error = UsageError(
                    f"the sample has {' and '.join(present)} for {name!r}; say which with "
                    f"fields={{{present[0]!r}: {present[0]!r}, …}}"
                )
                raise self._located(error, shard, index, present[0])
        stored = shard.read(index, alternatives)
        if stored is None and not self._reader.missing_ok:
            missing = CodecError(f"the sample has no such field, wanted for {name!r}")
            raise self._located(missing, shard, index, ";".join(alternatives))
        return stored

    def _located(
        self,
        error: CodecError | TransformError | UsageError,
        shard: OpenShard,
        index: int,
        field: str,
    ) -> SampleError | UsageError:
        kind: type[SampleError | UsageError] = SampleError
        remedy = ""
        if isinstance(error, TransformError):
            kind = TransformError
        elif isinstance(error, UsageError):
            kind = UsageError
        elif self._reader.on_replaced is None:
            remedy = '; pass on_bad_sample="skip" to go on without it, or choose other fields'
        return kind(
            f"{shard.place(index, field)}: {error}{remedy}",
            shard=shard.name,
            key=shard.index.key(index),
            field=field,
        )
