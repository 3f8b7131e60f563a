"""Headers that extend the header after them: GNU long names and PAX records.

GNU's "L" and "K" carry a long name or link target as text. PAX's "x" (Solaris: "X") carries
records for the next member, "g" for all that follow, each `LENGTH KEYWORD=VALUE` and a newline,
where LENGTH counts the whole record (POSIX.1-2001, pax interchange format). Only the keywords
path and size change where a member is and what it is called; the rest is passed over, as are
link targets, because links are no samples.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from shardio.errors import TarError
from shardio.tar.header import sparse_error, until_nul

EXTENSIONS = b"LKxXg"
LONGEST_EXTENSION = 1 << 20
MOST_RECORDS = 1000

_LENGTH = re.compile(rb"0*([1-9][0-9]{0,6}) ")
_DIGITS_OF_SIZE = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What extension headers put in the place of a header's own fields; None leaves a field."""

    name: bytes | None = None
    size: int | None = None

    def over(self, other: Overrides) -> Overrides:
        """Combine two: the fields of this one, and the other's where this one has none."""
        if other is NO_OVERRIDES or self is NO_OVERRIDES:
            return self if other is NO_OVERRIDES else other
        return Overrides(
            name=other.name if self.name is None else self.name,
            size=other.size if self.size is None else self.size,
        )


NO_OVERRIDES = Overrides()


def parse_extension(kind: bytes, data: bytes) -> Overrides:
    """Read the data of an extension header.

    Args:
        kind: the header's typeflag, one of EXTENSIONS.
        data: the header's data, without padding.

    Raises:
        TarError: a PAX record is malformed or makes the member sparse. The error knows no place.
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
            size = _parse_size(value)
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
                f"a PAX header has more than {MOST_RECORDS} records; pack the shard again"
            )
        yield data[start:equals], data[equals + 1 : end - 1]
        position = end


def _parse_size(value: bytes) -> int:
    digits = value.lstrip(b"0") or value[-1:]
    if not value.isdigit() or len(digits) > _DIGITS_OF_SIZE:
        raise _malformed(b"size=" + value)
    return int(digits)


def _malformed(record: bytes) -> TarError:
    return TarError(f"the PAX record {record[:40]!r} is malformed; pack the shard again")
