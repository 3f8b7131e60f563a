"""The rules that sources share: which files are which fields, and which labels classes have.

A file belongs to the field whose name ends the file's, after a dot. What comes before is the stem;
its dots become underscores in the key, since the first dot of a member name ends the key.

A text that spells an integer is that integer: 3, " 3", "+3", "003", "3.0" and "3e0" are one label,
whatever wrote them, and -1 is a label too. Numbers are never renumbered as names would be. So a
column holds either integers or names, whichever most of its rows have. A row of the other kind is a
problem of that row, which the user fixes, skips, or decides with a list of classes. A number that
is not an integer, or has more than 64 bits, is neither.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from shardio.errors import SituationError, UsageError, argument, quoted, shown
from shardio.fields.base import LABEL_FIELD
from shardio.fields.formats import IMAGE_FIELDS
from shardio.fields.text import integer_in, number_in
from shardio.indexing.manifest import INDEX_FOLDER
from shardio.packing.sources.base import (
    FromMemory,
    SourceField,
    UnpackableError,
    junk_in,
    key_fault,
)

KEY = "__key__"
"""Stands for the key of a sample where else a field is named."""

_FIELD = re.compile(r"[^./;,?\s][^/;,?\s]*")


class PathMatch(NamedTuple):
    """What the path of a file says.

    Attributes:
        key: key of its sample.
        field: field of its data; None for a file without a known extension.
        renamed: whether the key is another than the path without its extension.
    """

    key: str
    field: str | None
    renamed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSpec:
    """A field that samples have, under one of several names.

    Attributes:
        names: names of the field, of which a sample has one.
        optional: whether samples may lack it.
    """

    names: tuple[str, ...]
    optional: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldRule:
    """Which files make up a sample.

    Attributes:
        specs: fields of a sample; empty for one image a sample, whatever its file's name.
    """

    specs: tuple[FieldSpec, ...] = ()

    def match(self, path: str) -> PathMatch | None:
        """Tell key and field from the path of a file; None if it belongs to no field."""
        folder, slash, base = path.rpartition("/")
        field = self._field_of(base)
        if field is None:
            if self.specs:
                return None
            key = folder + slash + base.replace(".", "_")
            return PathMatch(key, None, key != path)
        stem = base[: -len(field) - 1]
        key = folder + slash + stem.replace(".", "_")
        return PathMatch(key, field, "." in stem)

    def name(self, path: str) -> PathMatch:
        """Tell key and field from the path of a file that must make a sample.

        Raises:
            UnpackableError: it belongs to no field, or readers would not find its key.
        """
        match = self.match(path)
        if match is None:
            raise UnpackableError("its name ends in none of the fields that were asked for")
        if fault := key_fault(match.key):
            raise UnpackableError(fault)
        return match

    def fault(self, fields: Container[str | None]) -> str | None:
        """Explain why these fields cannot make up a sample; None if they can."""
        for spec in self.specs:
            found = [name for name in spec.names if name in fields]
            if len(found) > 1:
                return f"its sample has both {' and '.join(map(shown, found))}"
            if not (found or spec.optional):
                return f"its sample has no {' or '.join(spec.names)}"
        return None

    def _field_of(self, base: str) -> str | None:
        """Find the longest field that ends a file's name."""
        name = base.lower()
        if not self.specs:
            stem, dot, extension = name.rpartition(".")
            return extension if dot and stem and extension in IMAGE_FIELDS else None
        fitting = [
            field
            for spec in self.specs
            for field in spec.names
            if name.endswith(f".{field}") and len(name) > len(field) + 1
        ]
        return max(fitting, key=len, default=None)


def parse_fields(text: str | None) -> FieldRule:
    """Parse the names of fields, such as `jpg;png,json,txt?,mask.png`.

    Args:
        text: fields with commas between them, each with alternatives after semicolons and a
            question mark where samples may lack it; None for one image a sample.

    Raises:
        UsageError: the text is not of that form, or names a field twice.
    """
    if text is None:
        return FieldRule()
    specs = []
    for part in text.lower().split(","):
        optional = part.endswith("?")
        names = tuple(part.removesuffix("?").split(";"))
        if not all(map(is_field_name, names)):
            raise UsageError(
                f"{part!r} names no field",
                where=argument("fields", text),
                remedy="write them as 'jpg;png,json,txt?'",
            )
        specs.append(FieldSpec(names=names, optional=optional))
    every = [name for spec in specs for name in spec.names]
    if again := next((name for name in every if every.count(name) > 1), None):
        raise UsageError(f"it names {again!r} twice", where=argument("fields", text))
    return FieldRule(specs=tuple(specs))


