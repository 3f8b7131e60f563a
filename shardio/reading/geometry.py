"""One geometry a sample: which crop each entry of a batch gets.

The first picture of a sample decides the crop of its transform, from its size and the sample's
random numbers. Everything that follows it, masks, boxes, other pictures, gets the same view. An
image whose type says crop="own" gets random numbers and a crop of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from shardio.errors import CodecError, UsageError
from shardio.fields.base import FieldType
from shardio.fields.exif import FIRST_TURNED
from shardio.fields.geometry import View
from shardio.fields.probe import ImageInfo
from shardio.reading.shards import FieldBytes
from shardio.transforms import SizedTransform

Views = Sequence[View | None]


class SampleGeometry:
    """Chooses the views of samples.

    Args:
        types: types of the alternatives of each entry, by field name.
        transform: transform of pictures.

    Attributes:
        draws: number of random numbers that a sample needs.

    Raises:
        UsageError: an entry cannot follow the transform.
    """

    def __init__(self, types: Mapping[str, Mapping[str, FieldType]], transform: Any) -> None:
        firsts = [next(iter(of_entry.values())) for of_entry in types.values()]
        leads = [at for at, each in enumerate(firsts) if each.geometry == "leads"]
        follows = [at for at, each in enumerate(firsts) if each.geometry == "follows"]
        own = [at for at in leads if getattr(firsts[at], "crop", "shared") == "own"]
        shared = [at for at in leads if at not in own] or own[:1]
        own = [at for at in own if at not in shared]
        self._transform = transform if isinstance(transform, SizedTransform) else None
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
        if transform is not None and self._transform is None and follows:
            name = [*types][follows[0]]
            raise UsageError(
                f"transform={transform!r}: a function sees the picture alone, so {name!r} cannot "
                "follow it",
                remedy=(
                    "give a transform such as shardio.RandomResizedCrop(224), or leave "
                    f"{name!r} out of fields="
                ),
            )
        if getattr(transform, "flip", 0):
            for name, first in zip(types, firsts, strict=True):
                if not first.mirrors:
                    raise UsageError(
                        f"the transform mirrors pictures, and {name!r} does not say which of its "
                        "points change places",
                        remedy=(
                            f"give its {type(first).__name__} flip_pairs=[(0, 1), …] ([] for "
                            "none), or the transform flip=0"
                        ),
                    )

    def views(self, stored: Sequence[FieldBytes | None], uniforms: Sequence[float]) -> Views:
        """Choose what is shown of the pictures of a sample, entry by entry.

        Args:
            stored: fields of the sample, one for each entry.
            uniforms: `draws` random numbers.

        Raises:
            CodecError: the header of a picture is not sound, or no picture is there to follow.
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
        view = self._view(lead, found, uniforms[: self._draws])
        views: list[View | None] = [None] * len(stored)
        for at in (*self._pictures, *self._followers):
            views[at] = view
        for number, at in enumerate(self._own, 1):
            found = stored[at]
            if found is not None:
                first = number * self._draws
                views[at] = self._view(at, found, uniforms[first : first + self._draws])
        return views

    def _view(self, at: int, found: FieldBytes, uniforms: Sequence[float]) -> View:
        type_ = self._types[at][found.field]
        try:
            info = type_.probe(found.data)
            if info is None:  # as of a user's type, which has decode alone
                height, width = type_.decode(found.data).shape[:2]
                info = ImageInfo(format=type_.name, height=height, width=width)
        except CodecError as error:
            error.field = found.field
            raise
        transform, size, crop = self._transform, (info.height, info.width), None
        if transform is not None:
            crop, size = transform.crop(*size, uniforms), transform.size
        return View(
            height=info.height,
            width=info.width,
            size=size,
            turned=info.orientation >= FIRST_TURNED,
            field=found.field,
            crop=crop,
            info=info,
        )


def describe_crops(views: Sequence[Views]) -> dict[str, torch.Tensor]:
    """Return the crops of the samples of a batch, as its `__crop__`.

    Returns:
        "box", float32 [B, 4]: left, top, right and bottom of what is shown, in pixels of the
        sample's picture; "flip", bool [B]: whether it is mirrored; "size", int64 [B, 2]: height
        and width of the picture. A sample without a picture has zeros.
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
