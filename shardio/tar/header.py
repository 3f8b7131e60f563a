"""Parse the 512-byte headers of tar archives, and the extension headers before them.

These fields matter to a reader of shards (POSIX.1-1988 "ustar", which extends v7); each is listed
as offset, length and name:

    0    100  name        148    8  checksum      257    6  magic
    124   12  size        156    1  typeflag      345  155  prefix of the name, if ustar

The checksum protects all other fields, so it is verified first. Summing the bytes with zlib is ten
times faster than with sum(): the low half of an Adler-32 is the sum of the bytes plus one, modulo
65,521. The sum of 256 bytes is at most 65,280, so two pieces give the exact sum of a header.

Two formats extend the header that follows. GNU's "L" and "K" carry a long name or link target as
text. PAX's "x" (Solaris: "X") carries records for the next member, and "g" for all members that
follow. A record is `LENGTH KEYWORD=VALUE` and a newline, where LENGTH counts the whole record
(POSIX.1-2001, pax interchange format). Only the keywords path and size are used. All others are
ignored, and so are link targets, because links are not samples.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from zlib import adler32

from shardio.errors import TarError

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)
USTAR_MAGIC = b"ustar\0"

FILE = b"0"
DIRECTORY = b"5"
PAX = b"x"
"""Typeflag of a PAX header, which holds records for the next member."""
LABEL = b"V"
"""Typeflag of GNU tar's volume label, which names the archive and is not a member."""

HEADER_PARTS = struct.Struct("148s 8s 100s 256s")
"""Four parts of a header: before the checksum, the checksum, after it, and the second half."""

EIGHT_SPACES = 8 * 0x20
_WITHOUT_DATA = b"123456"
_ASCII = bytes(range(128))
_STATED, _DIGIT = re.compile(rb"[ 0-7]{6}[\0 ]{2}"), re.compile(b"[0-7]")
_TEXTS = slice(0, 100), slice(157, 257), slice(345, 500)  # name, link target, prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Fields of one header block.

    Attributes:
        name: raw name up to its first NUL, joined with the ustar prefix.
        kind: typeflag as one byte; "0" also for v7's NUL and for contiguous files ("7"), "5"
            also for v7's directories.
        size: value of the size field.
    """

    name: bytes
    kind: bytes
    size: int

    @property
    def has_data(self) -> bool:
        """Whether `size` bytes of data follow; not so for links, devices, directories and fifos."""
        return self.kind not in _WITHOUT_DATA


def parse_header(block: bytes) -> Header:
    """Parse one header block.

    Args:
        block: 512 bytes, or fewer at the end of a truncated archive.

    Raises:
        TarError: the block is truncated, its checksum is wrong, its size field is not a number,
            or it belongs to a sparse member. The error carries no location.
    """
    if len(block) < BLOCK:
        raise TarError(
            f"the shard is truncated: it has only {len(block)} of the {BLOCK} bytes of a header",
            remedy="fetch or pack it again",
        )
    if not has_sound_checksum(block):
        raise TarError(
            "the header's checksum does not match"
            if resembles_header(block)
            else "this block is neither a header nor the end of the archive, so the shard is "
            "corrupt or not a tar archive",
            remedy="fetch or pack it again",
        )
    before, _, after, rest = HEADER_PARTS.unpack(block)
    kind, name = after[:1], until_nul(before[:100])
    if kind == b"S":
        raise sparse_error()
    if kind == b"\0":
        kind = DIRECTORY if name.endswith(b"/") else FILE
    elif kind == b"7":
        kind = FILE
    return Header(
        name=folder_prefix(rest) + name,
        kind=kind,
        size=_parse_size(before[124:136]),
    )


def has_sound_checksum(block: bytes) -> bool:
    """Return whether the checksum of a header matches, in any notation.

    Sun's tar summed signed bytes. Such a sum is accepted only for headers that Sun's tar can have
    written, in which all bytes above 127 belong to the name, link target or prefix. Elsewhere such
    a byte is corrupt. The signed sum would count it as a small negative number, which other small
    changes could cancel out.
    """
    before, stated, after, rest = HEADER_PARTS.unpack(block)
    total = checksum(before, after, rest)
    if stated == b"%06o\0 " % total:
        return True
    number = _parse_number(stated)
    if number == total:
        return True
    high = _count_high(block)
    in_texts = sum(_count_high(until_nul(block[text])) for text in _TEXTS)
    return high == in_texts > 0 and number == total - 256 * high


def resembles_header(block: bytes) -> bool:
    """Return whether a block, though it may be corrupt, was written as a header."""
    return block.startswith(b"ustar", 257) or (
        _STATED.fullmatch(block[148:156]) is not None and _DIGIT.search(block, 124, 136) is not None
    )


def byte_sum(part: bytes, more: bytes = b"") -> int:
    """Sum the bytes of one or two parts of a header, 256 bytes in total at most."""
    return (adler32(more, adler32(part)) & 0xFFFF) - 1


def checksum(before: bytes, after: bytes, rest: bytes) -> int:
    """Compute the checksum of a header from its parts (see HEADER_PARTS)."""
    return byte_sum(before, after) + byte_sum(rest) + EIGHT_SPACES


def folder_prefix(rest: bytes) -> bytes:
    """Read the prefix of the name from a header's second half: empty, or ending in a slash.

    Only ustar has a prefix. GNU tar stores times in its place, and v7 nothing.
    """
    if rest[89] and rest[1:7] == USTAR_MAGIC:
        return until_nul(rest[89:244]) + b"/"
    return b""


def until_nul(field: bytes) -> bytes:
    """Cut a text field at its first NUL."""
    return field.partition(b"\0")[0]


def padded(size: int) -> int:
    """Round a size up to whole blocks."""
    return (size + BLOCK - 1) & -BLOCK


def sparse_error() -> TarError:
    """Create the error for a sparse member, whose data are not the bytes of the file."""
    return TarError(
        "the member is sparse, and sparse files are not supported",
        remedy="pack the shard again, without tar's --sparse",
    )


def _count_high(text: bytes) -> int:
    return len(text.translate(None, _ASCII))


def _parse_size(field: bytes) -> int:
    size = _parse_number(field)
    if size is None:
        raise TarError(
            f"the header's size field is not a valid file size: {field!r}",
            remedy="pack the shard again",
        )
    return size


def _parse_number(field: bytes) -> int | None:
    """Parse octal digits, or GNU's base-256 after 0x80; return None if invalid or negative."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = until_nul(field).strip(b" ")
    if digits.strip(b"01234567"):
        return None
    return int(digits or b"0", 8)


