"""Split member names into key and field.

The rule is WebDataset's: a name is split at the first dot of its basename, the folder is part of
the key, and the field is lower-cased. Two kinds of members belong to no sample: those whose
basename starts with a dot, and WebDataset's metadata, whose name or first folder is `__…__`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_METADATA = re.compile(r"__[^/]*__($|/)")
_KEY_AND_FIELD = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")


class MemberName(NamedTuple):
    """Key and field of a member name."""

    key: str
    field: str


def split_member_name(name: str) -> MemberName | None:
    """Split a member name into key and field.

    Returns:
        Key and lower-cased field, or None if the member belongs to no sample: it is
        metadata, or its basename has no dot or starts with one.
    """
    if name[name.rfind("/") + 1 :].startswith(".") or _METADATA.match(name):
        return None
    match = _KEY_AND_FIELD.match(name)
    return MemberName(match[1], match[2].lower()) if match else None


def why_no_sample(name: str) -> str:
    """Describe members with such a name that belong to no sample, to follow "3 members"."""
    if name[name.rfind("/") + 1 :].startswith("."):
        return "with names that start with a dot"
    if _METADATA.match(name):
        return "with names like __this__"
    if "." not in name[name.rfind("/") + 1 :]:
        return "without a dot in the name"
    return "with names that are not KEY.FIELD"


def join_member_name(key: str, field: str) -> str:
    """Join key and field into a member name; the inverse of split_member_name."""
    return f"{key}.{field}"
