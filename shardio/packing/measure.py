"""What samples will take in a shard, before they are read."""

from __future__ import annotations

import os

from shardio.packing.samples import FromFile, FromMemory, SourceSample
from shardio.tar.header import BLOCK


class Measure:
    """Says how many bytes samples take in a shard.

    Args:
        root: folder that relative paths start from.
    """

    def __init__(self, root: str) -> None:
        self._root = os.fsencode(root)

    def __call__(self, sample: SourceSample) -> int:
        """Headers and padding included; files that are not there count as empty."""
        total = 0
        for _, origin in sample.fields:
            if isinstance(origin, FromMemory):
                size = len(origin.data)
            elif isinstance(origin, FromFile):
                try:
                    size = os.stat(os.path.join(self._root, origin.path)).st_size  # noqa: PTH116, PTH118
                except OSError:  # packing tells it
                    size = 0
            else:
                size = origin.size
            total += BLOCK + size + -size % BLOCK
        return total
