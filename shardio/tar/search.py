"""Looking for headers that no walk leads to: behind damage or the end of an archive."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Protocol, TypeAlias

import numpy as np

from shardio.tar.header import BLOCK, has_sound_checksum


class Sliced(Protocol):
    """Bytes that are read when a slice of them is asked for, as those of a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes | memoryview: ...


class Searched(Sliced, Protocol):
    """Sliced bytes in which a text can be found."""

    def __getitem__(self, part: slice, /) -> bytes: ...

    def find(self, text: bytes, start: int, /) -> int:
        """Where a text first occurs at or after an offset; -1 if it does not."""
        ...


Buffer: TypeAlias = bytes | bytearray | memoryview | mmap.mmap

_PIECE = 1 << 20
_CHECKSUM_AT = 148
_STARTS = np.isin(np.arange(256), [*b" 01234567\x80"])  # of a number that is not 0


def find_headers(data: Sliced, start: int, end: int) -> Iterator[int]:
    """Find the blocks that are headers by their checksums.

    Time is linear, and the memory that of a piece, whatever the bytes are.

    Args:
        data: the archive, as bytes.
        start: offset of the first block; the others follow at multiples of 512 from there.
        end: offset that no block goes beyond.

    Yields:
        Offsets in ascending order.
    """
    for first in range(start, end - BLOCK + 1, _PIECE):
        piece = bytes(data[first : min(first + _PIECE, end)])
        checksums = np.frombuffer(piece, np.uint8)[_CHECKSUM_AT::BLOCK]
        for number in np.flatnonzero(_STARTS[checksums]).tolist():
            block = piece[number * BLOCK : (number + 1) * BLOCK]
            if len(block) == BLOCK and has_sound_checksum(block):
                yield first + number * BLOCK
