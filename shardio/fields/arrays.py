"""Field types of class numbers and NumPy arrays.

Nothing here can run code: `.npy` headers are literals, arrays of Python objects are refused. A
size that bytes announce is compared with how many bytes there are before anything is allocated.
The NumPy format is that of NEP 1.

Members that are alike are decoded many at once. Members that are not alike are not an error there:
they are then decoded one by one.
"""

from __future__ import annotations

import ast
import io
import math
import re
from dataclasses import replace
from functools import lru_cache
from math import prod
from struct import unpack_from
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np

from shardio.errors import CodecError, quoted
from shardio.fields.base import LABEL_FIELD, Batching, Dense, FieldType
from shardio.fields.boundary import decoder, not_of_the_data
from shardio.fields.summary import FieldSummary, summarize_numbers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from shardio.fields.geometry import View
    from shardio.fields.probe import Buffer

_INTEGER = re.compile(rb"\s*(-?[0-9]{1,19})\s*")
_LEAST, _GREATEST = -(1 << 63), (1 << 63) - 1

NPY_MAGIC = b"\x93NUMPY"
_NPY_VERSIONS = {1: ("<H", 10, "latin1"), 2: ("<I", 12, "latin1"), 3: ("<I", 12, "utf-8")}
"""How the header's length at offset 8 is coded, where the header starts, and its encoding."""
_NPY_MAX_HEADER = 10_000  # NumPy's own limit: parsing a longer literal may exhaust memory
_NPY_KEYS = {"descr", "fortran_order", "shape"}
_ESCAPE = r"""\\(?:['"\\abfnrtv]|x[0-9a-f]{2}|u[0-9a-f]{4}|U00(?:0[0-9a-f]|10)[0-9a-f]{4})"""
_NPY_LITERAL = re.compile(
    rf"""(?:[\s{{}}()\[\],:0-9]|-(?=[0-9])|True|False"""
    rf"""|'(?:[^'\\]|{_ESCAPE})*'|"(?:[^"\\]|{_ESCAPE})*")*"""
)
"""What headers consist of; of other text Python may print what it thinks of it."""
_BYTES_ALIAS = re.compile("[<>|=]?a[0-9]*")  # of which NumPy prints that it is no longer used
_MOST_ROOM = 1 << 40
"""Most elements of an empty array if its zeros were ones: batches have to hold several of them."""


@decoder
def decode_cls(data: Buffer) -> int:
    """Decode a class number: a decimal integer in ASCII, white space around it allowed.

    Raises:
        CodecError: the bytes are something else, or no 64-bit integer.
    """
    found = _INTEGER.fullmatch(data)
    number = int(found[1]) if found else _GREATEST + 1
    if not _LEAST <= number <= _GREATEST:
        raise CodecError(f"not a 64-bit decimal integer: {_excerpt(data)}")
    return number


def is_npy(data: Buffer) -> bool:
    """Tell whether data are in NumPy's `.npy` format, by their first bytes."""
    return data[: len(NPY_MAGIC)] == NPY_MAGIC


@decoder
def decode_npy(data: Buffer) -> NDArray[np.generic]:
    """Decode an array in NumPy's `.npy` format.

    Returns:
        A writable array in native byte order, of the shape and order the file says. It shares
        memory with writable data and is a copy of read-only data.

    Raises:
        CodecError: the bytes are no `.npy` file, hold Python objects, or are fewer or more than
            the header announces.
    """
    view = memoryview(data).cast("B")
    dtype, shape, order, start = npy_header(view)
    announced = math.prod(shape) * dtype.itemsize
    if announced != len(view) - start:
        raise CodecError(
            f"the .npy header announces {announced} bytes of data, but {len(view) - start} follow"
        )
    try:
        array = np.frombuffer(view, dtype, offset=start) if announced else np.empty(0, dtype)
        array = array.reshape(shape, order=order)
    except (ValueError, OverflowError) as error:  # as of more dimensions than NumPy has
        raise CodecError(f"broken .npy header: {error}") from None
    array = array.astype(dtype.newbyteorder("="), copy=False)
    return array if array.flags.writeable else array.copy(order="K")


def is_picture(dtype: np.dtype[Any], shape: tuple[int, ...], channels: int = 3) -> bool:
    """Tell whether an array is a picture of at least one pixel, uint8 [H, W, channels]."""
    return dtype == np.uint8 and len(shape) == 3 and shape[2] == channels and 0 not in shape


