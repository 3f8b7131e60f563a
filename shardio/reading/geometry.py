"""One geometry a sample: which crop each entry of a batch gets.

The first picture of a sample decides the crop of its transform, from its size and the sample's
random numbers. Everything that follows it, masks, boxes, other pictures, gets the same view. An
image whose type says crop="own" gets random numbers and a crop of its own.

Where the indexes have the sizes of pictures, the crops of a batch are chosen at once, before a byte
of it is read. They are the same crops: a picture whose header says another size is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, takewhile
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from shardio.errors import CodecError, UsageError, counted
from shardio.fields.base import FieldType, picture_info
from shardio.fields.geometry import Crop, View
from shardio.fields.probe import ImageInfo, PictureSize
from shardio.planning.epoch import References
from shardio.reading.shards import Alternatives, FieldBytes, OpenShard
from shardio.transforms import BatchedTransform, Crops, SizedTransform

Views = Sequence[View | None]


Choice = tuple[PictureSize, Crop]
"""Size of a picture, as the index has it, and the crop chosen for it before it was read."""

Choices = Sequence[Choice | None]
"""Choices of a sample: for the crop that its pictures share, then for each one of its own."""


class Roles(NamedTuple):
    """Which views there are of a sample: that which its pictures share, then those of its own.

    Attributes:
        of_entries: role of the view of each entry; None for an entry that has none.
        leads: roles, each with the entry that decides it where a sample has all entries.
    """

    of_entries: Sequence[int | None]
    leads: Sequence[tuple[int, int]]


class Known(NamedTuple):
    """What the indexes know of the pictures of a batch that decide a crop.

    Attributes:
        slots: int64 [k], slots of the samples whose pictures are known.
        sizes: int64 [k, 3], height, width and orientation.
        crops: crops that were chosen for them; None to show them whole.
    """

    slots: NDArray[np.int64]
    sizes: NDArray[np.int64]
    crops: Crops | None

    def part(self, slots: slice) -> Known:
        """Return what is known of some of the samples."""
        first, last = np.searchsorted(self.slots, [slots.start, slots.stop]).tolist()
        own, crops = slice(first, last), self.crops
        return Known(self.slots[own] - slots.start, self.sizes[own], crops and crops.part(own))


ChooseCrops = Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]], Crops]


def _batched(transform: object) -> ChooseCrops | None:
    """Return the method `crops` of a transform; None if it may choose others than `crop`.

    So it may where a subclass has another `crop` and inherits `crops`.
    """
    if isinstance(transform, BatchedTransform):
        for owner in type(transform).__mro__:
            if "crops" in vars(owner):
                return transform.crops
            if "crop" in vars(owner):
                break
    return None


class SampleGeometry:
    """Chooses the views of samples.

    Args:
        types: types of the alternatives of each entry, by field name.
        transform: transform of pictures.

    Attributes:
        draws: number of random numbers that a sample needs.
        size: height and width of slots; None for those of pictures.
        needs_views: whether there are views at all.
        knows_crops: whether crops can be chosen for several samples at once.
        knows_sizes: whether they can where the indexes have the sizes of pictures.
        roles: roles of the views.

    Raises:
        UsageError: an entry cannot follow the transform.
    """

    def __init__(self, types: Mapping[str, Mapping[str, FieldType]], transform: Any) -> None:
        firsts = [next(iter(of_entry.values())) for of_entry in types.values()]
        leads = [at for at, each in enumerate(firsts) if each.geometry == "leads"]
        follows = [at for at, each in enumerate(firsts) if each.geometry == "follows"]
        own = [at for at in leads if firsts[at].crop == "own"]
        shared = [at for at in leads if at not in own] or own[:1]
        own = [at for at in own if at not in shared]
        self._transform = transform if isinstance(transform, SizedTransform) else None
        self.size = None if self._transform is None else self._transform.size
        self._types = [*types.values()]
        self._own = own if self._transform is not None else []
        self._followers = follows
        self._pictures = shared
        sized = [at for at in follows if type(firsts[at]).probe is not FieldType.probe]
        self._leads = [*shared, *own, *sized]
        self._none: Views = (None,) * len(firsts)
        self._idle = not follows and (self._transform is None or not leads)
        draws = 0 if self._transform is None else self._transform.draws
        self._draws, self.draws = draws, draws * (1 + len(self._own))
        self.needs_views = not self._idle
        shown = dict.fromkeys((*self._pictures, *self._followers), 0)
        shown |= {at: role for role, at in enumerate(self._own, 1)}
        self.roles = Roles(
            [shown.get(at) for at in range(len(firsts))],
            [(0, lead) for lead in self._leads[:1]] + [(shown[at], at) for at in self._own],
        )
        self._choose = _batched(transform)
        shown_at_all = self.needs_views or "picture" in {each.native for each in firsts}
        self.knows_crops = shown_at_all and (self._choose is not None or transform is None)
        self._decisive = [self._sized_of(self._leads), *(self._sized_of([at]) for at in self._own)]
        self.knows_sizes = self.knows_crops and bool(self._decisive[0])
        beside = [*leads[1:], *follows]
        if transform is not None and self._transform is None and leads and beside:
            name = [*types][beside[0]]
            raise UsageError(
                f"transform={transform!r}: a function sees one picture alone, so {name!r} cannot "
                "follow it",
                remedy=(
                    "give a transform such as shardio.RandomResizedCrop(224), a function on the "
                    f"whole sample as map=, or leave {name!r} out of fields="
                ),
            )
        _check_types(types, transform)

    def _sized_of(self, entries: Sequence[int]) -> Alternatives:
        """Return fields whose sizes an index may have; the first that a sample has decides."""
        every = chain.from_iterable(self._types[at].items() for at in entries)
        return tuple(field for field, _ in takewhile(lambda each: each[1].sized, every))

    def know(
        self,
        shards: Mapping[int, OpenShard],
        references: References,
        uniforms: NDArray[np.float64],
    ) -> Sequence[Known]:
        """Choose the crops of samples as far as the indexes have their sizes.

        Args:
            shards: shards of the samples by position in the catalog, with their indexes.
            references: samples.
            uniforms: random numbers of the samples, float64 [B, draws].

        Returns:
            What is known for the crop that the pictures of a sample share, then for each of its
            own; nothing if no crop can be chosen.
        """
        if not self.knows_sizes:
            return ()
        sizes = np.zeros((len(self._decisive), len(references.shards), 3), np.int64)
        for number, shard in shards.items():
            slots = np.flatnonzero(references.shards == number)
            for role, fields in enumerate(self._decisive):
                sizes[role, slots] = shard.picture_sizes(references.indices[slots], fields)
        return [self.choose(role, of_role, uniforms) for role, of_role in enumerate(sizes)]

    def choose(self, role: int, sizes: NDArray[np.int64], uniforms: NDArray[np.float64]) -> Known:
        """Choose the crops of the samples of a batch whose sizes are not 0.

        Args:
            role: role of the view.
            sizes: int64 [B, 3], height, width and orientation.
            uniforms: random numbers of the samples, float64 [B, draws].
        """
        slots, crops = np.flatnonzero(sizes[:, 2]), None
        if self._choose is not None and len(slots):
            first = role * self._draws
            own = uniforms[slots, first : first + self._draws]
            crops = self._choose(sizes[slots, 0], sizes[slots, 1], own)
        return Known(slots, sizes[slots], crops)

    def choices(self, known: Sequence[Known], count: int) -> Sequence[Choices]:
        """Return the choices of each sample of a batch, which are empty if none were made."""
        if self._choose is None or not known:
            return [()] * count
        chosen: list[list[Choice | None]] = [[None] * len(known) for _ in range(count)]
        for role, (slots, sizes, crops) in enumerate(known):
            made = zip(map(PictureSize._make, sizes.tolist()), crops or (), strict=True)
            for slot, choice in zip(slots.tolist(), made, strict=True):
                chosen[slot][role] = choice
        return chosen

    def views(
        self,
        stored: Sequence[FieldBytes | None],
        uniforms: NDArray[np.float64],
        choices: Choices = (),
    ) -> Views:
        """Choose what is shown of the pictures of a sample, entry by entry.

        Args:
            stored: fields of the sample, one for each entry.
            uniforms: random numbers, float64 [draws].
            choices: crops chosen before, if any were.

        Raises:
            CodecError: the header of a picture is not sound or not what its index says, or no
                picture is there to follow.
        """
        if self._idle:
            return self._none
        for lead in self._leads:
            found = stored[lead]
            if found is not None:
                break
        else:
            if self._transform is not None and any(stored[at] for at in self._followers):
                raise CodecError(
                    "the sample has no picture that decides the crop of its other fields",
                    remedy="name a picture in fields=",
                )
            return self._none
        view = self._view(lead, found, uniforms, 0, choices)
        views: list[View | None] = [None] * len(stored)
        for at in (*self._pictures, *self._followers):
            views[at] = view
        for role, at in enumerate(self._own, 1):
            found = stored[at]
            if found is not None:
                views[at] = self._view(at, found, uniforms, role, choices)
        return views

    def _view(
        self,
        at: int,
        found: FieldBytes,
        uniforms: NDArray[np.float64],
        role: int,
        choices: Choices,
    ) -> View:
        type_, choice = self._types[at][found.field], choices[role] if choices else None
        try:
            info, crop = picture_info(type_, found.data), None
            if choice is not None:
                known, crop = choice
                if (info.height, info.width, info.orientation) != known:
                    _refuse_size(info, known)
            elif self._transform is not None:
                first = role * self._draws
                drawn = uniforms[first : first + self._draws].tolist()
                crop = self._transform.crop(info.height, info.width, drawn)
        except CodecError as error:
            error.field = found.field
            raise
        return View.of(info, found.field, self.size, crop)


def _check_types(types: Mapping[str, Mapping[str, FieldType]], transform: Any) -> None:
    """Raise UsageError for entries that a transform says too little or too much of."""
    fill, flip = getattr(transform, "fill", "reflect"), getattr(transform, "flip", 0)
    for name, of_entry in types.items():
        first = next(iter(of_entry.values()))
        channels = sorted({each.channels for each in of_entry.values()})
        if len(channels) > 1:
            raise UsageError(
                f"the fields of {name!r} have {' and '.join(map(str, channels))} channels",
                remedy="give all of them one type, as Image('jpg;png', channels=3)",
            )
        several = len(fill) if isinstance(fill, tuple) and first.geometry == "leads" else 1
        if several not in (1, first.channels):
            raise UsageError(
                f"fill={fill}: {name!r} has {counted(first.channels, 'channel')}",
                remedy="give a number for each, or one for all",
            )
        if fill != "reflect" and not first.fills:
            raise UsageError(
                f"the transform may leave a margin beside a picture, and {name!r} does not say "
                "which class it is",
                remedy=f"give its {type(first).__name__} fill=, such as fill=255",
            )
        if flip and not first.mirrors:
            raise UsageError(
                f"the transform mirrors pictures, and {name!r} does not say which of its points "
                "change places",
                remedy=(
                    f"give its {type(first).__name__} flip_pairs=[(0, 1), …] ([] for none), or the "
                    "transform flip=0"
                ),
            )


def _refuse_size(info: ImageInfo, known: PictureSize) -> NoReturn:
    """Raise CodecError for a picture whose header says another size than the index."""
    raise CodecError(
        f"the picture is {info.size}, but the index says {known}",
        remedy="run `shardio index` on the folder of the shard",
    )


def describe_crops(views: Sequence[Views]) -> dict[str, torch.Tensor]:
    """Return the crops of the samples of a batch, as its `__crop__`.

    Returns:
        "box", float32 [B, 4]: left, top, right and bottom of what is shown, in pixels of the
        sample's picture, outside of it where the slot has a margin; "flip", bool [B]: whether it
        is mirrored; "size", int64 [B, 2]: height and width of the picture. A sample
        without a picture has zeros.
    """
    boxes, flips = torch.zeros(len(views), 4), torch.zeros(len(views), dtype=torch.bool)
    sizes = torch.zeros(len(views), 2, dtype=torch.int64)
    for slot, of_sample in enumerate(views):
        view = next((view for view in of_sample if view is not None), None)
        if view is not None:
            boxes[slot] = torch.tensor(view.box)
            flips[slot] = view.flipped
            sizes[slot] = torch.tensor([view.height, view.width])
    return {"box": boxes, "flip": flips, "size": sizes}
