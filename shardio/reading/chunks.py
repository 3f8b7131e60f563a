"""Chunks of samples that the native core reads and decodes, straight into the slots of a batch.

A batch has its part of the tables of shardio.reading.tables. Each thread hands slots to the core,
which fills them without the interpreter's lock. It reads all fields of a sample. Pictures, masks,
arrays and class numbers it puts into their slots; of other fields it hands over the bytes, which
their types decode as ever.

The core takes what is common: local shards, and crops that can be chosen for many pictures at once.
Where the indexes do not have their sizes, the core reads their headers first. Whatever it does not
take or finds unsound is left, and is read by the Python path, which is the reference and raises the
errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from shardio.errors import CodecError, ShardioError
from shardio.fields.base import FieldType
from shardio.fields.geometry import View, placed
from shardio.fields.image import fill_margin
from shardio.fields.probe import Buffer
from shardio.native.table import (
    BYTES,
    DONE,
    NOT_TAKEN,
    NUMBER,
    PICTURE,
    ROW,
    VALUES,
    CoreField,
    SampleTable,
)
from shardio.reading.gather import MOST_SHORT, Rows
from shardio.reading.geometry import SampleGeometry
from shardio.reading.shards import Entries, FieldBytes, HeldFile, OpenShard
from shardio.reading.tables import SampleTables
from shardio.reading.times import Stopwatch

if TYPE_CHECKING:
    from shardio.reading.columns import Column, Slots

_MOST_ROOM = 1 << 24  # bytes of fields that the core hands over
_CHUNK_BYTES = 1 << 22  # that one task reads
_MOST_IN_PYTHON, _MOST_CHUNK = 16, 512
_UINT8, _INT64 = np.dtype(np.uint8), np.dtype(np.int64)


def chunk_of(size: float, most: int = _MOST_IN_PYTHON) -> int:
    """Return how many samples one task best takes.

    Args:
        size: bytes of a sample, on average.
        most: maximum number of samples.
    """
    return max(1, min(int(_CHUNK_BYTES / max(size, 1)), most))


class CoreReader:
    """Decides what the core makes of the fields of a batch.

    Args:
        entries: alternatives of each entry.
        types: types of the alternatives of each entry, by field name.
        geometry: chooser of the views of a sample.
        chunk: number of samples that one task takes in Python, and before their sizes are known.

    Attributes:
        chunk: number of samples that one task best takes, by the sizes of the latest batch.
    """

    def __init__(
        self,
        entries: Entries,
        types: Sequence[Mapping[str, FieldType]],
        geometry: SampleGeometry,
        chunk: int,
    ) -> None:
        self.chunk = chunk
        self._entries, self._types = entries, types
        self._geometry = geometry
        self._prefixes: dict[tuple[int, int], tuple[bytes, NDArray[Any]] | None] = {}

    def begin(self, tables: SampleTables, columns: Sequence[Column]) -> CoreChunks | None:
        """Open the shards of a batch; None if the core cannot take it.

        Args:
            tables: samples of the batch.
            columns: entries of the batch, empty.

        Raises:
            IndexFileError, TarError, OSError: a shard cannot be opened.
        """
        size = int(tables.located.sums.sum()) / len(tables.which)
        self.chunk = chunk_of(size)
        fields = [self._field(entry, column, tables) for entry, column in enumerate(columns)]
        if any(field is None for field in fields):
            return None
        made = [cast("CoreField", field) for field in fields]
        if all(field.kind in (BYTES, NUMBER) for field in made):
            return None
        self.chunk = chunk_of(size, _MOST_CHUNK)
        return CoreChunks(Opened(tables), made)

    def _field(self, entry: int, column: Any, tables: SampleTables) -> CoreField | None:
        """Return what the field of an entry becomes; None if the batch is not for the core."""
        located, views = tables.located, tables.views
        sizes, names = located.places.sizes[entry], located.used[entry]
        types = [self._types[entry][name] for name in names]
        first = types[0]
        native = first.native if {each.native for each in types} == {first.native} else None
        if native == "picture" or (native == "values" and all(map(_is_uint8, types))):
            size = self._geometry.size or views.size or self._first_size(entry, first, tables)
            shape = (*size, first.channels) if native == "picture" else size
            out = column.slots_for(shape, _UINT8) if views.can_be_known and size[0] else None
            if out is not None:
                role = self._geometry.roles.of_entries[entry] or 0
                return CoreField(
                    kind=PICTURE if native == "picture" else VALUES,
                    out=out,
                    role=role,
                    leads=(role, entry) in self._geometry.roles.leads,
                    max_pixels=min(getattr(each, "max_pixels", 0) for each in types),
                )
        if native == "rows" and len(names) == 1 and hasattr(column, "place_rows"):
            prefixed = self._prefix(entry, first, int(sizes[0]), tables)
            if prefixed is not None:
                prefix, like = prefixed
                out = column.slots_for(like.shape, like.dtype)
                if out is not None:
                    flat = out.reshape(len(sizes), -1).view(np.uint8)
                    return CoreField(kind=ROW, out=flat, prefix=prefix)
        if native == "number" and hasattr(column, "slots_for"):
            out = column.slots_for((), _INT64)
            if out is not None:
                return CoreField(kind=NUMBER, out=out)
        room = max(int(sizes.max()), 1)
        if room * len(sizes) > _MOST_ROOM:
            return None
        return CoreField(kind=BYTES, out=np.empty((len(sizes), room), np.uint8))

    def _first_size(self, entry: int, type_: FieldType, tables: SampleTables) -> tuple[int, int]:
        """Read the size of the picture in an entry of the first sample of a batch."""
        with suppress(CodecError):
            info = type_.probe(self._first(entry, tables))
            if info is not None:
                return info.height, info.width
        return 0, 0

    def _first(self, entry: int, tables: SampleTables) -> Buffer:
        """Read an entry of the first sample of a batch; nothing if that is not sound."""
        with suppress(ShardioError, OSError):  # which are met again when all samples are read
            shard = tables.files.get(int(tables.which[0])).shard
            found = shard.read(int(tables.samples[0]), (self._entries[entry],))[0]
            return found.data if found else b""
        return b""

    def _prefix(
        self, entry: int, type_: FieldType, size: int, tables: SampleTables
    ) -> tuple[bytes, NDArray[np.generic]] | None:
        """Return the header of arrays whose members have a size, and an array of that kind.

        Returns:
            What an array of a member has; another member with another header is left by the core.
            None if members are not such that many are decoded at once.
        """
        at = entry, size
        if at not in self._prefixes:
            block = np.frombuffer(self._first(entry, tables), np.uint8)[None]
            if block.size != size:
                return None
            arrays = type_.decode_rows(block, np.array([size]))
            if arrays is None:
                return None
            header = block[0, : size - arrays[0].nbytes].tobytes()
            self._prefixes[at] = header, np.empty(arrays.shape[1:], arrays.dtype)
        return self._prefixes[at]


def _is_uint8(type_: FieldType) -> bool:
    return getattr(type_, "dtype", None) == "uint8"


class Opened:
    """The samples of a batch, whose shards are open.

    Args:
        tables: samples of the batch.

    Attributes:
        tables: samples of the batch.
        descriptors: int32 [B], descriptor of each sample's shard; -1 for one that is not local.
        is_local: whether all of them were local when they were opened.

    Raises:
        IndexFileError, TarError, OSError: a shard cannot be opened.
    """

    def __init__(self, tables: SampleTables) -> None:
        self.tables, self._which, self._files = tables, tables.which, tables.files
        found = np.full(tables.files.count, -1, np.int32)
        self._held: dict[int, HeldFile] = {}  # which stay open
        self.is_local = True
        for number in np.flatnonzero(np.bincount(self._which)).tolist():
            held = self._held[number] = self._files.get(number)
            found[number] = held.descriptor
            self.is_local &= held.descriptor >= 0
        self.descriptors: NDArray[np.int32] = found.take(self._which)

    def shard(self, slot: int) -> OpenShard:
        """Return the shard of a sample."""
        return self._held[int(self._which[slot])].shard

    def look_again(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Look whether shards that were still being fetched are there.

        Args:
            slots: slots of samples of such shards.

        Returns:
            Those of the slots whose shards are there now, with a descriptor.
        """
        for number in {*self._which[slots].tolist()}:
            held = self._held[number] = self._files.get(number)
            self.descriptors[slots[self._which[slots] == number]] = held.descriptor
        return slots[self.descriptors[slots] >= 0]


