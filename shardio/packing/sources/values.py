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
from typing import Any

import numpy as np

from shardio.errors import CodecError, PackError, quoted
from shardio.fields.arrays import decode_cls
from shardio.fields.base import LABEL_FIELD, Kind, kind_of
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

    Attributes:
        name: what errors call them.
        root: folder that relative paths start from.
        classes: as given.
    """

    name = "the samples"

    def __init__(
        self, given: Iterable[Mapping[str, Any]], work: Folder, classes: tuple[str, ...] | None
    ) -> None:
        self.root = str(Path.cwd())
        self.classes = classes
        self._given = given
        self._work = work

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
                    origin, data = _encode(name, field, value)
                    if origin is None:
                        origin = FromRange(path, end, len(data), zlib.crc32(data))
                        end += stream.write(data)
                    if field.lower() == LABEL_FIELD:
                        label = _label_of(data)
                    fields.append(SourceField(field.lower(), origin))
                yield SourceSample(key=key, name=name, fields=tuple(fields), label=label)


def _encode(name: str, field: object, value: Any) -> tuple[Origin | None, bytes]:
    """Where a value is, or its bytes."""
    if not (isinstance(field, str) and is_field_name(field)):
        raise PackError(f"{field!r} is no name for a field", where=name)
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
            f"field {field!r} cannot hold {quoted(value)}: {error}", where=name
        ) from error
    raise PackError(
        f"field {field!r} takes bytes or a path, not {type(value).__name__}",
        where=name,
        remedy="encode it, or name the field cls, txt, json or npy",
    )


def _encode_cls(value: Any) -> bytes:
    if isinstance(value, bool) or int(value) != value:
        raise ValueError("it is no whole number")
    return b"%d" % int(value)


def _encode_txt(value: Any) -> bytes:
    if not isinstance(value, str):
        raise TypeError("it is no text")
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
    """The class number that bytes say; packed as they are, they may say none."""
    with suppress(CodecError):
        return decode_cls(data)
    return None
