"""The framing of TFRecord files: where each record lies, and whether its checksums hold.

Records follow one another, numbers are little-endian, checksums are masked CRC-32C:

    uint64  length of the data
    uint32  checksum of the length
    bytes   data
    uint32  checksum of the data

The source is "TFRecords format details" of TensorFlow's tutorial "TFRecord and tf.train.Example".
A length whose checksum fails ends the file with an error, because nothing else says where the next
record starts. Data whose checksum fails is the fault of one record, and the walk goes on.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from shardio.errors import SituationError, TFRecordError

Buffer: TypeAlias = bytes | bytearray | memoryview | mmap.mmap

_HEAD = struct.Struct("<QI")
_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8
_GZIP_MAGIC = b"\x1f\x8b"


class Sliced(Protocol):
    """Bytes that are read when a slice of them is asked for, as those of a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes: ...


class Record(NamedTuple):
    """A record, and where it lies.

    Attributes:
        offset: of the data in the file.
        data: of the record.
        sound: whether its checksum holds.
    """

    offset: int
    data: bytes
    sound: bool


def scan_records(file: Sliced, *, name: str) -> Generator[Record, None, None]:
    """List the records of a TFRecord file, all bytes of which are held against their checksums.

    Args:
        file: bytes of the whole file.
        name: what errors call it.

    Raises:
        TFRecordError: the file is cut off, the length of a record is damaged, or it is no TFRecord
            file; the error has the file as `shard`, and the offset of the record.
        UsageError: the package crc32c is not installed.
    """
    checksum_of = load_checksum()
    position = 0
    while position < len(file):
        size = _read_length(file, position, name, checksum_of)
        start = position + _HEAD.size
        position = start + size + _CHECKSUM.size
        whole = file[start:position]
        data = whole[:size]
        sound = checksum_of([data]) == _CHECKSUM.unpack_from(whole, size)[0]
        yield Record(start, data, sound)


def frame_record(pieces: Sequence[Buffer]) -> list[Buffer]:
    """Put a record around data.

    Args:
        pieces: the data, in order.

    Returns:
        The pieces, with what goes before and after them.

    Raises:
        UsageError: the package crc32c is not installed.
    """
    checksum_of = load_checksum()
    length = _LENGTH.pack(sum(map(len, pieces)))
    head = length + _CHECKSUM.pack(checksum_of([length]))
    return [head, *pieces, _CHECKSUM.pack(checksum_of(pieces))]


def load_checksum() -> Callable[[Sequence[Buffer]], int]:
    """The function that computes the masked CRC-32C of pieces of data.

    Raises:
        UsageError: the package crc32c is not installed.
    """
    try:
        from crc32c import crc32c  # noqa: PLC0415  an extra
    except ImportError as error:
        raise SituationError(
            "TFRecord files need crc32c; pip install 'shardio[tfrecord]'"
        ) from error

    def checksum_of(pieces: Sequence[Buffer]) -> int:
        checksum = 0
        for piece in pieces:
            checksum = crc32c(piece, checksum)
        return ((checksum >> 15 | checksum << 17) + _MASK_DELTA) & 0xFFFFFFFF

    return checksum_of


def _read_length(
    file: Sliced, position: int, name: str, checksum_of: Callable[[Sequence[Buffer]], int]
) -> int:
    left = len(file) - position
    head = file[position : position + _HEAD.size]
    if head[:2] == _GZIP_MAGIC and not position:
        raise _error(name, 0, "the file is compressed with gzip; decompress it with gunzip")
    if left < _HEAD.size:
        raise _error(
            name,
            position,
            f"only {left} bytes are left where a record should start, so the file is cut off; "
            "get it again",
        )
    size, stated = _HEAD.unpack(head)
    if checksum_of([head[: _LENGTH.size]]) != stated:
        raise _error(
            name,
            position,
            "the checksum of the record's length does not match, so the file is damaged or no "
            "TFRecord file; get it again",
        )
    left -= _HEAD.size + _CHECKSUM.size
    if size > left:
        raise _error(
            name,
            position,
            f"the record has {size} bytes of data and the file only {max(left, 0)} more, so it is "
            "cut off; get it again",
        )
    return int(size)


def _error(name: str, offset: int, reason: str) -> TFRecordError:
    return TFRecordError(f"{name}, byte {offset}: {reason}", shard=name, offset=offset)
