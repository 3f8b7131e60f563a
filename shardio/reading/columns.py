"""The entries of a batch while it is filled: how the values of its samples are put together.

While a batch is filled, an entry is a column with a slot for each sample. The field type says how
values are batched; the column turns that into tensors. Threads fill different slots at once. A
sample is decoded whole before any of it is placed, so that a bad one leaves no trace. Pictures with
a sized transform are the exception that nobody sees: they go straight from the decoder's scratch
buffer into their slot. Other values set the column's kind, which is shape and dtype, with the first
one that comes. A slot may stay blank if its sample may lack the field: it holds zeros then.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from shardio.errors import (
    CodecError,
    MisfitError,
    quoted,
)
from shardio.fields.base import Dense, FieldType
from shardio.fields.geometry import View
from shardio.fields.resample import copy_pixels
from shardio.processes import new_lock
from shardio.reading.gather import Rows
from shardio.reading.handover import Allocate
from shardio.reading.kinds import (
    LISTED,
    Kind,
    arrays_as_tensors,
    as_array,
    is_array,
    is_number,
    kind_name,
    misfit,
    nested_misfit,
    numbers_as_arrays,
    shown_value,
    torch_dtype,
    zeros_of,
)
from shardio.reading.shards import FieldBytes
from shardio.reading.times import Stopwatch

Types = Mapping[str, FieldType]
"""The types of an entry's alternatives, by field name."""
Slots = NDArray[np.int64] | slice
"""Slots of a batch, int64 [n] or a slice."""
_NOTHING = torch.empty(0)  # before there is a batch; never written to


class Column(Protocol):
    """One entry of a batch."""

    def decode(self, slot: int, stored: FieldBytes, view: View | None, watch: Stopwatch) -> Any:
        """Decode a field of a sample, and note when each stage of that ends.

        Args:
            slot: slot that the value is for.
            stored: bytes of the field.
            view: part of the sample's picture that is shown; None if it does not matter.
            watch: stopwatch of the thread.

        Raises:
            CodecError: the bytes do not decode, or to what no batch can hold.
            TransformError: the transform raised.
        """

    def shown(self, slot: int, value: Any) -> Any:
        """Return what was decoded as a function of the user sees it, as a dataset of samples does.

        Raises:
            CodecError: torch has no such values.
            MisfitError: the value is not what its field type says.
        """

    def place(self, slot: int, value: Any) -> None:
        """Put what was decoded into its slot.

        Raises:
            MisfitError: the value is of another kind than the others.
        """

    def collect(self, name: str, blank: Sequence[int]) -> dict[str, Any]:
        """Return the finished entry, and others that it brings along, by name.

        Args:
            name: name of the entry.
            blank: slots whose samples lack the field.
        """


class InPlace(Protocol):
    """An entry whose slots may be filled directly."""

    def value_in(self, slot: int) -> Any:
        """Return the value that was put into a slot, as `decode` would have."""


class RowColumn(Column, Protocol):
    """An entry that may be filled many slots at once."""

    def place_rows(self, slots: Slots, rows: Rows) -> bool:
        """Decode members into their slots; False, with nothing placed, if they are not alike."""


