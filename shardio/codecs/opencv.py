"""OpenCV's own threads, which would multiply ours.

They are kept from work by the number 0. The number 1 would do the same, and would also end the
threads; a forked child, which has OpenCV's records of them but not the threads, would wait for
ever, or crash.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import cv2

from shardio.forks import is_forked, new_lock

if TYPE_CHECKING:
    from collections.abc import Iterator


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
