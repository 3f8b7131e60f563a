"""TFRecord files and tf.train.Example messages, byte by byte.

Records follow one another, numbers are little-endian, checksums are masked CRC-32C:

    uint64  length of the data
    uint32  checksum of the length
    bytes   data
    uint32  checksum of the data

A length whose checksum fails ends the file with an error, because nothing else says where the next
record starts. Data whose checksum fails is the fault of one record, and the walk goes on. The
source is "TFRecords format details" of TensorFlow's tutorial "TFRecord and tf.train.Example".

An Example is a map from names to lists, of bytes, of floats (32-bit) or of int64:

    Example {1: Features}   Features {1: map of Feature by name}
    Feature, one of {1: BytesList, 2: FloatList, 3: Int64List}, each {1: repeated value}

The sources are example.proto and feature.proto of TensorFlow (tensorflow/core/example) and
"Encoding" in the documentation of Protocol Buffers. As they demand, numbers are read packed and one
by one, lists that come in parts are joined, of several entries of one name the last counts, as does
the last kind of list in a feature, and unknown fields are passed over. Groups, which no Example
has, are refused, and so is a SequenceExample, which would else lose its feature lists. Nothing
nests deeper than an Example does, so nothing here recurses.
"""

from __future__ import annotations

import mmap
import struct
from array import array
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shardio.errors import CodecError, SituationError, TFRecordError

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
        offset: offset of the data in the file.
        data: the data.
        sound: whether the checksum of the data holds.
    """

    offset: int
    data: bytes
    sound: bool


def scan_records(file: Sliced, *, name: str) -> Generator[Record, None, None]:
    """List the records of a TFRecord file, all bytes of which are held against their checksums.

    Args:
        file: bytes of the whole file.
        name: name of the file in errors.

    Raises:
        TFRecordError: the file is truncated, the length of a record is damaged, or it is not a
            TFRecord file; the error has the file as `shard`, and the offset of the record.
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
        pieces: pieces of the data, in order.

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
    """Return the function that computes the masked CRC-32C of pieces of data.

    Raises:
        UsageError: the package crc32c is not installed.
    """
    try:
        from crc32c import crc32c  # noqa: PLC0415  an extra
    except ImportError as error:
        raise SituationError(
            "TFRecord files need crc32c", remedy="pip install 'shardio[tfrecord]'"
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
            f"only {left} bytes are left where a record should start, so the file is truncated; "
            "download or write it again",
        )
    size, stated = _HEAD.unpack(head)
    if checksum_of([head[: _LENGTH.size]]) != stated:
        raise _error(
            name,
            position,
            "the checksum of the record's length does not match, so the file is damaged or not a "
            "TFRecord file; download or write it again",
        )
    left -= _HEAD.size + _CHECKSUM.size
    if size > left:
        raise _error(
            name,
            position,
            f"the record has {size} bytes of data and the file only {max(left, 0)} more, so it is "
            "truncated; download or write it again",
        )
    return int(size)


def _error(name: str, offset: int, reason: str) -> TFRecordError:
    return TFRecordError(reason, where=f"{name}, byte {offset}", shard=name, offset=offset)


Numbers: TypeAlias = NDArray[np.int64] | NDArray[np.float32]

_BYTES, _FLOAT, _INT64 = 1, 2, 3  # kinds of lists, by field number
_VARINT, _FIXED64, _SIZED, _FIXED32 = 0, 1, 2, 5  # wire types
_WIRES = {_BYTES: (_SIZED,), _FLOAT: (_SIZED, _FIXED32), _INT64: (_SIZED, _VARINT)}
_LONGEST_VARINT = 10
_UINT64 = (1 << 64) - 1
_MOST_FEATURES = 10_000
_MOST_VALUES = 1 << 22
_FEW = 32  # bytes of numbers that are read faster one by one


class Place(NamedTuple):
    """Where bytes lie in the buffer that was parsed."""

    offset: int
    size: int


Feature: TypeAlias = list[Place] | Numbers
"""A list of bytes, as places; or numbers, int64 [n] or float32 [n]."""


