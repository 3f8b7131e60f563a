"""Decoding a field of many samples at once, where their bytes are alike.

What is not alike is not an error here: the samples are then decoded one by one.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from shardio.codecs.basic import npy_header
from shardio.codecs.boundary import decoder
from shardio.errors import CodecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
