"""Samples that a Python program makes, one after another.

Each is a mapping from fields to values, and "__key__". A value is bytes, a path of a file to be
packed, or what the field's name says: an int for `cls`, a str for `txt`, an array for `npy`,
anything that JSON holds for `json`. The bytes go to a file of the work folder as they come, so a
generator of any length takes no memory.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from shardio.errors import CodecError, PackError, quoted
from shardio.fields.arrays import decode_cls
from shardio.fields.base import LABEL_FIELD, Kind, kind_of
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

    Attributes:
        name: see Source.
        root: current folder.
        classes: names of the classes by number.
    """

    name = "the samples"
    options: ClassVar[tuple[str, ...]] = ("classes",)

    def __init__(
        self, mappings: Iterable[Mapping[str, Any]], work: Folder, classes: tuple[str, ...] | None
    ) -> None:
        self.root = str(Path.cwd())
        self.classes = classes
        self._mappings = mappings
        self._work = work

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
                    origin, data = _encode(place, field, value)
                    if origin is None:
                        origin = FromRange(path, end, len(data), zlib.crc32(data))
                        end += stream.write(data)
                    if field.lower() == LABEL_FIELD:
                        label = _label_of(data)
                    fields.append(SourceField(field.lower(), origin))
                yield SourceSample(key=key, path=place, fields=tuple(fields), label=label)


def _encode(place: str, field: object, value: Any) -> tuple[Origin | None, bytes]:
    """Return the place of a value's data, or the data."""
    if not (isinstance(field, str) and is_field_name(field)):
        raise PackError(f"{field!r} cannot be the name of a field", where=place)
    if isinstance(value, os.PathLike):
        return FromFile(os.fsencode(value)), b""
    if isinstance(value, bytes | bytearray | memoryview):
        return None, bytes(value)
    kind = kind_of(field)
    encode = _ENCODERS.get(kind)
    try:
        if encode is not None:
            return None, encode(value)
    except (TypeError, ValueError) as error:
        raise PackError(
            f"field {field!r} cannot hold {quoted(value)}: {error}", where=place
        ) from error
    raise PackError(
        f"field {field!r} takes bytes or a path, not {type(value).__name__}",
        where=place,
        remedy="encode it, or name the field cls, txt, json or npy",
    )


def _encode_cls(value: Any) -> bytes:
    if isinstance(value, bool) or int(value) != value:
        raise ValueError("it is not a whole number")
    return b"%d" % int(value)


def _encode_txt(value: Any) -> bytes:
    if not isinstance(value, str):
        raise TypeError("it is not a text")
    return value.encode()


def _encode_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def _encode_npy(value: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(value), allow_pickle=False)
    return stream.getvalue()


_ENCODERS: dict[Kind, Callable[[Any], bytes]] = {
    "cls": _encode_cls,
    "txt": _encode_txt,
    "json": _encode_json,
    "npy": _encode_npy,
    "pixels": _encode_npy,
}


def _label_of(data: bytes) -> int | None:
    """Parse a class number; None if bytes that are packed as they are do not spell one."""
    with suppress(CodecError):
        return decode_cls(data)
    return None
