"""What is packed: samples, each field of which comes from a file, a part of one, or memory.

A sample crosses from listing to packing as one line of JSON, so that a list of millions lies on
disk and any process, on any machine that sees the folder, reads the lines of its shard.
"""

from __future__ import annotations

import json
from binascii import a2b_base64, b2a_base64
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

_encode = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode


class FromFile(NamedTuple):
    """A whole file.

    Attributes:
        path: relative to the source folder, or absolute.
    """

    path: bytes


class FromRange(NamedTuple):
    """A part of a file.

    Attributes:
        path: of the file, see FromFile.
        offset: where the part starts, in bytes.
        size: in bytes.
        checksum: its CRC-32, if it is known.
        stamp: stamp of the file (see shardio.packing.states) as the list was made, where nobody
            read the part for it.
        before: bytes of headers that lie just before it, where no checksum tells whether the part
            is what was listed.
        headers: their CRC-32.
    """

    path: bytes
    offset: int
    size: int
    checksum: int | None
    stamp: str | None = None
    before: int = 0
    headers: int = 0


class FromMemory(NamedTuple):
    """Bytes that were made while listing, as of a label."""

    data: bytes


Origin: TypeAlias = FromFile | FromRange | FromMemory


class SourceField(NamedTuple):
    """One field of a sample.

    Attributes:
        name: of the field; None for an image whose file name does not say what it is, so that
            the field is named after the format found in it.
        origin: of its data.
    """

    name: str | None
    origin: Origin


class SourceSample(NamedTuple):
    """One sample.

    Attributes:
        key: of the sample.
        name: of what it was found as, for errors: a path, or a place in a file.
        fields: in the order in which they are packed.
        label: position of its class, None without classes.
        renamed: the key is not simply the path without its extension.
    """

    key: str
    name: str
    fields: tuple[SourceField, ...]
    label: int | None = None
    renamed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something in a source that cannot be packed, and why."""

    path: str
    reason: str


def text_of(name: bytes) -> str:
    """A name of the file system as text, the same under every locale."""
    return name.decode("utf-8", "surrogateescape")


def to_line(sample: SourceSample) -> bytes:
    """A sample as one line of JSON, in ASCII."""
    fields = [(name, *_to_json(origin)) for name, origin in sample.fields]
    row = (sample.key, sample.name, sample.label, sample.renamed, fields)
    return _encode(row).encode("ascii") + b"\n"


def from_line(line: bytes) -> SourceSample:
    """The sample that a line was made of."""
    key, name, label, renamed, fields = json.loads(line)
    found = [SourceField(field, _from_json(*origin)) for field, *origin in fields]
    return SourceSample(key, name, tuple(found), label, renamed)


def _to_json(origin: Origin) -> tuple[Any, ...]:
    if isinstance(origin, FromMemory):
        return (b2a_base64(origin.data, newline=False).decode("ascii"), None)
    return (text_of(origin.path), *origin[1:])


def _from_json(text: str, *rest: Any) -> Origin:
    if rest == (None,):
        return FromMemory(a2b_base64(text))
    path = text.encode("utf-8", "surrogateescape")
    return FromRange(path, *rest) if rest else FromFile(path)
