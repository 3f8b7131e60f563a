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
        if len(rows) % 2:  # zero in front changes nothing: the map of zero is zero
            rows = np.concatenate([np.zeros(1, np.uint32), rows])
        rows = _apply(_appending(width, level), rows[0::2]) ^ rows[1::2]
        level += 1
    return int(rows[0])


def _apply(operator: Operator, values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    parts = np.ascontiguousarray(values, "<u4").view(np.uint8).reshape(-1, 4)
    images: Operator = operator[np.arange(4), parts]
    combined: NDArray[np.uint32] = np.bitwise_xor.reduce(images, axis=1)
    return combined


@lru_cache(maxsize=256)
def _appending(width: int, level: int) -> Operator:
    """What appending width · 2^level bytes does to the checksum of what comes before."""
    if level:
        before = _appending(width, level - 1)
        return np.stack([_apply(before, before[place]) for place in range(4)])
    zeros = bytes(width)
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