@decoder
def decode_pixels(data: Buffer, channels: int = 3) -> NDArray[np.uint8]:
    """Decode a picture stored as a `.npy` array, uint8 [H, W, channels].

    Raises:
        CodecError: see decode_npy; or the array is no such picture.
    """
    array = decode_npy(data)
    if not is_picture(array.dtype, array.shape, channels):
        raise CodecError(
            f"a picture stored as pixels must be uint8 [H, W, {channels}], not {array.dtype} "
            f"{list(array.shape)}",
            remedy="name the field otherwise if it is something else",
        )
    return cast("NDArray[np.uint8]", array)


@decoder
def npy_header(
    view: memoryview,
) -> tuple[np.dtype[np.generic], tuple[int, ...], Literal["C", "F"], int]:
    """Read the header of a `.npy` file.

    Returns:
        dtype, shape, order, and where the data start.

    Raises:
        CodecError: the bytes do not start as a `.npy` file, or announce Python objects.
    """
    coded = _NPY_VERSIONS.get(view[6]) if is_npy(view) and len(view) >= 12 else None
    if coded is None:
        raise CodecError(f"not a .npy file of version 1, 2 or 3: it starts {_excerpt(view)}")
    length_format, start, encoding = coded
    length: int = unpack_from(length_format, view, 8)[0]
    if length > min(_NPY_MAX_HEADER, len(view) - start):
        raise CodecError(f"truncated .npy or broken header: it announces {length} bytes of header")
    header = _npy_literal(bytes(view[start : start + length]), encoding)
    shape = header["shape"]
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise CodecError(f"broken .npy header: the shape is {quoted(shape)}")
    if math.prod(n or 1 for n in shape) > _MOST_ROOM:
        raise CodecError(f"broken .npy header: no array has the shape {quoted(shape)}")
    if type(header["fortran_order"]) is not bool:
        raise CodecError(f"broken .npy header: fortran_order is {quoted(header['fortran_order'])}")
    order: Literal["C", "F"] = "F" if header["fortran_order"] else "C"
    return _npy_dtype(header["descr"]), shape, order, start + length


@lru_cache(maxsize=64)  # the arrays of a field have few headers, and parsing one takes 25 µs
def _npy_literal(header: bytes, encoding: str) -> Mapping[str, object]:
    """Evaluate the header, a Python dict literal."""
    text = str(header, encoding, "replace")
    try:
        literal = ast.literal_eval(text) if _NPY_LITERAL.fullmatch(text) else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        literal = None  # MemoryError is of the parser here, whose nesting is limited
    if not isinstance(literal, dict) or literal.keys() != _NPY_KEYS:
        raise CodecError(
            f"broken .npy header: not a dict of descr, fortran_order and shape: {_excerpt(header)}"
        )
    return literal


def _npy_dtype(descr: object) -> np.dtype[np.generic]:
    try:
        _refuse_bytes_alias(descr)
        dtype = np.lib.format.descr_to_dtype(cast("list[tuple[str, str]]", descr))
    except not_of_the_data(np.lib.format.descr_to_dtype):
        raise
    except Exception as error:  # the bytes choose what is asked of NumPy, so any kind may come
        raise CodecError(
            f"broken .npy header: the dtype {quoted(descr)} is unknown ({error!s:.100})"
        ) from None
    if dtype.hasobject:
        raise CodecError("a .npy array of Python objects: they are pickled, and pickles run code")
    return dtype


def _refuse_bytes_alias(descr: object) -> None:
    """Look at the types in a descr: of a record's fields second, of a subarray first."""
    if isinstance(descr, list):
        for field in descr:
            _refuse_bytes_alias(field[1])
    elif isinstance(descr, tuple):
        _refuse_bytes_alias(descr[0])
    elif isinstance(descr, str) and _BYTES_ALIAS.fullmatch(descr):
        raise TypeError("'a' is no longer a type, 'S' is")


def _excerpt(data: Buffer) -> str:
    """Show how data start."""
    return repr(bytes(data[:40])) + ("..." if len(data) > 40 else "")


NUMBERS = "biufc"
"""Kinds of dtype: booleans, integers, floats, complex numbers."""

_NOT_FINITE = ("are not finite", "readers deliver them; compare them with their source")
_MOST_DIGITS = 18  # that always fit into int64
_POWERS = 10 ** np.arange(_MOST_DIGITS, dtype=np.int64)


@decoder
def split_npy(block: NDArray[np.uint8]) -> NDArray[np.generic] | None:
    """Take the headers off `.npy` files.

    Args:
        block: files of one size, uint8 [n, w], one a row.

    Returns:
        The arrays [n, …], which share memory with the block; None if the headers differ, or the
        arrays are not numbers in C order and native byte order.
    """
    try:
        dtype, shape, order, start = npy_header(memoryview(block[0]))
    except CodecError:
        return None
    plain = order == "C" and dtype.isnative and dtype.kind in NUMBERS
    if not plain or prod(shape) * dtype.itemsize != block.shape[1] - start:
        return None
    if not np.array_equal(block[:, :start], np.broadcast_to(block[0, :start], (len(block), start))):
        return None
    return block[:, start:].view(dtype).reshape(len(block), *shape)


