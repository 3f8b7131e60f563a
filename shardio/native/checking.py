"""Checks of image files by the native core, where it knows the answer without decoding."""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING

import numpy as np

from shardio.native import library

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


def are_sound_jpegs(files: Sequence[memoryview]) -> NDArray[np.bool_]:
    """Tell of JPEGs whether they are of the common kind and decode without a warning.

    Args:
        files: whole files, which take less time together.

    Returns:
        Answer for each file, bool [n]; False also if only decoding tells, or without the native
        core.
    """
    try:
        check: Callable[[Sequence[memoryview]], NDArray[np.bool_]] = _local.check
    except AttributeError:
        check = _local.check = _make_check()
    return check(files)


class _Checker:
    """Tables and memory of one thread."""

    def __init__(self, core: ctypes.CDLL) -> None:
        new, self._free, self._check = (
            core.shardio_checker_new,
            core.shardio_checker_free,
            core.shardio_jpegs_are_sound,
        )
        new.restype, self._free.restype, self._check.restype = ctypes.c_void_p, None, None
        self._free.argtypes = (ctypes.c_void_p,)
        self._check.argtypes = (ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_void_p] * 3)
        self._checker = new()
        if not self._checker:
            raise MemoryError("no memory is left for the native core")

    def check(self, files: Sequence[memoryview]) -> NDArray[np.bool_]:
        arrays = [np.frombuffer(data, np.uint8) for data in files]
        places = np.array([data.ctypes.data for data in arrays], np.uintp)
        sizes = np.array([len(data) for data in arrays], np.uintp)
        sound = np.empty(len(files), np.bool_)
        addresses = (array.ctypes.data for array in (places, sizes, sound))
        self._check(self._checker, len(files), *addresses)
        return sound

    def __del__(self) -> None:
        if getattr(self, "_checker", None):
            self._free(self._checker)


def _make_check() -> Callable[[Sequence[memoryview]], NDArray[np.bool_]]:
    core = library(decodes=False)
    return (lambda files: np.zeros(len(files), np.bool_)) if core is None else _Checker(core).check


_local = threading.local()
