"""Kinds of values: what must be equal for the values of a batch to be put together.

The kind of an array is its shape and dtype. That of a dictionary is the kinds of its values. The
entries of a batch nest: dictionaries, lists and tuples hold tensors and other values, to any depth,
and `map_values` is the one walk over them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from operator import is_
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from shardio.errors import CodecError, MisfitError
from shardio.fields.arrays import NUMBERS

Kind = tuple[Any, Any]
"""Shape and dtype of an array or tensor; or what a dictionary holds, with the type dict."""

LISTED: Kind = ((), list)
"""Kind of values that are not arrays of numbers; not None, which equals NumPy's float64."""


_NESTING = (dict, list, tuple)
_IN_BOTH = {torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128}
BITS: dict[torch.dtype, np.dtype[Any]] = {
    dtype: np.dtype([(str(dtype), f"i{dtype.itemsize}")])
    for dtype in {each for each in vars(torch).values() if isinstance(each, torch.dtype)} - _IN_BOTH
    if dtype.is_floating_point or dtype.is_complex
}
"""Stand-ins for dtypes that NumPy lacks, as bfloat16: records of their bits."""
_OF_BITS = {bits: dtype for dtype, bits in BITS.items()}
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
_FLAT = frozenset({str, bytes, int, float, bool, type(None)})


