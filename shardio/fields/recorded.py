"""Field types as JSON, which the manifest of a packed folder records.

A type of shardio is recorded by the name of its class and by its parameters, so that readers make
it anew. Which names of fields it is for, and how large data may be, is a matter of whoever reads. A
type of a user is recorded by name alone: data from elsewhere never say which code
runs.

Version 1 of the manifest has no types. It stands for those that follow from the names of fields, in
shardio today and in versions of it that had no masks and no depth.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from shardio.errors import CodecError, IndexFileError, SituationError, UsageError, quoted, shown
from shardio.fields.annotations import Boxes, MultiLabel, Points
from shardio.fields.audio import Audio
from shardio.fields.base import BYTES, Bytes, FieldType
from shardio.fields.defaults import DEFAULTS, type_of
from shardio.fields.pictures import Depth, Mask, PixelMask, Pixels

if TYPE_CHECKING:
    from shardio.fields.probe import Buffer

TypeRecord = dict[str, Any]

_CLASSES: dict[str, type[FieldType]] = {
    each.__name__: each
    for each in (*map(type, DEFAULTS), type(BYTES), Boxes, Points, MultiLabel, Audio)
}
_SPELLED = {name: each for name, each in _CLASSES.items() if each not in (Pixels, PixelMask)}
"""Types by their public names; the others follow from the names of fields alone."""

_OF_READERS = {"fields", "max_pixels", "max_seconds", "fill"}
_YOUNGER = (Mask, Depth)
"""Types by name that readers of version 1 alone do not know: to them these fields are images."""


@dataclass(frozen=True)
class Unavailable(Bytes):
    """A type that is not known here: bytes to whoever only copies or counts them."""

    def reason(self, field: str) -> UsageError:
        """Make the error for a reader that needs the type.

        Args:
            field: name of the field.
        """
        raise NotImplementedError

    def record(self, field: str) -> TypeRecord:
        """Return what a manifest records of it.

        Raises:
            UsageError: nothing can be recorded.
        """
        raise self.reason(field)

    def decode(self, data: Buffer) -> bytes:
        """Refuse to decode."""
        del data
        error = self.reason(self.fields)
        raise CodecError(error.what, remedy=error.remedy)


@dataclass(frozen=True)
class OwnType(Unavailable):
    """The type of a user, of which a manifest has the name.

    Attributes:
        own: name of its class.
    """

    own: str = ""

    @property
    def name(self) -> str:  # type: ignore[override]  # it depends on the value
        """Name of the type."""
        return f"{shown(self.own)} (not given)"

    def reason(self, field: str) -> UsageError:
        """Say that the type must be given."""
        own = shown(self.own)
        return SituationError(
            f"the field {quoted(field)} was packed with the type {own}, which is not one of "
            "shardio's",
            remedy=f"pass it with fields={{…: {own}({field!r})}}, or shardio.Bytes({field!r}) for "
            "its bytes",
        )

    def record(self, field: str) -> TypeRecord:
        """Record the name again."""
        del field
        return {"own": self.own}


@dataclass(frozen=True)
class DisputedType(Unavailable):
    """The type of a field for which parts of a dataset have different ones.

    Attributes:
        types: part and description of its type, for two of them.
    """

    types: tuple[tuple[str, str], ...] = ()

    name = "disputed"

    def reason(self, field: str) -> UsageError:
        """Name two parts and their types."""
        (one, first), (other, second) = self.types
        return SituationError(
            f"the field {quoted(field)} is {first} in {shown(one)} and {second} in {shown(other)}",
            remedy="take the parts one by one, or say with fields= what the field is",
        )


def require_available(field: str, type_: FieldType) -> None:
    """Raise UsageError if a field has a type that is not known here."""
    if isinstance(type_, Unavailable):
        raise type_.reason(field)


def record_type(field: str, type_: FieldType) -> TypeRecord:
    """Return what a manifest records of a type, as JSON values.

    Args:
        field: name of the field.
        type_: type of the field.

    Raises:
        UsageError: parts of a dataset differ in the type.
    """
    if isinstance(type_, Unavailable):
        return type_.record(field)
    name = type(type_).__name__
    if _CLASSES.get(name) is not type(type_):
        return {"own": name}
    return {"type": name, **_parameters(type_)}


def restore_type(field: str, record: object) -> FieldType:
    """Make the type that a manifest records.

    Args:
        field: name of the field, for errors.
        record: result of record_type.

    Raises:
        IndexFileError: it is of a newer version of shardio.
        TypeError, KeyError: it is no record of a type.
    """
    if not isinstance(record, dict):
        raise TypeError(f"{record!r} is not the record of a type")
    if record.keys() == {"own"} and isinstance(record["own"], str):
        return OwnType(field, own=record["own"])
    parameters = dict(record)
    name = parameters.pop("type")
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is not the name of a type")
    place = f"the field {quoted(field)} has the type {shown(name)}"
    if name not in _CLASSES:
        raise IndexFileError(
            f"{place}, which this version of shardio does not have", remedy="install a newer one"
        )
    if unknown := sorted(parameters.keys() - _parameter_names(_CLASSES[name])):
        raise IndexFileError(
            f"{place} with {', '.join(map(quoted, unknown))}, which this version of shardio does "
            "not have",
            remedy="install a newer one",
        )
    try:
        return _CLASSES[name](**parameters)
    except (UsageError, TypeError, ValueError, OverflowError) as error:
        raise IndexFileError(
            f"{place} with a value that this version of shardio does not have ({error})",
            remedy="install a newer one",
        ) from error


def parse_type(text: str) -> FieldType:
    """Parse a type of shardio as Python spells it, such as `Depth(scale=1/256)` or `Mask`.

    Args:
        text: name of a type, with parameters that a manifest records, each by name: literals, or a
            quotient of two numbers. No code runs.

    Raises:
        UsageError: the text is something else.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise _no_type(text) from None
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name) or call.args:
        raise _no_type(text)
    name = call.func.id
    if name not in _SPELLED:
        raise UsageError(
            f"{quoted(name)} is not a type of shardio ({', '.join(sorted(_SPELLED))})",
            remedy="pass a type of your own in Python, with types=",
        )
    parameters: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in parameters:
            raise _no_type(text)
        if keyword.arg not in (known := _parameter_names(_SPELLED[name])):
            raise UsageError(
                f"{name} has no parameter {quoted(keyword.arg)} that a manifest records"
                + (f" ({', '.join(sorted(known))})" if known else "")
            )
        parameters[keyword.arg] = _literal(keyword.value, text)
    try:
        return _SPELLED[name](**parameters)
    except UsageError:
        raise
    except TypeError as error:  # compared with a number, say; its words are those of Python
        raise UsageError(f"{quoted(text)}: a parameter has a value of the wrong type") from error
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{quoted(text)}: {error}") from error


