"""TFRecord files of tf.train.Example messages: a record a sample.

Files are read once from start to end, and every byte is held against its checksum. Bytes of
features stay where they are until a shard is written; numbers become text of the fields `cls` and
`json`, or arrays. In `json` every feature is a list, as in the Example, so that a feature has one
type in all samples.

Users pair fields and features as FIELD=NAME. A pair with one empty side leaves the other side out.
The field `__key__` stands for the key.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from shardio.errors import CodecError, SituationError, argument, quoted, shown
from shardio.fields.arrays import decode_cls
from shardio.fields.base import BYTES, LABEL_FIELD
from shardio.fields.defaults import type_of
from shardio.indexing.parts import expand_pattern
from shardio.native.checksum import crc32
from shardio.packing.sources.base import (
    FromMemory,
    FromRange,
    Origin,
    Problem,
    SourceField,
    SourceSample,
    UnpackableError,
    key_fault,
)
from shardio.packing.sources.records import (
    Feature,
    Numbers,
    Place,
    Record,
    parse_example,
    scan_records,
)
from shardio.packing.sources.rules import (
    KEY,
    FeaturePair,
    FieldRule,
    check_classes,
    is_field_name,
    parse_features,
    refuse_mixed_folder,
)
from shardio.storage.local import FileBytes

if TYPE_CHECKING:
    from shardio.packing.options import PackOptions

LABEL_FEATURE = "label"
_UNNAMED = ""
"""Stands for the field of an image whose format is not known before it is read."""

_IMAGES = ("image/encoded", "image")
_LABELS = ("image/class/label", LABEL_FEATURE)


def choose_fields(
    example: Mapping[str, Feature], pairs: Iterable[FeaturePair]
) -> dict[str, str | None]:
    """Choose the field of each feature, or None if it belongs into the field json.

    What no pair names is chosen by name: image/encoded or image is an image, image/class/label or
    label the class number, `__key__` the key; bytes that are called like a field that has a
    decoder, as jpg or mask.png, are that field. Features that pairs leave out are left out.
    """
    given = {pair.feature: pair.field for pair in pairs if pair.feature}
    free = [name for name in example if name not in given]
    chosen: dict[str, str | None] = {name: given[name] for name in example if given.get(name)}
    for name in free:
        known = type_of(name.lower()) != BYTES and is_field_name(name)
        chosen[name] = name.lower() if known and _is_single_bytes(example[name]) else None
    taken = {*given.values()} - {_UNNAMED}
    defaults = {
        _UNNAMED: next((n for n in _IMAGES if n in free and _is_single_bytes(example[n])), None),
        LABEL_FIELD: next(
            (n for n in _LABELS if n in free and _is_single_integer(example[n])), None
        ),
        KEY: KEY if KEY in free and _is_single_bytes(example[KEY]) else None,
    }
    return chosen | {name: field for field, name in defaults.items() if name and field not in taken}


def name_features(fields: Iterable[str], pairs: Iterable[FeaturePair]) -> dict[str, str]:
    """Name the feature that each field becomes, for those that become one.

    Fields keep their names, but cls becomes `label`.

    Args:
        fields: fields of the samples.
        pairs: pairs of fields and features that the user names.

    Raises:
        UsageError: a pair names a field that does not exist, or two fields become one feature.
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
        names[pair.field] = pair.feature
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
class TFRecordSource:
    """The samples of TFRecord files.

    Attributes:
        root: path that the user named.
        files: paths of the files in order.
        pairs: pairs of fields and features that the user names.
        labels: whether to pack class numbers.
        classes: names of the classes by number; None leaves them without names.
    """

    described: ClassVar[str] = "TFRecord files"
    options: ClassVar[tuple[str, ...]] = ("labels", "classes", "features")
    remedy: ClassVar[str] = "write the file again without the record"

    root: str
    files: tuple[Path, ...]
    pairs: tuple[FeaturePair, ...] = ()
    labels: bool = True
    classes: tuple[str, ...] | None = None

    @classmethod
    def claims(cls, path: str, options: PackOptions) -> bool:  # noqa: ARG003  as all sources
        """See PathSource."""
        return find_files(path) is not None

    @classmethod
    def open(cls, path: str, options: PackOptions) -> TFRecordSource:
        """See PathSource."""
        refuse_mixed_folder(path)
        return cls(
            root=path,
            files=find_files(path) or (),
            pairs=parse_features(options.features),
            labels=options.labels,
            classes=check_classes(options.classes),
        )

    @property
    def name(self) -> str:
        """See Source."""
        return self.root

    def samples(self) -> Iterator[SourceSample | Problem]:
        """Yield all samples, file by file.

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
                    place = f"{path}, record {number} at byte {record.offset}"
                    try:
                        yield self._sample(record, path, place, f"{stem}/{number:08d}")
                    except (CodecError, UnpackableError) as error:
                        yield Problem.of(place, error)

    def _sample(self, record: Record, path: Path, place: str, key: str) -> SourceSample:
        if not record.sound:
            raise UnpackableError("the checksum of its data does not match, so the file is damaged")
        example = parse_example(record.data, 0, len(record.data))
        found = _FieldCollector(record, os.fsencode(path.absolute()))
        chosen = choose_fields(example, self.pairs)
        for feature, field in sorted(chosen.items()):
            found.take(feature, field, example[feature])
        label = found.label()
        if not self.labels:
            found.fields.pop(LABEL_FIELD, None)
        elif self.classes is not None and not 0 <= (label or 0) < len(self.classes):
            raise UnpackableError(
                f"its class {label} is not one of the {len(self.classes)} classes"
            )
        key, renamed = (key, False) if found.key is None else _key_of(found.key)
        if fault := key_fault(key):
            raise UnpackableError(fault)
        return SourceSample(
            key=key,
            path=place,
            fields=found.in_order(),
            label=label if self.labels and (label or 0) >= 0 else None,
            renamed=renamed,
        )


class _FieldCollector:
    """Collects the fields of one sample.

    Args:
        record: record of the sample.
        path: path of its file.

    Attributes:
        fields: places of their data by name.
        key: text that the key is made of, if a feature has it.
    """

    def __init__(self, record: Record, path: bytes) -> None:
        self.fields: dict[str, Origin] = {}
        self.key: str | None = None
        self._record = record
        self._path = path
        self._rest: dict[str, list[int] | list[float] | list[str]] = {}

    def take(self, name: str, field: str | None, feature: Feature) -> None:
        """Take a feature as a field, or into the field json if it has no field.

        Raises:
            UnpackableError: it cannot be that field.
        """
        if field is None or field == KEY:
            self._rest[name] = values = self._listed(name, feature)
            if field == KEY:
                if len(values) != 1 or not isinstance(values[0], str):
                    raise UnpackableError(
                        f"its feature {quoted(name)} is not one text, so not a key"
                    )
                self.key = values[0]
        elif field in self.fields:
            raise UnpackableError(f"two of its features are the field {quoted(field)}")
        elif len(feature) or field == _JSON:
            self.fields[field] = self._origin(name, field, feature)

    def label(self) -> int | None:
        """Return the class number, if there is one.

        Raises:
            CodecError: the bytes of the field do not spell a number.
        """
        origin = self.fields.get(LABEL_FIELD)
        if isinstance(origin, FromRange):
            return decode_cls(self._bytes(Place(origin.offset - self._record.offset, origin.size)))
        return int(origin.data) if isinstance(origin, FromMemory) else None

    def in_order(self) -> tuple[SourceField, ...]:
        """Return the fields: class number first, others by name, features without field last."""
        rest = {name: values for name, values in self._rest.items() if name != KEY}
        if rest and _JSON in self.fields:
            raise UnpackableError(
                f"its feature {quoted(next(iter(rest)))} would go into the field json, which "
                "another feature is",
                remedy=f"name its field, as {argument('features', ['FIELD=NAME'])}, or leave it "
                "out, as =NAME",
            )
        fields = sorted(self.fields.items(), key=lambda field: (field[0] != LABEL_FIELD, field[0]))
        found = [SourceField(field or None, origin) for field, origin in fields]
        if rest:
            text = json.dumps(rest, ensure_ascii=False, allow_nan=False)
            found.append(SourceField(_JSON, FromMemory(text.encode())))
        if not found:
            raise UnpackableError("it has no features that could be fields")
        return tuple(found)

    def _origin(self, name: str, field: str, feature: Feature) -> Origin:
        if field == _JSON and not (isinstance(feature, list) and len(feature) == 1):
            values = self._listed(name, feature)
            return FromMemory(json.dumps(values, ensure_ascii=False).encode())
        if not isinstance(feature, list):
            return FromMemory(_encode_numbers(name, field, feature))
        if len(feature) > 1:
            raise UnpackableError(
                f"its feature {quoted(name)} has {len(feature)} values, and the field "
                f"{field or 'of an image'} holds one"
            )
        offset, size = feature[0]
        with memoryview(self._record.data) as data:
            checksum = crc32(data[offset : offset + size])
        return FromRange(self._path, self._record.offset + offset, size, checksum)

    def _listed(self, name: str, feature: Feature) -> list[int] | list[float] | list[str]:
        """Return the values of a feature as JSON has them."""
        if not isinstance(feature, list):
            if not np.isfinite(feature).all():
                raise UnpackableError(
                    f"its feature {quoted(name)} has values that are not finite, which JSON cannot "
                    "hold",
                    remedy="pack it as an array, as " + argument("features", [f"FIELD.npy={name}"]),
                )
            values: list[int] | list[float] = feature.tolist()
            return values
        try:
            return [str(self._bytes(place), "utf-8") for place in feature]
        except UnicodeDecodeError:
            raise UnpackableError(
                f"its feature {quoted(name)} holds bytes that are not text",
                remedy=(
                    f"name its field, as {argument('features', [f'FIELD={name}'])}, or leave it "
                    f"out, as ={name}"
                ),
            ) from None

    def _bytes(self, place: Place) -> bytes:
        return self._record.data[place.offset : place.offset + place.size]


def _key_of(text: str) -> tuple[str, bool]:
    """Make a key of a text, perhaps the path of an image, and tell whether it differs from that."""
    found = FieldRule().match(text.lstrip("/"))
    if found is None or ".." in text.split("/"):
        raise UnpackableError(
            f"{quoted(text)} cannot be a key",
            remedy=f"choose another one, as {argument('features', ['__key__=NAME'])}",
        )
    return found.key, found.renamed


def _encode_numbers(name: str, field: str, numbers: Numbers) -> bytes:
    try:
        return type_of(field).encode(numbers)
    except (TypeError, ValueError, CodecError, NotImplementedError):
        raise UnpackableError(
            f"its feature {quoted(name)} has {len(numbers)} numbers of type {numbers.dtype}, and "
            f"the field {quoted(field)} cannot hold them",
            remedy="cls holds one whole number, json and npy hold any",
        ) from None


def find_files(path: str) -> tuple[Path, ...] | None:
    """Find the TFRecord files that a path names; None if it names something else.

    Args:
        path: path of a file x.tfrecord, x.tfrecords, x.tfrecord-00000-of-00010 or x-00000-of-00010,
            a pattern of such files, or a folder with some.

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
