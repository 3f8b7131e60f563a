"""CRC-32 by the native core, two to three times as fast as zlib for photos."""

from __future__ import annotations

import ctypes
import zlib
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from shardio.native import library

if TYPE_CHECKING:
    from collections.abc import Callable

    Data = bytes | bytearray | memoryview

_SMALL = 1 << 14  # bytes below which zlib is faster


def crc32(data: Data, start: int = 0) -> int:
    """Compute a CRC-32 as `zlib.crc32` does.

    Args:
        data: contiguous bytes.
        start: CRC-32 of the bytes before these.
    """
    size = data.nbytes if isinstance(data, memoryview) else len(data)
    return zlib.crc32(data, start) if size < _SMALL else _of_many()(data, start)


@cache
def _of_many() -> Callable[[Data, int], int]:
    function = getattr(library(decodes=False), "shardio_crc32", None)
    if function is None:
        return zlib.crc32
    function.restype = ctypes.c_uint32
    function.argtypes = (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t)

    def by_core(data: Data, start: int) -> int:
        held = np.frombuffer(data, np.uint8)  # as long as the call takes
        found: int = function(start, held.ctypes.data, held.nbytes)
        return found

    known = bytes(range(200))  # folded in part
    return by_core if by_core(known, 1) == zlib.crc32(known, 1) else zlib.crc32
