"""From the name of a class to the number that is packed.

A text that spells an integer is that integer: 3, " 3", "+3", "003", "3.0" and "3e0" are one label,
whatever wrote them, and -1 is a label too. Numbers are never renumbered as names would be. So a
column holds either integers or names, whichever most of its rows have; a row of the other kind is a
problem of that row, which the user mends, skips, or decides with a list of classes. A number that
is not an integer, or has more than 64 bits, is neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from shardio.codecs.registry import LABEL_FIELD
from shardio.errors import UsageError, quoted
from shardio.packing.samples import FromMemory, SourceField

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
