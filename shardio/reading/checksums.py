"""CRC-32 of many members at once.

Short members go through the table of the polynomial together, a byte of each at a time. Long ones
of one size lie end to end in one block: zlib takes the checksum of the block in one call, and the
checksums of its members say what that must be, because CRC-32 is linear: appending n bytes to A
gives M(crc(A)) ^ crc(appended), where M is a matrix over GF(2) that depends on n alone
(zlib's crc32_combine). The members are combined in pairs, then pairs of pairs.
"""

from __future__ import annotations

import zlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

MOST_SHORT = 24
"""Bytes of a member, up to which members may differ in size."""

_JOINED = 16  # rows whose checksums are combined at once
_ROWS, _BYTES = np.arange(_JOINED)[:, None], np.arange(4)
_SHORT_RUN = 1 << 16

Operator = NDArray[np.uint32]
"""A linear map of 32 bits, uint32 [4, 256]: what each value of each of the four bytes maps to."""


def check_rows(
    block: NDArray[np.uint8], sizes: NDArray[np.int64], expected: NDArray[np.uint32]
) -> bool:
    """Tell whether members have the checksums that they should.

    Args:
        block: uint8 [n, w], one member a row, in its first bytes.
        sizes: int64 [n], bytes of each member; all w where w is above MOST_SHORT.
        expected: uint32 [n], CRC-32 of each.
    """
    width = block.shape[1]
    if width > MOST_SHORT:
        return zlib.crc32(block.data) == _crc_of_rows(expected, width)
    return bool((_crc_of_short(block, sizes) == expected).all())


def _crc_of_short(block: NDArray[np.uint8], sizes: NDArray[np.int64]) -> NDArray[np.uint32]:
    table = _byte_table()
    crc = np.full(len(block), 0xFFFFFFFF, np.uint32)
    for place in range(block.shape[1]):
        step = table[(crc ^ block[:, place]) & 0xFF] ^ (crc >> 8)
        crc = np.where(place < sizes, step, crc)
    return ~crc


def _crc_of_rows(rows: NDArray[np.uint32], width: int) -> int:
    """CRC-32 of rows of one width laid end to end, of the CRC-32 of each."""
    level = 0
    while len(rows) > 1:
        missing = -len(rows) % _JOINED
        if missing:  # zeros in front change nothing: the map of zero is zero
            rows = np.concatenate([np.zeros(missing, np.uint32), rows])
        operators = _joining(width * _JOINED**level)
        images = operators[_ROWS, _BYTES, _bytes_of(rows).reshape(-1, _JOINED, 4)]
        rows = np.bitwise_xor.reduce(images, axis=(1, 2))
        level += 1
    return int(rows[0])


def _bytes_of(values: NDArray[np.uint32]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values, "<u4").view(np.uint8).reshape(-1, 4)


def _apply(operator: Operator, values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    combined: NDArray[np.uint32] = np.bitwise_xor.reduce(
        operator[_BYTES, _bytes_of(values)], axis=1
    )
    return combined


@lru_cache(maxsize=64)
def _joining(size: int) -> NDArray[np.uint32]:
    """The maps of _JOINED pieces of a size to what they give when laid end to end.

    Returns:
        uint32 [_JOINED, 4, 256]; each piece has as many more appended as follow it.
    """
    identity = np.arange(256, dtype=np.uint32) << np.array([[0], [8], [16], [24]], np.uint32)
    operators = [identity]
    step = _appending(size)
    for _ in range(_JOINED - 1):
        operators.append(np.stack([_apply(step, images) for images in operators[-1]]))
    return np.stack(operators[::-1])


@lru_cache(maxsize=64)
def _appending(size: int) -> Operator:
    """What appending that many bytes does to the checksum of what comes before."""
    half = size // 2
    if half > _SHORT_RUN:
        once = _appending(half)
        twice = np.stack([_apply(once, images) for images in once])
        return np.stack([_apply(_appending(1), images) for images in twice]) if size % 2 else twice
    zeros = bytes(size)
    start = zlib.crc32(zeros)
    bits = [zlib.crc32(zeros, 1 << bit) ^ start for bit in range(32)]
    operator = np.zeros((4, 256), np.uint32)
    for bit, image in enumerate(bits):
        place, within = divmod(bit, 8)
        operator[place, (np.arange(256) >> within & 1) == 1] ^= np.uint32(image)
    return operator


@lru_cache(maxsize=1)
def _byte_table() -> NDArray[np.uint32]:
    """The table of CRC-32 by bytes, polynomial 0xEDB88320 (ITU-T V.42, reflected)."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(0xEDB88320), table >> 1)
    return table
