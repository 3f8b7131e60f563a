"""Samples that a Python program makes, one after another.

Each is a mapping from fields to values, and "__key__". A value is bytes, a path of a file to be
packed, or what the field's name says: an int for `cls`, a str for `txt`, an array for `npy`,
anything that JSON holds for `json`. The bytes go to a file of the work folder as they come, so a
generator of any length takes no memory.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from shardio.errors import CodecError, PackError, quoted
from shardio.fields.arrays import decode_cls
from shardio.fields.base import LABEL_FIELD, FieldType
from shardio.fields.defaults import type_of
from shardio.packing.listing import FromFile, FromRange, Origin, Problem, SourceField, SourceSample
from shardio.packing.names import VALUES_NAME
from shardio.packing.sources.base import is_field_name, key_fault
from shardio.storage.folder import Folder

_KEY = "__key__"


class Values:
    """Samples of an iterable.

    Args:
        given: the samples.
        work: work folder, for their bytes.
        classes: names of the classes, for the manifest.
        types: types of a user by field name; other fields have their default types.

    Attributes:
        name: what errors call them.
        root: folder that relative paths start from.
        classes: as given.
    """

    name = "the samples"

    def __init__(
        self,
        given: Iterable[Mapping[str, Any]],
        work: Folder,
        classes: tuple[str, ...] | None,
        types: Mapping[str, FieldType],
    ) -> None:
        self.root = str(Path.cwd())
        self.classes = classes
        self._given = given
        self._work = work
        self._types = types

    def samples(self) -> Iterator[SourceSample | Problem]:
        """All samples, as they come.

        Raises:
            PackError: one is no mapping, or a value is none that its field can have.
        """
        path, end = os.fsencode(self._work.path.absolute() / VALUES_NAME), 0
        with self._work.create(VALUES_NAME) as stream:
            for number, given in enumerate(self._given):
                if not isinstance(given, Mapping):
                    raise PackError(f"sample {number}: it is no mapping from fields to values")
                key = given.get(_KEY, f"{number:09d}")
                name = f"sample {number} ({key!r})"
                if not isinstance(key, str) or key_fault(key):
                    raise PackError(f"its {_KEY!r} is no text that can be a key", where=name)
                fields: list[SourceField] = []
                label = None
                for field, value in given.items():
                    if field == _KEY:
                        continue
                    origin, data = _encode(name, field, value, self._types)
                    if origin is None:
                        origin = FromRange(path, end, len(data), zlib.crc32(data))
                        end += stream.write(data)
                    if field.lower() == LABEL_FIELD:
                        label = _label_of(data)
                    fields.append(SourceField(field.lower(), origin))
                yield SourceSample(key=key, name=name, fields=tuple(fields), label=label)


def _encode(
    name: str, field: object, value: Any, types: Mapping[str, FieldType]
) -> tuple[Origin | None, bytes]:
    """Where a value is, or its bytes."""
    if not (isinstance(field, str) and is_field_name(field)):
        raise PackError(f"{field!r} is no name for a field", where=name)
    if isinstance(value, os.PathLike):
        return FromFile(os.fsencode(value)), b""
    if isinstance(value, bytes | bytearray | memoryview):
        return None, bytes(value)
    try:
        return None, type_of(field.lower(), given=types).encode(value)
    except NotImplementedError:
        raise PackError(
            f"field {field!r} takes bytes or a path, not {type(value).__name__}",
            where=name,
            remedy="encode it, or name the field cls, txt, json or npy",
        ) from None
    except Exception as error:  # the type may be a user's, and raise anything
        raise PackError(
            f"field {field!r} cannot hold {quoted(value)}: {error}", where=name
        ) from error


def _label_of(data: bytes) -> int | None:
    """The class number that bytes say; packed as they are, they may say none."""
    with suppress(CodecError):
        return decode_cls(data)
    return None
