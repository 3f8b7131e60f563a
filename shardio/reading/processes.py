"""Other processes of this machine."""

from __future__ import annotations

import os


def count_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_alive(process: int) -> bool:
    """Tell whether a process of ours with that number runs, or has not been waited for."""
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True
