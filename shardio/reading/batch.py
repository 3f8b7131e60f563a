"""A batch while it is filled: read the bytes, decode them into the slots.

A sample that cannot be delivered raises an error that names it, or, under the user's policy, is
replaced, marked as not valid and counted: steps stay as planned, whatever the topology. So is a
sample whose arrays differ in shape or dtype from those of most samples of the batch.

Samples are replaced when all slots have been tried, in the order of the slots, so that no thread's
luck decides. The next good sample of the shard takes the place. Where the shard has none, or that
one does not fit, a good sample of the batch does, and where the batch has none, of another shard.

References to batches: which columns a batch has, and what fills them.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from shardio.errors import (
    CodecError,
    MisfitError,
    SampleError,
    SituationError,
    TransformError,
    UsageError,
    quoted,
    shown,
)
from shardio.fields.base import FieldType
from shardio.fields.image import Scratch
from shardio.planning.epoch import References
from shardio.planning.order import uniform_numbers
from shardio.planning.samples import Samples
from shardio.processes import new_lock
from shardio.reading.columns import (
    Column,
    Fields,
    RowColumn,
    Stack,
    Transform,
    column_maker,
)
from shardio.reading.gather import Gatherer
from shardio.reading.handover import Allocate
from shardio.reading.shards import FieldBytes, OpenShard, ShardPool
from shardio.reading.times import StageTimes, Stopwatch
from shardio.transforms import SizedTransform

if TYPE_CHECKING:
    import threading

_LOG = logging.getLogger("shardio")
_CHUNK = 16  # samples decoded by one task; one task an image costs 15 % of the rate
_MANY = 4  # misfits that, if they are half of a batch, are the fault of the setup
_ROWS = 1024  # samples gathered by one task


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What all batches of a loop are read from, and how.

    Attributes:
        pool: of the dataset's shards.
        samples: of the dataset, which alone may stand in for a bad one.
        fields: see shardio.reading.columns.
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
        self._bad: dict[int, str] = {}  # why the sample of a slot cannot be delivered
        self._misfits: dict[int, MisfitError] = {}  # why it does not fit with the others
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
        self._add_times(watch)

    def finish(self) -> dict[str, Any]:
        """Entries by name, with n slots each, and "valid" (bool [n]) and "__key__".

        Raises:
            SampleError: a sample is bad, and so are all others of the dataset.
            TarError: a shard was changed or cut off.
        """
        if self._bad or self._misfits:
            self._settle()
        batch = {
            name: column.collect()
            for name, column in self._columns.items()
            if name not in self._missing
        }
        batch["valid"] = torch.from_numpy(self._valid)
        batch["__key__"] = self._keys
        return batch

    def _add_times(self, watch: Stopwatch) -> None:
        times = watch.finish()
        with self._delivery.lock:
            self._delivery.times.add(times)

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
            self._fill(_Slot(number, uniforms, watch), shard, sample)
            watch.stop()

    def _fill(self, slot: _Slot, shard_number: int, sample: int) -> None:
        """Fill a slot, or note why its own sample cannot."""
        shard = self._delivery.pool.get(shard_number)
        self._keys[slot.number] = shard.key(sample)
        try:
            self._put(slot, shard, sample)
        except TransformError:
            raise
        except SampleError as error:
            if self._delivery.on_replaced is None:
                raise
            if isinstance(error.__cause__, MisfitError):
                misfit = error.__cause__.at(  # anew, since a traceback would keep the batch
                    error.where, MisfitError, shard=error.shard, key=error.key, field=error.field
                )
                self._misfits[slot.number] = misfit
            else:
                self._bad[slot.number] = str(error)
                shard.bad.add(sample)

    def _settle(self) -> None:
        """Replace the samples that are bad or of another kind than most of the batch."""
        watch = self._delivery.stopwatch()
        sound = [number for number in range(len(self)) if number not in self._bad]
        if self._misfits and self._take_kind_of_most(sound):
            self._misfits.clear()
            for number in sound:
                self._fill(self._slot(number, watch), *self._place_of(number))
        faults = self._bad | {number: str(error) for number, error in self._misfits.items()}
        good = [self._place_of(number) for number in sound if number not in faults]
        for number in sorted(faults):
            good.append(self._replace(self._slot(number, watch), good, faults[number]))
        self._add_times(watch)

    def _take_kind_of_most(self, sound: Sequence[int]) -> bool:
        """Empty the columns if most of some slots are of another kind; of equally many the first.

        Returns:
            Whether they were emptied.

        Raises:
            UsageError: at least half of the slots, and at least _MANY, do not fit with the others.
        """
        stacks = [column for column in self._columns.values() if isinstance(column, Stack)]
        kinds = Counter(tuple(stack.kind_of(number) for stack in stacks) for number in sound)
        most = max(kinds, key=kinds.__getitem__)
        odd = len(sound) - kinds[most]
        if odd >= _MANY and 2 * odd >= len(sound):
            raise self._misfits.pop(min(self._misfits))
        if most == tuple(stack.kind for stack in stacks):
            return False
        for stack, kind in zip(stacks, most, strict=True):
            if kind is not None:
                stack.begin_anew(kind)
        return True

    def _slot(self, number: int, watch: Stopwatch) -> _Slot:
        return _Slot(number, self._numbers[number].tolist(), watch)

    def _place_of(self, number: int) -> tuple[int, int]:
        """Shard and position there of a slot's own sample."""
        return int(self._references.shards[number]), int(self._references.indices[number])

    def _replace(self, slot: _Slot, good: Sequence[tuple[int, int]], fault: str) -> tuple[int, int]:
        """Fill a slot with another sample than its own.

        Args:
            slot: to fill.
            good: shards and positions of samples that other slots hold.
            fault: why its own sample cannot be delivered.

        Returns:
            Shard and position of the sample that it holds now.
        """
        for number, sample in self._substitutes(slot.number, good):
            shard = self._delivery.pool.get(number)
            if sample not in shard.bad and self._try(slot, shard, sample):
                break
        else:
            raise SampleError(
                fault,
                remedy=(
                    f"none of the {len(self._delivery.samples):,} samples in the dataset "
                    "can be delivered"
                ),
            )
        self._valid[slot.number] = False
        _LOG.warning("%s; sample %s takes its place", fault, quoted(shard.key(sample)))
        if self._delivery.on_replaced is not None:
            self._delivery.on_replaced()
        return number, sample

    def _try(self, slot: _Slot, shard: OpenShard, sample: int) -> bool:
        try:
            self._put(slot, shard, sample)
        except TransformError:
            raise
        except SampleError as error:
            if not isinstance(error.__cause__, MisfitError):
                shard.bad.add(sample)
            return False
        return True

    def _substitutes(
        self, number: int, good: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, int]]:
        """What may take the place of a slot's own sample, in order."""
        samples, (own, sample) = self._delivery.samples, self._place_of(number)
        if number in self._bad:
            positions = samples.in_shard(own).tolist()
            after = bisect_right(positions, sample)
            for position in [*positions[after:], *positions[: after - 1]]:
                yield own, position
                if good and position not in self._delivery.pool.get(own).bad:
                    break  # it does not fit, as may all that follow
        yield from good
        count = len(samples.counts)
        for other in (number % count for number in range(own + 1, own + count)):
            for position in samples.in_shard(other).tolist():
                yield other, position

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
                f"the sample has no such field, wanted for {quoted(missing[0])}",
                remedy=(
                    "name in fields= those that all samples have, or read samples "
                    "without batch_size"
                ),
            )
            wanted = ";".join(self._delivery.fields[missing[0]])
            raise self._located(error, shard, sample, wanted)
        return stored

    def _check_one(self, shard: OpenShard, sample: int) -> None:
        for name, alternatives in self._several.items():
            present = shard.present(sample, alternatives)
            if len(present) > 1:
                error = UsageError(
                    f"the sample has {' and '.join(map(shown, present))} for {quoted(name)}",
                    remedy=(
                        f"say which with fields={{{quoted(present[0])}: {quoted(present[0])}, …}}"
                    ),
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
        remedy = None
        if isinstance(error, TransformError):
            kind = TransformError
        elif self._delivery.on_replaced is not None:
            kind = SampleError
        elif isinstance(error, UsageError):
            kind = MisfitError if isinstance(error, MisfitError) else SituationError
        else:
            remedy = 'pass on_bad_sample="skip" to go on without it, or choose other fields'
        return error.at(
            shard.place(sample, field),
            kind,
            remedy=remedy,
            shard=shard.name,
            key=shard.key(sample),
            field=field,
        )


class SampleReader:
    """Makes batches of references.

    Args:
        delivery: how samples are read.
        types: types of the alternatives of each entry, by field name.
        transform: for images.
        reduced: let large JPEGs be decoded at a part of their size.
        allocate: makes the arrays of batches.
    """

    def __init__(
        self,
        delivery: Delivery,
        *,
        types: Mapping[str, Mapping[str, FieldType]],
        transform: Transform | None,
        reduced: bool,
        allocate: Allocate,
    ) -> None:
        self._delivery = delivery
        self._draws = transform.draws if isinstance(transform, SizedTransform) else 0
        self._gatherer = Gatherer(delivery.pool, tuple(delivery.fields.values()))
        make = partial(
            column_maker,
            transform=transform,
            scratch=Scratch(),
            reduced=reduced,
            allocate=allocate,
        )
        self._makers = {name: make(of_entry) for name, of_entry in types.items()}

    def start(self, references: References, key: int) -> Batch:
        """A batch with empty slots.

        Args:
            references: of n samples.
            key: of the random numbers for transforms, equal in all processes of an epoch.
        """
        columns = self.columns(len(references))
        numbers = self.numbers(references, key)
        return Batch(self._delivery, self._gatherer, references, columns, numbers)

    def columns(self, slots: int) -> dict[str, Column]:
        """The entries of a batch, empty."""
        return {name: make(slots) for name, make in self._makers.items()}

    def numbers(self, references: References, key: int) -> NDArray[np.float64]:
        """Random numbers for the transforms, float64 [n, draws]; see start."""
        return uniform_numbers(key, references.positions, self._draws)
