"""Which files make up a sample: the fields that a user names, and what a file's name says.

A file belongs to the field whose name ends the file's, after a dot. What comes before is the stem;
its dots become underscores in the key, since the first dot of a member name ends the key.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from typing import NamedTuple

from shardio.codecs.registry import IMAGE_FIELDS
from shardio.errors import UsageError, quoted, shown
from shardio.naming import join_member_name, split_member_name

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
                f"fields={text!r}: {part!r} names no field; write them as 'jpg;png,json,txt?'"
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
