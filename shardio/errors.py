"""The errors of shardio, as a tree.

    ShardioError
    ├── UsageError      an argument that cannot be meant (also a ValueError)
    │   └── SituationError  one that does not fit the files or the machine as they are
    │       └── MisfitError     a sample of another shape or dtype than others of its batch
    ├── TarError        a shard that is not a sound tar archive
    ├── TFRecordError   a TFRecord file that is damaged or none
    ├── IndexFileError  an index or manifest that is missing, damaged or stale
    ├── CodecError      bytes that do not decode; knows no place (also a ValueError)
    ├── SampleError     a sample that cannot be delivered; names shard, key and field
    │   └── TransformError  the user's transform raised for that sample
    └── PackError       a source or destination that cannot be packed
        └── OutputError     a link, pipe or device where shardio writes a file or folder of its own

An error carries as values what happened, where, and what to do; its sentence is made of them:
"where: what; remedy". Code that meets an error reads these values, never the sentence. Every class
can be made of one text alone, since a DataLoader raises a worker's error again from its text.

Names that messages show come from archives, so they may hold whatever a terminal obeys, and be
long. What is shown of them is escaped and cut: by `shown` and `quoted` where a message is made, and
once more in every message, for names that have passed both by.
"""

from __future__ import annotations

import re
from typing import TypeVar

_Error = TypeVar("_Error", bound="ShardioError")
_LONGEST = 200  # characters of a name
_LONG_WORD = re.compile(r"\S{1001,}")  # shorter paths are shown whole


def escaped(text: str, *, kept: str = "") -> str:
    """Escape what a terminal would not print as a character, or could not encode.

    Args:
        text: any text.
        kept: characters that stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in kept else each.encode("unicode_escape").decode()
        for each in text
    )


def shown(name: str) -> str:
    """Make a name fit for a message: on one line, escaped, without its middle if it is long."""
    return escaped(_cut(name))


def quoted(name: object) -> str:
    """Make a name fit for a message, in quotes."""
    return _cut(repr(name))


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Make a number of things fit for a message: "1 shard", "2,000 shards"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def _cut(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]}...{text[-half:]}"


class ShardioError(Exception):
    """Base of every error that shardio raises.

    Args:
        what: what happened.
        where: file, sample or argument that it happened to, as a user knows it.
        remedy: what to do about it.
        shard: path of the shard.
        offset: byte offset in the shard.
        key: key of the sample.
        field: field of the sample.

    Attributes:
        what: as given.
        where: as given; None if there is no place.
        remedy: as given; None if there is none.
        shard: as given, or None.
        offset: as given, or None.
        key: as given, or None.
        field: as given, or None.
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
        """Make an error that says the same of a place; see the class for the arguments.

        Args:
            where: place that it happened to.
            kind: class of the new error.
            remedy: what to do about it, besides what this error says.
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
    """An argument that cannot be meant."""


class SituationError(UsageError):
    """An argument that could be meant, but does not fit the files or the machine as they are."""


class MisfitError(SituationError):
    """A sample whose value has another shape or dtype than the others of its batch."""


class TarError(ShardioError):
    """A shard that is not a sound tar archive; names shard and offset."""


class TFRecordError(ShardioError):
    """A TFRecord file that is damaged, or no such file; names file (as shard) and offset."""


class IndexFileError(ShardioError):
    """An index or manifest that is missing, damaged or does not match its shards."""


class CodecError(ShardioError, ValueError):
    """Bytes that do not decode; whoever knows the sample adds the place."""


class SampleError(ShardioError):
    """A sample that cannot be delivered; names shard, key and field."""


class TransformError(SampleError):
    """The user's transform raised; no policy for bad samples hides it."""


class PackError(ShardioError):
    """A source or destination that cannot be packed."""


class OutputError(PackError):
    """A link, pipe, device or the like in an output folder; nothing is written through it."""
