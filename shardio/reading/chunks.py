"""Chunks of samples that the native core reads and decodes, straight into the slots of a batch.

What a batch's samples are, where their fields lie and how their pictures are shown is put into
tables once, for all of its slots; then each thread hands slots to the core, which takes them
without the interpreter's lock. It reads all fields of a sample. Pictures, masks and arrays it puts
into their slots; of other fields it hands over the bytes, which their types decode as ever.

The core takes what is common: local shards, and crops that can be chosen for many pictures at once.
Where the indexes do not have their sizes, the core reads their headers first. Whatever it does not
take or finds unsound is left, and is read by the Python path, which is the reference and raises the
errors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, count
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from shardio.errors import CodecError, ShardioError
from shardio.fields.base import FieldType
from shardio.fields.geometry import PLAIN, Crop, View, placed
from shardio.fields.image import fill_margin, shrink_of
from shardio.fields.probe import Buffer, ImageInfo
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
from shardio.reading.gather import MOST_SHORT, Group, Rows, group_by_shard, join_places
from shardio.reading.geometry import Known, SampleGeometry
from shardio.reading.shards import Entries, FieldBytes, OpenShard, Places, ShardPool
from shardio.reading.times import Stopwatch
from shardio.storage.local import LocalShard
from shardio.transforms import Crops

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
_CHUNK_BYTES = 1 << 22  # that one task reads
_LEAST_CHUNK, _MOST_CHUNK = 16, 512
_UINT8 = np.dtype(np.uint8)


class CoreReader:
    """Makes the tables of batches.

    Args:
        pool: shards of the dataset.
        entries: alternatives of each entry.
        types: types of the alternatives of each entry, by field name.
        strict: entries of which a sample must not have more than one alternative.
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
        strict: Collection[int],
        reduced: bool,
    ) -> None:
        self.chunk = _LEAST_CHUNK
        self._pool, self._entries, self._types = pool, entries, types
        self._strict = strict
        self._geometry, self._reduced = geometry, reduced
        self._prefixes: dict[tuple[int, int], tuple[bytes, NDArray[Any]] | None] = {}

    def begin(
        self,
        references: References,
        columns: Sequence[Column],
        known: Sequence[Known],
        uniforms: NDArray[np.float64],
    ) -> CoreChunks | None:
        """Put the samples of a batch into tables; None if the core cannot take them.

        Args:
            references: samples of the batch.
            columns: entries of the batch, empty.
            known: sizes and crops of the pictures that the indexes know, see SampleGeometry.know.
            uniforms: random numbers of the samples, float64 [B, draws].

        Raises:
            IndexFileError, TarError, OSError: a shard cannot be opened.
        """
        if len({*references.shards.tolist()}) > _MOST_SHARDS:
            return None
        order = np.argsort(references.shards, kind="stable")
        groups = group_by_shard(self._pool, references.shards[order], references.indices[order])
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        located = self._locate(groups, back)
        if located is None:
            return None
        samples, size = len(order), int(located.places.sizes.sum())
        self.chunk = min(max(_LEAST_CHUNK, _CHUNK_BYTES * samples // max(size, 1)), _MOST_CHUNK)
        views = _Views(known, uniforms, self._geometry, reduced=self._reduced)
        fields = [
            self._field(entry, column, located, views, groups)
            for entry, column in enumerate(columns)
        ]
        if any(field is None for field in fields):
            return None
        made = [cast("CoreField", field) for field in fields]
        if all(field.kind == BYTES for field in made):
            return None
        files = np.full(samples, -1, np.int32)
        keys, shards = np.empty((2, samples), object)
        for group in groups:
            slots = order[group.rows]
            if type(group.file) is LocalShard:
                files[slots] = group.file.descriptor
            keys[slots], shards[slots] = group.shard.keys(group.samples), group.shard
        status = np.where(located.fit & (files >= 0), DONE, NOT_TAKEN).astype(np.uint8)
        opened = Opened(groups, shards.tolist(), keys.tolist())
        return CoreChunks(opened, located, views, made, files, status)

    def _locate(self, groups: list[Group], back: NDArray[np.int64]) -> Located | None:
        """Find the fields of samples, in the order of their slots; None if no checksum is known.

        Args:
            groups: samples by shard.
            back: int64 [B], place of each slot's sample in the groups.
        """
        names = (*chain(*self._entries),)
        found = join_places([group.shard.places_of(group.samples, names) for group in groups])
        if found is None or (found.checksums is None and found.headers is None):
            return None
        found = found.each(lambda array: array[:, back])
        rare = [group.shard.have_rare(group.samples) for group in groups]
        fit = ~np.concatenate(rare)[back]
        rows = np.empty((len(self._entries), len(back)), np.int64)
        end = 0
        for entry, some in enumerate(self._entries):
            start, end = end, end + len(some)
            present = found.offsets[start:end] >= 0
            counts = present.sum(axis=0)
            fit &= (counts == 1) if entry in self._strict else (counts > 0)
            rows[entry] = start + present.argmax(axis=0)
        if len(names) == len(rows):
            return Located(found, names, rows, self._entries, fit)
        slots = np.arange(len(back))
        used = [[names[row] for row in sorted({*of_entry})] for of_entry in rows.tolist()]
        return Located(found.each(lambda array: array[rows, slots]), names, rows, used, fit)

    def _field(
        self,
        entry: int,
        column: Any,
        located: Located,
        views: _Views,
        groups: Sequence[Group],
    ) -> CoreField | None:
        """Return what the field of an entry becomes; None if the batch is not for the core."""
        sizes, names = located.places.sizes[entry], located.used[entry]
        types = [self._types[entry][name] for name in names]
        first = types[0]
        native = first.native if {each.native for each in types} == {first.native} else None
        if native == "picture" or (native == "values" and all(map(_is_uint8, types))):
            size = self._geometry.size or views.size or self._first_size(entry, first, groups[0])
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
            prefixed = self._prefix(entry, first, int(sizes[0]), groups[0])
            if prefixed is not None:
                prefix, like = prefixed
                out = column.slots_for(like.shape, like.dtype)
                if out is not None:
                    flat = out.reshape(len(sizes), -1).view(np.uint8)
                    return CoreField(kind=ROW, out=flat, prefix=prefix)
        room = max(int(sizes.max()), 1)
        if room * len(sizes) > _MOST_ROOM:
            return None
        return CoreField(kind=BYTES, out=np.empty((len(sizes), room), np.uint8))

    def _first_size(self, entry: int, type_: FieldType, group: Group) -> tuple[int, int]:
        """Read the size of the picture in an entry of the first sample of a group."""
        with suppress(CodecError):
            info = type_.probe(self._first(entry, group))
            if info is not None:
                return info.height, info.width
        return 0, 0

    def _first(self, entry: int, group: Group) -> Buffer:
        """Read an entry of the first sample of a group; nothing if that is not sound."""
        with suppress(ShardioError, OSError):  # which are met again when all samples are read
            found = group.shard.read(int(group.samples[0]), (self._entries[entry],))[0]
            return found.data if found else b""
        return b""

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
            block = np.frombuffer(self._first(entry, group), np.uint8)[None]
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
        known: sizes and crops of the pictures that the indexes know.
        uniforms: random numbers of the samples, float64 [B, draws].
        geometry: chooser of the views.
        reduced: let large JPEGs be decoded at a part of their size.

    Attributes:
        rows: table of the core, int32 [R, B, …].
        size: height and width of the first picture that is known; None if none is.
        can_be_known: whether crops can be chosen for pictures when their headers are read.
    """

    def __init__(
        self,
        known: Sequence[Known],
        uniforms: NDArray[np.float64],
        geometry: SampleGeometry,
        *,
        reduced: bool,
    ) -> None:
        self._geometry, self._reduced, self._uniforms = geometry, reduced, uniforms
        self.can_be_known = geometry.knows_crops
        num_roles, slots = max(1, len(geometry.roles.leads)), len(uniforms)
        self.rows = np.zeros((num_roles, slots, len(table.VIEW)), np.int32)
        self.rows[..., table.VIEW.index("shrink")] = 1
        self._are_known = np.zeros((num_roles, slots), np.bool_)
        self._have_margin = np.zeros(slots, np.bool_)
        self._crops: dict[int, Crops] = {}
        self._numbers = count()  # of crops, for any thread
        self._places = np.zeros((num_roles, slots, 2), np.int64)  # which crops, and which of them
        for role, each in enumerate(known):
            self._add(role, each)
        first = known[0].sizes[:1].tolist() if known else []
        self.size: tuple[int, int] | None = (first[0][0], first[0][1]) if first else None

    def _add(self, role: int, known: Known) -> None:
        slots, sizes, crops = known
        if not len(slots):
            return
        height, width, _ = sizes.T
        zero, size = 0 * height, self._geometry.size or (0, 0)
        box, resized, window = (zero, zero, height, width), (height, width), (zero, zero)
        place: tuple[NDArray[np.int64], ...] = (zero, zero, height, width)
        flip, method, shrink = zero, table.LINEAR, zero + 1
        if crops is not None:
            how = _METHODS.get((crops.resampling.interpolation, crops.resampling.antialias))
            if how is None:
                self.can_be_known = False
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
            number = next(self._numbers)
            self._crops[number] = crops
            self._places[role, slots] = np.stack([zero + number, np.arange(len(slots))], axis=1)
        columns = *sizes.T, *box, *resized, *window, *place, flip, zero + method, shrink
        self.rows[role, slots] = np.stack(columns, axis=1)
        self._are_known[role, slots] = True

    def unknown(self, slots: range) -> Iterator[tuple[int, int]]:
        """Yield the roles whose pictures are not all known, each with the entry that decides."""
        for role, lead in self._geometry.roles.leads:
            if self.can_be_known and not self._are_known[role, slots.start : slots.stop].all():
                yield role, lead

    def add(self, role: int, slots: range, sizes: NDArray[np.int32]) -> None:
        """Choose the crops of pictures whose headers were read.

        Args:
            role: role of the view.
            slots: slots of the samples.
            sizes: height, width and orientation, int32 [n, 3], 0 where they are not known.
        """
        part = slice(slots.start, slots.stop)
        wanted = np.where(self._are_known[role, part, None], 0, sizes).astype(np.int64)
        known = self._geometry.choose(role, wanted, self._uniforms[part])
        self._add(role, known._replace(slots=known.slots + slots.start))

    def fit(self, fields: Sequence[CoreField], slots: range) -> NDArray[np.bool_]:
        """Tell for some samples whether their pictures can be shown as fields are, bool [n]."""
        part = slice(slots.start, slots.stop)
        fits = np.ones(len(slots), np.bool_)
        shown = any(field.kind in (PICTURE, VALUES) for field in fields)
        if shown or self._geometry.needs_views:
            fits &= self._are_known[:, part].all(axis=0)
        for field in fields:
            if field.kind == VALUES:
                fits &= ~self._have_margin[part]
            if field.kind in (PICTURE, VALUES) and self._geometry.size is None:
                fits &= (self.rows[field.role, part, :2] == field.out.shape[1:3]).all(axis=1)
        return fits

    def crop(self, role: int, slot: int) -> Crop | None:
        """Return the crop of a sample whose picture is known; None if it is shown whole."""
        if not self._crops:
            return None
        number, place = (int(each) for each in self._places[role, slot])
        return self._crops[number][place]

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


class Located(NamedTuple):
    """Where the fields of the samples of a batch are.

    Attributes:
        places: places of the alternative that fills each entry.
        names: names of all alternatives, entry by entry.
        rows: int64 [F, B], number of the alternative among the names.
        used: names of the alternatives that fill each entry of any sample.
        fit: bool [B], whether a sample has all entries.
    """

    places: Places
    names: Sequence[str]
    rows: NDArray[np.int64]
    used: Sequence[Sequence[str]]
    fit: NDArray[np.bool_]

    def name(self, entry: int, slot: int) -> str:
        """Return the name of the field that fills an entry of a sample."""
        return self.names[int(self.rows[entry, slot])]


class Opened(NamedTuple):
    """The samples of a batch whose shards are open.

    Attributes:
        groups: samples by shard, whose files stay open.
        shards: shard of each sample.
        keys: key of each sample.
    """

    groups: Sequence[Group]
    shards: Sequence[OpenShard]
    keys: list[str]


class CoreChunks:
    """The samples of a batch in the tables of the core, while threads fill their slots.

    Args:
        opened: samples, whose shards are open.
        located: places of the fields of each sample.
        views: tables of how the pictures are shown.
        fields: form that each field takes in the batch.
        files: int32 [B], descriptor of each sample's shard.
        status: uint8 [B], see SampleTable.

    Attributes:
        opened: samples, whose shards are open.
    """

    def __init__(
        self,
        opened: Opened,
        located: Located,
        views: _Views,
        fields: Sequence[CoreField],
        files: NDArray[np.int32],
        status: NDArray[np.uint8],
    ) -> None:
        self.opened = opened
        self._located, self._views, self._fields = located, views, fields
        places = located.places
        arrays = places.firsts, places.offsets, places.sizes, places.checksums, places.headers
        self._table = SampleTable(files, arrays, views.rows, fields, status)
        self._sums = places.sizes.sum(axis=0)
        self._files: list[LocalShard] = []  # that were opened since
        every = range(len(files))
        self._is_ready = bool((files >= 0).all()) and not any(views.unknown(every))
        if self._is_ready:
            status[~views.fit(fields, every)] = NOT_TAKEN

    def fill(self, slots: range, watch: Stopwatch) -> NDArray[np.bool_]:
        """Read and decode the samples of some slots.

        Returns:
            Whether each sample is there, bool [n].
        """
        if not self._is_ready:
            self._look_for_files(slots)
            self._know(slots)
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

    def _look_for_files(self, slots: range) -> None:
        """Look whether shards that were still being fetched are there."""
        part = slice(slots.start, slots.stop)
        missing = slots.start + np.flatnonzero(
            (self._table.files[part] < 0) & self._located.fit[part]
        )
        for shard in {self.opened.shards[slot] for slot in missing.tolist()}:
            file = shard.file()
            if type(file) is LocalShard:
                self._files.append(file)
                own = [slot for slot in missing.tolist() if self.opened.shards[slot] is shard]
                self._table.files[own], self._table.status[own] = file.descriptor, DONE

    def _know(self, slots: range) -> None:
        """Read the headers of pictures that the indexes do not know."""
        for role, lead in self._views.unknown(slots):
            self._views.add(role, slots, self._table.probe(lead, slots))
        status = self._table.status[slots.start : slots.stop]
        status[~self._views.fit(self._fields, slots)] = NOT_TAKEN

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
