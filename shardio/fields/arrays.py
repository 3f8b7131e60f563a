"""Decoding fields that are not images: class numbers, text, JSON and NumPy arrays.

Nothing here can run code: `.npy` headers are literals, arrays of Python objects are refused. A
size that bytes announce is compared with how many bytes there are before anything is allocated.
The NumPy format is that of NEP 1.

Decoding a field of many samples at once, where their bytes are alike.

What is not alike is not an error here: the samples are then decoded one by one.
"""

from __future__ import annotations

import ast
import json
import math
import re
from math import prod
from struct import unpack_from
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np

from shardio.errors import CodecError, quoted
from shardio.fields.boundary import decoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shardio.fields.probe import Buffer

_MOST_NESTED = 100
_BRACKETS = re.compile(r'[\[\]{}]|"(?:[^"\\]|\\.)*"', re.DOTALL)  # strings hold no structure
_INTEGER = re.compile(rb"\s*(-?[0-9]{1,19})\s*")
_INT64 = np.iinfo(np.int64)

_NPY_MAGIC = b"\x93NUMPY"
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
    number = int(found[1]) if found else _INT64.max + 1
    if not _INT64.min <= number <= _INT64.max:
        raise CodecError(f"not a 64-bit decimal integer: {_excerpt(data)}")
    return number


@decoder
def decode_txt(data: Buffer) -> str:
    """Decode text in UTF-8, white space kept.

    Raises:
        CodecError: the bytes are not UTF-8.
    """
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise CodecError(
            f"not UTF-8 text: {error.reason} at byte {error.start} of {len(data)}"
        ) from None


@decoder
def decode_json(data: Buffer) -> object:
    """Decode JSON in UTF-8.

    Raises:
        CodecError: the bytes are not JSON, or nested too deep.
    """
    text = decode_txt(data)
    if text.count("[") + text.count("{") > _MOST_NESTED:
        _check_depth(text)
    try:
        return json.loads(text)
    except ValueError as error:
        raise CodecError(f"not JSON: {error}") from None


def _check_depth(text: str) -> None:
    """Refuse JSON that is nested so deep that sending it to another process would fail."""
    depth = 0
    for found in _BRACKETS.finditer(text):
        if found[0] in "[{":
            depth += 1
            if depth > _MOST_NESTED:
                raise CodecError(f"JSON nested more than {_MOST_NESTED} deep")
        elif found[0] in "]}":
            depth -= 1


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


def is_picture(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    """Tell whether an array is a picture of at least one pixel, uint8 [H, W, 3]."""
    return dtype == np.uint8 and len(shape) == 3 and shape[2] == 3 and 0 not in shape


@decoder
def decode_pixels(data: Buffer) -> NDArray[np.uint8]:
    """Decode a picture stored as a `.npy` array, uint8 [H, W, 3] RGB.

    Raises:
        CodecError: see decode_npy; or the array is no such picture.
    """
    array = decode_npy(data)
    if not is_picture(array.dtype, array.shape):
        raise CodecError(
            f"a picture stored as pixels must be uint8 [H, W, 3], not {array.dtype} "
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
    coded = _NPY_VERSIONS.get(view[6]) if view[:6] == _NPY_MAGIC and len(view) >= 12 else None
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


def _npy_literal(header: bytes, encoding: str) -> dict[str, object]:
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


_NUMBERS = "biufc"  # kinds of dtype: booleans, integers, floats, complex numbers
_MOST_DIGITS = 18  # that always fit into int64


class ArrayRows(NamedTuple):
    """The data of arrays of one shape and dtype.

    Attributes:
        data: uint8 [n, bytes of an array], in C order and native byte order.
        dtype: of the arrays.
        shape: of each.
    """

    data: NDArray[np.uint8]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@decoder
def split_npy(block: NDArray[np.uint8]) -> ArrayRows | None:
    """Take the headers off `.npy` files, uint8 [n, w], one a row.

    Returns:
        None if the headers differ, or the arrays are not numbers in C order and native byte order.
    """
    try:
        dtype, shape, order, start = npy_header(memoryview(block[0]))
    except CodecError:
        return None
    plain = order == "C" and dtype.isnative and dtype.kind in _NUMBERS
    if not plain or prod(shape) * dtype.itemsize != block.shape[1] - start:
        return None
    if not np.array_equal(block[:, :start], np.broadcast_to(block[0, :start], (len(block), start))):
        return None
    return ArrayRows(block[:, start:], dtype, shape)


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
    numbers = np.zeros(len(block), np.int64)
    for place in range(block.shape[1]):
        digits, inside = block[:, place] - np.uint8(ord("0")), place < sizes
        if (digits[inside] > 9).any():
            return None
        numbers = np.where(inside, numbers * 10 + digits, numbers)
    return numbers