def parse_numbers(block: NDArray[np.uint8], sizes: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Read decimal integers without sign.

    Args:
        block: uint8 [n, w], a number a row, in its first bytes.
        sizes: int64 [n], bytes of each.

    Returns:
        int64 [n]; None if something else than digits is among them, or too many.
    """
    if block.shape[1] > _MOST_DIGITS or int(sizes.min(initial=1)) < 1:
        return None
    digits = block - np.uint8(ord("0"))
    places = sizes[:, None] - np.arange(1, block.shape[1] + 1)  # below 0 behind the end
    digits[places < 0] = 0
    if (digits > 9).any():
        return None
    numbers: NDArray[np.int64] = (digits * _POWERS[places]).sum(axis=1)
    return numbers


_PILLOW_MODES = ("1", "L", "P", "I", "F", "RGB", "RGBA", "I;16", "I;16L", "I;16B")
"""Modes of Pillow whose arrays hold what the image shows, or indices into its palette."""
_ORIENTATION, _UPRIGHT = 0x0112, 1


def as_array(value: Any) -> NDArray[Any]:
    """Return the numbers of an array, tensor or Pillow image of a program.

    The values of a Pillow image with a palette are its indices.

    Raises:
        TypeError: the array would be without something that is part of the value.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError("it is a masked array, whose mask would be lost; fill it")
    if hasattr(value, "getexif") and hasattr(value, "mode"):
        if value.mode not in _PILLOW_MODES:
            raise TypeError(f"it is a Pillow image of mode {value.mode}; convert it to RGB")
        if value.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT:
            raise TypeError(
                "it is a Pillow image that its EXIF orientation turns; call ImageOps.exif_transpose"
            )
    return np.asarray(value)


class Label(FieldType):
    """Class numbers, in text."""

    name = "cls"
    names = frozenset({LABEL_FIELD, "index"})
    batching = Dense(np.int64)
    preview_bytes = 64
    native = "number"
    decode = staticmethod(decode_cls)

    def decode_rows(
        self, block: NDArray[np.uint8], sizes: NDArray[np.int64]
    ) -> NDArray[np.int64] | None:
        """Decode numbers without sign."""
        return parse_numbers(block, sizes)

    def summarize(self, value: int, view: View | None) -> FieldSummary:
        """Count the class."""
        del view
        return FieldSummary(unit="labels", classes={value: 1})

    def encode(self, value: Any) -> bytes:
        """Encode a whole number, or an array of one integer."""
        if isinstance(value, np.ndarray) and value.ndim:
            if value.size != 1 or value.dtype.kind not in "iu":
                raise ValueError("it is not one whole number")
            value = value.item()
        if isinstance(value, bool) or int(value) != value:
            raise ValueError("it is not a whole number")
        return b"%d" % int(value)

    def preview(self, data: Buffer) -> str:
        """Show the number."""
        return str(decode_cls(data))


class Array(FieldType):
    """Arrays in NumPy's `.npy` format."""

    name = "npy"
    names = frozenset({"npy"})
    magic: ClassVar[Mapping[bytes, str]] = {NPY_MAGIC: "npy"}
    batching: ClassVar[Batching] = "stack"
    preview_bytes = 1 << 14  # headers are shorter
    native = "rows"
    decode = staticmethod(decode_npy)

    def decode_rows(
        self, block: NDArray[np.uint8], sizes: NDArray[np.int64]
    ) -> NDArray[np.generic] | None:
        """Decode arrays of numbers of one shape and dtype."""
        return split_npy(block) if int(sizes.min()) == block.shape[1] else None

    def summarize(self, value: NDArray[np.generic], view: View | None) -> FieldSummary | None:
        """Tell the range of numbers, and how many are zero or not finite."""
        del view
        if value.dtype.kind not in "biuf":
            return None
        found = summarize_numbers(value, "numbers")
        bad = found.counts["not finite"]
        return replace(found, notes={_NOT_FINITE: bad}) if bad else found

    def encode(self, value: Any) -> bytes:
        """Encode whatever makes an array."""
        stream = io.BytesIO()
        np.save(stream, as_array(value), allow_pickle=False)
        return stream.getvalue()

    def preview(self, data: Buffer) -> str:
        """Show dtype and shape, or the number of an array without dimensions."""
        dtype, shape, *_ = npy_header(memoryview(data))
        number = not shape and dtype.kind in "biuf"
        return f"{dtype} {str(self.decode(data)[()]) if number else [*shape]}"
