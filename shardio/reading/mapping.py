"""Functions of the user on whole samples: what they get, and how their results make a batch.

A `map` runs in the thread or worker that decoded a sample, after the crop and before the entries
are put together. It gets what a dataset without batch size yields. A picture of a sized transform
is a view of its slot in the batch, so that a function that changes it in place costs no copy. What
the function returns is put together by its kind, as default_collate does, in columns of their own;
or the samples wait for the user's `collate`.

Random numbers come from a generator that is made when a function asks for one. Its key is that of
the epoch, the position of the sample and the number of the function, so that threads, workers,
ranks and a resumed loop see the same numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from shardio.errors import CodecError, MisfitError, Skip, TransformError, UsageError, quoted
from shardio.fields.base import FieldType
from shardio.planning.order import derive_key
from shardio.reading.columns import Column, Found, Listed, Numbers, Padded
from shardio.reading.entries import RESERVED
from shardio.reading.handover import Allocate
from shardio.reading.kinds import (
    LISTED,
    Kind,
    arrays_as_tensors,
    is_number,
    map_values,
    numbers_as_arrays,
)
from shardio.reading.libraries import Key, Sample, Step, is_known, library_step, shares_generator
from shardio.reading.picture_columns import SizedImages

MapFunction = Callable[..., Sample]
MapFunctions = MapFunction | Sequence[MapFunction]
Collate = Callable[[list[Sample]], Mapping[str, Any]]

_ADDED = frozenset(RESERVED) - {"__key__"}
_ABSENT = object()
_Fault = MisfitError | CodecError

_WAY = "return values of one shape and of a dtype that torch has, or use collate="
_OF_ONE = (
    "for one entry, write a function that sets sample['image'] = f(sample['image']) and returns "
    "the sample"
)
_LEAVE_OUT = (
    'raise shardio.Skip("why") in it to leave the sample out, which on_bad_sample does not do'
)


def name_of(function: object) -> str:
    """Name a function as its user knows it."""
    if isinstance(function, partial):
        return name_of(function.func)
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return str(name).rpartition("<locals>.")[2]


class SampleMap:
    """Functions that are applied to a sample, one after the other.

    Args:
        functions: functions, each `function(sample)`, `function(sample, rng)` or a transform of a
            library, with the argument that each was given as.
        types: type of each entry of the sample as it was decoded.
        seeded: whether the random numbers of libraries depend on the sample's key.

    Attributes:
        shared: name of a function that draws from generators of the process; None if none does.

    Raises:
        UsageError: one is not callable, or cannot take an entry along.
    """

    def __init__(
        self,
        functions: Sequence[tuple[str, Any]],
        types: Mapping[str, FieldType],
        *,
        seeded: bool,
    ) -> None:
        self._steps: list[tuple[str, Step]] = []
        self.shared: str | None = None
        for argument, function in functions:
            if not callable(function) or isinstance(function, type):
                raise UsageError(
                    f"map={quoted(function)}: it must be a function from a sample to a sample, or "
                    "a list of such functions",
                    remedy=_OF_ONE if isinstance(function, Mapping) else None,
                )
            name = f"{argument} {name_of(function)}"
            step: Step = _Plain(function)
            if is_known(function):
                step = library_step(function, types, seeded=seeded)
                if shares_generator(step):
                    self.shared = name
            self._steps.append((name, step))

    def __call__(self, sample: Sample, epoch: int, place: Sequence[int]) -> Sample:
        """Apply the functions.

        Args:
            sample: entries of the sample by name.
            epoch: key of the random numbers of the epoch.
            place: position of the sample there, and what else its random numbers depend on.

        Raises:
            Skip: a function leaves the sample out.
            TransformError: a function raised, or returned something else than a sample.
        """
        for number, (name, step) in enumerate(self._steps):
            try:
                found = step(sample, (epoch, number, *place))
            except Skip:
                raise
            except TransformError as error:
                raise TransformError(f"{name}: {error.what}", remedy=error.remedy) from error
            except (Exception, SystemExit) as error:
                raise TransformError(
                    f"{name} raised {type(error).__name__}: {error}", remedy=_LEAVE_OUT
                ) from error
            if not isinstance(found, dict):
                raise TransformError(
                    f"{name} returned {_kind_of_result(found)}, not a sample",
                    remedy="return a dictionary, or raise shardio.Skip to leave the sample out",
                )
            sample = found
        return sample


class _Plain:
    """A function of the user as a step."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._draws = _draws(function)

    def __call__(self, sample: Sample, key: Key) -> Any:
        if not self._draws:
            return self._function(sample)
        return self._function(sample, np.random.Generator(np.random.Philox(key=derive_key(*key))))


