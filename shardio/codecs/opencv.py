"""OpenCV: its threads, which would multiply ours, its messages, and its decoding.

Its threads are kept from work by the number 0. The number 1 would do the same, and would also end
the threads; a forked child, which has OpenCV's records of them but not the threads, would wait for
ever, or crash.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from shardio.errors import CodecError
from shardio.forks import is_forked, new_lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from shardio.codecs.probe import Buffer

_NATIVE_RGB: int | None = getattr(cv2, "IMREAD_COLOR_RGB", None)  # OpenCV 4.11 and later
_FLAGS = cv2.IMREAD_IGNORE_ORIENTATION | (_NATIVE_RGB or cv2.IMREAD_COLOR)
_LOG_LEVEL = "OPENCV_LOG_LEVEL"


class _OpenCVThreads:
    """Keeps OpenCV from using threads of its own while threads of this process call it."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._users = 0
        self._before = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        if is_forked():
            forbid_opencv_threads()
            yield
            return
        process = os.getpid()
        with self._lock:
            if not self._users:
                self._before = cv2.getNumThreads()
                forbid_opencv_threads()
            self._users += 1
        try:
            yield
        finally:
            if process == os.getpid():
                self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._before > 1:  # also 1 where it was 0
                cv2.setNumThreads(self._before)


one_opencv_thread = _OpenCVThreads().one
"""A context in which OpenCV works in the thread that calls it; its setting returns after it, but
not in a forked child."""


def forbid_opencv_threads() -> None:
    """Have OpenCV work in the thread that calls it, for the rest of this process."""
    cv2.setNumThreads(0)


def decode_with_opencv(data: Buffer, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode an image that is not a JPEG to RGB, without turning it.

    OpenCV copies the pixels once, from its own memory to NumPy's.

    Args:
        data: the whole file.
        size: height and width of the image.

    Raises:
        CodecError: OpenCV refuses the image.
        MemoryError: the machine does not have the memory that an image of this size takes.
    """
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS)
    except cv2.error as error:
        _allocate_for_trial(size)
        raise CodecError(f"OpenCV refuses the image: {error.err or error}") from None
    if pixels is None:
        _allocate_for_trial(size)
        raise CodecError("OpenCV does not decode the image: its data are corrupt or of a rare kind")
    if _NATIVE_RGB is None:
        cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
    return cast("NDArray[np.uint8]", pixels)


def _allocate_for_trial(size: tuple[int, int]) -> None:
    """Raise MemoryError if that is why OpenCV gave nothing, which it does not tell."""
    np.empty((2, *size, 3), np.uint8)


def _hush() -> None:
    """Leave errors to exceptions: OpenCV prints them too, unless the user set its level."""
    logging = cv2.utils.logging
    if _LOG_LEVEL not in os.environ and logging.getLogLevel() == logging.LOG_LEVEL_WARNING:
        logging.setLogLevel(logging.LOG_LEVEL_FATAL)


_hush()
