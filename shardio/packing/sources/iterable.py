"""Samples that a Python program makes, one after another.

Each is a mapping from fields to values, and "__key__"; if no sample has one, keys are numbers. A
value is bytes, a path of a file to be packed, or what the field's name says: an int for `cls`, a
str for `txt`, an array for `npy`, anything that JSON holds for `json`. Other names like `__url__`
are metadata, which webdataset adds and does not write. The bytes go to a file of the work folder as
they come, so a generator of any length takes no memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from shardio.errors import CodecError, PackError, quoted
from shardio.fields.arrays import decode_cls
from shardio.fields.base import LABEL_FIELD, FieldType
from shardio.fields.boundary import not_of_the_data
from shardio.fields.defaults import type_of
from shardio.native.checksum import crc32
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

_METADATA = re.compile("__.*__", re.DOTALL)


class IterableSource:
    """The samples of an iterable.

    Args:
        mappings: the samples.
        work: work folder, for their bytes.
        classes: names of the classes by number, for the manifest.
        entries: entries of a dataset, and the fields or types of fields that they are read from.
        types: types by field name; other fields have their default types.

    Attributes:
        name: see Source.
        root: current folder.
        classes: names of the classes by number.
    """

    name = "the samples"
    options: ClassVar[tuple[str, ...]] = ("classes", "fields")
    remedy: ClassVar[str] = "fix the sample or leave it out"

    def __init__(
        self,
        mappings: Iterable[Mapping[str, Any]],
        work: Folder,
        classes: tuple[str, ...] | None,
        entries: Mapping[str, str | FieldType] | None,
        types: Mapping[str, FieldType] | None = None,
    ) -> None:
        self.root = str(Path.cwd())
        self.classes = classes
        self._mappings = mappings
        self._work = work
        self._entries = entries or {}
        self._types = types or {}

    def samples(self) -> Iterator[SourceSample | Problem]:
        """Yield all samples, as they come.

        Raises:
            PackError: one is not a mapping, or a value is not one that its field can have.
        """
        path, end = os.fsencode(self._work.path.absolute() / VALUES_NAME), 0
        keyed = True
        with self._work.create(VALUES_NAME) as stream:
            for number, mapping in enumerate(self._mappings):
                if not isinstance(mapping, Mapping):
                    raise PackError(
                        f"it must be a mapping from fields to values, not {type(mapping).__name__}",
                        where=f"sample {number}",
                    )
                keyed = KEY in mapping if not number else keyed
                if (KEY in mapping) != keyed:
                    raise PackError(
                        f"it has {'no' if keyed else 'a'} {KEY!r}, unlike those before it",
                        where=f"sample {number}",
                        remedy="give every sample a key, or none",
                    )
                key = mapping.get(KEY, f"{number:09d}")
                place = f"sample {number} ({quoted(key)})"
                if not isinstance(key, str):
                    raise PackError(f"its {KEY!r} is not a text", where=place)
                if fault := key_fault(key):
                    raise PackError(f"its {KEY!r} cannot be a key: {fault}", where=place)
                fields: list[SourceField] = []
                label = None
                for field, value in mapping.items():
                    if _METADATA.fullmatch(str(field)):
                        continue
                    origin, data = self._encode(place, field, value)
                    if origin is None:
                        origin = FromRange(path, end, len(data), crc32(data))
                        end += stream.write(data)
                    if field.lower() == LABEL_FIELD:
                        label = _label_of(data)
                    fields.append(SourceField(field.lower(), origin))
                if not fields:
                    raise PackError("it has no fields", where=place)
                yield SourceSample(key=key, path=place, fields=tuple(fields), label=label)

    def _encode(self, place: str, field: object, value: Any) -> tuple[Origin | None, bytes]:
        """Return the place of a value's data, or the data."""
        if not (isinstance(field, str) and is_field_name(field)):
            raise PackError(f"{field!r} cannot be the name of a field", where=place)
        entry = self._entries.get(field)
        if isinstance(entry, FieldType) and field.lower() not in self._types:
            raise PackError(
                f"{field!r} is an entry that is read from another field",
                where=place,
                remedy=f"name the value {' or '.join(map(repr, entry.alternatives))}, the field of "
                "its type",
            )
        if isinstance(value, os.PathLike):
            return FromFile(os.fsencode(value)), b""
        if isinstance(value, bytes | bytearray | memoryview):
            return None, bytes(value)
        name = field.lower()
        encode = type_of(name, given=self._types).for_field(name).encode
        try:
            return None, encode(value)
        except not_of_the_data(encode):
            raise
        except NotImplementedError:
            raise PackError(
                f"field {field!r} takes bytes or a path, not {type(value).__name__}",
                where=place,
                remedy="encode it, or name the field cls, txt, json or npy",
            ) from None
        except Exception as error:  # the type may be a user's, and raise anything
            raise PackError(
                f"field {field!r} cannot hold {_described(value)}: {error}", where=place
            ) from error


def _described(value: Any) -> str:
    """Describe a value in one line."""
    is_array = hasattr(value, "dtype") and hasattr(value, "shape")
    return f"{value.dtype} {[*value.shape]}" if is_array else quoted(value)


def _label_of(data: bytes) -> int | None:
    """Parse a class number; None if bytes that are packed as they are do not spell one."""
    with suppress(CodecError):
        return decode_cls(data)
    return None
