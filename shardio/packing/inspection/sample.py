"""One sample: where it is, and a short look at what its fields hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shardio.codecs.basic import decode_cls, npy_header
from shardio.codecs.probe import check_complete, probe_image
from shardio.codecs.registry import LABEL_FIELD, Kind, kind_of
from shardio.errors import CodecError
from shardio.index.catalog import ShardEntry
from shardio.index.shard_index import ShardIndex
from shardio.packing.inspection.classes import class_name

_CHARACTERS = 60
_TEXT_BYTES = 4 * _CHARACTERS  # UTF-8 takes at most four a character
_SHOWN_BYTES = 16
_READ: dict[Kind, int] = {
    "pixels": 1 << 14,  # headers of .npy files are shorter
    "npy": 1 << 14,
    "cls": 64,
    "txt": _TEXT_BYTES,
    "json": _TEXT_BYTES,
    "bytes": _SHOWN_BYTES,
}
"""Bytes that are read for a look; images are read whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldValue:
    """One field of a sample.

    Attributes:
        name: of the field.
        kind: see shardio.codecs.registry.kind_of.
        bytes: of its data.
        offset: of its data in the shard.
        value: format and height × width of an image, number and name of a class, the first 60
            characters of text, dtype and shape of an array, the first 16 bytes of others; or why
            it does not decode.
    """

    name: str
    kind: Kind
    bytes: int
    offset: int
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleInfo:
    """One sample.

    Attributes:
        key: of the sample.
        number: its position in the dataset as packed.
        shard: path of its shard.
        fields: in the order of their data.
    """

    key: str
    number: int
    shard: str
    fields: tuple[FieldValue, ...]


class KeyFinder:
    """Looks for a key, shard by shard.

    Args:
        key: of the sample.

    Attributes:
        number: of the first sample that has it, in the order of shards; None if none has.
    """

    def __init__(self, key: str) -> None:
        self._key = key.encode("utf-8", "surrogateescape")
        self._passed = 0
        self.number: int | None = None

    def add(self, index: ShardIndex) -> None:
        """Look at the keys of the next shard."""
        if self.number is None:
            starts, ends = index.key_ends[:-1], index.key_ends[1:]
            rows = np.flatnonzero(ends - starts == len(self._key))
            for place in reversed(range(len(self._key))):  # keys differ most at their ends
                rows = rows[index.keys[starts[rows] + place] == self._key[place]]
            if len(rows):
                self.number = self._passed + int(rows[0])
        self._passed += len(index)


def look_at(
    entry: ShardEntry,
    row: int,
    *,
    number: int,
    classes: tuple[str, ...] | None,
    max_pixels: int,
) -> SampleInfo:
    """Look at a sample.

    Args:
        entry: of its shard.
        row: its position there.
        number: its position in the dataset.
        classes: names by number.
        max_pixels: greatest number of pixels of an image.

    Raises:
        IndexFileError: the index is missing or damaged.
        TarError: the shard is missing, cut off or changed.
        OSError: it cannot be read.
    """
    index, file = entry.load_index(), entry.open_file()
    values = []
    for name, offset, size in zip(
        index.fields, index.offsets[row].tolist(), index.sizes[row].tolist(), strict=True
    ):
        if offset < 0:
            continue
        kind = kind_of(name)
        data = file.read(offset, min(size, _READ.get(kind, size)))
        try:
            value = _look_at_image(data, max_pixels) if kind == "image" else _LOOKS[kind](data)
        except CodecError as error:
            value = f"does not decode: {error}"
        else:
            if name == LABEL_FIELD and classes is not None:
                value += f" ({class_name(int(value), classes) or 'not in the list of classes'})"
        values.append(FieldValue(name=name, kind=kind, bytes=size, offset=offset, value=value))
    return SampleInfo(
        key=index.key(row),
        number=number,
        shard=entry.name,
        fields=tuple(sorted(values, key=lambda value: value.offset)),
    )


def _look_at_image(data: bytes, max_pixels: int) -> str:
    info = probe_image(data, max_pixels=max_pixels)
    check_complete(data, info)
    return f"{info.format}, {info.height} × {info.width}"


def _look_at_array(data: bytes) -> str:
    dtype, shape, *_ = npy_header(memoryview(data))
    return f"{dtype} {[*shape]}"


def _look_at_text(data: bytes) -> str:
    return data.decode("utf-8", "replace")[:_CHARACTERS]


_LOOKS: dict[Kind, Callable[[bytes], str]] = {
    "pixels": _look_at_array,
    "cls": lambda data: str(decode_cls(data)),
    "txt": _look_at_text,
    "json": _look_at_text,
    "npy": _look_at_array,
    "bytes": lambda data: data.hex(" "),
}
