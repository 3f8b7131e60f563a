"""Which feature of an Example is which field of a sample: what users say, and what goes without.

Users pair them as FIELD=NAME. A pair with one empty side leaves the other side out. The field
`__key__` stands for the key.

TFRecord files of tf.train.Example messages: a record a sample.

Files are read once from start to end, and every byte is held against its checksum. Bytes of
features stay where they are until a shard is written; numbers become text of the fields `cls` and
`json`, or arrays. In `json` every feature is a list, as in the Example, so that a feature has one
type in all samples.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shardio.errors import CodecError, SituationError, UsageError, quoted, shown
from shardio.fields.arrays import decode_cls
from shardio.fields.base import BYTES, LABEL_FIELD
from shardio.fields.defaults import type_of
from shardio.indexing.catalog import expand_pattern
from shardio.packing.listing import (
    FromMemory,
    FromRange,
    Origin,
    Problem,
    SourceField,
    SourceSample,
)
from shardio.packing.sources.base import FieldRule, is_field_name, key_fault
from shardio.packing.sources.records import (
    Feature,
    Numbers,
    Place,
    Record,
    parse_example,
    scan_records,
)
from shardio.storage.local import FileBytes

KEY = "__key__"
LABEL_FEATURE = "label"
IMAGE = ""
"""Stands for the field of an image whose format is not known before it is read."""

_IMAGES = ("image/encoded", "image")
_LABELS = ("image/class/label", LABEL_FEATURE)


class Pair(NamedTuple):
    """A field and the feature that it is; one of them may be empty."""

    field: str
    name: str


def parse_pairs(texts: Sequence[str]) -> tuple[Pair, ...]:
    """What users say, each as "FIELD=NAME".

    Raises:
        UsageError: one is no such pair, or a field or a feature is in two of them.
    """
    if isinstance(texts, str):
        raise UsageError(f"features={texts!r}: it must be a list, as ['jpg=image/encoded']")
    pairs = []
    for text in texts:
        field, equals, name = text.partition("=")
        pair = Pair(field.lower(), name)
        if not equals or not (field or name) or not (field in ("", KEY) or is_field_name(field)):
            raise UsageError(
                f"{text!r} is no pair of a field and a feature",
                remedy="write it as jpg=image/encoded",
            )
        pairs.append(pair)
    for side in zip(*pairs, strict=True):
        named = [*filter(None, side)]
        if again := next((each for each in named if named.count(each) > 1), None):
            raise UsageError(f"features: {again!r} comes twice")
    return tuple(pairs)


def choose_fields(example: Mapping[str, Feature], pairs: Iterable[Pair]) -> dict[str, str | None]:
    """The field of each feature, or None if it belongs into the field json.

    What no pair names is chosen by name: image/encoded or image is an image, image/class/label or
    label the class number, `__key__` the key; bytes that are called like a field that has a
    decoder, as jpg or mask.png, are that field. Features that pairs leave out are left out.
    """
    given = {pair.name: pair.field for pair in pairs if pair.name}
    free = [name for name in example if name not in given]
    chosen: dict[str, str | None] = {name: given[name] for name in example if given.get(name)}
    for name in free:
        known = type_of(name.lower()) != BYTES and is_field_name(name)
        chosen[name] = name.lower() if known and _is_single_bytes(example[name]) else None
    taken = {*given.values()} - {IMAGE}
    defaults = {
        IMAGE: next((n for n in _IMAGES if n in free and _is_single_bytes(example[n])), None),
        LABEL_FIELD: next(
            (n for n in _LABELS if n in free and _is_single_integer(example[n])), None
        ),
        KEY: KEY if KEY in free and _is_single_bytes(example[KEY]) else None,
    }
    return chosen | {name: field for field, name in defaults.items() if name and field not in taken}


def name_features(fields: Iterable[str], pairs: Iterable[Pair]) -> dict[str, str]:
    """The name of the feature that each field becomes, of those that become one.

    Fields keep their names, but cls becomes `label`.

    Args:
        fields: of samples.
        pairs: what users say.

    Raises:
        UsageError: a pair names a field that there is not, or two fields become one feature.
    """
    names = {KEY: KEY} | {field: field for field in fields}
    if LABEL_FIELD in names:
        names[LABEL_FIELD] = LABEL_FEATURE
    for pair in pairs:
        if pair.field not in names:
            raise SituationError(
                f"features: there is no field {quoted(pair.field)}",
                remedy=f"the fields are {', '.join(map(shown, sorted({*names} - {KEY})))}",
            )
        names[pair.field] = pair.name
    chosen = {field: name for field, name in names.items() if name}
    if again := next((n for n in chosen.values() if [*chosen.values()].count(n) > 1), None):
        raise SituationError(
            f"two fields would become the feature {quoted(again)}", remedy="name one otherwise"
        )
    return chosen


def _is_single_bytes(feature: Feature) -> bool:
    return isinstance(feature, list) and len(feature) == 1


def _is_single_integer(feature: Feature) -> bool:
    return not isinstance(feature, list) and feature.dtype == np.int64 and len(feature) == 1


_JSON = "json"
_SHARD = r"-[0-9]{5}-of-[0-9]{5}"
_FILES = re.compile(rf".*(\.tfrecords?({_SHARD})?(\.gz)?|{_SHARD})", re.DOTALL)
_PATTERNS = re.compile(r".*(\.tfrecord|-of-[0-9]{5}$)", re.DOTALL)
_ENDING = re.compile(r"\.tfrecords?(?=-|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class TFRecords:
    """The samples of TFRecord files.

    Attributes:
        root: what the user named.
        files: in order.
        pairs: which features are which fields, as the user says.
        labels: False leaves class numbers out.
        classes: names of the classes by number; None leaves them without names.
    """

    root: str
    files: tuple[Path, ...]
    pairs: tuple[Pair, ...] = ()
    labels: bool = True
    classes: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """What errors call it."""
        return self.root

    def samples(self) -> Iterator[SourceSample | Problem]:
        """All samples, file by file.

        Raises:
            TFRecordError: a file is damaged, so that the records after the damage are lost.
            UsageError: the package crc32c is not installed.
            OSError: a file cannot be read.
        """
        common = os.path.commonpath([path.parent.absolute() for path in self.files])
        for path in self.files:
            stem = _ENDING.sub("", os.path.relpath(path.absolute(), common))
            with path.open("rb") as stream:
                records = scan_records(FileBytes(stream, str(path)), name=str(path))
                for number, record in enumerate(records):
                    name = f"{path}, record {number} at byte {record.offset}"
                    try:
                        yield self._sample(record, path, name, f"{stem}/{number:08d}")
                    except (CodecError, _RecordError) as error:
                        yield Problem(path=name, reason=str(error))

    def _sample(self, record: Record, path: Path, name: str, key: str) -> SourceSample:
        if not record.sound:
            raise _RecordError("the checksum of its data does not match, so the file is damaged")
        example = parse_example(record.data, 0, len(record.data))
        found = _Found(record, os.fsencode(path.absolute()))
        chosen = choose_fields(example, self.pairs)
        for feature, field in sorted(chosen.items()):
            found.take(feature, field, example[feature])
        label = found.label()
        if not self.labels:
            found.fields.pop(LABEL_FIELD, None)
        elif self.classes is not None and not 0 <= (label or 0) < len(self.classes):
            raise _RecordError(f"its class {label} is not one of the {len(self.classes)} classes")
        key, renamed = (key, False) if found.key is None else _key_of(found.key)
        if fault := key_fault(key):
            raise _RecordError(fault)
        return SourceSample(
            key=key,
            name=name,
            fields=found.in_order(),
            label=label if self.labels and (label or 0) >= 0 else None,
            renamed=renamed,
        )


class _RecordError(Exception):
    """Why a record is no sample."""


class _Found:
    """Collects the fields of one sample.

    Args:
        record: which holds it.
        path: of the file.

    Attributes:
        fields: origins by name.
        key: text that the key is made of, if a feature has it.
    """

    def __init__(self, record: Record, path: bytes) -> None:
        self.fields: dict[str, Origin] = {}
        self.key: str | None = None
        self._record = record
        self._path = path
        self._rest: dict[str, list[int] | list[float] | list[str]] = {}

    def take(self, name: str, field: str | None, feature: Feature) -> None:
        """Take a feature as a field, or as one of many in the field json if there is no other.

        Raises:
            _RecordError: it cannot be that field.
        """
        if field is None or field == KEY:
            self._rest[name] = values = self._listed(name, feature)
            if field == KEY:
                if len(values) != 1 or not isinstance(values[0], str):
                    raise _RecordError(f"its feature {quoted(name)} is not one text, so no key")
                self.key = values[0]
        elif field in self.fields:
            raise _RecordError(f"two of its features are the field {quoted(field)}")
        elif len(feature) or field == _JSON:
            self.fields[field] = self._origin(name, field, feature)

    def label(self) -> int | None:
        """The class number, if there is one.

        Raises:
            CodecError: the bytes of the field are no number.
        """
        origin = self.fields.get(LABEL_FIELD)
        if isinstance(origin, FromRange):
            return decode_cls(self._bytes(Place(origin.offset - self._record.offset, origin.size)))
        return int(origin.data) if isinstance(origin, FromMemory) else None

    def in_order(self) -> tuple[SourceField, ...]:
        """The fields, class number first, then by name, the features that are no fields last."""
        rest = {name: values for name, values in self._rest.items() if name != KEY}
        if rest and _JSON in self.fields:
            raise _RecordError(
                f"its feature {quoted(next(iter(rest)))} would go into the field json, which "
                "another feature is; pass --feature FIELD=NAME or, to leave it out, --feature =NAME"
            )
        fields = sorted(self.fields.items(), key=lambda field: (field[0] != LABEL_FIELD, field[0]))
        found = [SourceField(field or None, origin) for field, origin in fields]
        if rest:
            text = json.dumps(rest, ensure_ascii=False, allow_nan=False)
            found.append(SourceField(_JSON, FromMemory(text.encode())))
        if not found:
            raise _RecordError("it has no features that could be fields")
        return tuple(found)

    def _origin(self, name: str, field: str, feature: Feature) -> Origin:
        if field == _JSON and not (isinstance(feature, list) and len(feature) == 1):
            values = self._listed(name, feature)
            return FromMemory(json.dumps(values, ensure_ascii=False).encode())
        if not isinstance(feature, list):
            return FromMemory(_encode_numbers(name, field, feature))
        if len(feature) > 1:
            raise _RecordError(
                f"its feature {quoted(name)} has {len(feature)} values, and the field "
                f"{field or 'of an image'} holds one"
            )
        offset, size = feature[0]
        with memoryview(self._record.data) as data:
            checksum = zlib.crc32(data[offset : offset + size])
        return FromRange(self._path, self._record.offset + offset, size, checksum)

    def _listed(self, name: str, feature: Feature) -> list[int] | list[float] | list[str]:
        """The values of a feature as JSON has them."""
        if not isinstance(feature, list):
            if not np.isfinite(feature).all():
                raise _RecordError(
                    f"its feature {quoted(name)} has values that are not finite, which JSON cannot "
                    f"hold; pass --feature FIELD.npy={name}"
                )
            values: list[int] | list[float] = feature.tolist()
            return values
        try:
            return [str(self._bytes(place), "utf-8") for place in feature]
        except UnicodeDecodeError:
            raise _RecordError(
                f"its feature {quoted(name)} holds bytes that are no text; pass --feature "
                f"FIELD={name} to pack it as a field, or --feature ={name} to leave it out"
            ) from None

    def _bytes(self, place: Place) -> bytes:
        return self._record.data[place.offset : place.offset + place.size]


def _key_of(text: str) -> tuple[str, bool]:
    """The key that a text gives, which may be the path of an image, and whether it is another."""
    found = FieldRule().look_at(text.lstrip("/"))
    if found is None or ".." in text.split("/"):
        raise _RecordError(f"{quoted(text)} cannot be a key; choose another feature with --feature")
    return found.key, found.renamed


def _encode_numbers(name: str, field: str, numbers: Numbers) -> bytes:
    try:
        return type_of(field).encode(numbers)
    except (TypeError, ValueError, CodecError, NotImplementedError):
        raise _RecordError(
            f"its feature {quoted(name)} has {len(numbers)} numbers of type {numbers.dtype}, and "
            f"the field {quoted(field)} cannot hold them; cls holds one whole number, json and npy "
            "hold any"
        ) from None


def find_files(path: str) -> tuple[Path, ...] | None:
    """The TFRecord files that a path names; None if it names something else.

    Args:
        path: a file x.tfrecord, x.tfrecords, x.tfrecord-00000-of-00010 or x-00000-of-00010, a
            pattern of such files, or a folder with some.

    Raises:
        UsageError: no file fits the pattern.
    """
    if os.path.isdir(path):  # noqa: PTH112  bytes that are no UTF-8
        with os.scandir(path) as entries:
            found = [
                each.name for each in entries if _FILES.fullmatch(each.name) and each.is_file()
            ]
        names = sorted(name for name in found if not name.startswith("."))
        return tuple(Path(path, name) for name in names) if names else None
    if not _PATTERNS.match(os.path.basename(path)):  # noqa: PTH119  text
        return None
    named = (Path(path),) if Path(path).exists() else tuple(expand_pattern(path))
    if other := next((each for each in named if not each.is_file()), None):
        raise SituationError("it is not a file", where=other, remedy="name TFRecord files")
    return named
