"""The errors of shardio, as a tree.

    ShardioError
    ├── UsageError      an argument that cannot be meant (also a ValueError)
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
"""

from __future__ import annotations


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
        super().__init__(message)
        self.shard = shard
        self.offset = offset
        self.key = key
        self.field = field


class UsageError(ShardioError, ValueError):
    """An argument that cannot be meant."""


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
