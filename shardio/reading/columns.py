"""The entries of a batch: which fields fill them, and how their values are put together.

A mapping names an entry and its alternatives as WebDataset writes them, "jpg;jpeg;png", or a field
type with its alternatives. By default the images of a sample become `image`, `cls` becomes `label`,
the rest keep their names; when samples hold several images, each keeps its own name.

While a batch is filled, an entry is a column with a slot for each sample. The field type says how
values are batched; the column turns that into tensors. Threads fill different slots at once. A
sample is decoded whole before any of it is placed, so that a bad one leaves no trace. Pictures with
a sized transform are the exception that nobody sees: they go straight from the decoder's scratch
buffer into their slot. Other arrays set the column's kind, which is shape and dtype, with the first
one that comes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
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
from shardio.fields.arrays import NUMBERS
from shardio.fields.base import LABEL_FIELD, Dense, FieldType
from shardio.fields.defaults import check_type, type_of
from shardio.fields.image import Scratch, decode_part, write_crop, write_part
from shardio.processes import new_lock
from shardio.reading.gather import Rows
from shardio.reading.handover import Allocate
from shardio.reading.shards import FieldBytes
from shardio.reading.times import Stopwatch
from shardio.transforms import SizedTransform

Fields = dict[str, tuple[str, ...]]
Types = Mapping[str, FieldType]
"""The types of an entry's alternatives, by field name."""
_RESERVED = ("__key__", "valid", "__epoch__", "__step__", "__source__")


def default_fields(names: Sequence[str], together: Sequence[Sequence[str]]) -> Fields:
    """The mapping when the user gives none.

    Args:
        names: all fields of the dataset.
        together: sets of fields that occur in one sample.

    Raises:
        UsageError: two fields would fill one entry, or one has a name that shardio takes.
    """
    images = tuple(filter(_is_picture, names))
    if any(sum(map(_is_picture, sample)) > 1 for sample in together):
        images = ()
    fields = {"image": images} if images else {}
    if LABEL_FIELD in names:
        fields["label"] = (LABEL_FIELD,)
    rest = {name: (name,) for name in names if name not in images and name != LABEL_FIELD}
    for name in rest:
        if name in fields or name in _RESERVED:
            raise SituationError(
                f"the shards have a field {quoted(name)}, a name that "
                f"{';'.join(fields.get(name, ['shardio itself']))} takes",
                remedy=f"give it another with fields={{'other': {quoted(name)}, …}}",
            )
    return fields | rest


def _is_picture(name: str) -> bool:
    """Whether a field is a picture, and has no name beside that."""
    found = type_of(name)
    return name in found.names and found.geometry == "blended"


def parse_fields(
    fields: Mapping[str, str | FieldType], names: Sequence[str], *, decode: bool
) -> Fields:
    """The mapping that a user wrote, checked against the fields of the dataset.

    Raises:
        UsageError: a name is reserved, or its alternatives do not exist or decode differently.
    """
    if not fields:
        raise UsageError("fields={}: it names no entry", remedy="leave it out, or name one")
    parsed: Fields = {}
    for name, given in fields.items():
        if name in _RESERVED:
            raise UsageError(f"fields: {name!r} is taken by shardio", remedy="choose another name")
        alternatives = given if isinstance(given, str) else check_type(name, given).fields
        parsed[name] = tuple(part.strip().lower() for part in alternatives.split(";"))
        if not set(parsed[name]) & set(names):
            raise UsageError(
                f"fields: no sample has {alternatives!r} for {name!r}",
                remedy=f"the dataset has the fields {', '.join(map(shown, names)) or 'none'}",
            )
        types = entry_types(name, parsed[name], fields).values()
        kinds = {"image" if each.geometry else each.name for each in types}
        if decode and len(kinds) > 1:
            raise UsageError(
                f"fields: {alternatives!r} for {name!r} decode to {' and '.join(sorted(kinds))}",
                remedy="give alternatives of one kind, or read with decode=False",
            )
    return parsed


def entry_types(
    entry: str, alternatives: Sequence[str], given: Mapping[str, str | FieldType] | None
) -> dict[str, FieldType]:
    """The types of an entry's alternatives, by field name.

    Args:
        entry: name of the entry.
        alternatives: fields that fill it.
        given: mapping of a user, if there is one.
    """
    own = given[entry] if given is not None else None
    return {each: own if isinstance(own, FieldType) else type_of(each) for each in alternatives}


