"""What the indexes say of samples, as the native core's tables: nothing here reads a shard.

The tables are made for the samples of several batches at once, since most of their cost is that of
NumPy's calls, whatever the number of samples. A batch takes its part of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from itertools import chain, count, pairwise
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardio.fields.geometry import PLAIN, Crop, View
from shardio.fields.image import shrink_of
from shardio.fields.probe import ImageInfo
from shardio.native import table
from shardio.native.table import PICTURE, VALUES, CoreField
from shardio.planning.epoch import References
from shardio.reading.gather import join_places
from shardio.reading.geometry import Known, SampleGeometry
from shardio.reading.shards import Entries, HeldFiles, OpenShard, Places, ShardPool
from shardio.transforms import Crops

_METHODS = {
    ("bilinear", False): table.LINEAR,
    ("bilinear", True): table.ANTIALIASED,
    ("bicubic", True): table.CUBIC_ANTIALIASED,
    ("nearest", False): table.NEAREST,
    ("nearest", True): table.NEAREST,
}


class SampleTables(NamedTuple):
    """What the core is told of samples.

    Attributes:
        files: files of their shards.
        which: int64 [B], number of each sample's shard among these.
        samples: int64 [B], position of each sample in its shard.
        keys: key of each sample.
        located: places of their fields.
        views: tables of how their pictures are shown.
    """

    files: HeldFiles
    which: NDArray[np.int64]
    samples: NDArray[np.int64]
    keys: list[str]
    located: Located
    views: ViewTable

    def part(self, slots: slice) -> SampleTables:
        """Return the tables of some of the samples."""
        return SampleTables(
            self.files,
            self.which[slots],
            self.samples[slots],
            self.keys[slots],
            self.located.part(slots),
            self.views.part(slots),
        )


def make_tables(
    pool: ShardPool,
    shards: Mapping[int, OpenShard],
    references: References,
    views: ViewTable,
    entries: Entries,
    strict: Collection[int],
) -> SampleTables | None:
    """Put samples into tables; None if no checksum is known, or not of all shards alike.

    Args:
        pool: pool of the shards.
        shards: shards of the samples by position in the catalog, with their indexes.
        references: samples.
        views: tables of how their pictures are shown.
        entries: alternatives of each entry.
        strict: entries of which a sample must not have more than one alternative.
    """
    numbers = sorted(shards)
    which = np.searchsorted(numbers, references.shards)
    order = np.argsort(which.astype(np.uint16), kind="stable")  # a radix sort
    ends = np.searchsorted(which[order], range(len(numbers) + 1)).tolist()
    slots = [order[start:end] for start, end in pairwise(ends)]
    groups = [
        (shards[number], references.indices[some])
        for number, some in zip(numbers, slots, strict=True)
    ]
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    located = _locate(groups, back, entries, strict)
    if located is None:
        return None
    keys = np.empty(len(order), object)
    for (shard, samples), some in zip(groups, slots, strict=True):
        keys[some] = shard.keys(samples)
    files = HeldFiles(pool, numbers)
    return SampleTables(files, which, references.indices, keys.tolist(), located, views)


def _locate(
    groups: Sequence[tuple[OpenShard, NDArray[np.int64]]],
    back: NDArray[np.int64],
    entries: Entries,
    strict: Collection[int],
) -> Located | None:
    """Find the fields of samples, in the order of their slots; None if no checksum is known.

    Args:
        groups: shards, and their samples.
        back: int64 [B], place of each slot's sample in the groups.
        entries: alternatives of each entry.
        strict: entries of which a sample must not have more than one alternative.
    """
    names = (*chain(*entries),)
    found = join_places([shard.places_of(samples, names) for shard, samples in groups])
    if found is None or (found.checksums is None and found.headers is None):
        return None
    found = found.each(lambda array: array.take(back, axis=1))
    rare = [shard.have_rare(samples) for shard, samples in groups]
    fit = ~np.concatenate(rare)[back]
    rows = np.empty((len(entries), len(back)), np.int64)
    end = 0
    for entry, some in enumerate(entries):
        start, end = end, end + len(some)
        present = found.offsets[start:end] >= 0
        counts = present.sum(axis=0)
        fit &= (counts == 1) if entry in strict else (counts > 0)
        rows[entry] = start + present.argmax(axis=0)
    used: Sequence[Sequence[str]] = entries
    if len(names) != len(rows):
        used = [_used(names, of_entry) for of_entry in rows]
        found = found.each(lambda array: array[rows, np.arange(len(back))])
    return Located(found, names, rows, used, found.sizes.sum(axis=0), fit)


class Located(NamedTuple):
    """Where the fields of samples are.

    Attributes:
        places: places of the alternative that fills each entry.
        names: names of all alternatives, entry by entry.
        rows: int64 [F, B], number of the alternative among the names.
        used: names of the alternatives that fill each entry of the samples.
        sums: int64 [B], bytes of all entries of a sample.
        fit: bool [B], whether a sample has all entries.
    """

    places: Places
    names: Sequence[str]
    rows: NDArray[np.int64]
    used: Sequence[Sequence[str]]
    sums: NDArray[np.int64]
    fit: NDArray[np.bool_]

    def part(self, slots: slice) -> Located:
        """Return the places of some of the samples."""
        places = self.places.each(itemgetter((slice(None), slots)))
        rows, sums, fit = self.rows[:, slots], self.sums[slots], self.fit[slots]
        used = [
            names if len(names) == 1 else _used(self.names, of_entry)
            for names, of_entry in zip(self.used, rows, strict=True)
        ]
        return Located(places, self.names, rows, used, sums, fit)

    def name(self, entry: int, slot: int) -> str:
        """Return the name of the field that fills an entry of a sample."""
        return self.names[int(self.rows[entry, slot])]


def _used(names: Sequence[str], rows: NDArray[np.int64]) -> list[str]:
    return [names[row] for row in sorted({*rows.tolist()})]


class ViewTable:
    """How the pictures of samples are shown, as the core's table and as views of samples.

    Args:
        known: sizes and crops of the pictures that the indexes know.
        uniforms: random numbers of the samples, float64 [B, draws].
        geometry: chooser of the views.
        reduced: let large JPEGs be decoded at a part of their size.

    Attributes:
        rows: table of the core, int32 [R, B, …].
        can_be_known: whether crops can be chosen for pictures when their headers are read.
        any_margin: whether a picture may leave a margin in its slot.
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
        self._have_margin, self.any_margin = np.zeros(slots, np.bool_), False
        self._crops: dict[int, Crops] = {}
        self._numbers = count()  # of crops, for any thread
        self._places = np.zeros((num_roles, slots, 2), np.int64)  # which crops, and which of them
        for role, each in enumerate(known):
            self._add(role, each)
        self._is_whole = bool(self._are_known.all())

    def part(self, slots: slice) -> ViewTable:
        """Return the table of some of the samples, in the same memory."""
        part = copy(self)
        part.rows, part._uniforms = self.rows[:, slots], self._uniforms[slots]
        part._are_known, part._have_margin = self._are_known[:, slots], self._have_margin[slots]
        part._places = self._places[:, slots]
        return part

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the first picture that is known; None if none is."""
        first = np.flatnonzero(self._are_known[0])[:1]
        height, width = self.rows[0, first, :2].tolist()[0] if first.size else (0, 0)
        return (height, width) if first.size else None

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
            margin = (kept[0] < size[0]) | (kept[1] < size[1])
            self._have_margin[slots] |= margin
            self.any_margin |= bool(margin.any())
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
        for role, lead in () if self._is_whole else self._geometry.roles.leads:
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

    def fit(self, fields: Sequence[CoreField], slots: range) -> NDArray[np.bool_] | None:
        """Tell for some samples whether their pictures can be shown as fields are.

        Returns:
            bool [n]; None if all of them can.
        """
        part = slice(slots.start, slots.stop)
        checks: list[Any] = []
        are_shown = self._geometry.needs_views
        for field in fields:
            if field.kind not in (PICTURE, VALUES):
                continue
            are_shown = True
            if field.kind == VALUES and self.any_margin:
                checks.append(~self._have_margin[part])
            if self._geometry.size is None:
                size = field.out.shape[1:3]
                checks.append((self.rows[field.role, part, :2] == size).all(axis=1))
        if are_shown and not self._is_whole:
            checks.append(self._are_known[:, part].all(axis=0))
        return np.logical_and.reduce(checks) if checks else None

    def crop(self, role: int, slot: int) -> Crop | None:
        """Return the crop of a sample whose picture is known; None if it is shown whole."""
        if not self._crops:
            return None
        number, place = (int(each) for each in self._places[role, slot])
        return self._crops[number][place]

    def with_margin(self, slots: range) -> list[int]:
        """List those of some slots in which a picture leaves a margin."""
        found = slots.start + np.flatnonzero(self._have_margin[slots.start : slots.stop])
        return [int(slot) for slot in found]

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
