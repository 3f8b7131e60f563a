"""Which files make up a sample: the fields that a user names, and what a file's name says.

A file belongs to the field whose name ends the file's, after a dot. What comes before is the stem;
its dots become underscores in the key, since the first dot of a member name ends the key.

From the name of a class to the number that is packed.

A text that spells an integer is that integer: 3, " 3", "+3", "003", "3.0" and "3e0" are one label,
whatever wrote them, and -1 is a label too. Numbers are never renumbered as names would be. So a
column holds either integers or names, whichever most of its rows have; a row of the other kind is a
problem of that row, which the user mends, skips, or decides with a list of classes. A number that
is not an integer, or has more than 64 bits, is neither.

What samples will take in a shard, before they are read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from shardio.errors import UsageError, quoted, shown
from shardio.fields.base import IMAGE_FIELDS, LABEL_FIELD
from shardio.naming import join_member_name, split_member_name
from shardio.packing.listing import FromFile, FromMemory, SourceField, SourceSample
from shardio.tar.header import BLOCK

_FIELD = re.compile(r"[^./;,?\s][^/;,?\s]*")


class Found(NamedTuple):
    """What a file's name says.

    Attributes:
        key: of its sample.
        field: of its data; None for a file without a known extension.
        renamed: the key is not simply the path without its extension.
    """

    key: str
    field: str | None
    renamed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One entry of a sample.

    Attributes:
        alternatives: names of fields, one of which a sample has.
        optional: it may have none.
    """

    alternatives: tuple[str, ...]
    optional: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldRule:
    """Which fields samples have.

    Attributes:
        wanted: one by one; empty for one image a sample, whatever its file's name.
    """

    wanted: tuple[Wanted, ...] = ()

    def look_at(self, path: str) -> Found | None:
        """What the path of a file says; None if it belongs to no field."""
        folder, slash, base = path.rpartition("/")
        field = self._field_of(base)
        if field is None:
            if self.wanted:
                return None
            key = folder + slash + base.replace(".", "_")
            return Found(key, None, key != path)
        stem = base[: -len(field) - 1]
        key = folder + slash + stem.replace(".", "_")
        return Found(key, field, "." in stem)

    def fault(self, fields: Container[str | None]) -> str | None:
        """Why these fields cannot make up a sample, or None."""
        for wanted in self.wanted:
            found = [field for field in wanted.alternatives if field in fields]
            if len(found) > 1:
                return f"its sample has both {' and '.join(map(shown, found))}"
            if not (found or wanted.optional):
                return f"its sample has no {' or '.join(wanted.alternatives)}"
        return None

    def _field_of(self, base: str) -> str | None:
        """The longest of the fields that ends a file's name."""
        name = base.lower()
        if not self.wanted:
            stem, dot, extension = name.rpartition(".")
            return extension if dot and stem and extension in IMAGE_FIELDS else None
        fitting = [
            field
            for wanted in self.wanted
            for field in wanted.alternatives
            if name.endswith(f".{field}") and len(name) > len(field) + 1
        ]
        return max(fitting, key=len, default=None)


def parse_fields(text: str | None) -> FieldRule:
    """The rule that a text as `jpg;png,json,txt?,mask.png` describes.

    Args:
        text: fields with commas between them, each with alternatives after semicolons and a
            question mark where samples may lack it; None for one image a sample.

    Raises:
        UsageError: it is no such text, or names a field twice.
    """
    if text is None:
        return FieldRule()
    wanted = []
    for part in text.lower().split(","):
        optional = part.endswith("?")
        alternatives = tuple(part.removesuffix("?").split(";"))
        if not all(map(is_field_name, alternatives)):
            raise UsageError(
                f"fields={text!r}: {part!r} names no field",
                remedy="write them as 'jpg;png,json,txt?'",
            )
        wanted.append(Wanted(alternatives=alternatives, optional=optional))
    names = [name for entry in wanted for name in entry.alternatives]
    if again := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"fields={text!r}: it names {again!r} twice")
    return FieldRule(wanted=tuple(wanted))


def is_field_name(name: str) -> bool:
    """Whether a field can have a name."""
    return _FIELD.fullmatch(name) is not None


