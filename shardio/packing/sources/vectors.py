"""Columns of a table that become arrays: numbers to predict, and sets of classes.

Numbers become float32 or float64, a scalar or a vector. Rounding a fraction is what floats do; a
whole number of 64 bits that would change, or a number that would become infinite or zero, is
refused. A set of classes becomes uint8, one where a class is present: of columns that hold 0 and 1,
or of a column that lists classes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from shardio.errors import SituationError, UsageError, argument, quoted
from shardio.fields.arrays import Array
from shardio.fields.defaults import type_of
from shardio.fields.text import integer_in, number_in
from shardio.packing.sources.base import FromMemory, SourceField, UnpackableError
from shardio.packing.sources.rules import is_field_name

TargetType = Literal["float32", "float64"]
Number: TypeAlias = int | float | Decimal

_ARRAY = Array()
_FLAGS = {"true": 1, "false": 0}
_MOST_CLASSES = 1 << 20
_WHOLE = 1 << 64  # greater numbers are floats, even if they are spelled without a fraction


class VectorColumns(NamedTuple):
    """A field and the columns that become it.

    Attributes:
        field: name of the field, which ends with npy.
        columns: names of the columns.
    """

    field: str
    columns: tuple[str, ...]


def choose_vectors(
    option: str, texts: Sequence[str], present: Sequence[str]
) -> tuple[VectorColumns, ...]:
    """Choose fields and columns, each pair as "[FIELD=]COLUMN[,COLUMN...]".

    Args:
        option: name of the option, for errors.
        texts: the pairs.
        present: names of the columns of the table.

    Raises:
        UsageError: a text is not of that form, or there is no such column.
    """
    return tuple(_choose(option, text, present) for text in texts)


def _choose(option: str, text: str, present: Sequence[str]) -> VectorColumns:
    name, equals, rest = text.partition("=")
    if text in present or not equals:
        name, rest = "", text
    columns = (rest,) if rest in present else tuple(rest.split(","))
    if missing := [column for column in columns if column not in present]:
        raise SituationError(
            f"{option}: there is no column {missing[0]!r}",
            remedy=f"the columns are {', '.join(present)}",
        )
    if len({*columns}) < len(columns):
        raise UsageError(f"{option}: {text!r} names a column twice")
    if not name and len(columns) > 1:
        raise UsageError(
            f"{option}: {text!r} does not say what field the columns become",
            remedy=f"write it as target={rest}",
        )
    made = (name or columns[0]).lower()
    if made.rpartition(".")[2] != "npy":
        made += ".npy"
    if not is_field_name(made) or type_of(made) != _ARRAY:
        raise UsageError(
            f"{option}: {made!r} cannot be the name of a field of arrays",
            remedy=f"write it as target={rest}",
        )
    return VectorColumns(made, columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Makes an array of numbers.

    Attributes:
        field: name of the field.
        columns: columns of the numbers; a single one may hold lists.
        dtype: dtype of the array.
    """

    field: str
    columns: tuple[str, ...]
    dtype: TargetType

    def encode(self, row: Mapping[str, Any]) -> SourceField:
        """Make the field of a row: a scalar of one column, otherwise a vector.

        Raises:
            UnpackableError: a cell holds something else than numbers that the dtype holds.
        """
        values = [self._floats(column, _parse_list(row.get(column))) for column in self.columns]
        shapes = {np.shape(value) for value in values}
        if len(self.columns) > 1 and shapes != {()}:
            raise UnpackableError(
                f"its columns {', '.join(map(quoted, self.columns))} do not hold one number each",
                remedy="columns of lists are a field each",
            )
        array = np.array(values if len(self.columns) > 1 else values[0], np.float64)
        with np.errstate(over="ignore", under="ignore"):
            return _field(self.field, array.astype(self.dtype))

    def _floats(self, column: str, value: Any) -> Any:
        """Return a number or nested lists of numbers as floats."""
        if isinstance(value, list):
            floats = [self._floats(column, each) for each in value]
            if len({np.shape(each) for each in floats}) > 1:
                raise UnpackableError(f"its column {quoted(column)} holds lists of several lengths")
            return floats
        number: Number | None = value if _is_number(value) else None
        if isinstance(value, str):
            number = _spelled(value)
        if number is None:
            raise UnpackableError(
                f"its column {quoted(column)} holds {quoted(value)}, not a number",
                remedy=f"fix the row; names of classes are for {argument('label_column')}",
            )
        if self._changes(number):
            raise UnpackableError(
                f"its column {quoted(column)} holds {value}, which {self.dtype} cannot hold",
                remedy=f"pass {argument('target_dtype', 'float64')}"
                if self.dtype == "float32"
                else "choose another column",
            )
        return float(number)

    def _changes(self, number: Number) -> bool:
        """Tell whether a whole number of 64 bits would change, or one become infinite or zero."""
        try:
            with np.errstate(over="ignore", under="ignore"):
                made = float(np.dtype(self.dtype).type(float(number)))
        except OverflowError:
            return True
        if math.isnan(number):
            return False
        if not math.isfinite(made) or (made == 0) != (number == 0):
            return True
        return number == int(number) and -_WHOLE < number < _WHOLE and made != number


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """Makes a set of classes of columns that say whether each is present.

    Attributes:
        field: name of the field.
        columns: columns that hold 0 or 1.
    """

    field: str
    columns: tuple[str, ...]

    def encode(self, row: Mapping[str, Any]) -> SourceField:
        """Make the field of a row, uint8 with an element a column.

        Raises:
            UnpackableError: a cell holds something else than 0, 1, true or false.
        """
        flags = [_flag(column, row.get(column)) for column in self.columns]
        return _field(self.field, np.array(flags, np.uint8))