class Stack(ABC):
    """Arrays or tensors of one kind, a tensor [B, …].

    Args:
        slots: number of slots.
        types: see column_maker.
        allocate: makes the tensor.

    Attributes:
        kind: kind that all slots have; None before the first one.
    """

    def __init__(self, slots: int, *, types: Types, allocate: Allocate) -> None:
        self._num_slots = slots
        self._types = types
        self._allocate = allocate
        self._batch = _NOTHING
        self.kind: Kind | None = None
        self._blank: Kind | None = None  # of what no slot may have
        self._kinds: dict[int, Kind] = {}  # of slots that were decoded one by one
        self._lock = new_lock()

    def decode(self, slot: int, stored: FieldBytes, view: View | None, watch: Stopwatch) -> Any:
        """See Column."""
        found = numbers_as_arrays(_decode(self._types, stored, view, watch))
        value: NDArray[Any] = np.asarray(found)
        self._kinds[slot] = self._kind_of(value)
        return value

    def shown(self, slot: int, value: Any) -> Any:
        """See Column."""
        del slot
        return shown_value(value)

    def decoded_kind(self, slot: int) -> Kind | None:
        """Return the kind decoded for a slot; that of the column for one in rows."""
        return self._kinds.get(slot, self.kind)

    def lack(self, view: View | None) -> None:
        """Note that a sample lacks the field.

        Args:
            view: see Column.decode.
        """
        blank = next(iter(self._types.values())).blank(view)
        if blank is not None:
            self._blank = self._kind_of(blank)

    def begin_anew(self, kind: Kind) -> None:
        """Empty all slots, for values of a kind that a slot has."""
        self.kind = None
        self._prepare(kind)

    def _prepare(self, kind: Kind) -> Kind:
        """Make the tensor for values of a kind, if there is none; return the column's kind."""
        with self._lock:
            if self.kind is None:
                self._make(*kind)
                self.kind = kind
            return self.kind

    def collect(self, name: str, blank: Sequence[int]) -> dict[str, Any]:
        """See Column."""
        if self.kind is None and self._blank is not None:
            self._prepare(self._blank)
        if self.kind is None:
            return {name: torch.zeros(self._num_slots, 0)} if blank else {}
        if blank:
            as_array(self._batch)[[*blank]] = 0  # torch would wait in a forked child
        return {name: self._batch}

    def _kind_of(self, value: Any) -> Kind:
        """Return the kind of a decoded value.

        Raises:
            CodecError: no batch can hold it.
        """
        torch_dtype(value.dtype, value.ndim)
        return value.shape, value.dtype

    @abstractmethod
    def _make(self, shape: Any, dtype: Any) -> None:
        """Make the tensor for values of a kind."""


class Arrays(Stack):
    """NumPy arrays of one kind, a tensor [B, …]; images are [B, channels, H, W].

    Args:
        slots: number of slots.
        types: see column_maker.
        image: True for images.
        allocate: makes the tensor.
    """

    def __init__(
        self, slots: int, *, types: Types, allocate: Allocate, image: bool = False
    ) -> None:
        super().__init__(slots, types=types, allocate=allocate)
        self.picture = image
        self._slots: NDArray[Any] = np.empty(0)

    def shown(self, slot: int, value: Any) -> Any:
        """See Column."""
        found = super().shown(slot, value)
        return found.permute(2, 0, 1) if self.picture else found

    def place(self, slot: int, value: NDArray[Any]) -> None:
        """See Column."""
        self._prepare((value.shape, value.dtype))
        if value.shape != self._slots.shape[1:] or value.dtype != self._slots.dtype:
            raise misfit(
                (self._shown(value.shape), value.dtype),
                (self._shown(self._slots.shape[1:]), self._slots.dtype),
                image=self.picture,
            )
        copy_pixels(value, self._slots[slot, ...])

    def slots_for(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any] | None:
        """Return all slots, for values put there directly; None if slots are of another kind.

        Args:
            shape: shape of each value.
            dtype: dtype of the values.
        """
        if self._prepare((shape, dtype)) != (shape, dtype):
            return None
        return self._slots

    def value_in(self, slot: int) -> NDArray[Any]:
        """See InPlace."""
        found: NDArray[Any] = self._slots[slot, ...]
        return found

    def collect(self, name: str, blank: Sequence[int]) -> dict[str, Any]:
        """See Column."""
        found = super().collect(name, blank)
        pictures = self.kind is not None and self._is_picture(self.kind[0])
        return {name: self._batch.permute(0, 3, 1, 2)} if pictures else found

    def _make(self, shape: tuple[int, ...], dtype: Any) -> None:
        self._batch = self._allocate((self._num_slots, *shape), torch_dtype(dtype, len(shape)))
        self._slots = as_array(self._batch)

    def _shown(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[2], *shape[:2]) if self._is_picture(shape) else shape

    def _is_picture(self, shape: Sequence[int]) -> bool:
        return self.picture and len(shape) == 3


class ArraysInRows(Arrays):
    """Arrays of which many may be decoded at once."""

    def place_rows(self, slots: Slots, rows: Rows) -> bool:
        """See RowColumn."""
        found = _decode_rows(self._types, rows)
        if found is None:
            return False
        shape, dtype = found.shape[1:], found.dtype
        try:
            self._prepare((shape, dtype))
        except CodecError:  # raised again, with its place, when the samples are read one by one
            return False
        if shape != self._slots.shape[1:] or dtype != self._slots.dtype:
            return False
        flat = self._slots.reshape(self._num_slots, -1).view(np.uint8)
        flat[slots] = found.reshape(len(found), -1).view(np.uint8)
        return True


