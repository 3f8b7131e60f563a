"""Fields of many samples at once, copied out of their shards and verified together.

Where the members of a batch are alike, as arrays of one shape and class numbers are, one copy for
each field replaces a system call and a dozen of Python's steps for each sample. Every byte still
has its checksum verified; where none is known, the headers are copied too, and verified. Buffers
are kept: new memory would cost page faults, more than the copying.

The CRC-32 of short members is computed by the table of the polynomial, one byte of each member at a
time. Long members of one size lie end to end in one block: zlib computes the checksum of the block
in one call, and the checksums of the members say what that must be, because CRC-32 is linear.
Appending n bytes to A gives M(crc(A)) ^ crc(appended), where M is a matrix over GF(2) that depends
on n alone (zlib's crc32_combine). The members are combined in pairs, then pairs of pairs.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardio.indexing.shard_index import are_aligned
from shardio.planning.epoch import References
from shardio.processes import new_lock
from shardio.reading.shards import Entries, OpenShard, Places, ShardPool
from shardio.storage.base import StoredFile
from shardio.storage.copying import RowCopier

MOST_SHORT = 24
"""Bytes of a member, up to which members may differ in size."""

_JOINED = 16  # rows whose checksums are combined at once
_ROWS, _BYTES = np.arange(_JOINED)[:, None], np.arange(4)
_SHORT_RUN = 1 << 16

Operator = NDArray[np.uint32]
"""A linear map of 32 bits, uint32 [4, 256]: what each value of each of the four bytes maps to."""


def check_rows(
    block: NDArray[np.uint8], sizes: NDArray[np.int64], expected: NDArray[np.uint32]
) -> bool:
    """Tell whether members have the checksums that they should.

    Args:
        block: uint8 [n, w], one member a row, in its first bytes.
        sizes: int64 [n], bytes of each member; all w where w is above MOST_SHORT.
        expected: uint32 [n], CRC-32 of each.
    """
    width = block.shape[1]
    if width > MOST_SHORT:
        return zlib.crc32(block.data) == _crc_of_rows(expected, width)
    return bool((_crc_of_short(block, sizes) == expected).all())


def _crc_of_short(block: NDArray[np.uint8], sizes: NDArray[np.int64]) -> NDArray[np.uint32]:
    table = _byte_table()
    crc = np.full(len(block), 0xFFFFFFFF, np.uint32)
    for byte in range(block.shape[1]):
        step = table[(crc ^ block[:, byte]) & 0xFF] ^ (crc >> 8)
        crc = np.where(byte < sizes, step, crc)
    return ~crc


def _crc_of_rows(rows: NDArray[np.uint32], width: int) -> int:
    """Compute the CRC-32 of rows of one width laid end to end from the CRC-32 of each."""
    level = 0
    while len(rows) > 1:
        missing = -len(rows) % _JOINED
        if missing:  # zeros in front change nothing: the map of zero is zero
            rows = np.concatenate([np.zeros(missing, np.uint32), rows])
        operators = _joining(width * _JOINED**level)
        images = operators[_ROWS, _BYTES, _bytes_of(rows).reshape(-1, _JOINED, 4)]
        rows = np.bitwise_xor.reduce(images, axis=(1, 2))
        level += 1
    return int(rows[0])


def _bytes_of(values: NDArray[np.uint32]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values, "<u4").view(np.uint8).reshape(-1, 4)


def _apply(operator: Operator, values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    combined: NDArray[np.uint32] = np.bitwise_xor.reduce(
        operator[_BYTES, _bytes_of(values)], axis=1
    )
    return combined


@lru_cache(maxsize=64)
def _joining(size: int) -> NDArray[np.uint32]:
    """Make the maps of _JOINED pieces of a size to their part of the checksum of all.

    Returns:
        uint32 [_JOINED, 4, 256]; each piece has as many more appended as follow it.
    """
    identity = np.arange(256, dtype=np.uint32) << np.array([[0], [8], [16], [24]], np.uint32)
    operators = [identity]
    step = _appending(size)
    for _ in range(_JOINED - 1):
        operators.append(np.stack([_apply(step, images) for images in operators[-1]]))
    return np.stack(operators[::-1])


@lru_cache(maxsize=64)
def _appending(size: int) -> Operator:
    """Make the map of a checksum to that after so many further zeros."""
    half = size // 2
    if half > _SHORT_RUN:
        once = _appending(half)
        twice = np.stack([_apply(once, images) for images in once])
        return np.stack([_apply(_appending(1), images) for images in twice]) if size % 2 else twice
    zeros = bytes(size)
    start = zlib.crc32(zeros)
    bits = [zlib.crc32(zeros, 1 << bit) ^ start for bit in range(32)]
    operator = np.zeros((4, 256), np.uint32)
    for bit, image in enumerate(bits):
        byte, within = divmod(bit, 8)
        operator[byte, (np.arange(256) >> within & 1) == 1] ^= np.uint32(image)
    return operator


@lru_cache(maxsize=1)
def _byte_table() -> NDArray[np.uint32]:
    """Make the table of CRC-32 by bytes, polynomial 0xEDB88320 (ITU-T V.42, reflected)."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(0xEDB88320), table >> 1)
    return table


_MOST_AT_ONCE = 4 << 20  # bytes; they stay in the processor's cache while they are looked at


class Group(NamedTuple):
    """Samples of one shard.

    Attributes:
        shard: shard of the samples.
        file: file of the shard.
        samples: int64 [k], positions of the samples in the shard.
        rows: rows of the samples in the gathered blocks.
    """

    shard: OpenShard
    file: StoredFile
    samples: NDArray[np.int64]
    rows: slice

    def within(self, rows: slice) -> Group:
        """Return the part in some rows, with rows counted from the first of these."""
        start, stop = max(self.rows.start, rows.start), min(self.rows.stop, rows.stop)
        samples = self.samples[max(start - self.rows.start, 0) : max(stop - self.rows.start, 0)]
        return Group(self.shard, self.file, samples, slice(start - rows.start, stop - rows.start))


