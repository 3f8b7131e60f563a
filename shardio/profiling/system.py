"""What the kernel counts of processes, threads and files.

Where it does not say (not Linux), None or nothing, so that callers do without.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

_LEFT_IN_CACHE = 0.1  # of a file, when it counts as dropped


class Use(NamedTuple):
    """Of cores by a thread, since it began.

    Attributes:
        cpu: ns that it ran.
        delay: ns that it could have run, but no core was free: the run queue's delay.
    """

    cpu: int
    delay: int


def descendants(process: int) -> list[int]:
    """The processes that it started, and those that they started."""
    found: list[int] = []
    for child in _children(process):
        found += [child, *descendants(child)]
    return found


def thread_uses(process: int) -> dict[int, Use]:
    """By thread of a process; nothing if it has ended."""
    uses = {}
    try:
        for path in Path(f"/proc/{process}/task").iterdir():
            cpu, delay, _ = (path / "schedstat").read_bytes().split()
            uses[int(path.name)] = Use(int(cpu), int(delay))
    except (OSError, ValueError):
        pass
    return uses


class Moved(NamedTuple):
    """Bytes and pages that a process has moved since it began.

    Attributes:
        from_disk: had read from a local disk, not from the page cache.
        written: to files, pipes and sockets.
        faults: pages of memory that were new to it.
    """

    from_disk: int
    written: int
    faults: int


def bytes_moved(process: int) -> Moved | None:
    """What a process has moved; None if it has ended, or belongs to another user."""
    try:
        lines = Path(f"/proc/{process}/io").read_text("ascii").splitlines()
        status = Path(f"/proc/{process}/stat").read_text("utf-8")
    except OSError:
        return None
    values = dict(line.split(": ") for line in lines)
    faults = status.rpartition(")")[2].split()[7]
    return Moved(int(values["read_bytes"]), int(values["wchar"]), int(faults))


def tree_memory(process: int) -> int | None:
    """Bytes of memory that a process and its descendants hold themselves, page cache left out.

    Proportional shares (Pss_Anon and Pss_Shmem of /proc/*/smaps_rollup), so that memory shared
    between them counts once. None where the kernel does not say.
    """
    parts = [_memory(one) for one in [process, *descendants(process)]]
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def drop_from_cache(paths: Sequence[str]) -> bool:
    """Drop files from the page cache; False if they cannot be, or are in it still."""
    if not hasattr(os, "posix_fadvise"):
        return False
    try:
        for path in paths:
            with Path(path).open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        return False
    shares = [cached_share(path) for path in paths]
    return all(share is not None and share < _LEFT_IN_CACHE for share in shares)


def cached_share(path: str) -> float | None:
    """Which share of a file is in the page cache; None if the kernel does not say."""
    try:
        with Path(path).open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if not size:
                return 1.0
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as pages:
                return _resident_share(pages, size)
    except (OSError, AttributeError, ValueError):
        return None


def _resident_share(pages: mmap.mmap, size: int) -> float | None:
    flags = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    first = ctypes.c_char.from_buffer(pages)
    try:
        failed = _libc().mincore(ctypes.byref(first), ctypes.c_size_t(size), flags)
    finally:
        del first  # a map that is pointed into cannot be closed
    return None if failed else float(np.mean(np.frombuffer(bytes(flags), np.uint8) & 1))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _memory(process: int) -> int | None:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text("ascii").splitlines()
    except OSError:
        return None
    total = 0
    for line in lines:
        name, _, value = line.partition(":")
        if name in {"Pss_Anon", "Pss_Shmem"}:
            total += int(value.split()[0]) * 1024
    return total


def _children(process: int) -> list[int]:
    try:
        tasks = [*Path(f"/proc/{process}/task").glob("*/children")]
        return [int(child) for path in tasks for child in path.read_text("ascii").split()]
    except OSError:
        return []
