"""Fields of many samples at once, copied out of their shards.

Where the members of a batch are alike, as arrays of one shape and class numbers are, one copy for
each field takes the place of a system call and a dozen of Python's steps for each sample. Every
byte still has its checksum verified; where none is known, the headers are copied too, and verified.
Buffers are kept: new memory would cost page faults, more than the copying.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardio.forks import new_lock
from shardio.reading.checksums import MOST_SHORT, check_rows
from shardio.reading.shards import OpenShard, Places, ShardPool, Wanted
from shardio.storage.copying import RowCopier
from shardio.storage.local import BLOCK, LocalShard

_MOST_AT_ONCE = 4 << 20  # bytes; they stay in the processor's cache while they are looked at


class _Group(NamedTuple):
    """Samples of one shard.

    Attributes:
        shard: that they are in.
        file: of the shard.
        samples: int64 [k], their positions there.
        rows: which rows of what is gathered are theirs.
    """

    shard: OpenShard
    file: LocalShard
    samples: NDArray[np.int64]
    rows: slice

    def within(self, rows: slice) -> _Group:
        """What of it is in some rows, which are counted from their first."""
        start, stop = max(self.rows.start, rows.start), min(self.rows.stop, rows.stop)
        samples = self.samples[max(start - self.rows.start, 0) : max(stop - self.rows.start, 0)]
        return _Group(self.shard, self.file, samples, slice(start - rows.start, stop - rows.start))


class Rows(NamedTuple):
    """One field of several samples.

    Attributes:
        field: its name.
        block: uint8 [n, w], where w is the greatest size.
        sizes: int64 [n], how many bytes of each row belong to it.
    """

    field: str
    block: NDArray[np.uint8]
    sizes: NDArray[np.int64]


class Gathered(NamedTuple):
    """Several fields of several samples.

    Attributes:
        order: int64 [n], which sample each row is of.
        keys: of the rows.
        fields: one Rows a wanted field, valid until the next are gathered.
    """

    order: NDArray[np.int64]
    keys: list[str]
    fields: list[Rows]


class Gatherer:
    """Reads fields of samples of several shards.

    Args:
        pool: of the shards.
        wanted: fields with their alternatives.

    Attributes:
        lock: to be held while gathering. The steps are so short that two threads at once would
            hand the interpreter's lock to each other at every one, and be slower than one.
    """

    def __init__(self, pool: ShardPool, wanted: Wanted) -> None:
        self.lock = new_lock()
        self._pool = pool
        self._wanted = wanted
        self._fields = [RowCopier() for _ in wanted]
        self._headers = RowCopier()

    def gather(
        self, shards: NDArray[np.int64], samples: NDArray[np.int64]
    ) -> Iterator[Gathered | None]:
        """Read samples, some at a time.

        Args:
            shards: int64 [n], where each sample is.
            samples: int64 [n], its position there.

        Yields:
            None, and nothing more, if the samples are not alike, or not what the index recorded:
            reading them one by one tells.

        Raises:
            TarError: a shard was changed or cut off.
        """
        order = np.argsort(shards, kind="stable")
        groups = self._group(shards[order], samples[order])
        places = _locate(groups, self._wanted)
        widths = _widths(places) if places is not None else []
        if places is None or not widths:
            yield None
            return
        at_once = max(1, _MOST_AT_ONCE // sum(widths))
        for start in range(0, len(order), at_once):
            inside = slice(start, min(start + at_once, len(order)))
            some = [part for group in groups if (part := group.within(inside)).samples.size]
            fields = self._read(some, places.each(itemgetter((slice(None), inside))), widths)
            if fields is None:
                yield None
                return
            keys = [key for group in some for key in group.shard.keys(group.samples)]
            yield Gathered(order[inside], keys, fields)

    def _group(self, shards: NDArray[np.int64], samples: NDArray[np.int64]) -> list[_Group]:
        bounds = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(shards)]
        groups: list[_Group] = []
        for start, end in pairwise(bounds):
            shard = self._pool.get(int(shards[start]))
            groups.append(_Group(shard, shard.file(), samples[start:end], slice(start, end)))
        return groups

    def _read(self, groups: list[_Group], places: Places, widths: list[int]) -> list[Rows] | None:
        """The bytes of all fields; None if they are not what the index recorded."""
        found: list[Rows] = []
        files, counts = [group.file for group in groups], [len(group.samples) for group in groups]
        for field, width in enumerate(widths):
            block = self._fields[field].copy(files, counts, places.offsets[field], width)
            sizes, sums = places.sizes[field], places.checksums
            if block is None or not (sums is None or check_rows(block, sizes, sums[field])):
                return None
            found.append(Rows(places.fields[field], block, sizes))
        if places.headers is not None and not self._are_in_place(
            files, counts, places, places.headers
        ):
            return None
        return found

    def _are_in_place(
        self,
        files: list[LocalShard],
        counts: list[int],
        places: Places,
        expected: NDArray[np.uint32],
    ) -> bool:
        """Whether the headers of all fields, which reach to the data, are those of the index.

        They are copied after the data: whoever overwrites a shard meets the headers first.
        """
        firsts, sizes = places.firsts.T, (places.offsets - places.firsts).T
        several = [count * sizes.shape[1] for count in counts]
        block = self._headers.copy(files, several, firsts.reshape(-1), int(sizes[0, 0]))
        return block is not None and check_rows(block, sizes.reshape(-1), expected.T.reshape(-1))


def _locate(groups: list[_Group], wanted: Wanted) -> Places | None:
    """Where the fields of all samples are; None if they are not alike."""
    found = [group.shard.places(group.samples, wanted) for group in groups]
    parts = [part for part in found if part is not None]
    if len(parts) < len(found) or len({part.fields for part in parts}) > 1:
        return None
    sums = [part.checksums for part in parts if part.checksums is not None]
    headers = [part.headers for part in parts if part.headers is not None]
    offsets = np.concatenate([part.offsets for part in parts], axis=1)
    if {len(sums), len(headers)} - {0, len(parts)} or int(offsets.min()) < 0:
        return None
    return Places(
        parts[0].fields,
        offsets,
        np.concatenate([part.sizes for part in parts], axis=1),
        np.concatenate([part.firsts for part in parts], axis=1) if headers else offsets,
        np.concatenate(sums, axis=1) if sums else None,
        np.concatenate(headers, axis=1) if headers else None,
    )


def _widths(places: Places) -> list[int]:
    """Bytes to copy of each field.

    Returns:
        The greatest size of each; none if sizes differ that must not, or data start inside a block
        (so that what follows a shorter member is no padding), or a field is empty in all samples,
        or headers that are verified differ in size.
    """
    most = places.sizes.max(axis=1)
    unlike = (most > MOST_SHORT) & (places.sizes.min(axis=1) < most)
    if unlike.any() or (most <= 0).any() or (places.offsets % BLOCK).any():
        return []
    if places.headers is not None and np.ptp(places.offsets - places.firsts):
        return []
    widths: list[int] = most.tolist()
    return widths