def column_maker(
    types: Types,
    *,
    transform: Transform | None,
    scratch: Scratch,
    reduced: bool,
    allocate: Allocate,
) -> Callable[[int], Column]:
    """What makes the column of an entry, of as many slots as it is called with.

    Args:
        types: types of the entry's alternatives, which are batched alike.
        transform: transform of pictures.
        scratch: buffer where image files are decoded.
        reduced: let large JPEGs be decoded at a part of their size.
        allocate: makes the arrays.
    """
    first = next(iter(types.values()))
    batching, picture = first.batching, first.geometry is not None
    if picture and transform is not None:
        if not isinstance(transform, SizedTransform):
            return partial(Transformed, types=types, transform=transform, allocate=allocate)
        return partial(
            SizedImages,
            types=types,
            transform=transform,
            scratch=scratch,
            reduced=reduced,
            allocate=allocate,
        )
    if isinstance(batching, Dense):
        made = NumbersInRows if first.in_rows else Numbers
        return partial(made, types=types, dense=batching)
    if picture or batching == "stack":
        stacked = ArraysInRows if first.in_rows else Arrays
        return partial(stacked, types=types, image=picture, allocate=allocate)
    if batching == "list":
        return partial(Listed, types=types)
    return partial(Found, types=types, image=False, allocate=allocate)


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
        slots: number of slots.
        types: see column_maker.
        transform: transform of each image.
        scratch: buffer where image files are decoded.
        reduced: let large JPEGs be decoded at a part of their size.
        allocate: makes the array.
    """

    def __init__(
        self,
        slots: int,
        *,
        types: Types,
        transform: SizedTransform,
        scratch: Scratch,
        reduced: bool,
        allocate: Allocate,
    ) -> None:
        self._types = types
        self._transform = transform
        self._size = transform.size
        self._scratch = scratch
        self._reduced = reduced
        self._batch = allocate((slots, *transform.size, 3), torch.uint8)
        self._slots: NDArray[np.uint8] = self._batch.numpy()

    def decode(
        self, slot: int, stored: FieldBytes, uniforms: Sequence[float], watch: Stopwatch
    ) -> None:
        """See Column."""
        type_ = self._types[stored.field]
        mask = type_.geometry == "nearest"
        info = type_.probe(stored.data) if type_.image_file and not mask else None
        if info is None:
            pixels = _decode_picture(type_, stored)
            watch.decoded()
            crop = self._transform.crop(pixels.shape[0], pixels.shape[1], uniforms)
            write_crop(pixels, crop, self._slots[slot], nearest=mask)
        else:
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
        slots: number of slots.
        types: see column_maker.
        allocate: makes the tensor.

    Attributes:
        kind: that all slots have, once there is one.
    """

    def __init__(self, slots: int, *, types: Types, allocate: Allocate) -> None:
        self._num_slots = slots
        self._types = types
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
        slots: number of slots.
        types: see column_maker.
        transform: from uint8 [3, H, W] to a tensor.
        allocate: makes the tensor.
    """

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
        self, slot: int, stored: FieldBytes, uniforms: Sequence[float], watch: Stopwatch
    ) -> torch.Tensor:
        """See Column."""
        del uniforms
        pixels = _decode_picture(self._types[stored.field], stored)
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
            raise _misfit((value.shape, value.dtype), (batch.shape[1:], batch.dtype), image=True)
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
        slots: number of slots.
        types: see column_maker.
        image: whether they are images.
        allocate: makes the tensor.
    """

    def __init__(self, slots: int, *, types: Types, image: bool, allocate: Allocate) -> None:
        super().__init__(slots, types=types, allocate=allocate)
        self._image = image
        self._slots: NDArray[Any] = np.empty(0)

    def decode(
        self, slot: int, stored: FieldBytes, uniforms: Sequence[float], watch: Stopwatch
    ) -> NDArray[Any]:
        """See Column."""
        del uniforms
        type_ = self._types[stored.field]
        decoded = (type_.decode_verified if stored.verified else type_.decode)(stored.data)
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
                image=self._image,
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


class ArraysInRows(Arrays):
    """Arrays of which many may be decoded at once."""

    def place_rows(self, slots: NDArray[np.int64], rows: Rows) -> bool:
        """See RowColumn."""
        found = _decode_rows(self._types, rows)
        if found is None:
            return False
        shape, dtype = found.shape[1:], found.dtype
        try:
            self._prepare(shape, dtype)
        except CodecError:  # raised again, with its place, when the samples are read one by one
            return False
        if shape != self._slots.shape[1:] or dtype != self._slots.dtype:
            return False
        flat = self._slots.reshape(self._num_slots, -1).view(np.uint8)
        flat[slots] = found.reshape(len(found), -1).view(np.uint8)
        return True


_LISTED: Kind = ((), None)
"""Kind of values that are not arrays of numbers."""