def is_field_name(name: str) -> bool:
    """Tell whether a field can have a name."""
    return _FIELD.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class LabelEncoder:
    """Turns the names of classes into numbers.

    Attributes:
        classes: names of the classes by number; None where the names are the numbers.
        example: row that shows what most labels of a column are; None for a given list.
        named: names of the numbers, where names are the numbers and a table names these; -1 stands
            for no class.
    """

    classes: tuple[str, ...] | None
    example: str | None = None
    named: tuple[str, ...] | None = None
    _numbers: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        numbers = {name: number for number, name in enumerate(self.classes or ())}
        object.__setattr__(self, "_numbers", numbers)

    def encode(self, name: str) -> int | None:
        """Return the number of a class; None if there is no such class."""
        if self.classes is not None:
            return self._numbers.get(name)
        number = integer_in(name)
        is_known = number is None or self.named is None or -1 <= number < len(self.named)
        return number if is_known else None

    def fault(self, name: str) -> str:
        """Explain why a name has no number."""
        if self.named is not None and integer_in(name) is not None:
            return f"its label {quoted(name)} is not one of the {len(self.named)} classes, from 0"
        if self.classes is not None and self.example is None:
            return f"its class {quoted(name)} is not one of the {len(self.classes)} classes"
        kind = "whole number" if self.classes is None else "name"
        others = f", as most labels are ({self.example})" if self.example else ""
        return (
            f"its label {quoted(name)} is not a {kind}{others}; {argument('classes')} lists the "
            f"names of all classes, {argument('labels', False)} packs the column as data, "
            f"{argument('target_columns')} as numbers to predict"
        )


def label_fields(label: int | None) -> tuple[SourceField, ...]:
    """Make the field of a label; none without one."""
    if label is None:
        return ()
    return (SourceField(LABEL_FIELD, FromMemory(b"%d" % label)),)


def check_classes(classes: Sequence[str] | None) -> tuple[str, ...] | None:
    """Check a list of classes.

    Raises:
        UsageError: it is empty, holds something other than names, or a name twice.
    """
    if classes is None:
        return None
    ordered = isinstance(classes, Iterable) and not isinstance(classes, str | set | frozenset)
    names = tuple(classes) if ordered else ()
    if not names or not all(isinstance(name, str) and name for name in names):
        raise UsageError("it must be a list of names", where=argument("classes", classes))
    if len({*names}) < len(names):
        again = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"{again!r} comes twice", where=argument("classes"))
    return names


def infer_labels(rows: Iterable[tuple[int, str]]) -> LabelEncoder:
    """Tell what the labels of a table mean: integers if most are, else names in sorted order.

    Args:
        rows: number and label of each row.
    """
    names: set[str] = set()
    counts = {"number": 0, "name": 0}
    examples: dict[str, str] = {}
    for row, label in rows:
        if integer_in(label) is not None:
            kind = "number"
        elif number_in(label) is not None:
            continue
        else:
            kind = "name"
            names.add(label)
        counts[kind] += 1
        examples.setdefault(kind, f"row {row}: {quoted(label)}")
    if counts["number"] >= counts["name"]:
        return LabelEncoder(None, examples.get("number"))
    return LabelEncoder(tuple(sorted(names)), examples["name"])


class FeaturePair(NamedTuple):
    """A field of samples and the feature of tf.train.Example messages that it is.

    Attributes:
        field: name of the field, or KEY; empty to leave the feature out.
        feature: name of the feature; empty to leave the field out.
    """

    field: str
    feature: str


def parse_features(texts: Sequence[str]) -> tuple[FeaturePair, ...]:
    """Parse pairs of fields and features, each as "FIELD=NAME".

    Raises:
        UsageError: a text is not of that form, or two have the same field or feature.
    """
    if isinstance(texts, str):
        raise UsageError(f"features={texts!r}: it must be a list, as ['jpg=image/encoded']")
    pairs = []
    for text in texts:
        field, equals, name = text.partition("=")
        pair = FeaturePair(field.lower(), name)
        if not equals or not (field or name) or not (field in ("", KEY) or is_field_name(field)):
            raise UsageError(
                f"{text!r} is not a pair of a field and a feature",
                remedy="write it as jpg=image/encoded",
            )
        pairs.append(pair)
    for side in zip(*pairs, strict=True):
        named = [*filter(None, side)]
        if again := next((each for each in named if named.count(each) > 1), None):
            raise UsageError(f"features: {again!r} comes twice")
    return tuple(pairs)


def refuse_mixed_folder(path: str) -> None:
    """Raise UsageError if a folder of tars or TFRecord files has other things that could be meant.

    Args:
        path: path of the folder, or of something else, which is not looked at.
    """
    if not os.path.isdir(path):  # noqa: PTH112  bytes that are not UTF-8
        return
    with os.scandir(path) as entries:
        others = [
            each.name
            for each in entries
            if not each.name.startswith(".")
            and not junk_in(each.name)
            and (
                (each.is_dir() and each.name != INDEX_FOLDER)
                or each.name.lower().rpartition(".")[2] in IMAGE_FIELDS
            )
        ]
    if others:
        raise SituationError(
            f"it has shards or records, and {min(others)} beside them",
            where=path,
            remedy=f"name what is meant, as '{path}/*.tar', or move the others away",
        )
