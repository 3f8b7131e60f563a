"""Checks of image files by the native core, where it knows the answer without decoding."""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING

import numpy as np

from shardio.native import library

if TYPE_CHECKING:
    from collections.abc import Callable


def is_sound_jpeg(data: memoryview) -> bool:
    """Tell whether a JPEG is one of the common kind that decodes without a warning.

    Args:
        data: the whole file.

    Returns:
        False also if only decoding tells, or without the native core.
    """
    try:
        check: Callable[[memoryview], bool] = _local.check
    except AttributeError:
        check = _local.check = _make_check()
    return check(data)


class _Checker:
    """Tables and memory of one thread."""

    def __init__(self, core: ctypes.CDLL) -> None:
        new, self._free, self._is_sound = (
            core.shardio_checker_new,
            core.shardio_checker_free,
            core.shardio_jpeg_is_sound,
        )
        new.restype, self._free.restype = ctypes.c_void_p, None
        self._free.argtypes = (ctypes.c_void_p,)
        self._is_sound.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
        self._checker = new()
        if not self._checker:
            raise MemoryError("no memory is left for the native core")

    def is_sound(self, data: memoryview) -> bool:
        place = np.frombuffer(data, np.uint8)
        return bool(self._is_sound(self._checker, place.ctypes.data, len(place)))

    def __del__(self) -> None:
        if getattr(self, "_checker", None):
            self._free(self._checker)


def _make_check() -> Callable[[memoryview], bool]:
    core = library()
    return (lambda _: False) if core is None else _Checker(core).is_sound


_local = threading.local()
