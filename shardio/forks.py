"""Locks in a process that forks.

A forked child has its parent's memory and one of its threads. A lock that another thread held at
that moment would be held in the child for ever, so every lock of shardio comes from here and is
free in a child. What it guards is written so that an update that was cut short does no harm.
Its executors are in shardio.reading.threads, OpenCV's threads in shardio.codecs.opencv.
"""

from __future__ import annotations

import os
import threading
import weakref

_locks: weakref.WeakSet[threading.Lock] = weakref.WeakSet()
_forked = False


def new_lock() -> threading.Lock:
    """Make a lock that is free in a forked child, whoever held it in the parent."""
    lock = threading.Lock()
    _locks.add(lock)
    return lock


def is_forked() -> bool:
    """Tell whether this process was forked from one that had loaded shardio."""
    return _forked


def _begin_child() -> None:
    global _forked  # noqa: PLW0603  a fact about the process
    _forked = True
    for lock in _locks:
        lock._at_fork_reinit()  # type: ignore[attr-defined]  # as logging does with its own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_child)
