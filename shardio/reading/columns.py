"""Which fields of a shard become which entries of a sample.

A mapping names an entry and its alternatives as WebDataset writes them: "jpg;jpeg;png". By
default the images of a sample become `image`, `cls` becomes `label`, the rest keep their names;
when samples hold several images, each keeps its own name.

The entries of a batch while it is filled: one column a field, one slot a sample.

Threads fill different slots at once. A sample is decoded whole before any of it is placed, so
that a bad one leaves no trace. Images with a sized transform are the exception that nobody sees:
they go straight from the decoder's scratch buffer into their slot. Other arrays set the column's
kind, which is shape and dtype, with the first one that comes. Everything else is a list.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from shardio.errors import (
    CodecError,
    MisfitError,
    SituationError,
    TransformError,
    UsageError,
    quoted,
    shown,
)
from shardio.fields.arrays import decode_cls, is_picture, parse_numbers, split_npy
from shardio.fields.base import IMAGE_FIELDS, PIXELS_FIELD, decode_field, is_mask, kind_of
from shardio.fields.image import Scratch, decode_part, write_crop, write_part
from shardio.fields.probe import probe_image
from shardio.processes import new_lock
from shardio.reading.gather import Rows
from shardio.reading.handover import Allocate
from shardio.reading.shards import FieldBytes
from shardio.reading.times import Stopwatch
from shardio.transforms import SizedTransform

Fields = dict[str, tuple[str, ...]]
_PICTURES = IMAGE_FIELDS | {PIXELS_FIELD}
_RESERVED = ("__key__", "valid", "__epoch__", "__step__", "__source__")


def default_fields(names: Sequence[str], together: Sequence[Sequence[str]]) -> Fields:
    """The mapping when the user gives none.

    Args:
        names: all fields of the dataset.
        together: sets of fields that occur in one sample.

    Raises:
        UsageError: two fields would fill one entry, or one has a name that shardio takes.
    """
    images = tuple(name for name in names if name in _PICTURES)
    if any(sum(name in _PICTURES for name in sample) > 1 for sample in together):
        images = ()
    fields = {"image": images} if images else {}
    if "cls" in names:
        fields["label"] = ("cls",)
    rest = {name: (name,) for name in names if name not in images and name != "cls"}
    for name in rest:
        if name in fields or name in _RESERVED:
            raise SituationError(
                f"the shards have a field {quoted(name)}, a name that "
                f"{';'.join(fields.get(name, ['shardio itself']))} takes",
                remedy=f"give it another with fields={{'other': {quoted(name)}, …}}",
            )
    return fields | rest


def parse_fields(fields: Mapping[str, str], names: Sequence[str], *, decode: bool) -> Fields:
    """The mapping that a user wrote, checked against the fields of the dataset.

    Raises:
        UsageError: a name is reserved, or its alternatives do not exist or decode differently.
    """
    if not fields:
        raise UsageError("fields={}: it names no entry", remedy="leave it out, or name one")
    parsed: Fields = {}
    for name, alternatives in fields.items():
        if name in _RESERVED:
            raise UsageError(f"fields: {name!r} is taken by shardio", remedy="choose another name")
        parsed[name] = tuple(part.strip().lower() for part in alternatives.split(";"))
        if not set(parsed[name]) & set(names):
            raise UsageError(
                f"fields: no sample has {alternatives!r} for {name!r}",
                remedy=f"the dataset has the fields {', '.join(map(shown, names)) or 'none'}",
            )
        kinds = {kind_of(alternative).replace("pixels", "image") for alternative in parsed[name]}
        if decode and len(kinds) > 1:
            raise UsageError(
                f"fields: {alternatives!r} for {name!r} decode to {' and '.join(sorted(kinds))}",
                remedy="give alternatives of one kind, or read with decode=False",
            )
    return parsed


Transform = SizedTransform | Callable[[torch.Tensor], Any]
Kind = tuple[tuple[int, ...], Any]
"""Shape and dtype of an array or tensor."""


class Column(Protocol):
    """One entry of a batch."""

    def decode(
        self, slot: int, stored: FieldBytes, uniforms: Sequence[float], watch: Stopwatch
    ) -> Any:
        """Decode a field of a sample, and note when each stage of that ends.

        Raises:
            CodecError: the bytes do not decode, or to what no batch can hold.
            TransformError: the transform raised.
        """

    def place(self, slot: int, value: Any) -> None:
        """Put what was decoded into its slot.

        Raises:
            MisfitError: the value is of another kind than the others.
        """

    def collect(self) -> Any:
        """The finished entry."""


class RowColumn(Column, Protocol):
    """An entry that may be filled many slots at once."""

    def place_rows(self, slots: NDArray[np.int64], rows: Rows) -> bool:
        """Decode members into their slots; False, with nothing placed, if they are not alike."""


class SizedImages:
    """Images of one size, uint8 [B, 3, h, w] in channels-last memory.

    Masks are decoded whole and cut without blending, so that no class appears that they lack.

    Args:
        slots: how many.
        transform: of each image.
        scratch: where images are decoded.
        reduced: let large JPEGs be decoded at a part of their size.
        max_pixels: greatest number of pixels of an image.
        allocate: makes the array.
    """

    def __init__(
        self,
        slots: int,
        transform: SizedTransform,
        scratch: Scratch,
        *,
        reduced: bool,
        max_pixels: int,
        allocate: Allocate,
    ) -> None:
        self._transform = transform
        self._size = transform.size
        self._scratch = scratch
        self._reduced = reduced
        self._max_pixels = max_pixels
        self._batch = allocate((slots, *transform.size, 3), torch.uint8)
        self._slots: NDArray[np.uint8] = self._batch.numpy()

    def decode(
        self, slot: int, stored: FieldBytes, uniforms: Sequence[float], watch: Stopwatch
    ) -> None:
        """See Column."""
        mask = is_mask(stored.field)
        if mask or kind_of(stored.field) == "pixels":
            pixels: Any = decode_field(
                stored.field, stored.data, max_pixels=self._max_pixels, verified=stored.verified
            )
            watch.decoded()
            crop = self._transform.crop(pixels.shape[0], pixels.shape[1], uniforms)
            write_crop(pixels, crop, self._slots[slot], nearest=mask)
        else:
            info = probe_image(stored.data, max_pixels=self._max_pixels)
            crop = self._transform.crop(info.height, info.width, uniforms)
            part = decode_part(
                stored.data,
                info,
                crop,
                self._size,
                scratch=self._scratch,
                reduced=self._reduced,
                verified=stored.verified,
            )
            watch.decoded()
            write_part(part, info, crop, self._slots[slot])
        watch.transformed()

    def place(self, slot: int, value: None) -> None:
        """See Column."""

    def collect(self) -> torch.Tensor:
        """See Column."""
        return self._batch.permute(0, 3, 1, 2)


class Stack(ABC):
    """Arrays or tensors of one kind, a tensor [B, …].

    Args:
        slots: how many.
        max_pixels: greatest number of pixels of an image.
        allocate: makes the tensor.

    Attributes:
        kind: that all slots have, once there is one.
    """

    def __init__(self, slots: int, *, max_pixels: int, allocate: Allocate) -> None:
        self._num_slots = slots
        self._max_pixels = max_pixels
        self._allocate = allocate
        self._batch = torch.empty(0)
        self.kind: Kind | None = None
        self._kinds: dict[int, Kind] = {}  # of slots that were decoded one by one
        self._lock = new_lock()

    def kind_of(self, slot: int) -> Kind | None:
        """Kind of what was decoded for a slot; of the column if that was not done one by one."""
        return self._kinds.get(slot, self.kind)

    def begin_anew(self, kind: Kind) -> None:
        """Empty all slots, for values of a kind that a slot has."""
        self.kind = None
        self._prepare(*kind)

    def _prepare(self, shape: tuple[int, ...], dtype: Any) -> None:
        """Make the tensor for values of a kind, if there is none."""
        with self._lock:
            if self.kind is None:
                self._make(shape, dtype)
                self.kind = (shape, dtype)

    @abstractmethod
    def _make(self, shape: tuple[int, ...], dtype: Any) -> None:
        """Make the tensor for values of a kind."""


class Transformed(Stack):
    """What a callable makes of images: a tensor [B, …] of one kind.

    Args:
        slots: how many.
        transform: from uint8 [3, H, W] to a tensor.
        max_pixels: greatest number of pixels of an image.
        allocate: makes the tensor.
    """

    def __init__(
        self,
        slots: int,
        transform: Callable[[torch.Tensor], Any],
        *,
        max_pixels: int,
        allocate: Allocate,
    ) -> None:
        super().__init__(slots, max_pixels=max_pixels, allocate=allocate)
        self._transform = transform

    def decode(
        self, slot: int, stored: FieldBytes, uniforms: Sequence[float], watch: Stopwatch
    ) -> torch.Tensor:
        """See Column."""
        del uniforms
        pixels: Any = decode_field(
            stored.field, stored.data, max_pixels=self._max_pixels, verified=stored.verified
        )
        watch.decoded()
        value = _apply(self._transform, torch.from_numpy(pixels).permute(2, 0, 1))
        watch.transformed()
        self._kinds[slot] = (value.shape, value.dtype)
        return value

    def place(self, slot: int, value: torch.Tensor) -> None:
        """See Column."""
        self._prepare(value.shape, value.dtype)
        batch = self._batch
        if value.shape != batch.shape[1:] or value.dtype != batch.dtype:
            raise _misfit((value.shape, value.dtype), (batch.shape[1:], batch.dtype))
        batch[slot] = value

    def collect(self) -> torch.Tensor | None:
        """See Column."""
        return None if self.kind is None else self._batch

    def _make(self, shape: tuple[int, ...], dtype: Any) -> None:
        if len(shape) == 3:  # pictures, in channels-last memory
            channels, height, width = shape
            pictures = self._allocate((self._num_slots, height, width, channels), dtype)
            self._batch = pictures.permute(0, 3, 1, 2)
        else:
            self._batch = self._allocate((self._num_slots, *shape), dtype)


class Arrays(Stack):
    """NumPy arrays of one kind, a tensor [B, …]; images are [B, 3, H, W].

    Args:
        slots: how many.
        image: they are images.
        max_pixels: greatest number of pixels of an image.
        allocate: makes the tensor.
    """

    def __init__(self, slots: int, *, image: bool, max_pixels: int, allocate: Allocate) -> None:
        super().__init__(slots, max_pixels=max_pixels, allocate=allocate)
        self._image = image
        self._slots: NDArray[Any] = np.empty(0)

    def decode(
        self, slot: int, stored: FieldBytes, uniforms: Sequence[float], watch: Stopwatch
    ) -> NDArray[Any]:
        """See Column."""
        del uniforms
        decoded: Any = decode_field(
            stored.field, stored.data, max_pixels=self._max_pixels, verified=stored.verified
        )
        watch.decoded()
        value: NDArray[Any] = np.asarray(decoded)
        _torch_dtype(value.dtype, value.ndim)
        self._kinds[slot] = (value.shape, value.dtype)
        return value

    def place(self, slot: int, value: NDArray[Any]) -> None:
        """See Column."""
        self._prepare(value.shape, value.dtype)
        if value.shape != self._slots.shape[1:] or value.dtype != self._slots.dtype:
            raise _misfit(
                (self._shown(value.shape), value.dtype),
                (self._shown(self._slots.shape[1:]), self._slots.dtype),
            )
        self._slots[slot] = value

    def collect(self) -> torch.Tensor | None:
        """See Column."""
        if self.kind is None:
            return None
        return self._batch.permute(0, 3, 1, 2) if self._image else self._batch

    def _make(self, shape: tuple[int, ...], dtype: Any) -> None:
        self._batch = self._allocate((self._num_slots, *shape), _torch_dtype(dtype, len(shape)))
        self._slots = self._batch.numpy()

    def _shown(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[2], *shape[:2]) if self._image else shape


class StackedArrays(Arrays):
    """Arrays that are stored as arrays, of which many may be copied at once."""

    def place_rows(self, slots: NDArray[np.int64], rows: Rows) -> bool:
        """See RowColumn."""
        found = split_npy(rows.block)
        if found is None:
            return False
        data, dtype, shape = found
        if self._image and not is_picture(dtype, shape):
            return False
        try:
            self._prepare(shape, dtype)
        except CodecError:  # raised again, with its place, when the samples are read one by one
            return False
        if shape != self._slots.shape[1:] or dtype != self._slots.dtype:
            return False
        flat = self._slots.reshape(self._num_slots, -1).view(np.uint8)
        flat[slots] = data
        return True


class Labels:
    """Class numbers, int64 [B].

    Args:
        slots: how many.
    """

    def __init__(self, slots: int) -> None:
        self._labels = np.zeros(slots, np.int64)

    def decode(
        self, slot: int, stored: FieldBytes, uniforms: Sequence[float], watch: Stopwatch
    ) -> int:
        """See Column."""
        del slot, uniforms
        number = decode_cls(stored.data)
        watch.decoded()
        return number

    def place(self, slot: int, value: int) -> None:
        """See Column."""
        self._labels[slot] = value

    def place_rows(self, slots: NDArray[np.int64], rows: Rows) -> bool:
        """See RowColumn."""
        numbers = parse_numbers(rows.block, rows.sizes)
        if numbers is None:
            return False
        self._labels[slots] = numbers
        return True

    def collect(self) -> torch.Tensor:
        """See Column."""
        return torch.from_numpy(self._labels)


class Values:
    """Anything else, a list of B values; undecoded fields stay bytes.

    Args:
        slots: how many.
        decode: False leaves the field as bytes.
    """

    def __init__(self, slots: int, *, decode: bool) -> None:
        self._values: list[Any] = [None] * slots
        self._decode = decode

    def decode(
        self, slot: int, stored: FieldBytes, uniforms: Sequence[float], watch: Stopwatch
    ) -> Any:
        """See Column."""
        del slot, uniforms
        data = stored.data
        value = decode_field(stored.field, data) if self._decode else bytes(data)
        watch.decoded()
        return value

    def place(self, slot: int, value: Any) -> None:
        """See Column."""
        self._values[slot] = value

    def collect(self) -> list[Any]:
        """See Column."""
        return self._values


def _apply(transform: Callable[[torch.Tensor], Any], value: torch.Tensor) -> torch.Tensor:
    try:
        found = transform(value)
    except Exception as error:
        raise TransformError(f"the transform raised {type(error).__name__}: {error}") from error
    try:
        return torch.as_tensor(found).detach()
    except Exception as error:  # of whatever it is
        kind = type(found).__name__
        raise TransformError(
            f"the transform returned a {kind}, not a tensor or an array of numbers"
        ) from error


@lru_cache(maxsize=256)
def _torch_dtype(dtype: np.dtype[Any], dimensions: int) -> torch.dtype:
    """Return torch's dtype for one of NumPy.

    Raises:
        CodecError: torch has none, or no batch holds arrays of so many dimensions.
    """
    try:
        found = torch.from_numpy(np.empty(0, dtype)).dtype
    except TypeError as error:
        raise CodecError(
            f"torch has no dtype for {dtype}", remedy="read the field with decode=False"
        ) from error
    try:
        torch.empty((0,) * (dimensions + 1), dtype=found).numpy()
    except ValueError as error:
        raise CodecError(
            f"no batch can hold arrays of {dimensions} dimensions",
            remedy="read the field with decode=False",
        ) from error
    return found


def _misfit(
    found: tuple[Sequence[int], object], wanted: tuple[Sequence[int], object]
) -> MisfitError:
    (found_shape, found_dtype), (shape, dtype) = found, wanted
    side = min(224, *shape[-2:]) if len(shape) > 1 else 224
    return MisfitError(
        f"it is {'×'.join(map(str, found_shape))} {found_dtype}, others of the batch are "
        f"{'×'.join(map(str, shape))} {dtype}",
        remedy="give a transform that makes them equal, such as "
        f"shardio.RandomResizedCrop({side}), or read samples without batch_size",
    )