EXTENSIONS = b"LKxXg"
LONGEST_EXTENSION = 1 << 20
MOST_RECORDS = 1000

_LENGTH = re.compile(rb"0*([1-9][0-9]{0,6}) ")
_DIGITS_OF_SIZE = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """Values from extension headers that replace those of a header.

    Attributes:
        name: raw name of the member; None keeps the header's own.
        size: size of its data in bytes; None keeps the header's own.
    """

    name: bytes | None = None
    size: int | None = None

    def over(self, other: Overrides) -> Overrides:
        """Merge with other overrides; the values of this object take precedence."""
        if other is NO_OVERRIDES or self is NO_OVERRIDES:
            return self if other is NO_OVERRIDES else other
        return Overrides(
            name=other.name if self.name is None else self.name,
            size=other.size if self.size is None else self.size,
        )


NO_OVERRIDES = Overrides()


def parse_extension(kind: bytes, data: bytes) -> Overrides:
    """Parse the data of an extension header.

    Args:
        kind: typeflag of the header, one of EXTENSIONS.
        data: data of the header, without padding.

    Raises:
        TarError: a PAX record is malformed or makes the member sparse. The error carries no
            location.
    """
    if kind == b"L":
        return Overrides(name=until_nul(data))
    if kind == b"K":
        return NO_OVERRIDES
    return _parse_pax(data)


def _parse_pax(data: bytes) -> Overrides:
    name, size = None, None
    for keyword, value in _records(data):
        if keyword.startswith(b"GNU.sparse."):
            raise sparse_error()
        if keyword == b"size":
            size = _parse_pax_size(value)
        elif keyword == b"path":
            if b"\0" in value:
                raise _malformed(keyword + b"=" + value)
            name = value
    if name is None and size is None:
        return NO_OVERRIDES
    return Overrides(name=name, size=size)


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position, number = 0, 0
    while position < len(data):
        length = _LENGTH.match(data, position)
        if length is None:
            raise _malformed(data[position:])
        start, end = length.end(), position + int(length[1])
        equals = data.find(b"=", start + 1, end - 1)
        if equals < 0 or data[end - 1 : end] != b"\n":
            raise _malformed(data[position:])
        number += 1
        if number > MOST_RECORDS:
            raise TarError(
                f"a PAX header has more than {MOST_RECORDS} records", remedy="pack the shard again"
            )
        yield data[start:equals], data[equals + 1 : end - 1]
        position = end


def _parse_pax_size(value: bytes) -> int:
    digits = value.lstrip(b"0") or value[-1:]
    if not value.isdigit() or len(digits) > _DIGITS_OF_SIZE:
        raise _malformed(b"size=" + value)
    return int(digits)


def _malformed(record: bytes) -> TarError:
    return TarError(f"the PAX record {record[:40]!r} is malformed", remedy="pack the shard again")
