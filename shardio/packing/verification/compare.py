"""The members of a shard, held against its index."""

from __future__ import annotations

import zlib

import numpy as np

from shardio.errors import counted
from shardio.index.shard_index import ShardIndex
from shardio.packing.verification.findings import Findings
from shardio.storage.local import FileBytes

_AGAIN = "get or pack the shard again, or write what is whole to a new folder with --fix"


class Comparison:
    """Takes the members of a shard one by one.

    Args:
        index: of the shard.
        found: takes what differs.

    Attributes:
        cut: whether members are missing behind the end of the shard, known after `finish`.
    """

    def __init__(self, index: ShardIndex, found: Findings) -> None:
        rows, columns = np.nonzero(index.offsets >= 0)
        places = index.offsets[rows, columns].tolist()
        self._index = index
        self._found = found
        self._left = dict(
            zip(places, zip(rows.tolist(), columns.tolist(), strict=True), strict=True)
        )
        self._differ = 0
        self.cut = False
        self._strangers: dict[tuple[str, str], int] = {}

    def look_at(self, key: str, field: str, offset: int, data: memoryview) -> bool:
        """Compare a member; returns whether its data are what the index says, as far as it does."""
        row, column = self._left.get(offset, (-1, -1))
        if row < 0 or (self._index.key(row), self._index.fields[column]) != (key, field):
            self._strangers[key, field] = offset
            return True
        del self._left[offset]
        size, fault = int(self._index.sizes[row, column]), None
        if size != len(data):
            fault = f"the member has {counted(len(data), 'byte')}, by the index {size:,}"
        elif not self._fits(row, column, data):
            fault = "the data are not what was packed (CRC-32 differs)"
        if fault is not None:
            self._add(fault, key, field, offset)
        return fault is None

    def finish(self, *, samples: int, data: FileBytes) -> None:
        """Say what is left over on both sides.

        Args:
            samples: in the shard.
            data: of the shard.
        """
        moved: list[tuple[str, str, int]] = []
        behind: list[tuple[str, str, int]] = []
        for offset, (row, column) in self._left.items():
            key, field = self._index.key(row), self._index.fields[column]
            place = self._strangers.pop((key, field), None)
            if place is not None:
                moved.append((key, field, place))
                continue
            end = offset + int(self._index.sizes[row, column])
            if end > len(data):
                behind.append((key, field, offset))
                continue
            content = memoryview(data[offset:end])
            still = ", though its data are" if self._fits(row, column, content) else ""
            self._add(f"no header says that this member is there{still}", key, field, offset)
        if behind:
            self.cut = True
            key, field, offset = behind[0]
            others = f" and {len(behind) - 1:,} more" if len(behind) > 1 else ""
            self._add(
                f"the shard is cut off at byte {len(data):,}, before the end of this member"
                f"{others}",
                key,
                field,
                offset,
            )
        if moved:
            key, field, offset = moved[0]
            self._add(
                f"this and {len(moved) - 1:,} more members are not where the index says, so bytes "
                "were lost, added or moved",
                key,
                field,
                offset,
            )
        for (key, field), offset in self._strangers.items():
            self._add("the index does not have this member", key, field, offset)
        if not self._differ and samples != len(self._index):
            self._found.add(
                f"the shard has {counted(samples, 'sample')}, by the index {len(self._index):,}",
                _AGAIN,
            )

    def _fits(self, row: int, column: int, data: memoryview) -> bool:
        sums = self._index.checksums
        return sums is None or int(sums[row, column]) == zlib.crc32(data)

    def _add(self, what: str, key: str, field: str, offset: int) -> None:
        self._differ += 1
        self._found.add(what, _AGAIN, key=key, field=field, offset=offset)
