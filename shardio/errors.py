"""The errors of shardio, as a tree.

    ShardioError
    ├── UsageError      an argument that cannot be meant (also a ValueError)
    │   └── SituationError  one that does not fit the files or the machine as they are
    ├── TarError        a shard that is not a sound tar archive
    ├── TFRecordError   a TFRecord file that is damaged or none
    ├── IndexFileError  an index or manifest that is missing, damaged or stale
    ├── CodecError      bytes that do not decode; knows no place (also a ValueError)
    ├── SampleError     a sample that cannot be delivered; names shard, key and field
    │   └── TransformError  the user's transform raised for that sample
    └── PackError       a source or destination that cannot be packed
        └── OutputError     a link, pipe or device where shardio writes a file or folder of its own

A message is one sentence that says what, where and the way out. Every class is built from
that message alone, so that it survives pickling and the re-raise in a DataLoader; the place
is kept in attributes as well.

Names that messages show come from archives, so they may hold whatever a terminal obeys, and be
long. What is shown of them is escaped and cut: by `shown` and `quoted` where a message is made, and
once more in every message, for names that have passed both by.
"""

from __future__ import annotations

import re

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

    Attributes:
        shard: path of the shard, if the error has one.
        offset: byte offset in the shard, if the error has one.
        key: key of the sample, if the error has one.
        field: field of the sample, if the error has one.
    """

    def __init__(
        self,
        message: str,
        *,
        shard: str | None = None,
        offset: int | None = None,
        key: str | None = None,
        field: str | None = None,
    ) -> None:
        whole = escaped(message, kept="\n")  # DataLoader puts a traceback into it
        super().__init__(_LONG_WORD.sub(lambda word: _cut(word[0]), whole))
        self.shard = shard
        self.offset = offset
        self.key = key
        self.field = field


class UsageError(ShardioError, ValueError):
    """An argument that cannot be meant."""


class SituationError(UsageError):
    """An argument that could be meant, but does not fit the files or the machine as they are."""


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