def _literal(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        above, below = _literal(node.left, text), _literal(node.right, text)
        if all(type(each) in (int, float) for each in (above, below)) and below:
            try:
                return above / below
            except OverflowError:
                raise _no_type(text) from None
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise _no_type(text) from None


def _no_type(text: str) -> UsageError:
    return UsageError(
        f"{quoted(text)} is not a type with parameters by name",
        remedy="write it as Mask, Audio(rate=16000) or Depth(scale=1/256)",
    )


def types_to_record(
    names: Iterable[str], given: Mapping[str, FieldType] | None
) -> dict[str, FieldType] | None:
    """Return the types of fields that a manifest has to record.

    Args:
        names: names of all fields.
        given: types by field name; other fields have their default types.

    Returns:
        Types of all fields, or None if they are those that version 1 stands for.
    """
    found = {name: type_of(name, given=given) for name in names}
    if all(_is_of_version_1(name, each) for name, each in found.items()):
        return None
    return found


def merge_types(
    parts: Iterable[tuple[str, Collection[str], Mapping[str, FieldType] | None]],
) -> dict[str, FieldType]:
    """Return the types of the fields of a dataset of several parts.

    Args:
        parts: name, names of the fields, and recorded types of each part; fields without have
            their default types.

    Returns:
        Types of all fields; DisputedType for those in which parts differ.
    """
    merged: dict[str, tuple[str, FieldType]] = {}
    for part, names, recorded in parts:
        for field in names:
            type_ = type_of(field, given=recorded)
            first, known = merged.setdefault(field, (part, type_))
            if isinstance(type_, DisputedType):
                merged[field] = part, type_
            elif not isinstance(known, DisputedType) and not _are_equal(field, known, type_):
                said = (first, describe_type(known)), (part, describe_type(type_))
                merged[field] = first, DisputedType(field, types=said)
    return {field: type_ for field, (_, type_) in merged.items()}


def describe_type(type_: FieldType) -> str:
    """Describe a type in a few words: its name, and parameters that are not the default."""
    if _CLASSES.get(type(type_).__name__) is not type(type_):
        return type_.name
    parameters = ", ".join(f"{name}={value!r}" for name, value in _parameters(type_).items())
    return f"{type_.name} ({parameters})" if parameters else type_.name


def _parameter_names(kind: type[FieldType]) -> set[str]:
    """Return the names of the parameters of a type that a manifest records."""
    return {each.name for each in fields(kind)} - _OF_READERS


def _parameters(type_: FieldType) -> dict[str, Any]:
    """Return the parameters of a type of shardio that are not the default, as JSON values."""
    values = {
        each.name: _plain(getattr(type_, each.name))
        for each in fields(type_)
        if each.name not in _OF_READERS and getattr(type_, each.name) != each.default
    }
    return dict(sorted(values.items()))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value.item() if hasattr(value, "item") else value


def _are_equal(field: str, one: FieldType, other: FieldType) -> bool:
    return record_type(field, one) == record_type(field, other)


def _is_of_version_1(field: str, type_: FieldType) -> bool:
    default = type_of(field)
    return _are_equal(field, type_, default) and not isinstance(default, _YOUNGER)
