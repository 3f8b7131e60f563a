"""From the name of a class to the number that is packed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from shardio.codecs.registry import LABEL_FIELD
from shardio.errors import UsageError, quoted
from shardio.packing.samples import FromMemory, SourceField

_MOST = 1 << 63


@dataclass(frozen=True, slots=True)
class Labels:
    """What the names of classes stand for.

    Attributes:
        classes: names by number; None where the names are the numbers.
    """

    classes: tuple[str, ...] | None
    _numbers: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        numbers = {name: number for number, name in enumerate(self.classes or ())}
        object.__setattr__(self, "_numbers", numbers)

    def number(self, name: str) -> int | None:
        """The number of a class; None if there is no such class."""
        if self.classes is None:
            return int(name) if _is_number(name) else None
        return self._numbers.get(name)

    def fault(self, name: str) -> str:
        """Why a name has no number."""
        if self.classes is None:
            return f"its label {quoted(name)} is no whole number"
        return f"its class {quoted(name)} is not one of the {len(self.classes)} classes"


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


def labels_of(names: Iterable[str]) -> Labels:
    """What labels in a table mean: numbers if all are, else classes in sorted order."""
    distinct = {*names}
    if all(map(_is_number, distinct)):
        return Labels(None)
    return Labels(tuple(sorted(distinct)))


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and int(name) < _MOST and str(int(name)) == name
