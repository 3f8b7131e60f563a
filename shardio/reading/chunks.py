"""Chunks of samples that the native core reads and decodes, straight into the slots of a batch.

What a batch's samples are, where their fields lie and how their pictures are shown is put into
tables once, for all of its slots; then each thread hands slots to the core, which takes them
without the interpreter's lock. It reads all fields of a sample. Pictures, masks and arrays it puts
into their slots; of other fields it hands over the bytes, which their types decode as ever.

The core takes what is common: local shards, one field for each entry, crops whose pictures the
indexes know. Whatever it does not take or finds unsound is left, and is read by the Python path,
which is the reference and raises the errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from shardio.fields.base import FieldType
from shardio.fields.geometry import PLAIN, Crop, View, placed
from shardio.fields.image import fill_margin, shrink_of
from shardio.fields.probe import ImageInfo
from shardio.native import table
from shardio.native.table import (
    BYTES,
    DONE,
    NOT_TAKEN,
    PICTURE,
    ROW,
    VALUES,
    CoreField,
    SampleTable,
)
from shardio.planning.epoch import References
from shardio.reading.gather import MOST_SHORT, Group, Rows, group_by_shard, locate
from shardio.reading.geometry import Known, SampleGeometry
from shardio.reading.shards import Entries, FieldBytes, Places, ShardPool
from shardio.reading.times import Stopwatch
from shardio.storage.local import LocalShard

if TYPE_CHECKING:
    from shardio.reading.columns import Column

_METHODS = {
    ("bilinear", False): table.LINEAR,
    ("bilinear", True): table.ANTIALIASED,
    ("bicubic", True): table.CUBIC_ANTIALIASED,
    ("nearest", False): table.NEAREST,
    ("nearest", True): table.NEAREST,
}
LEAST_SAMPLES = 4
"""Samples of a batch for which tables are worth making."""
_MOST_SHARDS = 64  # of a batch: their files stay open while it is filled
_MOST_ROOM = 1 << 24  # bytes of fields that the core hands over
_CHUNK_BYTES = 1 << 20  # that one task reads
_LEAST_CHUNK, _MOST_CHUNK = 16, 512
_UINT8 = np.dtype(np.uint8)


class CoreReader:
    """Makes the tables of batches.

    Args:
        pool: shards of the dataset.
        entries: alternatives of each entry.
        types: types of the alternatives of each entry, by field name.
        geometry: chooser of the views of a sample.
        reduced: let large JPEGs be decoded at a part of their size.

    Attributes:
        chunk: number of samples that one task best takes, as far as the batches so far tell.
    """

    def __init__(
        self,
        pool: ShardPool,
        entries: Entries,
        types: Sequence[Mapping[str, FieldType]],
        geometry: SampleGeometry,
        *,
        reduced: bool,
    ) -> None:
        self.chunk = _LEAST_CHUNK
        self._pool, self._entries, self._types = pool, entries, types
        self._geometry, self._reduced = geometry, reduced
        self._prefixes: dict[tuple[int, int], tuple[bytes, NDArray[Any]] | None] = {}

    def begin(
        self, references: References, columns: Sequence[Column], known: Sequence[Known]
    ) -> CoreChunks | None:
        """Put the samples of a batch into tables; None if the core cannot take them.

        Args:
            references: samples of the batch.
            columns: entries of the batch, empty.
            known: what the indexes know of the pictures, see SampleGeometry.know.

        Raises:
            IndexFileError, TarError, OSError: a shard cannot be opened.
        """
        if len({*references.shards.tolist()}) > _MOST_SHARDS:
            return None
        order = np.argsort(references.shards, kind="stable")
        groups = group_by_shard(self._pool, references.shards[order], references.indices[order])
        found = locate(groups, self._entries)
        if found is None or (found.checksums is None and found.headers is None):
            return None
        back = np.argsort(order)
        places = found.each(lambda array: array[:, back])
        count, size = len(order), int(places.sizes.sum())
        self.chunk = min(max(_LEAST_CHUNK, _CHUNK_BYTES * count // max(size, 1)), _MOST_CHUNK)
        views = _Views(known, count, self._geometry, reduced=self._reduced)
        fields = [
            self._field(entry, column, places, views, groups)
            for entry, column in enumerate(columns)
        ]
        if any(field is None for field in fields):
            return None
        made = [cast("CoreField", field) for field in fields]
        if all(field.kind == BYTES for field in made):
            return None
        files, keys = np.full(count, -1, np.int32), np.empty(count, object)
        for group in groups:
            slots = order[group.rows]
            if type(group.file) is LocalShard:
                files[slots] = group.file.descriptor
            keys[slots] = group.shard.keys(group.samples)
        fits = (places.offsets >= 0).all(axis=0) & (files >= 0) & views.fit(made)
        status = np.where(fits, DONE, NOT_TAKEN).astype(np.uint8)
        return CoreChunks(groups, keys.tolist(), places, views, made, files, status)

    def _field(
        self,
        entry: int,
        column: Any,
        places: Places,
        views: _Views,
        groups: Sequence[Group],
    ) -> CoreField | None:
        """Return what the field of an entry becomes; None if the batch is not for the core."""
        type_ = self._types[entry][places.fields[entry]]
        sizes = places.sizes[entry]
        role = self._geometry.roles.of_entries[entry] or 0
        leads = (role, entry) in self._geometry.roles.leads
        if type_.native == "picture" or (type_.native == "values" and _is_uint8(type_)):
            picture = type_.native == "picture"
            size = self._geometry.size or views.size
            shape = (*size, type_.channels) if picture else size
            out = column.slots_for(shape, _UINT8) if size[0] else None
            if out is not None:
                return CoreField(
                    kind=PICTURE if picture else VALUES,
                    out=out,
                    role=role,
                    leads=leads,
                    max_pixels=type_.max_pixels,  # type: ignore[attr-defined]  # of these types
                )
        if type_.native == "rows" and hasattr(column, "place_rows"):
            prefixed = self._prefix(entry, type_, int(sizes[0]), groups[0])
            if prefixed is not None:
                prefix, like = prefixed
                out = column.slots_for(like.shape, like.dtype)
                if out is not None:
                    flat = out.reshape(len(sizes), -1).view(np.uint8)
                    return CoreField(kind=ROW, out=flat, prefix=prefix)
        room = int(sizes.max())
        if room < 1 or room * len(sizes) > _MOST_ROOM:
            return None
        return CoreField(kind=BYTES, out=np.empty((len(sizes), room), np.uint8))

    def _prefix(
        self, entry: int, type_: FieldType, size: int, group: Group
    ) -> tuple[bytes, NDArray[np.generic]] | None:
        """Return the header of arrays whose members have a size, and an array of that kind.

        Returns:
            What an array of a member has; another member with another header is left by the core.
            None if members are not such that many are decoded at once.
        """
        at = entry, size
        if at not in self._prefixes:
            found = group.shard.read(int(group.samples[0]), (self._entries[entry],))[0]
            block = np.frombuffer(found.data if found else b"", np.uint8)[None]
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


class _Views:
    """How the pictures of a batch are shown, as the core's table and as views of samples.

    Args:
        known: what the indexes know of the pictures.
        count: number of samples.
        geometry: chooser of the views.
        reduced: let large JPEGs be decoded at a part of their size.

    Attributes:
        rows: table of the core, int32 [R, count, …].
        size: height and width of the first picture that is known; 0 if none is.
    """

    def __init__(
        self, known: Sequence[Known], count: int, geometry: SampleGeometry, *, reduced: bool
    ) -> None:
        self._known, self._geometry, self._reduced = known, geometry, reduced
        self.rows = np.zeros((max(1, len(known)), count, len(table.VIEW)), np.int32)
        self.rows[..., table.VIEW.index("shrink")] = 1
        self._are_known = np.zeros(self.rows.shape[:2], np.bool_)
        self._have_margin = np.zeros(count, np.bool_)
        self._places = np.zeros(self.rows.shape[:2], np.int64)
        for role, each in enumerate(known):
            if len(each.slots):
                self._add(role, each)
        first = known[0].sizes[:1].tolist() if known else []
        self.size: tuple[int, int] = (first[0][0], first[0][1]) if first else (0, 0)

    def _add(self, role: int, known: Known) -> None:
        slots, sizes, crops = known
        height, width, _ = sizes.T
        zero, size = 0 * height, self._geometry.size or (0, 0)
        box, resized, window = (zero, zero, height, width), (height, width), (zero, zero)
        place: tuple[NDArray[np.int64], ...] = (zero, zero, height, width)
        flip, method, shrink = zero, table.LINEAR, zero + 1
        if crops is not None:
            how = _METHODS.get((crops.resampling.interpolation, crops.resampling.antialias))
            if how is None:
                return
            flip, method = crops.flip * 1, how
            box = crops.top, crops.left, crops.height, crops.width
            resized = zero + size[0], zero + size[1]
            if crops.resized is not None:
                resized = crops.resized[:, 0], crops.resized[:, 1]
            if crops.window is not None:
                window = crops.window[:, 0], crops.window[:, 1]
            ends = [np.minimum(size[at], resized[at] - window[at]) for at in (0, 1)]
            first = [np.maximum(0, -window[at]) for at in (0, 1)]
            kept = [ends[at] - first[at] for at in (0, 1)]
            across = np.where(crops.flip, size[1] - ends[1], first[1])
            window = np.maximum(0, window[0]), np.maximum(0, window[1])
            place = first[0], across, *kept
            self._have_margin[slots] |= (kept[0] < size[0]) | (kept[1] < size[1])
            if self._reduced and crops.resampling == PLAIN:
                ratio = np.minimum(box[2] / resized[0], box[3] / resized[1])
                shrink = shrink_of(np.minimum(height, width), ratio)
        columns = *sizes.T, *box, *resized, *window, *place, flip, zero + method, shrink
        self.rows[role, slots] = np.stack(columns, axis=1)
        self._are_known[role, slots] = (place[2] > 0) & (place[3] > 0)
        self._places[role, slots] = np.arange(len(slots))

    def fit(self, fields: Sequence[CoreField]) -> NDArray[np.bool_]:
        """Tell for each sample whether its pictures can be shown as some fields are, bool [B]."""
        fits = np.ones(self.rows.shape[1], np.bool_)
        shown = any(field.kind in (PICTURE, VALUES) for field in fields)
        if shown or self._geometry.needs_views:
            fits &= self._are_known.all(axis=0)
        for field in fields:
            if field.kind == VALUES:
                fits &= ~self._have_margin
            if field.kind in (PICTURE, VALUES) and self._geometry.size is None:
                fits &= (self.rows[field.role, :, :2] == field.out.shape[1:3]).all(axis=1)
        return fits

    def crop(self, role: int, slot: int) -> Crop | None:
        """Return the crop of a sample whose picture is known."""
        crops = self._known[role].crops
        return None if crops is None else crops[int(self._places[role, slot])]

    def has_margin(self, slot: int) -> bool:
        """Tell whether a picture leaves a margin in a slot."""
        return bool(self._have_margin[slot])

    def any_margin(self) -> bool:
        """Tell whether any picture leaves a margin in its slot."""
        return bool(self._have_margin.any())

    def of(self, slot: int, fields: Sequence[str]) -> Sequence[View | None]:
        """Return the views of a sample whose pictures are known; see SampleGeometry.views.

        Args:
            slot: slot of the sample.
            fields: name of the field of each entry.
        """
        roles = self._geometry.roles
        of_role = {role: self._view(role, slot, fields[lead]) for role, lead in roles.leads}
        return [None if role is None else of_role[role] for role in roles.of_entries]

    def _view(self, role: int, slot: int, field: str) -> View:
        height, width, orientation = self.rows[role, slot, :3].tolist()
        info = ImageInfo(format="", height=height, width=width, orientation=orientation)
        view = View.of(info, field, self._geometry.size, self.crop(role, slot))
        return view._replace(info=None)


class CoreChunks:
    """The samples of a batch in the tables of the core, while threads fill their slots.

    Args:
        groups: samples by shard, whose files stay open.
        keys: keys of the samples.
        places: places of the fields of each sample.
        views: how their pictures are shown.
        fields: what their fields become.
        files: int32 [B], descriptor of each sample's shard.
        status: uint8 [B], see SampleTable.

    Attributes:
        keys: keys of the samples.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        keys: list[str],
        places: Places,
        views: _Views,
        fields: Sequence[CoreField],
        files: NDArray[np.int32],
        status: NDArray[np.uint8],
    ) -> None:
        self.keys = keys
        self._groups, self._places, self._views, self._fields = groups, places, views, fields
        arrays = places.firsts, places.offsets, places.sizes, places.checksums, places.headers
        self._table = SampleTable(files, arrays, views.rows, fields, status)
        self._sums = places.sizes.sum(axis=0)

    def fill(self, slots: range, watch: Stopwatch) -> NDArray[np.bool_]:
        """Read and decode the samples of some slots.

        Returns:
            Whether each sample is there, bool [n].
        """
        parts = [range(slot, slot + 1) for slot in slots] if watch.one_by_one else [slots]
        for part in parts:
            watch.start()
            times = self._table.fill(part.start, part.stop)
            done = self._done(part)
            watch.add(*times, int(self._sums[part.start : part.stop][done].sum()))
            if watch.one_by_one and done[0]:
                watch.stop()
        done = self._done(slots)
        if self._views.any_margin():
            self._fill_margins(slots, done)
        if not watch.one_by_one:
            watch.stop(int(done.sum()))
        return done

    def _done(self, slots: range) -> NDArray[np.bool_]:
        done: NDArray[np.bool_] = self._table.status[slots.start : slots.stop] == DONE
        return done

    def _fill_margins(self, slots: range, done: NDArray[np.bool_]) -> None:
        for slot in (slots.start + np.flatnonzero(done)).tolist():
            for field in self._fields if self._views.has_margin(slot) else ():
                crop = self._views.crop(field.role, slot) if field.kind == PICTURE else None
                part = None if crop is None else placed(crop, field.out.shape[1:3])
                if crop is not None and part is not None:
                    fill_margin(part, crop, field.out[slot])

    def is_decoded(self, entry: int) -> bool:
        """Tell whether the core decodes an entry, and not only reads it."""
        return self._fields[entry].kind != BYTES

    def rows(self, entry: int, slots: NDArray[np.int64]) -> Rows | None:
        """Return the bytes of an entry in some slots; None if they are not short or of one size."""
        block, sizes = self._fields[entry].out[slots], self._places.sizes[entry, slots]
        alike = block.shape[1] <= MOST_SHORT or int(sizes.min()) == block.shape[1]
        return Rows(self._places.fields[entry], block, sizes) if alike else None

    def stored(self, entry: int, slot: int) -> FieldBytes:
        """Return the bytes of an entry in a slot."""
        size = int(self._places.sizes[entry, slot])
        data = self._fields[entry].out[slot, :size].data
        return FieldBytes(self._places.fields[entry], data, self._places.checksums is not None)

    def views(self, slot: int) -> Sequence[View | None]:
        """Return what is shown of the pictures of a sample, entry by entry."""
        return self._views.of(slot, self._places.fields)
