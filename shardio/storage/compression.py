"""Limits on what compressed shards become on disk.

A few megabytes may hold as many gigabytes of zeros. Tars of text or empty masks compress well,
too, so the limit is generous, applies to large copies only, and can be lifted with
$SHARDIO_MAX_RATIO. A disk is never filled to its end, for others write to it, too.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from shardio.errors import UsageError

_RATIO = "SHARDIO_MAX_RATIO"
_MOST_RATIO = 200.0
_ALWAYS = 1 << 30  # plain bytes that are taken at any ratio
_KEPT_SHARE, _KEPT_BYTES = 0.05, 1 << 30  # of the disk: what is less stays free
_BETWEEN_LOOKS = 1 << 24  # bytes written from look to look at the free space


class Expansion:
    """Limits on the plain copy of a compressed file.

    Args:
        compressed: path of the compressed file.
        descriptor: open file that takes the plain copy.

    Raises:
        UsageError: $SHARDIO_MAX_RATIO is not a positive number.
    """

    def __init__(self, compressed: Path, descriptor: int) -> None:
        self._ratio = _ratio()
        self._most = max(self._ratio * compressed.stat().st_size, _ALWAYS)
        self._descriptor = descriptor
        self._size = self._next_look = 0

    def grow(self, size: int) -> str | None:
        """Count bytes that are about to be written.

        Returns:
            Why they are too many, or None.

        Raises:
            OSError: they would fill the disk.
        """
        self._size += size
        if self._size > self._most:
            return (
                f"its plain data is more than {self._ratio:g} times as large as the file, as in "
                f"an archive that was made to fill disks; set {_RATIO} higher if it is sound"
            )
        if self._size > self._next_look:
            self._next_look = self._size + _BETWEEN_LOOKS
            disk = os.fstatvfs(self._descriptor)
            kept = min(_KEPT_SHARE * disk.f_blocks * disk.f_frsize, _KEPT_BYTES)
            if disk.f_bavail * disk.f_frsize - size < kept:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return None


def _ratio() -> float:
    text = os.environ.get(_RATIO)
    if text is None:
        return _MOST_RATIO
    try:
        ratio = float(text)
    except ValueError:
        ratio = 0.0
    if not ratio > 0:
        raise UsageError(f"{_RATIO} is {text!r}", remedy="it must be a number greater than 0")
    return ratio
