"""The exception hierarchy of shardio.

    ShardioError
    ├── UsageError          invalid argument (also a ValueError)
    │   └── SituationError  valid argument that does not fit the files or the machine
    │       └── MisfitError     sample whose shape or dtype differs from others of its batch
    ├── TarError            corrupt or truncated tar archive
    ├── TFRecordError       corrupt TFRecord file, or not a TFRecord file
    ├── IndexFileError      missing, corrupt or stale index or manifest
    ├── CodecError          data that cannot be decoded (also a ValueError)
    ├── SampleError         sample that cannot be delivered
    │   └── TransformError  exception in the user's transform
    └── PackError           source or destination that cannot be packed
        └── OutputError     link, pipe or device in place of an output file or folder

An error carries three values: what happened, where, and what to do. Its message is composed of
them as "where: what; remedy". Code that handles an error reads the values and never parses the
message. Every class accepts a single string, because a DataLoader recreates a worker's error from
its text.

Names in messages come from archives. They may be long and may contain terminal control
characters, so `shown` and `quoted` escape and shorten them. Every message is escaped once more, in
case a name was inserted without either function.
"""

from __future__ import annotations

import re
from typing import TypeVar

_Error = TypeVar("_Error", bound="ShardioError")
_LONGEST = 200  # characters of a name
_LONG_WORD = re.compile(r"\S{1001,}")  # shorter paths are shown whole


def escaped(text: str, *, kept: str = "") -> str:
    """Escape the characters that are not printable.

    Args:
        text: arbitrary text.
        kept: characters to leave unescaped.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in kept else each.encode("unicode_escape").decode()
        for each in text
    )


def shown(name: str) -> str:
    """Format a name for a message: escaped, on one line, and shortened in the middle if long."""
    return escaped(_cut(name))


def quoted(name: object) -> str:
    """Format a name for a message, in quotes; long names are shortened in the middle."""
    return _cut(repr(name))


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Format a count for a message, as in "1 shard" or "2,000 shards"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def _cut(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]}...{text[-half:]}"


class ShardioError(Exception):
    """Base class of all shardio errors.

    Args:
        what: description of what happened.
        where: file, sample or argument at fault, as the user knows it.
        remedy: advice to the user.
        shard: path of the shard.
        offset: byte offset in the shard.
        key: key of the sample.
        field: field of the sample.

    Attributes:
        what: description of what happened.
        where: file, sample or argument at fault, or None.
        remedy: advice to the user, or None.
        shard: path of the shard, or None.
        offset: byte offset in the shard, or None.
        key: key of the sample, or None.
        field: field of the sample, or None.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        remedy: str | None = None,
        shard: str | None = None,
        offset: int | None = None,
        key: str | None = None,
        field: str | None = None,
    ) -> None:
        self.what = _fit_for_terminals(what)
        self.where = None if where is None else _fit_for_terminals(str(where))
        self.remedy = None if remedy is None else _fit_for_terminals(remedy)
        place = "" if self.where is None else f"{self.where}: "
        way = "" if self.remedy is None else f"; {self.remedy}"
        super().__init__(f"{place}{self.what}{way}")
        self.shard = shard
        self.offset = offset
        self.key = key
        self.field = field

    def at(
        self,
        where: object,
        kind: type[_Error],
        *,
        remedy: str | None = None,
        shard: str | None = None,
        offset: int | None = None,
        key: str | None = None,
        field: str | None = None,
    ) -> _Error:
        """Return a copy of this error with a location.

        Args:
            where: file, sample or argument at fault; an earlier location becomes part of the
                description.
            kind: class of the new error.
            remedy: additional advice, appended to that of this error.
            shard: path of the shard.
            offset: byte offset in the shard.
            key: key of the sample.
            field: field of the sample.
        """
        ways = [way for way in (self.remedy, remedy) if way is not None]
        return kind(
            self.what if self.where is None else f"{self.where}: {self.what}",
            where=where,
            remedy="; ".join(ways) or None,
            shard=shard,
            offset=offset,
            key=key,
            field=field,
        )


def _fit_for_terminals(text: str) -> str:
    whole = escaped(text, kept="\n")  # DataLoader puts a traceback into it
    return _LONG_WORD.sub(lambda word: _cut(word[0]), whole)


class UsageError(ShardioError, ValueError):
    """Invalid argument."""


class SituationError(UsageError):
    """Valid argument that does not fit the files or the machine."""


class MisfitError(SituationError):
    """A sample whose value has another shape or dtype than the others of its batch."""


class TarError(ShardioError):
    """Corrupt or truncated tar archive; carries the shard and the offset."""


class TFRecordError(ShardioError):
    """Corrupt TFRecord file, or not a TFRecord file; carries the file as shard, and the offset."""


class IndexFileError(ShardioError):
    """Missing or corrupt index or manifest, or one that does not match its shards."""


class CodecError(ShardioError, ValueError):
    """Data that cannot be decoded; the caller adds the location."""


class SampleError(ShardioError):
    """Sample that cannot be delivered; carries the shard, the key and the field."""


class TransformError(SampleError):
    """Exception in the user's transform, which no policy for bad samples suppresses."""


class PackError(ShardioError):
    """Source or destination that cannot be packed."""


class OutputError(PackError):
    """Link, pipe, device or the like in place of an output file or folder."""