class Found(Arrays):
    """Values of a type that does not say how they are batched.

    Arrays and tensors of numbers are stacked, also inside dictionaries; anything else is a list.
    """

    _values: list[Any]

    def decode(self, slot: int, stored: FieldBytes, view: View | None, watch: Stopwatch) -> Any:
        """See Column."""
        value = numbers_as_arrays(_decode(self._types, stored, view, watch))
        self._kinds[slot] = self._kind_of(value)
        return value

    def place(self, slot: int, value: Any) -> None:
        """See Column."""
        kind = self._kinds[slot]
        wanted = self._prepare(kind)
        if is_array(kind) and is_array(wanted):
            super().place(slot, value)
        elif kind == wanted:
            self._values[slot] = value
        elif kind[1] is dict and wanted[1] is dict:
            raise nested_misfit(kind, wanted)
        else:
            raise MisfitError(
                f"it is of the type {type(value).__name__}, others of the batch are "
                f"{kind_name(wanted)}",
                remedy="set the field type's batching to 'list'",
            )

    def collect(self, name: str, blank: Sequence[int]) -> dict[str, Any]:
        """See Column."""
        if self.kind is None or is_array(self.kind):
            return super().collect(name, blank)
        absent = set(blank)
        present = [value for at, value in enumerate(self._values) if at not in absent]
        if self.kind[1] is dict:
            empty = zeros_of(self.kind)
            values = [empty if at in absent else each for at, each in enumerate(self._values)]
            return {name: self._join(values, self.kind)} if present else {}
        return {name: [None if at in absent else each for at, each in enumerate(self._values)]}

    def _join(self, values: Sequence[Any], kind: Kind) -> Any:
        """Put values of one kind together: arrays stacked, dictionaries by name, others listed."""
        if kind[1] is dict:
            return {
                key: self._join([value[key] for value in values], inner) for key, inner in kind[0]
            }
        if not is_array(kind):
            return [*values]
        batch = self._allocate((len(values), *kind[0]), torch_dtype(kind[1], len(kind[0])))
        np.stack(values, out=as_array(batch))
        return batch

    def _kind_of(self, value: Any) -> Kind:
        if isinstance(value, dict):
            return tuple((key, self._kind_of(each)) for key, each in value.items()), dict
        numbers = isinstance(value, np.ndarray) and is_number(value.dtype)
        return super()._kind_of(value) if numbers else LISTED

    def _make(self, shape: Any, dtype: Any) -> None:
        if is_array((shape, dtype)):
            super()._make(shape, dtype)
        else:
            self._values = [None] * self._num_slots


class Padded(Stack):
    """Arrays that differ in their last axis, a tensor [B, …, longest], and their lengths.

    Args:
        slots: number of slots.
        types: see column_maker.
        allocate: makes the tensor.
    """

    def __init__(self, slots: int, *, types: Types, allocate: Allocate) -> None:
        super().__init__(slots, types=types, allocate=allocate)
        self._values: list[NDArray[Any] | None] = [None] * slots

    def decode(self, slot: int, stored: FieldBytes, view: View | None, watch: Stopwatch) -> Any:
        """See Column."""
        value = _decode(self._types, stored, view, watch)
        if isinstance(value, torch.Tensor):  # an array may know its rate
            value = as_array(value)
        self._kinds[slot] = self._kind_of(value)
        return value

    def place(self, slot: int, value: NDArray[Any]) -> None:
        """See Column."""
        kind = self._kinds[slot]
        wanted = self._prepare(kind)
        if _open_ended(kind) != _open_ended(wanted):
            raise misfit(_open_ended(kind), _open_ended(wanted), image=False)
        if kind != wanted:
            raise MisfitError(
                f"it has {kind[0][-1]} samples per second, others of the batch {wanted[0][-1]}",
                remedy="give its Audio rate=, to which sound is resampled",
            )
        self._values[slot] = value

    def collect(self, name: str, blank: Sequence[int]) -> dict[str, Any]:
        """See Column."""
        for slot in blank:
            self._values[slot] = None
        lengths = [0 if value is None else value.shape[-1] for value in self._values]
        counts = {f"{name}_lengths": torch.tensor(lengths)}
        if self.kind is None and self._blank is not None:
            self._prepare(self._blank)
        if self.kind is None:
            return super().collect(name, blank) | (counts if blank else {})
        (*shape, _), dtype = self.kind
        size = (self._num_slots, *shape, max(lengths))
        batch = self._allocate(size, torch_dtype(dtype, len(shape) + 1))
        slots = as_array(batch)
        for slot, (value, length) in enumerate(zip(self._values, lengths, strict=True)):
            slots[slot, ..., length:] = 0
            if value is not None:
                slots[slot, ..., :length] = value
        return {name: batch, **counts}

    def _kind_of(self, value: Any) -> Kind:
        if not value.ndim:
            raise CodecError(f"not an array that can be padded: {quoted(value)}")
        torch_dtype(value.dtype, value.ndim)
        return (*value.shape[:-1], getattr(value, "rate", None)), value.dtype

    def _make(self, shape: tuple[Any, ...], dtype: Any) -> None:
        """See Stack; the tensor is made when the lengths are known."""


