"""Class numbers of samples, without reading a shard whose index has checksums.

Decimal numbers of equal length up to seven digits have different CRC-32s, so size and checksum
identify the number. Other members are read by the thousand, and each distinct text is parsed once.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from shardio.errors import CodecError
from shardio.fields.arrays import decode_cls
from shardio.fields.base import LABEL_FIELD
from shardio.indexing.entry import ShardEntry
from shardio.indexing.shard_index import ShardIndex, are_aligned
from shardio.storage.base import StoredFile
from shardio.storage.copying import RowCopier

TOLD_BY_CHECKSUM = 7
"""Maximum number of digits for which CRC-32s are distinct; with 8 digits, some collide."""

_KNOWN = 10_000  # numbers whose checksums are computed in advance, at least
_MOST_KEPT = 200_000  # texts and checksums whose numbers are kept
_MOST_TEXT = 64  # bytes of a number, with white space around it
_AT_ONCE = 1 << 13

T = TypeVar("T", int, bytes)


class Labels(NamedTuple):
    """Class numbers of the samples of a shard.

    Attributes:
        numbers: int64 [n], class number of each sample; 0 where it is not known.
        known: bool [n], whether a sample has a class number.
        present: bool [n], whether a sample has a member for it, readable or not.
    """

    numbers: NDArray[np.int64]
    known: NDArray[np.bool_]
    present: NDArray[np.bool_]


class LabelReader:
    """Reader of class numbers, shard by shard.

    Args:
        classes: number of classes with names.
        field: field that holds the class number.
    """

    def __init__(self, classes: int, *, field: str = LABEL_FIELD) -> None:
        self._field = field
        self._by_checksum: dict[int, int | None] = {}
        for number in range(max(classes, _KNOWN)):
            text = b"%d" % number
            self._by_checksum[len(text) << 32 | zlib.crc32(text)] = number
        self._by_text: dict[bytes, int | None] = {}

    def read(self, entry: ShardEntry, index: ShardIndex) -> Labels:
        """Return the class numbers of a shard's samples.

        Raises:
            TarError: the shard has to be read, and is missing or changed.
            OSError: the shard cannot be read.
        """
        samples, cells = index.samples_of(self._field), index.cells_of(self._field)
        offsets, sizes = index.offsets.take(cells), index.sizes.take(cells)
        numbers, known = np.zeros(len(cells), np.int64), np.zeros(len(cells), np.bool_)
        told = np.zeros(len(cells), np.bool_)
        if index.checksums is not None:
            told = sizes <= TOLD_BY_CHECKSUM
            tokens = sizes[told] << 32 | index.checksums.take(cells)[told]
            numbers[told], known[told] = self._told(entry, offsets[told], sizes[told], tokens)
        rest = ~told & (sizes <= _MOST_TEXT)
        if rest.any():
            numbers[rest], known[rest] = self._read(entry, offsets[rest], sizes[rest])
        found = Labels(
            np.zeros(len(index), np.int64),
            np.zeros(len(index), np.bool_),
            np.zeros(len(index), np.bool_),
        )
        found.numbers[samples], found.known[samples], found.present[samples] = numbers, known, True
        return found

    def _told(
        self,
        entry: ShardEntry,
        offsets: NDArray[np.int64],
        sizes: NDArray[np.int64],
        tokens: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Tell members by size and checksum; of those not seen before one is read."""
        file: StoredFile | None = None

        def read(row: int) -> bytes:
            nonlocal file
            file = file or entry.open_file()
            return file.read(int(offsets[row]), int(sizes[row]))

        unique, first, which = np.unique(tokens, return_index=True, return_inverse=True)
        return _parse(self._by_checksum, unique.tolist(), which, lambda at: read(first[at]))

    def _read(
        self, entry: ShardEntry, offsets: NDArray[np.int64], sizes: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Read members."""
        file, parts = entry.open_file(), []
        for start in range(0, len(offsets), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            texts, which = _unique_texts(_read_texts(file, offsets[some], sizes[some]))
            parts.append(_parse(self._by_text, texts, which, texts.__getitem__))
        numbers, known = zip(*parts, strict=True)
        return np.concatenate(numbers), np.concatenate(known)


def _parse(
    cached: dict[T, int | None],
    tokens: Sequence[T],
    which: NDArray[np.int64],
    text_of: Callable[[int], bytes],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the number of each member, and whether it is one.

    Args:
        cached: numbers by token.
        tokens: distinct tokens.
        which: int64 [n], token of each member.
        text_of: returns the text of a token.
    """
    for at, token in enumerate(tokens):
        if token not in cached:
            cached[token] = _number_in(text_of(at))
    numbers = [cached[token] for token in tokens]
    if len(cached) > _MOST_KEPT:
        cached.clear()  # limits memory; texts are parsed again
    known = np.array([number is not None for number in numbers], np.bool_)
    return np.array([number or 0 for number in numbers], np.int64)[which], known[which]


def _number_in(text: bytes) -> int | None:
    try:
        return decode_cls(text)
    except CodecError:
        return None


def _read_texts(
    file: StoredFile, offsets: NDArray[np.int64], sizes: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Read members of at most 64 bytes as uint8 [n, 65]: data, zeros, and the size at the end."""
    width = _MOST_TEXT + 1
    # The rest of a member's block is padding.
    inside = are_aligned(offsets)
    rows = RowCopier().copy([file], [len(offsets)], offsets, width) if inside else None
    texts = np.zeros((len(offsets), width), np.uint8)
    if rows is not None:
        texts[:] = rows
    else:
        for row, (offset, size) in enumerate(zip(offsets.tolist(), sizes.tolist(), strict=True)):
            texts[row, :size] = np.frombuffer(file.read(offset, size), np.uint8)
    texts[np.arange(width) >= sizes[:, None]] = 0
    texts[:, _MOST_TEXT] = sizes
    return texts


def _unique_texts(rows: NDArray[np.uint8]) -> tuple[list[bytes], NDArray[np.int64]]:
    """Return the distinct texts, and which of them each row is."""
    unique, which = np.unique(rows.view(f"S{rows.shape[1]}").ravel(), return_inverse=True)
    padded = [text.ljust(rows.shape[1], b"\0") for text in unique.tolist()]
    return [text[: text[-1]] for text in padded], which
