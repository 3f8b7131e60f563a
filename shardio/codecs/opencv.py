"""OpenCV's own threads, which would multiply ours."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import cv2

if TYPE_CHECKING:
    from collections.abc import Iterator


class _OpenCVThreads:
    """Keeps OpenCV from using threads of its own while threads of this process call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        with self._lock:
            if not self._users:
                self._before = cv2.getNumThreads()
                cv2.setNumThreads(1)
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    cv2.setNumThreads(self._before)


one_opencv_thread = _OpenCVThreads().one
"""A context in which OpenCV works in the thread that calls it; its setting returns after it."""


def forbid_opencv_threads() -> None:
    """Have OpenCV work in the thread that calls it, for the rest of this process."""
    cv2.setNumThreads(0)