class CoreChunks:
    """The samples of a batch in the tables of the core, while threads fill their slots.

    Args:
        batch: samples of the batch.
        fields: form that each field takes in the batch.
    """

    def __init__(self, batch: Opened, fields: Sequence[CoreField]) -> None:
        self._batch, self._fields = batch, fields
        self._located, self._views = batch.tables.located, batch.tables.views
        files, places = batch.descriptors, self._located.places
        fit: NDArray[np.bool_] = self._located.fit & (files >= 0)
        self._status = np.where(fit, np.uint8(DONE), np.uint8(NOT_TAKEN))
        arrays = places.firsts, places.offsets, places.sizes, places.checksums, places.headers
        self._table = SampleTable(files, arrays, self._views.rows, fields, self._status)
        every = range(len(files))
        self._is_ready = batch.is_local and not any(self._views.unknown(every))
        if self._is_ready:
            self._leave_unfit(every)

    def keys(self, slots: range) -> list[str]:
        """Return the keys of some samples."""
        return self._batch.tables.keys[slots.start : slots.stop]

    def shard(self, slot: int) -> OpenShard:
        """Return the shard of a sample."""
        return self._batch.shard(slot)

    def fill(self, slots: range, watch: Stopwatch) -> Sequence[int]:
        """Read and decode the samples of some slots; return the slots that are left."""
        if not self._is_ready:
            self._look_for_files(slots)
            self._know(slots)
        parts = [range(slot, slot + 1) for slot in slots] if watch.one_by_one else [slots]
        filled = 0
        for part in parts:
            watch.start()
            done = self._table.fill(part.start, part.stop)
            watch.add(done.read, done.decode, done.resize, done.bytes)
            if done.samples:
                watch.stop(done.samples)
            filled += done.samples
        left: Sequence[int] = ()
        if filled < len(slots):
            status = self._status[slots.start : slots.stop]
            left = (slots.start + np.flatnonzero(status != DONE)).tolist()
        if self._views.any_margin:
            self._fill_margins(slots, left)
        return left

    def _look_for_files(self, slots: range) -> None:
        """Look whether shards that were still being fetched are there."""
        part = slice(slots.start, slots.stop)
        lack = (self._batch.descriptors[part] < 0) & self._located.fit[part]
        self._status[self._batch.look_again(slots.start + np.flatnonzero(lack))] = DONE

    def _know(self, slots: range) -> None:
        """Read the headers of pictures that the indexes do not know."""
        for role, lead in self._views.unknown(slots):
            self._views.add(role, slots, self._table.probe(lead, slots))
        self._leave_unfit(slots)

    def _leave_unfit(self, slots: range) -> None:
        fits = self._views.fit(self._fields, slots)
        if fits is not None:
            self._status[slots.start : slots.stop][~fits] = NOT_TAKEN

    def _fill_margins(self, slots: range, left: Sequence[int]) -> None:
        for slot in {*self._views.with_margin(slots)}.difference(left):
            for field in self._fields:
                crop = self._views.crop(field.role, slot) if field.kind == PICTURE else None
                part = None if crop is None else placed(crop, field.out.shape[1:3])
                if crop is not None and part is not None:
                    fill_margin(part, crop, field.out[slot])

    def is_decoded(self, entry: int) -> bool:
        """Tell whether the core decodes an entry, and not only reads it."""
        return self._fields[entry].kind != BYTES

    def rows(self, entry: int, slots: Slots) -> Rows | None:
        """Return the bytes of an entry in some slots; None if they are not short or of one size."""
        block, sizes = self._fields[entry].out[slots], self._located.places.sizes[entry, slots]
        alike = block.shape[1] <= MOST_SHORT or int(sizes.min()) == block.shape[1]
        names = self._located.used[entry]
        return Rows(names[0], block, sizes) if alike and len(names) == 1 else None

    def stored(self, entry: int, slot: int) -> FieldBytes:
        """Return the bytes of an entry in a slot."""
        places = self._located.places
        data = self._fields[entry].out[slot, : int(places.sizes[entry, slot])].data
        return FieldBytes(self._located.name(entry, slot), data, places.checksums is not None)

    def views(self, slot: int) -> Sequence[View | None]:
        """Return what is shown of the pictures of a sample, entry by entry."""
        return self._views.of(
            slot, [self._located.name(entry, slot) for entry in range(len(self._fields))]
        )
