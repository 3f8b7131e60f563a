"""Memory of a process and its children, as Linux counts it.

Pss_Anon + Pss_Shmem: own and shared memory, each shared page divided among those who share it,
the page cache left out.
"""

from __future__ import annotations

from pathlib import Path


def tree_memory(process: int) -> int | None:
    """Bytes of a process and all below it; None where /proc does not tell."""
    try:
        own = _process_memory(process)
    except OSError:
        return None
    return own + sum(tree_memory(child) or 0 for child in _children(process))


def _process_memory(process: int) -> int:
    total = 0
    for line in Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines():
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