class Found(Arrays):
    """Values of a type that does not say how they are batched.

    Arrays and tensors of numbers are stacked, anything else is a list.
    """

    _values: list[Any]

    def decode(
        self, slot: int, stored: FieldBytes, uniforms: Sequence[float], watch: Stopwatch
    ) -> Any:
        """See Column."""
        del uniforms
        value = self._types[stored.field].decode(stored.data)
        watch.decoded()
        self._kinds[slot] = _LISTED
        if isinstance(value, torch.Tensor):
            value = _as_array(value)
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in NUMBERS:
            value = np.asarray(value)
            _torch_dtype(value.dtype, value.ndim)
            self._kinds[slot] = (value.shape, value.dtype)
        return value

    def place(self, slot: int, value: Any) -> None:
        """See Column."""
        listed = self._kinds[slot] is _LISTED
        self._prepare(*self._kinds[slot])
        if listed != self._is_listed():
            raise MisfitError(
                f"it is of the type {type(value).__name__}, others of the batch are "
                f"{'' if listed else 'not '}arrays of numbers; set the field type's batching to "
                "'list'"
            )
        if listed:
            self._values[slot] = value
        else:
            super().place(slot, value)

    def collect(self) -> Any:
        """See Column."""
        return self._values if self._is_listed() else super().collect()

    def _is_listed(self) -> bool:
        return self.kind is not None and self.kind[1] is None

    def _make(self, shape: tuple[int, ...], dtype: Any) -> None:
        if dtype is None:
            self._values = [None] * self._num_slots
        else:
            super()._make(shape, dtype)


class Numbers:
    """Numbers of known shape and dtype, a tensor [B, …].

    Args:
        slots: number of slots.
        types: see column_maker.
        dense: shape and dtype.
    """

    def __init__(self, slots: int, *, types: Types, dense: Dense) -> None:
        self._types = types
        self._shape = dense.shape
        self._numbers: NDArray[Any] = np.zeros((slots, *dense.shape), dense.dtype)

    def decode(
        self, slot: int, stored: FieldBytes, uniforms: Sequence[float], watch: Stopwatch
    ) -> Any:
        """See Column."""
        del slot, uniforms
        value = self._types[stored.field].decode(stored.data)
        watch.decoded()
        return value

    def place(self, slot: int, value: Any) -> None:
        """See Column."""
        if self._shape and np.shape(value) != self._shape:
            raise MisfitError(f"its shape is {np.shape(value)}, its field type says {self._shape}")
        try:
            self._numbers[slot] = value
        except (TypeError, ValueError, OverflowError) as error:
            raise MisfitError(
                f"its field type says {self._numbers.dtype}, it is {quoted(value)}: {error}"
            ) from error

    def collect(self) -> torch.Tensor:
        """See Column."""
        return torch.from_numpy(self._numbers)


class NumbersInRows(Numbers):
    """Numbers of which many may be decoded at once."""

    def place_rows(self, slots: NDArray[np.int64], rows: Rows) -> bool:
        """See RowColumn."""
        numbers = _decode_rows(self._types, rows)
        if numbers is None or numbers.shape[1:] != self._shape:
            return False
        self._numbers[slots] = numbers
        return True


class Listed:
    """Values of any kind, a list of B.

    Args:
        slots: number of slots.
        types: see column_maker.
    """

    def __init__(self, slots: int, *, types: Types) -> None:
        self._values: list[Any] = [None] * slots
        self._types = types

    def decode(
        self, slot: int, stored: FieldBytes, uniforms: Sequence[float], watch: Stopwatch
    ) -> Any:
        """See Column."""
        del slot, uniforms
        value = self._types[stored.field].decode(stored.data)
        watch.decoded()
        return value

    def place(self, slot: int, value: Any) -> None:
        """See Column."""
        self._values[slot] = value

    def collect(self) -> list[Any]:
        """See Column."""
        return self._values


def _decode_rows(types: Types, rows: Rows) -> NDArray[np.generic] | None:
    """Decode members at once; None if they are not alike, or errors have to name their places."""
    try:
        return types[rows.field].decode_rows(rows.block, rows.sizes)
    except CodecError:
        return None


def _decode_picture(type_: FieldType, stored: FieldBytes) -> Any:
    """Decode a picture whole, uint8 [H, W, 3].

    Raises:
        CodecError: the bytes do not decode, or to something else.
    """
    pixels = (type_.decode_verified if stored.verified else type_.decode)(stored.data)
    if getattr(pixels, "ndim", 0) != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise CodecError(
            f"the field type {type_.name} decodes to no uint8 [H, W, 3], as crops need"
        )
    return pixels


def _as_array(value: torch.Tensor) -> NDArray[Any]:
    """The array of a tensor.

    Raises:
        CodecError: NumPy has no such dtype or layout.
    """
    try:
        found: NDArray[Any] = value.detach().cpu().numpy()
    except (TypeError, RuntimeError) as error:
        raise CodecError(f"no batch can hold a tensor of {value.dtype}: {error}") from error
    return found


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
    found: tuple[Sequence[int], object], wanted: tuple[Sequence[int], object], *, image: bool
) -> MisfitError:
    (found_shape, found_dtype), (shape, dtype) = found, wanted
    way = "read the field with a type whose batching is 'list'"
    if image:
        side = min(224, *shape[-2:]) if len(shape) > 1 else 224
        way = f"give a transform that makes them equal, such as shardio.RandomResizedCrop({side})"
    return MisfitError(
        f"it is {'×'.join(map(str, found_shape))} {found_dtype}, others of the batch are "
        f"{'×'.join(map(str, shape))} {dtype}",
        remedy=f"{way}, or read samples without batch_size",
    )
