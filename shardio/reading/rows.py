"""Fields of many samples at once, gathered from memory maps of their shards.

Where the members of a batch are alike, as arrays of one shape and class numbers are, one gather
for each shard takes the place of a system call and a dozen of Python's steps for each sample.
Members start at blocks of 512 bytes in a tar, so what is gathered are blocks. Every byte still has
its checksum verified. Buffers are kept: new memory would cost page faults, more than the copying.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardio.codecs.image import Scratch
from shardio.forks import new_lock
from shardio.reading.checksums import MOST_SHORT, check_rows
from shardio.reading.shards import GAP, OpenShard, Places, ShardPool, Wanted
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


class _Piece(NamedTuple):
    """What is copied of every sample at once.

    Attributes:
        starts: int64 [n], where it starts in the shards.
        width: bytes.
        fields: numbers of the fields in it, and where they are.
    """

    starts: NDArray[np.int64]
    width: int
    fields: list[tuple[int, slice]]


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
        self._pieces = Scratch()
        self._fields = [Scratch() for _ in wanted]

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
        pieces = _cut(places) if places is not None else []
        if places is None or not pieces:
            yield None
            return
        at_once = max(1, _MOST_AT_ONCE // sum(piece.width for piece in pieces))
        for start in range(0, len(order), at_once):
            inside = slice(start, min(start + at_once, len(order)))
            some = [part for group in groups if (part := group.within(inside)).samples.size]
            fields = self._read(some, places.within(inside), pieces, inside)
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

    def _read(
        self, groups: list[_Group], places: Places, pieces: list[_Piece], inside: slice
    ) -> list[Rows] | None:
        """The bytes of all fields; None if they are not what the index recorded."""
        found: dict[int, Rows] = {}
        for piece in pieces:
            starts = piece.starts[inside]
            copies = _rows_of(self._pieces, len(starts), piece.width)
            for group in groups:
                if not group.file.copy_blocks(starts[group.rows], copies[group.rows]):
                    return None
            for field, span in piece.fields:
                block = _rows_of(self._fields[field], len(starts), span.stop - span.start)
                np.copyto(block, copies[:, span])
                sizes, sums = places.sizes[field], places.checksums
                if sums is not None and not check_rows(block, sizes, sums[field]):
                    return None
                found[field] = Rows(places.fields[field], block, sizes)
        return [found[field] for field in range(len(self._wanted))]


def _locate(groups: list[_Group], wanted: Wanted) -> Places | None:
    """Where the fields of all samples are; None if they are not alike."""
    found = [group.shard.places(group.samples, wanted) for group in groups]
    parts = [part for part in found if part is not None]
    if len(parts) < len(found) or len({part.fields for part in parts}) > 1:
        return None
    sums = [part.checksums for part in parts if part.checksums is not None]
    offsets = np.concatenate([part.offsets for part in parts], axis=1)
    if len(sums) not in {0, len(parts)} or int(offsets.min()) < 0:
        return None
    return Places(
        parts[0].fields,
        offsets,
        np.concatenate([part.sizes for part in parts], axis=1),
        np.concatenate(sums, axis=1) if sums else None,
    )


def _cut(places: Places) -> list[_Piece]:
    """What to copy: all fields as one if they are close together and everywhere in the same way.

    Returns:
        Pieces of whole blocks; none if sizes differ that must not, or data start inside a block,
        or a field is empty in all samples.
    """
    most = places.sizes.max(axis=1)
    unlike = (most > MOST_SHORT) & (places.sizes.min(axis=1) < most)
    if unlike.any() or (most == 0).any() or (places.offsets % BLOCK).any():
        return []
    widths, starts = most.tolist(), places.offsets.min(axis=0)
    inside = places.offsets - starts
    begins = inside[:, 0].tolist()
    spans = [slice(begin, begin + width) for begin, width in zip(begins, widths, strict=True)]
    end = max(span.stop for span in spans)
    if end <= sum(widths) + GAP * len(widths) and (inside == inside[:, :1]).all():
        return [_Piece(starts, _in_blocks(end), [*enumerate(spans)])]
    return [
        _Piece(offsets, _in_blocks(width), [(field, slice(0, width))])
        for field, (offsets, width) in enumerate(zip(places.offsets, widths, strict=True))
    ]


def _in_blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _rows_of(scratch: Scratch, count: int, width: int) -> NDArray[np.uint8]:
    return scratch.take(count * width)[: count * width].reshape(count, width)
