"""Lock files: who writes to a folder holds the lock of its file."""

from __future__ import annotations

import fcntl
import os
import time
from io import FileIO
from pathlib import Path

_PATIENCE = 2.0  # seconds in which the processes of somebody who was killed end


def take_lock(held: FileIO, path: Path) -> bool:
    """Lock a file; False if another has it, or removed it after it was opened here.

    Args:
        held: the file, open.
        path: of it.
    """
    end = time.monotonic() + _PATIENCE
    while not (ours := _try_lock(held)) and time.monotonic() < end:
        time.sleep(0.02)
    try:
        return ours and os.path.samestat(os.fstat(held.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _try_lock(held: FileIO) -> bool:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