def _draws(function: Callable[..., Any]) -> bool:
    """Tell whether a function takes a random generator beside the sample."""
    try:
        parameters = [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):
        return False
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    second = [each for each in parameters if each.kind in plain][1:2]
    return any(each.name == "rng" or each.default is each.empty for each in second)


def _kind_of_result(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Functions:
    """Functions of the user on the samples of a dataset.

    Attributes:
        map: function on each sample; None for none.
        collate: function that joins the samples of a batch; None to join them by kind.
    """

    map: SampleMap | None = None
    collate: Collate | None = None

    def check_threads(self) -> None:
        """Refuse a function that draws from generators which the threads of a process share.

        Raises:
            UsageError: there is one.
        """
        if self.map is not None and self.map.shared:
            raise UsageError(
                f"{self.map.shared} draws from generators that all threads of a process share, so "
                "that its random numbers would depend on their turns",
                remedy=(
                    "use processes, Loader(ds, workers=n) or DataLoader(ds, batch_size=None, "
                    "num_workers=n), or pass nondeterministic=True to the dataset, which changes "
                    "nothing where no random numbers are drawn"
                ),
            )


def find_functions(
    arguments: Mapping[str, Any], types: Mapping[str, Mapping[str, FieldType]]
) -> Functions:
    """Find the functions on whole samples, of which a library's transform of pictures is one.

    Args:
        arguments: arguments of the dataset.
        types: types of the alternatives of each entry.

    Raises:
        UsageError: one is no function, or cannot take an entry along.
    """
    given, transform = arguments["map"], arguments["transform"]
    maps = [*given] if isinstance(given, list | tuple) else [] if given is None else [given]
    named = [("map", function) for function in maps]
    if is_known(transform):
        named.insert(0, ("transform", transform))
    firsts = {name: next(iter(of_entry.values())) for name, of_entry in types.items()}
    steps = SampleMap(named, firsts, seeded=not arguments["nondeterministic"])
    return Functions(map=steps if named else None, collate=arguments["collate"])


class MappedEntries:
    """The entries of a batch whose samples functions of the user change or join.

    Args:
        functions: functions of the user.
        columns: entries as they are decoded.
        optional: entries that samples may lack.
        keys: key of the random numbers of the epoch, and positions of the samples there.
        allocate: makes arrays.

    Attributes:
        columns: entries as they are returned; empty with a collate.
    """

    def __init__(
        self,
        functions: Functions,
        columns: Mapping[str, Column],
        *,
        optional: frozenset[str],
        keys: tuple[int, NDArray[np.int64]],
        allocate: Allocate,
    ) -> None:
        self.columns: dict[str, Mapped | MappedPadded] = {}
        self._functions = functions
        self._sources = columns
        self._optional = optional
        self._key, self._positions = keys
        self._allocate = allocate
        self._samples: list[Sample] = [{}] * len(self._positions)
        self._where = [""] * len(self._positions)
        self._own = [source for source in columns.values() if isinstance(source, SizedImages)]
        padded = (name for name, source in columns.items() if isinstance(source, Padded))
        self._added = _ADDED.union(
            (f"has_{name}" for name in optional), (f"{name}_lengths" for name in padded)
        )

    def put(self, slot: int, key: str, values: Mapping[str, Any], substitute: int | None) -> None:
        """Apply the function to a sample, and put what it returns into its slot.

        Args:
            slot: slot of the sample.
            key: key of the sample.
            values: decoded values of the entries that the sample has.
            substitute: number of a sample that is not the slot's own, which draws other random
                numbers; None for the slot's own.

        Raises:
            Skip: the function leaves the sample out.
            TransformError: the function raised, or its result is no sample.
            MisfitError: a value is of another kind than those of others of the batch.
        """
        shown = {name: self._sources[name].shown(slot, value) for name, value in values.items()}
        sample = {**shown, "__key__": key}
        if self._functions.map is not None:
            place = [int(self._positions[slot]), *([] if substitute is None else [substitute])]
            sample = self._functions.map(sample, self._key, place)
            self._check_names(sample, key)
        if self._functions.collate is not None:
            self._samples[slot] = {**sample, "__key__": key}
            return
        self._samples[slot] = dict.fromkeys(sample)
        sample.pop("__key__", None)
        name, kept = "", True
        stored: dict[str, Stored] = {}
        try:
            for name, value in sample.items():
                kept, column = value is shown.get(name, _ABSENT), self._column(name)
                if not (kept and column.keep(slot, value)):
                    stored[name] = column.as_stored(value, shown.get(name))
            if stored and self._own:
                memory = [source.slots[slot] for source in self._own]
                stored = {name: each.apart(memory) for name, each in stored.items()}
            for name, each in stored.items():
                kept = sample[name] is shown.get(name, _ABSENT)
                self._column(name).put(slot, each, values.get(name))
        except (MisfitError, CodecError) as error:
            raise _of_entry(error, name, kept=kept) from error
        except RecursionError as error:
            raise _of_entry(CodecError("it holds itself"), name, kept=False) from error

    def _check_names(self, sample: Mapping[str, Any], key: str) -> None:
        """Raise TransformError for entries that are not the user's to make."""
        added = _ADDED if self._functions.collate is not None else self._added
        for name in sample:
            if not isinstance(name, str):
                raise TransformError(
                    f"map returned an entry named {quoted(name)}, which is not text"
                )
            if name in added or (name == "__key__" and sample[name] != key):
                raise TransformError(
                    f"map returned {quoted(name)}, which shardio adds to a batch",
                    remedy="give it another name",
                )

    def _column(self, name: str) -> Mapped | MappedPadded:
        if name in self.columns:
            return self.columns[name]
        source, slots = self._sources.get(name), len(self._samples)
        allocate = partial(self._allocate, entry=name)
        made: Mapped | MappedPadded
        if isinstance(source, Padded):
            made = MappedPadded(slots, types={}, allocate=allocate)
        else:
            made = Mapped(slots, source, allocate)
        return self.columns.setdefault(name, made)  # another thread may have been first

    def collect(self, place: Callable[[int], str]) -> dict[str, Any]:
        """Return the finished entries by name, without those that shardio adds.

        Args:
            place: describes the sample of a slot, for errors.

        Raises:
            TransformError: the map returned an entry for some samples only, or the collate raised
                or returned no batch.
        """
        if self._functions.collate is not None:
            return _collated(self._functions.collate, self._samples)
        names = dict.fromkeys(name for sample in self._samples for name in sample)
        names |= dict.fromkeys(name for name in self._sources if name in self._optional)
        names.pop("__key__", None)
        batch: dict[str, Any] = {}
        for name in names:
            blank = [slot for slot, sample in enumerate(self._samples) if name not in sample]
            if blank and name not in self._optional:
                raise TransformError(
                    f"map returned no {quoted(name)} for it, unlike for others of the batch",
                    where=place(blank[0]),
                    remedy="return the same entries for every sample, or give collate=",
                )
            full = len(blank) < len(self._samples)
            batch |= (self.columns if full else self._sources)[name].collect(name, blank)
            if name in self._optional:
                present = [name in sample for sample in self._samples]
                batch[f"has_{name}"] = torch.tensor(present)
        return batch


def _of_entry(error: _Fault, name: str, *, kept: bool) -> _Fault | TransformError:
    """Return an error with the entry, and for a value of the user's function with a way out."""
    if kept:
        return type(error)(error.what, remedy=error.remedy, field=name)
    kind = MisfitError if isinstance(error, MisfitError) else TransformError
    return kind(f"{quoted(name)} of map: {error.what}", remedy=_WAY, field=name)


def _apart(memory: Sequence[NDArray[np.uint8]], value: Any) -> Any:
    """Return an array or tensor, or a copy if it lies in memory that may be written before."""
    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
        starts = (part.ctypes.data for part in memory)
        ends = zip(starts, memory, strict=True)
        inside = any(0 <= value.data_ptr() - start < part.nbytes for start, part in ends)
        return value.clone() if inside else value
    if isinstance(value, np.ndarray):
        inside = any(np.may_share_memory(value, part) for part in memory)
        return value.copy() if inside else value
    return value


def _collated(collate: Collate, samples: Sequence[Sample]) -> dict[str, Any]:
    """Join samples by a function of the user.

    Raises:
        TransformError: it raised, or its result is no batch.
    """
    named = f"collate {name_of(collate)}"
    where = f"the batch from {quoted(samples[0]['__key__'])} to {quoted(samples[-1]['__key__'])}"
    try:
        found = collate([*samples])
    except (Exception, SystemExit) as error:
        raise TransformError(
            f"{named} raised {type(error).__name__}: {error}", where=where
        ) from error
    if not isinstance(found, Mapping):
        raise TransformError(
            f"{named} returned {_kind_of_result(found)}, not a dictionary",
            where=where,
            remedy="return the entries of the batch by name; as_tuple= makes tuples of them",
        )
    try:
        batch = {name: _held(value) for name, value in found.items() if name != "__key__"}
    except (CodecError, RecursionError) as error:
        raise TransformError(f"{named}: {error}", where=where) from error
    taken = sorted(_ADDED & batch.keys())
    if taken:
        raise TransformError(
            f"{named} returned {quoted(taken[0])}, which shardio adds to a batch",
            where=where,
            remedy="give it another name",
        )
    return batch


class Stored(NamedTuple):
    """A value as a column stores it.

    Attributes:
        value: array, or a value that is listed.
        kind: kind of the value.
    """

    value: Any
    kind: Kind

    def apart(self, memory: Sequence[NDArray[np.uint8]]) -> Stored:
        """Return the value with copies of its arrays in some memory, which is written before."""
        return self._replace(value=map_values(partial(_apart, memory), self.value))


class Mapped(Found):
    """Values of one entry that a function of the user returned, or left as they were.

    Args:
        slots: number of slots.
        source: entry as it was decoded; None for a new one.
        allocate: makes the tensor.
    """

    def __init__(self, slots: int, source: Column | None, allocate: Allocate) -> None:
        picture = getattr(source, "picture", False)
        super().__init__(slots, types={}, allocate=allocate, image=picture)
        self._own = source if isinstance(source, SizedImages) else None
        self._number = source.dtype if isinstance(source, Numbers) else None
        self._lists_numbers = isinstance(source, Found | Listed)
        self._lists_arrays = isinstance(source, Listed)
        self._kept: Kind | None = None  # of all values that a function leaves as they are
        if isinstance(source, SizedImages):
            self._kept = source.slots.shape[1:], source.slots.dtype
        elif isinstance(source, Numbers) and source.is_scalar:
            self._kept = (), source.dtype

    def keep(self, slot: int, value: Any) -> bool:
        """Put a value that a function left as it was into its slot; False if that takes `put`."""
        kind = self._kept
        if kind is None:
            return False
        if self._own is not None and not value.is_set_to(self._own.shown(slot, None)):
            return False  # its memory or shape was set to another one
        self._kinds[slot] = kind
        if self.kind is not kind and self._prepare(kind) != kind:
            return False
        if self._own is None:
            self._slots[slot] = value
        return True

    def as_stored(self, value: Any, before: Any) -> Stored:
        """Return a value as this column stores it.

        Args:
            value: value that the function returned.
            before: value that it got.

        Raises:
            CodecError: no batch can hold the value.
        """
        if type(value) in (bool, int, float):
            if self._lists_numbers:
                return Stored(value, LISTED)
            value = _number(value, self._number)
        lists = self._lists_arrays and (_is_array(before) or not _is_array(value))
        if lists or not _is_array(value):
            value = _held(value)
        if lists:
            return Stored(value, LISTED)
        array = numbers_as_arrays(value)
        if self.picture and isinstance(array, np.ndarray) and array.ndim == 3:
            array = np.moveaxis(array, 0, -1)
        return Stored(array, self._kind_of(array))

    def put(self, slot: int, stored: Stored, source: Any) -> None:
        """Put a value into its slot.

        Args:
            slot: slot of the sample.
            stored: value.
            source: value as it was decoded.

        Raises:
            MisfitError: the value is of another kind than the others.
        """
        del source
        self._kinds[slot] = stored.kind
        self.place(slot, stored.value)

    def _make(self, shape: Any, dtype: Any) -> None:
        own = self._own
        if own is not None and (shape, dtype) == self._kept:
            self._batch, self._slots = own.batch, own.slots
        else:
            super()._make(shape, dtype)


class MappedPadded(Padded):
    """Arrays of one entry that differ in their last axis, after a function of the user."""

    def keep(self, slot: int, value: Any) -> bool:
        """See Mapped.keep."""
        del slot, value
        return False

    def as_stored(self, value: Any, before: Any) -> Stored:
        """See Mapped.as_stored."""
        del before
        array = numbers_as_arrays(value)
        if not isinstance(array, np.ndarray):
            raise CodecError(f"not an array that can be padded: {quoted(value)}")
        return Stored(array, self._kind_of(array))

    def put(self, slot: int, stored: Stored, source: Any) -> None:
        """See Mapped.put."""
        shape, dtype = stored.kind
        self._kinds[slot] = (*shape[:-1], getattr(source, "rate", None)), dtype
        self.place(slot, stored.value)


def _held(value: Any) -> Any:
    """Return what a batch holds as it is, with tensors for arrays, as any DataLoader delivers them.

    Raises:
        CodecError: torch has none for an array or number of NumPy.
    """
    return map_values(_as_tensor, value)


def _as_tensor(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        return value
    if is_number(value.dtype):
        return arrays_as_tensors(numbers_as_arrays(value))
    if value.dtype.kind not in ("OSU" if isinstance(value, np.ndarray) else "U"):
        raise CodecError(f"torch has no dtype for {value.dtype}")
    return value


def _is_array(value: object) -> bool:
    """Tell whether a value is an array or a tensor of numbers."""
    if isinstance(value, np.ndarray | np.generic):
        return is_number(value.dtype)
    return isinstance(value, torch.Tensor)


def _number(value: float, wanted: np.dtype[Any] | None) -> NDArray[Any]:
    """Return a number of Python as an array of no dimension.

    Args:
        value: number.
        wanted: dtype that it gets if that is of its kind; else that of default_collate.

    Raises:
        CodecError: the dtype does not hold it.
    """
    kinds = {bool: "b", int: "iu", float: "f"}[type(value)]
    fits = wanted is not None and wanted.kind in kinds
    try:
        return np.asarray(value, wanted if fits else np.dtype(type(value)))
    except OverflowError as error:
        raise CodecError(f"no batch can hold the number {value}") from error
