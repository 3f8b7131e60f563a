"""The entries of a batch that hold transformed pictures, and the choice of an entry's column.

Pictures with a sized transform go straight from the decoder's scratch buffer into their slot. What
a callable of the user makes of pictures is stacked, whatever it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from shardio.errors import CodecError, TransformError
from shardio.fields.arrays import is_picture
from shardio.fields.base import Dense, FieldType
from shardio.fields.geometry import Crop, View
from shardio.fields.image import DecodedPart, Scratch, decode_part, write_part
from shardio.fields.probe import ImageInfo
from shardio.reading.columns import (
    Arrays,
    ArraysInRows,
    Column,
    Found,
    Listed,
    Numbers,
    NumbersInRows,
    Padded,
    Stack,
    Types,
)
from shardio.reading.handover import Allocate
from shardio.reading.kinds import misfit
from shardio.reading.shards import FieldBytes
from shardio.reading.times import Stopwatch
from shardio.transforms import SizedTransform

Transform = SizedTransform | Callable[[torch.Tensor], Any]


def column_maker(
    types: Types,
    *,
    transform: Transform | None,
    scratch: Scratch,
    reduced: bool,
    allocate: Allocate,
) -> Callable[[int], Column]:
    """Return a function that makes the column of an entry from a number of slots.

    Args:
        types: types of the entry's alternatives, which are batched alike.
        transform: transform of pictures.
        scratch: buffer where image files are decoded.
        reduced: let large JPEGs be decoded at a part of their size.
        allocate: makes the arrays.
    """
    first = next(iter(types.values()))
    batching, picture = first.batching, first.geometry == "leads"
    if picture and transform is not None:
        if not isinstance(transform, SizedTransform):
            return partial(Transformed, types=types, transform=transform, allocate=allocate)
        return partial(
            SizedImages,
            types=types,
            size=transform.size,
            scratch=scratch,
            reduced=reduced,
            allocate=allocate,
        )
    in_rows = first.in_rows and first.geometry != "follows"
    if isinstance(batching, Dense):
        return partial(
            NumbersInRows if in_rows else Numbers, types=types, dense=batching, allocate=allocate
        )
    if picture or batching == "stack":
        stacked = ArraysInRows if in_rows else Arrays
        return partial(stacked, types=types, image=picture, allocate=allocate)
    if batching == "list":
        return partial(Listed, types=types)
    made = Padded if batching == "padded" else Found
    return partial(made, types=types, allocate=allocate)


class SizedImages:
    """Pictures of one size, uint8 [B, channels, h, w] in channels-last memory.

    Args:
        slots: number of slots.
        types: see column_maker.
        size: height and width of the slots.
        scratch: buffer where image files are decoded.
        reduced: let large JPEGs be decoded at a part of their size.
        allocate: makes the array.

    Attributes:
        picture: whether an entry holds pictures.
        batch: tensor of all slots, uint8 [B, h, w, channels].
        slots: the same memory as an array.
    """

    picture = True

    def __init__(
        self,
        slots: int,
        *,
        types: Types,
        size: tuple[int, int],
        scratch: Scratch,
        reduced: bool,
        allocate: Allocate,
    ) -> None:
        self._types = types
        self._size = size
        self._scratch = scratch
        self._reduced = reduced
        self._channels = next(iter(types.values())).channels
        self.batch = allocate((slots, *size, self._channels), torch.uint8)
        self.slots: NDArray[np.uint8] = self.batch.numpy()
        self._pictures = self.batch.permute(0, 3, 1, 2)

    def decode(self, slot: int, stored: FieldBytes, view: View | None, watch: Stopwatch) -> None:
        """See Column."""
        view = cast("View", view)
        crop = cast("Crop", view.crop)
        type_ = self._types[stored.field]
        leads = view.field == stored.field
        info = view.info if leads else type_.probe(stored.data)
        reduction = 1 if leads or info is None else view.reduction(info.height, info.width)
        if info is not None and type_.image_file and reduction == 1:
            part = decode_part(
                stored.data,
                info,
                crop,
                self._size,
                scratch=self._scratch,
                reduced=self._reduced,
                verified=stored.verified,
                channels=self._channels,
            )
        else:
            pixels = _decode_picture(type_, stored)
            part = DecodedPart(pixels, view.reduction(*pixels.shape[:2]))
            info = ImageInfo(format=type_.name, height=view.height, width=view.width)
        watch.decoded()
        write_part(part, info, crop, self.slots[slot])
        watch.transformed()

    def shown(self, slot: int, value: None) -> torch.Tensor:
        """See Column."""
        del value
        return self._pictures[slot]

    def place(self, slot: int, value: None) -> None:
        """See Column."""

    def slots_for(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[np.uint8] | None:
        """Return all slots, for pictures that are put there directly; see Arrays."""
        return self.slots if (shape, dtype) == (self.slots.shape[1:], self.slots.dtype) else None

    def value_in(self, slot: int) -> None:
        """See InPlace: nothing stands for a picture in its slot."""
        del slot

    def collect(self, name: str, blank: Sequence[int]) -> dict[str, Any]:
        """See Column."""
        self.slots[blank] = 0
        return {name: self._pictures}


class Transformed(Stack):
    """What a callable makes of images: a tensor [B, …] of one kind.

    Args:
        slots: number of slots.
        types: see column_maker.
        transform: function from uint8 [channels, H, W] to a tensor.
        allocate: makes the tensor.

    Attributes:
        picture: whether the entry holds pictures.
    """

    picture = True

    def __init__(
        self,
        slots: int,
        *,
        types: Types,
        transform: Callable[[torch.Tensor], Any],
        allocate: Allocate,
    ) -> None:
        super().__init__(slots, types=types, allocate=allocate)
        self._transform = transform

    def decode(
        self, slot: int, stored: FieldBytes, view: View | None, watch: Stopwatch
    ) -> torch.Tensor:
        """See Column."""
        del view
        pixels = _decode_picture(self._types[stored.field], stored)
        watch.decoded()
        value = _apply(self._transform, torch.from_numpy(pixels).permute(2, 0, 1))
        watch.transformed()
        self._kinds[slot] = (value.shape, value.dtype)
        return value

    def shown(self, slot: int, value: torch.Tensor) -> torch.Tensor:
        """See Column."""
        del slot
        return value

    def place(self, slot: int, value: torch.Tensor) -> None:
        """See Column."""
        self._prepare((value.shape, value.dtype))
        batch = self._batch
        if value.shape != batch.shape[1:] or value.dtype != batch.dtype:
            raise misfit((value.shape, value.dtype), (batch.shape[1:], batch.dtype), image=True)
        batch[slot] = value

    def _make(self, shape: tuple[int, ...], dtype: Any) -> None:
        if len(shape) == 3:  # pictures, in channels-last memory
            channels, height, width = shape
            pictures = self._allocate((self._num_slots, height, width, channels), dtype)
            self._batch = pictures.permute(0, 3, 1, 2)
        else:
            self._batch = self._allocate((self._num_slots, *shape), dtype)


def _decode_picture(type_: FieldType, stored: FieldBytes) -> Any:
    """Decode a picture whole, uint8 [H, W, channels].

    Raises:
        CodecError: the bytes do not decode, or to something else.
    """
    pixels = (type_.decode_verified if stored.verified else type_.decode)(stored.data)
    channels = type_.channels
    if not (isinstance(pixels, np.ndarray) and is_picture(pixels.dtype, pixels.shape, channels)):
        raise CodecError(
            f"the field type {type_.name} decodes to no uint8 [H, W, {channels}], as crops need"
        )
    return pixels


def _apply(transform: Callable[[torch.Tensor], Any], value: torch.Tensor) -> torch.Tensor:
    try:
        found = transform(value)
    except Exception as error:
        raise TransformError(
            f"the transform raised {type(error).__name__}: {error}",
            remedy=(
                "it gets a uint8 tensor [3, H, W]; a function of PIL images is wrapped in "
                "shardio.FromPIL(…)"
            ),
        ) from error
    try:
        return torch.as_tensor(found).detach()
    except MemoryError:
        raise
    except Exception as error:  # of whatever it is
        kind = type(found).__name__
        raise TransformError(
            f"the transform returned a {kind}, not a tensor or an array of numbers"
        ) from error