class Rows(NamedTuple):
    """One field of several samples.

    Attributes:
        field: name of the field.
        block: uint8 [n, w], with the greatest size as w.
        sizes: int64 [n], number of bytes in each row.
    """

    field: str
    block: NDArray[np.uint8]
    sizes: NDArray[np.int64]


class Gathered(NamedTuple):
    """Several fields of several samples.

    Attributes:
        order: int64 [n], sample of each row.
        keys: keys of the rows.
        fields: rows of each entry's field, valid until the next are gathered.
    """

    order: NDArray[np.int64]
    keys: list[str]
    fields: list[Rows]


class Gatherer:
    """Reads fields of samples of several shards, for one thread at a time.

    The steps are so short that two threads at once would hand the interpreter's lock to each other
    at every one, and be slower than one.

    Args:
        pool: pool of the shards.
        entries: alternatives of each entry.
    """

    def __init__(self, pool: ShardPool, entries: Entries) -> None:
        self._lock = new_lock()
        self._pool = pool
        self._entries = entries
        self._copiers = defaultdict[int | None, RowCopier](RowCopier)  # of entries, and of headers

    def gather(self, references: References, slots: range) -> Iterator[Gathered | None]:
        """Read samples, some at a time.

        Args:
            references: samples of a batch.
            slots: consecutive slots of the batch.

        Yields:
            None, and nothing more, if the samples are not alike, or not what the index recorded:
            reading them one by one tells.

        Raises:
            TarError: a shard was changed or truncated.
        """
        with self._lock:
            part = slice(slots.start, slots.stop)
            shards, samples = references.shards[part], references.indices[part]
            order = np.argsort(shards, kind="stable")
            groups = group_by_shard(self._pool, shards[order], samples[order])
            places = locate(groups, self._entries)
            are_there = places is not None and int(places.offsets.min()) >= 0
            widths = _widths(places) if places is not None and are_there else []
            if places is None or not widths:
                yield None
                return
            at_once = max(1, _MOST_AT_ONCE // sum(widths))
            for start in range(0, len(order), at_once):
                inside = slice(start, min(start + at_once, len(order)))
                some = [found for group in groups if (found := group.within(inside)).samples.size]
                fields = self._read(some, places.each(itemgetter((slice(None), inside))), widths)
                if fields is None:
                    yield None
                    return
                keys = [key for group in some for key in group.shard.keys(group.samples)]
                yield Gathered(order[inside], keys, fields)

    def _read(self, groups: list[Group], places: Places, widths: list[int]) -> list[Rows] | None:
        """Read all fields; None if the bytes are not what the index recorded."""
        found: list[Rows] = []
        files, counts = [group.file for group in groups], [len(group.samples) for group in groups]
        for field, width in enumerate(widths):
            block = self._copiers[field].copy(files, counts, places.offsets[field], width)
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
        files: list[StoredFile],
        counts: list[int],
        places: Places,
        expected: NDArray[np.uint32],
    ) -> bool:
        """Tell whether the headers of all fields, which end at the data, are those of the index.

        They are copied after the data: whoever overwrites a shard meets the headers first.
        """
        firsts, sizes = places.firsts.T, (places.offsets - places.firsts).T
        several = [count * sizes.shape[1] for count in counts]
        block = self._copiers[None].copy(files, several, firsts.reshape(-1), int(sizes[0, 0]))
        return block is not None and check_rows(block, sizes.reshape(-1), expected.T.reshape(-1))


def group_by_shard(
    pool: ShardPool, shards: NDArray[np.int64], samples: NDArray[np.int64]
) -> list[Group]:
    """Group samples, of which those of a shard follow each other, and open their shards.

    Args:
        pool: pool of the shards.
        shards: int64 [n], shard of each sample.
        samples: int64 [n], position of each sample in its shard.

    Raises:
        IndexFileError, TarError, OSError: see OpenShard.open.
    """
    bounds = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(shards)]
    groups: list[Group] = []
    for start, end in pairwise(bounds):
        shard = pool.get(int(shards[start]))
        groups.append(Group(shard, shard.file(), samples[start:end], slice(start, end)))
    return groups


def locate(groups: list[Group], entries: Entries) -> Places | None:
    """Find the places of all samples' fields, where they have them; None if they are not alike."""
    found = [group.shard.places(group.samples, entries) for group in groups]
    parts = [part for part in found if part is not None]
    if len(parts) < len(found) or len({part.fields for part in parts}) > 1:
        return None
    return join_places(parts)


def join_places(parts: Sequence[Places]) -> Places | None:
    """Join places of the same fields in several shards; None if not all are verified alike."""
    sums = [part.checksums for part in parts if part.checksums is not None]
    headers = [part.headers for part in parts if part.headers is not None]
    offsets = np.concatenate([part.offsets for part in parts], axis=1)
    if {len(sums), len(headers)} - {0, len(parts)}:
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
    """Find the greatest size of each field.

    Returns:
        The sizes; none if sizes differ that must not, or data start inside a block (so that what
        follows a shorter member is no padding), or a field is empty in all samples, or headers that
        are verified differ in size.
    """
    most = places.sizes.max(axis=1)
    unlike = (most > MOST_SHORT) & (places.sizes.min(axis=1) < most)
    if unlike.any() or (most <= 0).any() or not are_aligned(places.offsets):
        return []
    if places.headers is not None and np.ptp(places.offsets - places.firsts):
        return []
    widths: list[int] = most.tolist()
    return widths
