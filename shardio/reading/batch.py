"""Batches while their slots are filled, by threads in any order, each slot once.

A sample that cannot be delivered raises an error that names it, or, under the user's policy, is
replaced, marked as not valid and counted, so that steps stay as planned. So is a sample whose
arrays differ in shape or dtype from those of most samples of the batch. Samples are replaced when
all slots have been tried, in the order of the slots, so that threads have no say in it: by the next
good sample of the shard, else by a good one of the batch, else by one of another shard.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import compress
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from shardio.errors import (
    CodecError,
    MisfitError,
    SampleError,
    ShardioError,
    SituationError,
    Skip,
    TransformError,
    UsageError,
    quoted,
    shown,
)
from shardio.indexing.scan import WITHOUT_DOTS
from shardio.planning.epoch import References
from shardio.processes import new_lock
from shardio.reading.chunks import CoreChunks, CoreReader
from shardio.reading.columns import Column, InPlace, RowColumn, Slots, Stack
from shardio.reading.delivery import Delivery
from shardio.reading.gather import Gathered
from shardio.reading.geometry import Choices, Known, Views, describe_crops
from shardio.reading.lookup import Lookup
from shardio.reading.mapping import MappedEntries
from shardio.reading.shards import FieldBytes, OpenShard
from shardio.reading.times import Stopwatch

_MANY = 4  # misfits that, if they are half of a batch, are the fault of the setup
_ROWS = 1024  # samples gathered by one task


FillSlot = Callable[["Batch", int, OpenShard, int, Stopwatch], None]
FillMany = Callable[["Batch", range, Stopwatch], Sequence[int]]


class Batch:
    """A batch whose slots are to be filled; an UnfinishedBatch.

    Args:
        delivery: settings for reading samples.
        references: samples of the batch.
        look_up: function that returns what the indexes say of them.
        columns: entries of the batch, empty.
        uniforms: random numbers for the transforms, float64 [n, draws].
        chunk: number of slots that one thread best fills at once, if they are not in rows.
        mapped: entries that functions of the user make; None without such functions.
        fill_slot: reads a sample of a shard into a slot of a batch.
        fill_many: reader of many slots of a batch at once, which returns the slots left.

    Attributes:
        references: samples of the batch.
        chunk: number of slots that one thread best fills at once.
    """

    def __init__(
        self,
        delivery: Delivery,
        references: References,
        look_up: Callable[[], Lookup],
        columns: dict[str, Column],
        mapped: MappedEntries | None,
        uniforms: NDArray[np.float64],
        chunk: int,
        fill_slot: FillSlot,
        fill_many: FillMany,
    ) -> None:
        self.references, self._uniforms = references, uniforms
        self._delivery, self._look_up = delivery, look_up
        self._columns, self._mapped = columns, mapped
        self._fill_slot, self._fill_many = fill_slot, fill_many
        self._valid = references.valid.copy()
        self._lock = new_lock()
        self._known: Sequence[Known] | None = None
        self._choices: list[Choices] | None = None
        self._chunks: CoreChunks | None = None
        self._keys = [""] * len(self._valid)
        self._missing: list[str] = []  # entries of the one sample where some may be missing
        self._absent: dict[str, set[int]] = {  # slots whose samples lack an optional entry
            name: set() for name in columns if name in delivery.optional
        }
        self._views: list[Views] | None = [()] * len(self._valid) if delivery.crops else None
        self._stand_ins: dict[int, int] = {}  # samples in the places of slots' own
        self._bad: dict[int, str] = {}  # why the sample of a slot cannot be delivered
        self._misfits: dict[int, MisfitError] = {}  # why it does not fit with the others
        rows = (hasattr(column, "place_rows") for column in columns.values())
        self._in_rows = mapped is None and all(rows)
        self.chunk = _ROWS if self._in_rows else chunk

    def __len__(self) -> int:
        return len(self._keys)

    def fill(self, slots: range) -> None:
        """Read and decode the samples of some slots.

        Raises:
            SampleError: a sample cannot be delivered.
            TarError: a shard was changed or truncated.
        """
        watch = self._delivery.stopwatch()
        self._fill_one_by_one(self._fill_many(self, slots, watch), watch)
        self._add_times(watch)

    @property
    def is_sound(self) -> bool:
        """Whether the core took it, and all slots have their own samples with all entries."""
        faults = self._bad or self._misfits or self._missing or any(self._absent.values())
        return self._chunks is not None and not faults

    def finish(self) -> dict[str, Any]:
        """Entries by name, with n slots each, and "valid" (bool [n]) and "__key__".

        Raises:
            SampleError: a sample is bad, and so are all others of the dataset.
            TarError: a shard was changed or truncated.
        """
        if self._bad or self._misfits:
            self._settle()
        batch = self._collect() if self._mapped is None else self._mapped.collect(self._describe)
        batch["valid"] = torch.from_numpy(self._valid)
        batch["__key__"] = self._keys
        if self._views is not None:
            batch["__crop__"] = describe_crops(self._views)
        return batch

    def _collect(self) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        for name, column in self._columns.items():
            if name not in self._missing:
                batch |= column.collect(name, sorted(self._absent.get(name, ())))
        for name, slots in self._absent.items():
            batch[f"has_{name}"] = torch.tensor([slot not in slots for slot in range(len(self))])
        return batch

    def _describe(self, slot: int) -> str:
        """Describe the place of a slot's own sample, for errors."""
        number, sample = self._place_of(slot)
        return self._delivery.pool.get(number).place(sample)

    def abandon(self) -> None:
        """Have threads that fill it, or other batches of the loop, wait for no store any more."""
        self._delivery.pool.close()

    def _add_times(self, watch: Stopwatch) -> None:
        times = watch.finish()
        with self._delivery.lock:
            self._delivery.times.add(times)

    def put(
        self,
        slot: int,
        shard: OpenShard,
        sample: int,
        stored: Sequence[FieldBytes | None],
        watch: Stopwatch,
    ) -> None:
        """Decode all fields of a sample, then place all of them in a slot.

        Args:
            slot: slot to fill.
            shard: shard of the sample.
            sample: position of the sample there.
            stored: fields of the sample, one for each entry; None for one that it lacks.
            watch: stopwatch of the thread.

        Raises:
            SampleError: a field is missing, does not decode or does not fit.
        """
        delivery, size, whole = self._delivery, 0, True
        for found in stored:
            if found is None:
                whole = False
            else:
                size += len(found.data)
        watch.read(size)
        if delivery.several:
            self._check_one(shard, sample)
        if not whole or self._missing or self._absent:
            self._check_missing(slot, shard, sample, stored)
        field, values = "", []
        try:
            views = delivery.geometry.views(stored, self._uniforms[slot], self._choices_of(slot))
            for (name, column), found, view in zip(
                self._columns.items(), stored, views, strict=True
            ):
                if found is not None:
                    field = found.field
                    values.append((name, field, column.decode(slot, found, view, watch)))
                elif isinstance(column, Stack):
                    column.lack(view)
            for name, field, value in values if self._mapped is None else ():  # noqa: B007  see below
                self._columns[name].place(slot, value)
        except (CodecError, TransformError, UsageError) as error:
            raise self._located(error, shard, sample, error.field or field) from error
        if self._mapped is not None:
            by_name = {name: value for name, _, value in values}
            self._map(self._mapped, slot, shard, sample, by_name, watch)
        if self._views is not None:
            self._views[slot] = views

    def _map(
        self,
        mapped: MappedEntries,
        slot: int,
        shard: OpenShard,
        sample: int,
        values: Mapping[str, Any],
        watch: Stopwatch,
    ) -> None:
        """Apply the functions of the user to a decoded sample."""
        try:
            mapped.put(slot, shard.key(sample), values, self._stand_ins.get(slot))
        except (CodecError, TransformError, UsageError, Skip) as error:
            raise self._located(error, shard, sample, error.field or "") from error
        finally:
            if self._delivery.functions.map is not None:
                watch.mapped()

    def put_rows(
        self, slots: range, gathered: Iterator[Gathered | None], watch: Stopwatch
    ) -> Sequence[int]:
        """Place fields of many samples at once; return all slots if the samples are not alike."""
        if not self._in_rows:
            return slots
        watch.start()
        columns = [cast("RowColumn", column) for column in self._columns.values()]
        keys = np.empty(len(slots), object)
        for found in gathered:
            if found is None:
                return slots
            watch.read(sum(int(rows.sizes.sum()) for rows in found.fields))
            numbers = found.order + slots.start
            for column, rows in zip(columns, found.fields, strict=True):
                if not column.place_rows(numbers, rows):
                    return slots
            keys[found.order] = found.keys
            watch.decoded()
        self._keys[slots.start : slots.stop] = keys.tolist()
        watch.stop(len(slots))
        return ()

    def put_chunk(self, chunks: CoreChunks, slots: range, watch: Stopwatch) -> Sequence[int]:
        """Fill slots by the native core; return those that are left."""
        left = chunks.fill(slots, watch)
        filled: Slots = slice(slots.start, slots.stop)
        if left:
            filled = np.setdiff1d(slots, left, assume_unique=True)
        self._keys[slots.start : slots.stop] = chunks.keys(slots)
        handed: list[tuple[int, str, Column]] = []  # entries that are decoded one by one
        for entry, (name, column) in enumerate(self._columns.items()):
            if chunks.is_decoded(entry):
                continue
            rows = chunks.rows(entry, filled) if len(left) < len(slots) else None
            place_rows = getattr(column, "place_rows", None)
            if rows is None or place_rows is None or not place_rows(filled, rows):
                handed.append((entry, name, column))
        watch.decoded()
        if not handed and self._mapped is None and self._views is None:
            return left
        found = {*left}
        for slot in slots:  # in order, so that the first fault is that of the first sample
            if slot in found or not self._complete(chunks, slot, handed, watch):
                self._fill_one_by_one([slot], watch)
        return ()

    def _complete(
        self,
        chunks: CoreChunks,
        slot: int,
        handed: Sequence[tuple[int, str, Column]],
        watch: Stopwatch,
    ) -> bool:
        """Decode what the core handed over of a sample; False if it must be read again."""
        roles = self._delivery.geometry.roles.of_entries
        seen = self._views is not None or any(roles[entry] is not None for entry, *_ in handed)
        views = chunks.views(slot) if seen else [None] * len(roles)
        values: dict[str, Any] = {}
        try:
            for entry, name, column in handed:
                stored = chunks.stored(entry, slot)
                values[name] = column.decode(slot, stored, views[entry], watch)
            if self._mapped is None:
                for name, value in values.items():
                    self._columns[name].place(slot, value)
        except (CodecError, TransformError, UsageError):
            return False  # it is raised again, with its place
        if self._mapped is not None:
            sample, shard = int(self.references.indices[slot]), chunks.shard(slot)
            whole = {
                name: values[name] if name in values else cast("InPlace", column).value_in(slot)
                for name, column in self._columns.items()
            }
            try:
                self._map(self._mapped, slot, shard, sample, whole, watch)
            except TransformError:
                raise
            except SampleError as error:
                self._note_fault(error, slot, shard, sample)
        if self._views is not None:
            self._views[slot] = views
        return True

    def _fill_one_by_one(self, slots: Sequence[int], watch: Stopwatch) -> None:
        for slot in slots:
            number, sample = self._place_of(slot)
            shard = self._delivery.pool.get(number)
            self._keys[slot] = shard.key(sample)
            try:
                self._fill_slot(self, slot, shard, sample, watch)
            except TransformError:
                raise
            except SampleError as error:
                self._note_fault(error, slot, shard, sample)
            except MemoryError as error:
                raise ShardioError(
                    f"there is no memory to decode it: {error}",
                    where=shard.place(sample),
                    remedy="read with fewer threads or workers, or a smaller max_pixels",
                ) from error
            watch.stop()

    def chunks(self, core: CoreReader | None) -> CoreChunks | None:
        """Return the chunks for the core, which the first thread begins; None if it takes none."""
        with self._lock:
            if self._known is None:
                known, tables = self._look_up()
                if core is not None and tables is not None:
                    self._chunks = core.begin(tables, [*self._columns.values()])
                self._known = known
            return self._chunks

    def _choices_of(self, slot: int) -> Choices:
        """Return the crops that were chosen for a slot."""
        with self._lock:
            if self._choices is None:
                geometry = self._delivery.geometry
                self._choices = [*geometry.choices(self._known or (), len(self))]
            return self._choices[slot]

    def _note_fault(self, error: SampleError, slot: int, shard: OpenShard, sample: int) -> None:
        """Note why a slot's own sample cannot be delivered, or raise the error."""
        skipped = isinstance(error, Skip)
        if not (self._delivery.stand_ins and (skipped or self._delivery.skip_bad)):
            raise error
        if isinstance(error.__cause__, MisfitError):
            self._misfits[slot] = error.__cause__.at(  # anew: a traceback would keep the batch
                error.where, MisfitError, shard=error.shard, key=error.key, field=error.field
            )
        else:
            self._bad[slot] = str(error)
            if not skipped:  # which the next epoch may not
                shard.bad.add(sample)

    def _settle(self) -> None:
        """Replace the samples that are bad or of another kind than most of the batch."""
        watch = self._delivery.stopwatch()
        sound = [slot for slot in range(len(self)) if slot not in self._bad]
        if self._misfits and self._take_kind_of_most(sound):
            self._misfits.clear()
            for slot in sound:
                self._fill_one_by_one([slot], watch)
        faults = self._bad | {slot: str(error) for slot, error in self._misfits.items()}
        good = [self._place_of(slot) for slot in sound if slot not in faults]
        for slot in sorted(faults):
            good.append(self._replace(slot, good, faults[slot], watch))
        self._add_times(watch)

    def _take_kind_of_most(self, sound: Sequence[int]) -> bool:
        """Empty the columns if most of some slots are of another kind; of equally many the first.

        Returns:
            Whether they were emptied.

        Raises:
            UsageError: at least half of the slots, and at least _MANY, do not fit with the others.
        """
        columns = self._columns if self._mapped is None else self._mapped.columns
        stacks = [column for column in columns.values() if isinstance(column, Stack)]
        kinds = Counter(tuple(stack.decoded_kind(number) for stack in stacks) for number in sound)
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

    def _place_of(self, slot: int) -> tuple[int, int]:
        """Shard of a slot's own sample, and position there."""
        return int(self.references.shards[slot]), int(self.references.indices[slot])

    def _replace(
        self, slot: int, good: Sequence[tuple[int, int]], fault: str, watch: Stopwatch
    ) -> tuple[int, int]:
        """Fill a slot with another sample than its own.

        Args:
            slot: slot to fill.
            good: shards and positions of samples that other slots hold.
            fault: reason why its own sample cannot be delivered.
            watch: stopwatch of the thread.

        Returns:
            Shard and position of the sample that it holds now.
        """
        self._choices_of(slot)
        cast("list[Choices]", self._choices)[slot] = ()  # as they are for its own sample
        for number, sample in self._substitutes(slot, good):
            shard = self._delivery.pool.get(number)
            self._stand_ins[slot] = sample
            if sample not in shard.bad and self._try(slot, shard, sample, watch):
                break
        else:
            raise SampleError(
                fault,
                remedy=(
                    f"none of the {len(self._delivery.samples):,} samples in the dataset "
                    "can be delivered"
                ),
            )
        self._valid[slot] = False
        own, position = self._place_of(slot)
        own_shard = self._delivery.pool.get(own)
        self._delivery.replacements.note(
            (own_shard.name, position),
            fault,
            shard.key(sample),
            damaged=position in own_shard.bad,
        )
        self._delivery.on_replaced()
        return number, sample

    def _try(self, slot: int, shard: OpenShard, sample: int, watch: Stopwatch) -> bool:
        try:
            self._fill_slot(self, slot, shard, sample, watch)
        except TransformError:
            raise
        except Skip:
            return False
        except SampleError as error:
            if not self._delivery.skip_bad:
                raise
            if not isinstance(error.__cause__, MisfitError):
                shard.bad.add(sample)
            return False
        return True

    def _substitutes(self, slot: int, good: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """What may take the place of a slot's own sample, in order."""
        samples, (own, sample) = self._delivery.samples, self._place_of(slot)
        if slot in self._bad:
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

    def _check_missing(
        self, slot: int, shard: OpenShard, sample: int, stored: Sequence[FieldBytes | None]
    ) -> None:
        """Note which entries a sample has no field for; raise SampleError if none may miss."""
        missing = [*compress(self._columns, [found is None for found in stored])]
        for name, slots in self._absent.items():
            if name in missing:
                slots.add(slot)
                missing.remove(name)
            else:
                slots.discard(slot)
        if self._delivery.missing_ok:
            self._missing = missing
        elif missing:
            name = missing[0]
            names = self._delivery.fields[name]
            wanted, ends = ";".join(names), tuple(f".{field}" for field in names)
            what = f"the sample has no such field, wanted for {quoted(name)}"
            present = [*shard.index.cells(sample)]
            remedy = (
                f"it has {', '.join(map(shown, present[:8]))}; write {quoted(wanted + ';FIELD')} "
                f"in fields= to read one of these where {wanted} is missing, or "
                f"{quoted(wanted + '?')} if samples may lack it, as {quoted('has_' + name)} tells"
            )
            dotted = [field for field in present if field.endswith(ends)]
            if dotted:
                what += f", but {quoted(dotted[0])}, as a field begins at the first dot of a name"
                remedy = f"name it in fields= if that is meant; else {WITHOUT_DOTS}"
            raise self._located(CodecError(what, remedy=remedy), shard, sample, wanted)

    def _check_one(self, shard: OpenShard, sample: int) -> None:
        """Raise UsageError for a sample with several of the alternatives of an entry."""
        for name, alternatives in self._delivery.several.items():
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
        error: CodecError | TransformError | UsageError | Skip,
        shard: OpenShard,
        sample: int,
        field: str,
    ) -> SampleError | UsageError:
        kind: type[SampleError | UsageError] = SampleError
        remedy = None
        if isinstance(error, TransformError | Skip):
            kind = type(error)
        elif self._delivery.skip_bad:
            kind = SampleError
        elif isinstance(error, UsageError):
            kind = MisfitError if isinstance(error, MisfitError) else SituationError
        elif self._delivery.stand_ins:
            remedy = 'pass on_bad_sample="skip" to go on without it, or choose other fields'
        return error.at(
            shard.place(sample, field),
            kind,
            remedy=remedy,
            shard=shard.name,
            key=shard.key(sample),
            field=field,
        )