def map_values(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to what an entry of a batch holds, inside dictionaries, lists and tuples.

    Args:
        function: function from one value to another; it never gets text, numbers or None, which
            stay as they are.
        value: entry, or a whole batch. Subclasses of dict, list and tuple are values.

    Returns:
        The same nesting with the results; the same object where the function changed nothing.
    """
    kind = type(value)
    if kind not in _NESTING:
        return value if kind in _FLAT else function(value)
    held = [*value.values()] if kind is dict else value
    if _FLAT.issuperset(map(type, held)):
        return value
    found = [map_values(function, each) for each in held]
    if all(map(is_, found, held)):
        return value
    return dict(zip(value, found, strict=True)) if kind is dict else kind(found)


def is_array(kind: Kind) -> bool:
    """Tell whether a kind is that of arrays of numbers."""
    return kind[1] not in (list, dict)


def is_number(dtype: np.dtype[Any]) -> bool:
    """Tell whether a dtype is one of numbers, or stands for one of torch."""
    return dtype.kind in NUMBERS or dtype in _OF_BITS


def kind_name(kind: Kind) -> str:
    """Name a kind in an error."""
    if kind[1] is dict:
        return "dictionaries"
    return "arrays of numbers" if is_array(kind) else "not arrays of numbers"


def shape_and_dtype(shape: Sequence[int], dtype: Any) -> str:
    """Describe an array in an error."""
    return f"{'×'.join(map(str, shape)) or 'one number'} {_OF_BITS.get(dtype, dtype)}"


def zeros_of(kind: Kind) -> Any:
    """Return a value of zeros of a kind."""
    if kind[1] is dict:
        return {key: zeros_of(inner) for key, inner in kind[0]}
    return np.zeros(*kind) if is_array(kind) else None


def nested_misfit(found: Kind, wanted: Kind, path: str = "") -> MisfitError:
    """Describe the first difference between two kinds of dictionaries."""
    ours, theirs = dict(found[0]), dict(wanted[0])
    for key in {**ours, **theirs}:
        at = f"{path}[{key!r:.60}]"
        if key not in ours or key not in theirs:
            fault = f"it has {'no ' if key not in ours else ''}{at}, unlike others of the batch"
            return MisfitError(fault, remedy="set the field type's batching to 'list'")
        if ours[key] == theirs[key]:
            continue
        if ours[key][1] is dict and theirs[key][1] is dict:
            return nested_misfit(ours[key], theirs[key], at)
        kinds = [
            shape_and_dtype(*kind) if is_array(kind) else kind_name(kind)
            for kind in (ours[key], theirs[key])
        ]
        return MisfitError(
            f"its {at} is {kinds[0]}, that of others of the batch {kinds[1]}",
            remedy="set the field type's batching to 'list', or read without batch_size",
        )
    return MisfitError("its entries are in another order than those of others of the batch")


def numbers_as_arrays(value: Any) -> Any:
    """Return a value with arrays for its tensors and NumPy numbers, also inside dictionaries."""
    if isinstance(value, dict):
        return {key: numbers_as_arrays(each) for key, each in value.items()}
    if isinstance(value, torch.Tensor):
        value = as_array(value)
    if isinstance(value, np.ndarray | np.generic) and is_number(value.dtype):
        return np.asarray(value, None if value.dtype.isnative else value.dtype.newbyteorder("="))
    return value


def arrays_as_tensors(value: Any) -> Any:
    """Return a value with tensors for its arrays of numbers, also inside dictionaries."""
    if isinstance(value, dict):
        return {key: arrays_as_tensors(each) for key, each in value.items()}
    if isinstance(value, np.ndarray) and is_number(value.dtype):
        torch_dtype(value.dtype, value.ndim)
        own = value.base is None and value.flags.writeable
        return as_tensor(value if own else value.copy())
    return value


def shown_value(value: Any) -> Any:
    """Return a value as a sample shows it: tensors for arrays, numbers for those of no dimension.

    Raises:
        CodecError: torch has no such dtype.
    """
    if isinstance(value, dict):
        return {key: shown_value(each) for key, each in value.items()}
    found = arrays_as_tensors(value)
    return found.item() if isinstance(found, torch.Tensor) and found.ndim == 0 else found


def as_array(value: torch.Tensor) -> NDArray[Any]:
    """Return the array of a tensor; of a dtype that NumPy lacks, one of its bits.

    Raises:
        CodecError: NumPy has no such dtype or layout.
    """
    bits = BITS.get(value.dtype)
    found: NDArray[Any]
    if bits is None:
        with suppress(TypeError, ValueError, RuntimeError):  # of gradients, devices, or conjugates
            found = value.numpy()
            return found
    try:
        plain = value.detach().cpu().resolve_conj().resolve_neg()
        if bits is None:
            found = plain.numpy()
            return found
        return cast("NDArray[Any]", plain.view(_WORDS[bits.itemsize]).numpy().view(bits))
    except (TypeError, ValueError, RuntimeError) as error:
        raise CodecError(f"no batch can hold a tensor of {value.dtype}: {error}") from error


def as_tensor(value: NDArray[Any]) -> torch.Tensor:
    """Return the tensor that shares its memory with an array, which may be one of bits.

    Raises:
        TypeError: torch has no such dtype.
    """
    dtype = _OF_BITS.get(value.dtype)
    if dtype is None:
        return torch.from_numpy(value)
    return torch.from_numpy(value.view(f"i{dtype.itemsize}")).view(dtype)


@lru_cache(maxsize=256)
def torch_dtype(dtype: np.dtype[Any], dimensions: int) -> torch.dtype:
    """Return torch's dtype for one of NumPy.

    Raises:
        CodecError: torch has none, or no batch holds arrays of so many dimensions.
    """
    try:
        found = as_tensor(np.empty(0, dtype)).dtype
    except TypeError as error:
        raise CodecError(
            f"torch has no dtype for {dtype}", remedy="read the field with decode=False"
        ) from error
    try:
        as_array(torch.empty((0,) * (dimensions + 1), dtype=found))
    except CodecError as error:
        raise CodecError(
            f"no batch can hold arrays of {dimensions} dimensions",
            remedy="read the field with decode=False",
        ) from error
    return found


def misfit(
    found: tuple[Sequence[int], object], wanted: tuple[Sequence[int], object], *, image: bool
) -> MisfitError:
    """Describe how shape and dtype of an array differ from those of others of its batch."""
    shape = wanted[0]
    way = (
        "read the field with a type that makes lists (class Lists(shardio.Array): batching='list')"
    )
    if image:
        side = min(224, *shape[-2:]) if len(shape) > 1 else 224
        way = (
            "give a transform that makes them equal, such as shardio.RandomResizedCrop"
            f"({side}) to train and shardio.Letterbox({side}) to validate"
        )
    return MisfitError(
        f"it is {shape_and_dtype(*found)}, others of the batch are {shape_and_dtype(*wanted)}",
        remedy=f"{way}, or keep them as they are with batch_size=1 or collate=",
    )