def _open_ended(kind: Kind) -> tuple[tuple[Any, ...], Any]:
    return (*kind[0][:-1], "…"), kind[1]


class Numbers:
    """Numbers of known shape and dtype, a tensor [B, …].

    Args:
        slots: number of slots.
        types: see column_maker.
        dense: shape and dtype.
        allocate: makes the tensor.

    Attributes:
        dtype: dtype of the numbers.
        is_scalar: whether a slot holds one number.
    """

    def __init__(self, slots: int, *, types: Types, dense: Dense, allocate: Allocate) -> None:
        self._types = types
        self._shape = dense.shape
        dtype = torch_dtype(np.dtype(dense.dtype), len(dense.shape))
        self._batch = allocate((slots, *dense.shape), dtype)
        self._numbers: NDArray[Any] = self._batch.numpy()
        self._numbers.fill(0)
        self.dtype, self.is_scalar = self._numbers.dtype, not dense.shape

    def decode(self, slot: int, stored: FieldBytes, view: View | None, watch: Stopwatch) -> Any:
        """See Column."""
        del slot
        return _decode(self._types, stored, view, watch)

    def shown(self, slot: int, value: Any) -> Any:
        """See Column."""
        self.place(slot, value)
        number = self._numbers[slot]
        return torch.from_numpy(number) if self._shape else number.item()

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

    def collect(self, name: str, blank: Sequence[int]) -> dict[str, Any]:
        """See Column."""
        if blank:
            self._numbers[[*blank]] = 0
        return {name: self._batch}


class NumbersInRows(Numbers):
    """Numbers of which many may be decoded at once."""

    def slots_for(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any] | None:
        """Return all slots, for numbers put there directly; None for another shape or dtype."""
        return self._numbers if (shape, dtype) == (self._shape, self.dtype) else None

    def place_rows(self, slots: Slots, rows: Rows) -> bool:
        """See RowColumn."""
        numbers = _decode_rows(self._types, rows)
        if numbers is None or numbers.shape[1:] != self._shape:
            return False
        self._numbers[slots] = numbers
        return True

    def value_in(self, slot: int) -> Any:
        """See InPlace."""
        return self._numbers[slot]


class Listed:
    """Values of any kind, a list of B; arrays of numbers become tensors, also inside dictionaries.

    Args:
        slots: number of slots.
        types: see column_maker.
    """

    def __init__(self, slots: int, *, types: Types) -> None:
        self._values: list[Any] = [None] * slots
        self._types = types

    def decode(self, slot: int, stored: FieldBytes, view: View | None, watch: Stopwatch) -> Any:
        """See Column."""
        del slot
        return _decode(self._types, stored, view, watch)

    def shown(self, slot: int, value: Any) -> Any:
        """See Column."""
        del slot
        return arrays_as_tensors(value)

    def place(self, slot: int, value: Any) -> None:
        """See Column."""
        self._values[slot] = value

    def collect(self, name: str, blank: Sequence[int]) -> dict[str, Any]:
        """See Column."""
        for slot in blank:
            self._values[slot] = None
        return {name: [arrays_as_tensors(value) for value in self._values]}


def _decode(types: Types, stored: FieldBytes, view: View | None, watch: Stopwatch) -> Any:
    """Decode a field, and apply the crop of the sample's picture if the field follows it."""
    type_ = types[stored.field]
    value = (type_.decode_verified if stored.verified else type_.decode)(stored.data)
    watch.decoded()
    if type_.geometry == "follows":
        value = type_.follow(value, view)
        watch.transformed()
    return value


def _decode_rows(types: Types, rows: Rows) -> NDArray[np.generic] | None:
    """Decode members at once; None if they are not alike, or errors have to name their places."""
    try:
        return types[rows.field].decode_rows(rows.block, rows.sizes)
    except CodecError:
        return None