_Field: TypeAlias = tuple[int, int, int, int]
"""One field of a message: its number, wire type, and where its value starts and ends."""


def parse_example(buffer: Buffer, start: int, size: int) -> dict[str, Feature]:
    """Find the features of an Example.

    Args:
        buffer: memory that holds the Example.
        start: offset of the Example in the buffer.
        size: bytes of the Example.

    Returns:
        Features by name; bytes are not copied. Features without any list are left out.

    Raises:
        CodecError: it is not an Example, or has more than 10,000 features, or a feature has
            more than 4,194,304 values.
    """
    features: dict[str, Feature] = {}
    with memoryview(buffer) as given, given.cast("B") as view:
        for number, wire, first, last in _fields(view, start, start + size):
            if number == 2:
                raise CodecError("it is a SequenceExample, whose feature lists are not supported")
            for begin, end in _entries(view, number, wire, first, last):
                name, feature = _parse_entry(view, begin, end)
                features.pop(name, None)
                if feature is not None:
                    features[name] = feature
                if len(features) > _MOST_FEATURES:
                    raise CodecError(f"an Example with more than {_MOST_FEATURES} features")
    return features


def encode_example(features: Mapping[str, Sequence[Buffer] | Numbers]) -> list[Buffer]:
    """Write an Example.

    Args:
        features: values by name, each a sequence of bytes or an array int64 [n] or float32 [n].

    Returns:
        Pieces that follow one another: the same bytes as Protocol Buffers' deterministic
        serialisation in C++, where features are sorted by the bytes of their names. The bytes of
        features are among the pieces, not copied.
    """
    entries: list[Buffer] = []
    for name in sorted(features, key=str.encode):
        feature = _sized(2, _encode_feature(features[name]))
        entries += _sized(1, [*_sized(1, [name.encode()]), *feature])
    return _sized(1, entries)


def _parse_entry(view: memoryview, start: int, end: int) -> tuple[str, Feature | None]:
    """Parse the name and the value of an entry; the value is None without any list."""
    name, values = "", None
    for number, wire, begin, stop in _fields(view, start, end):
        if number > 2:
            continue
        _check_wire(number, wire, begin, (_SIZED,))
        if number == 1:
            name = _text(view, begin, stop)
            continue
        for kind, part_wire, first, last in _fields(view, begin, stop):
            if kind not in _WIRES:
                continue
            _check_wire(kind, part_wire, first, (_SIZED,))
            if values is None or values.kind != kind:
                values = _ListReader(kind)
            values.add(view, first, last)
    return name, None if values is None else values.collect(view)


class _ListReader:
    """Collects the values of a list.

    Args:
        kind: kind of the list, by the number of its field.
    """

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self._ends = array("q")  # start and end of each piece

    def add(self, view: memoryview, start: int, end: int) -> None:
        """Add the values of a list message."""
        for number, wire, first, last in _fields(view, start, end):
            if number != 1:
                continue
            _check_wire(number, wire, first, _WIRES[self.kind])
            self._ends.extend((first, last))
            if len(self._ends) > 2 * _MOST_VALUES:
                raise _too_many()
            if self.kind == _INT64 and first < last and view[last - 1] >= 0x80:
                raise CodecError(f"a number that does not end before byte {last}")
            if self.kind == _FLOAT and (last - first) % 4:
                raise CodecError(f"floats that are not 4 bytes each before byte {last}")

    def collect(self, view: memoryview) -> Feature:
        """Return the values as one list."""
        pairs = zip(self._ends[::2], self._ends[1::2], strict=True)
        if self.kind == _BYTES:
            return [Place(start, end - start) for start, end in pairs]
        data = b"".join([view[start:end] for start, end in pairs])
        if self.kind == _FLOAT:
            if len(data) > 4 * _MOST_VALUES:
                raise _too_many()
            return np.frombuffer(data, "<f4").astype(np.float32, copy=False)
        return _decode_varints(data)