def is_name(text: str) -> bool:
    """Whether a text can be a name of the file system."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def key_fault(key: str) -> str | None:
    """Why readers of shards would not find a key, or None."""
    if not is_name(key):
        return f"{quoted(key)} has characters that no name can have"
    if split_member_name(join_member_name(key, "x")) != (key, "x"):
        return f"readers of shards pass over a member with the key {quoted(key)}"
    return None


_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?\s*")  # of any script
_LIMIT = 1 << 63
_DIGITS = 19  # decimal numbers of fewer digits have less than 64 bits


@dataclass(frozen=True, slots=True)
class Labels:
    """What the names of classes stand for.

    Attributes:
        classes: names by number; None where the names are the numbers.
        example: row that shows what most labels of a column are; None for a given list.
    """

    classes: tuple[str, ...] | None
    example: str | None = None
    _numbers: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        numbers = {name: number for number, name in enumerate(self.classes or ())}
        object.__setattr__(self, "_numbers", numbers)

    def number(self, name: str) -> int | None:
        """The number of a class; None if there is no such class."""
        return integer_in(name) if self.classes is None else self._numbers.get(name)

    def fault(self, name: str) -> str:
        """Why a name has no number."""
        if self.classes is not None and self.example is None:
            return f"its class {quoted(name)} is not one of the {len(self.classes)} classes"
        kind = "whole number" if self.classes is None else "name"
        others = f", as most labels are ({self.example})" if self.example else ""
        return (
            f"its label {quoted(name)} is no {kind}{others}; --classes lists the names of all "
            "classes, --no-labels packs the column as data"
        )


def label_fields(label: int | None) -> tuple[SourceField, ...]:
    """What a label adds to a sample."""
    if label is None:
        return ()
    return (SourceField(LABEL_FIELD, FromMemory(b"%d" % label)),)


def check_classes(classes: Sequence[str] | None) -> tuple[str, ...] | None:
    """A list of classes as given.

    Raises:
        UsageError: it is empty, holds something else than names, or a name twice.
    """
    if classes is None:
        return None
    names = tuple(classes) if not isinstance(classes, str) else ()
    if not names or not all(isinstance(name, str) and name for name in names):
        raise UsageError(f"classes={classes!r}: it must be a list of names")
    if len({*names}) < len(names):
        again = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"classes: {again!r} comes twice")
    return names


def labels_of(rows: Iterable[tuple[int, str]]) -> Labels:
    """What the labels of a table mean: themselves if most are integers, else names in sorted order.

    Args:
        rows: number and label of each row.
    """
    names: set[str] = set()
    counts = {"number": 0, "name": 0}
    examples: dict[str, str] = {}
    for row, label in rows:
        if integer_in(label) is not None:
            kind = "number"
        elif _NUMBER.fullmatch(label):
            continue
        else:
            kind = "name"
            names.add(label)
        counts[kind] += 1
        examples.setdefault(kind, f"row {row}: {quoted(label)}")
    if counts["number"] >= counts["name"]:
        return Labels(None, examples.get("number"))
    return Labels(tuple(sorted(names)), examples["name"])


def integer_in(text: str) -> int | None:
    """The 64-bit integer that a text spells in whatever way; None if it spells none."""
    if text.isascii() and text.isdecimal() and len(text) < _DIGITS:
        return int(text)
    if not _NUMBER.fullmatch(text):
        return None
    number = Decimal(text.strip())
    if not -_LIMIT <= number < _LIMIT or number != number.to_integral_value():
        return None
    return int(number)


class Measure:
    """Says how many bytes samples take in a shard.

    Args:
        root: folder that relative paths start from.
    """

    def __init__(self, root: str) -> None:
        self._root = os.fsencode(root)

    def __call__(self, sample: SourceSample) -> int:
        """Headers and padding included; files that are not there count as empty."""
        total = 0
        for _, origin in sample.fields:
            if isinstance(origin, FromMemory):
                size = len(origin.data)
            elif isinstance(origin, FromFile):
                try:
                    size = os.stat(os.path.join(self._root, origin.path)).st_size  # noqa: PTH116, PTH118
                except OSError:  # packing tells it
                    size = 0
            else:
                size = origin.size
            total += BLOCK + size + -size % BLOCK
        return total