def _flag(column: str, value: Any) -> int:
    flag = value
    if isinstance(value, str):
        flag = _FLAGS.get(value.strip().lower(), integer_in(value))
    if not (_is_number(flag) and flag in (0, 1)):
        raise UnpackableError(
            f"its column {quoted(column)} holds {quoted(value)}, not 0 or 1",
            remedy="fix the row; a column that lists classes is a field of its own",
        )
    return int(flag)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSets:
    """Makes a set of classes of a column that lists those which are present.

    Attributes:
        field: name of the field.
        column: column of lists, in CSV as `[0, 3]` or `0 3`.
        classes: names of the classes by number; None where they have none.
        size: number of classes.
    """

    field: str
    column: str
    classes: tuple[str, ...] | None
    size: int
    _numbers: dict[str, int] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        numbers = {name: number for number, name in enumerate(self.classes or ())}
        object.__setattr__(self, "_numbers", numbers)

    @classmethod
    def of(
        cls,
        columns: VectorColumns,
        classes: tuple[str, ...] | None,
        rows: Iterable[Mapping[str, Any]],
    ) -> ClassSets:
        """Make it with as many classes as have names, or else as the rows have numbers.

        Args:
            columns: the field and its column.
            classes: names of the classes by number.
            rows: rows of the table, which are read if there are no names.
        """
        (column,) = columns.columns
        if classes is not None:
            return cls(field=columns.field, column=column, classes=classes, size=len(classes))
        most = 0
        for row in rows:
            numbers = (integer_in(str(each)) for each in _listed(row.get(column)) or ())
            most = max(most, *(n + 1 for n in numbers if n is not None and n < _MOST_CLASSES), 0)
        return cls(field=columns.field, column=column, classes=None, size=most)

    def encode(self, row: Mapping[str, Any]) -> SourceField:
        """Make the field of a row, uint8 with an element a class.

        Raises:
            UnpackableError: the cell lists something else than classes, or one twice.
        """
        value = row.get(self.column)
        listed = _listed(value)
        if listed is None:
            raise UnpackableError(
                f"its column {quoted(self.column)} holds {quoted(value)}, not a list of classes",
                remedy="write it as [0, 3], and none as []",
            )
        flags = np.zeros(self.size, np.uint8)
        for each in listed:
            number = self._number(each)
            if number is None:
                whose = f"the {self.size} classes" if self.classes else "the class numbers"
                raise UnpackableError(
                    f"its column {quoted(self.column)} lists {quoted(each)}, which is not one of "
                    f"{whose}",
                    remedy=f"{argument('classes')} lists the names of all classes",
                )
            if flags[number]:
                raise UnpackableError(
                    f"its column {quoted(self.column)} lists {quoted(each)} twice"
                )
            flags[number] = 1
        return _field(self.field, flags)

    def _number(self, value: Any) -> int | None:
        if isinstance(value, str) and value in self._numbers:
            return self._numbers[value]
        if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
            return None
        number = integer_in(str(value))
        return number if number is not None and 0 <= number < self.size else None


Vector: TypeAlias = Targets | Flags | ClassSets


def _field(name: str, array: np.ndarray[Any, Any]) -> SourceField:
    return SourceField(name, FromMemory(_ARRAY.encode(array)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | Decimal)


def _spelled(text: str) -> Number | None:
    """Parse a number; one with an exponent is the nearest float, as programs write floats."""
    number = number_in(text)
    if number is None or "e" not in text.lower():
        return number
    nearest = float(number)
    if not math.isfinite(nearest) or (nearest == 0) != (number == 0):
        return number
    return nearest


def _parse_list(value: Any) -> Any:
    """Return the list that a cell of text spells in JSON; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _listed(value: Any) -> list[Any] | None:
    """Return what a cell lists: a list, or numbers with white space between them."""
    value = _parse_list(value)
    if isinstance(value, str):
        parts = value.split()
        return parts if parts and all(integer_in(part) is not None for part in parts) else None
    return value if isinstance(value, list) else None