def _decode_varints(data: bytes) -> NDArray[np.int64]:
    """Decode numbers that follow one another, the last of which ends with the data."""
    if len(data) <= _FEW:
        numbers, position = [], 0
        while position < len(data):
            number, position = _read_varint(data, position, len(data))
            numbers.append(number)
        return np.array(numbers, np.uint64).view(np.int64)
    pieces = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(pieces < 0x80) + 1
    if len(ends) > _MOST_VALUES:
        raise _too_many()
    lengths = np.diff(ends, prepend=0)
    if int(lengths.max()) > _LONGEST_VARINT:
        raise CodecError(f"a number of more than {_LONGEST_VARINT} bytes")
    starts = ends - lengths
    shifts = (np.arange(len(pieces)) - np.repeat(starts, lengths)) * 7
    parts = (pieces & 0x7F).astype(np.uint64) << shifts.astype(np.uint64)
    return np.bitwise_or.reduceat(parts, starts).view(np.int64)


def _entries(
    view: memoryview, number: int, wire: int, start: int, end: int
) -> Iterator[tuple[int, int]]:
    """Find the entries of the map in a field of an Example."""
    if number == 1:
        _check_wire(number, wire, start, (_SIZED,))
        for inner, inner_wire, first, last in _fields(view, start, end):
            if inner == 1:
                _check_wire(inner, inner_wire, first, (_SIZED,))
                yield first, last


def _fields(view: memoryview, position: int, end: int) -> Iterator[_Field]:
    while position < end:
        tag, start = _read_varint(view, position, end)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise CodecError(f"a field with the number {number} at byte {position}")
        if wire == _SIZED:
            size, start = _read_varint(view, start, end)
            stop = start + size
        else:
            stop = _end_of_number(view, wire, start, end)
        if stop > end:
            raise CodecError(
                f"a field at byte {position} that reaches to byte {stop}, beyond the end of its "
                f"message at byte {end}"
            )
        yield number, wire, start, stop
        position = stop


def _end_of_number(view: memoryview, wire: int, start: int, end: int) -> int:
    if wire == _VARINT:
        return _read_varint(view, start, end)[1]
    if wire not in (_FIXED32, _FIXED64):
        raise CodecError(f"a field of the wire type {wire} before byte {start}")
    return start + (4 if wire == _FIXED32 else 8)


def _read_varint(view: memoryview | bytes, position: int, end: int) -> tuple[int, int]:
    """Read an unsigned number, and find its end."""
    if position < end and (value := view[position]) < 0x80:
        return value, position + 1
    value = shift = 0
    for place in range(position, min(end, position + _LONGEST_VARINT)):
        byte = view[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _UINT64, place + 1
        shift += 7
    raise CodecError(f"a number at byte {position} that does not end")


def _check_wire(number: int, wire: int, start: int, wires: tuple[int, ...]) -> None:
    if wire not in wires:
        raise CodecError(
            f"field {number} before byte {start} has the wire type {wire}, "
            f"not {' or '.join(map(str, wires))}"
        )


def _text(view: memoryview, start: int, end: int) -> str:
    try:
        return str(view[start:end], "utf-8")
    except UnicodeDecodeError:
        raise CodecError(f"the name of a feature at byte {start} is not UTF-8 text") from None


def _too_many() -> CodecError:
    return CodecError(f"a feature of more than {_MOST_VALUES:,} values")


def _encode_feature(feature: Sequence[Buffer] | Numbers) -> list[Buffer]:
    if not isinstance(feature, np.ndarray):
        return _sized(_BYTES, [piece for value in feature for piece in _sized(1, [value])])
    if feature.dtype == np.int64:
        kind, data = _INT64, b"".join(_varint(number) for number in feature.tolist())
    else:
        kind, data = _FLOAT, feature.astype("<f4").tobytes()
    return _sized(kind, _sized(1, [data]) if data else [])


def _sized(number: int, pieces: Sequence[Buffer]) -> list[Buffer]:
    """Encode a field that states its size."""
    return [_varint(number << 3 | _SIZED) + _varint(sum(map(len, pieces))), *pieces]


def _varint(number: int) -> bytes:
    number &= _UINT64
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
