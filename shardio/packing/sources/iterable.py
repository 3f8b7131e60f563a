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
from typing import Any, ClassVar

from shardio.errors import CodecError, PackError, quoted
from shardio.fields.arrays import decode_cls
from shardio.fields.base import LABEL_FIELD, FieldType
from shardio.fields.defaults import type_of
from shardio.packing.layout import VALUES_NAME
from shardio.packing.sources.base import (
    FromFile,
    FromRange,
    Origin,
    Problem,
    SourceField,
    SourceSample,
    key_fault,
)
from shardio.packing.sources.rules import KEY, is_field_name
from shardio.storage.folder import Folder


class IterableSource:
    """The samples of an iterable.

    Args:
        mappings: the samples.
        work: work folder, for their bytes.
        classes: names of the classes by number, for the manifest.
        types: types of a user by field name; other fields have their default types.

    Attributes:
        name: see Source.
        root: current folder.
        classes: names of the classes by number.
    """

    name = "the samples"
    options: ClassVar[tuple[str, ...]] = ("classes", "fields")

    def __init__(
        self,
        mappings: Iterable[Mapping[str, Any]],
        work: Folder,
        classes: tuple[str, ...] | None,
        types: Mapping[str, FieldType],
    ) -> None:
        self.root = str(Path.cwd())
        self.classes = classes
        self._mappings = mappings
        self._work = work
        self._types = types

    def samples(self) -> Iterator[SourceSample | Problem]:
        """Yield all samples, as they come.

        Raises:
            PackError: one is not a mapping, or a value is not one that its field can have.
        """
        path, end = os.fsencode(self._work.path.absolute() / VALUES_NAME), 0
        with self._work.create(VALUES_NAME) as stream:
            for number, mapping in enumerate(self._mappings):
                if not isinstance(mapping, Mapping):
                    raise PackError(
                        f"it must be a mapping from fields to values, not {type(mapping).__name__}",
                        where=f"sample {number}",
                    )
                key = mapping.get(KEY, f"{number:09d}")
                place = f"sample {number} ({key!r})"
                if not isinstance(key, str) or key_fault(key):
                    raise PackError(f"its {KEY!r} is not a text that can be a key", where=place)
                fields: list[SourceField] = []
                label = None
                for field, value in mapping.items():
                    if field == KEY:
                        continue
                    origin, data = _encode(place, field, value, self._types)
                    if origin is None:
                        origin = FromRange(path, end, len(data), zlib.crc32(data))
                        end += stream.write(data)
                    if field.lower() == LABEL_FIELD:
                        label = _label_of(data)
                    fields.append(SourceField(field.lower(), origin))
                yield SourceSample(key=key, path=place, fields=tuple(fields), label=label)


def _encode(
    place: str, field: object, value: Any, types: Mapping[str, FieldType]
) -> tuple[Origin | None, bytes]:
    """Return the place of a value's data, or the data."""
    if not (isinstance(field, str) and is_field_name(field)):
        raise PackError(f"{field!r} cannot be the name of a field", where=place)
    if isinstance(value, os.PathLike):
        return FromFile(os.fsencode(value)), b""
    if isinstance(value, bytes | bytearray | memoryview):
        return None, bytes(value)
    try:
        return None, type_of(field.lower(), given=types).encode(value)
    except NotImplementedError:
        raise PackError(
            f"field {field!r} takes bytes or a path, not {type(value).__name__}",
            where=place,
            remedy="encode it, or name the field cls, txt, json or npy",
        ) from None
    except Exception as error:  # the type may be a user's, and raise anything
        raise PackError(
            f"field {field!r} cannot hold {quoted(value)}: {error}", where=place
        ) from error


def _label_of(data: bytes) -> int | None:
    """Parse a class number; None if bytes that are packed as they are do not spell one."""
    with suppress(CodecError):
        return decode_cls(data)
    return None
