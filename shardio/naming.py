"""Key and field of a member name: the one rule.

The rule is WebDataset's: the first dot of the basename splits, the folder stays in the key,
the field is lower-cased. Basenames that start with a dot, and members whose name or first folder
is `__…__` (WebDataset's metadata), belong to no sample.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_METADATA = re.compile(r"__[^/]*__($|/)")
_KEY_AND_FIELD = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")


class MemberName(NamedTuple):
    """A member name, taken apart."""

    key: str
    field: str


def split_member_name(name: str) -> MemberName | None:
    """Take a member name apart into key and field.

    Returns:
        Key and lower-cased field, or None when the member belongs to no sample: it is
        metadata, or its basename has no dot or starts with one.
    """
    if name[name.rfind("/") + 1 :].startswith(".") or _METADATA.match(name):
        return None
    match = _KEY_AND_FIELD.match(name)
    return MemberName(match[1], match[2].lower()) if match else None


def why_no_sample(name: str) -> str:
    """Say which members belong to no sample because of such a name, as in "3 members …"."""
    if name[name.rfind("/") + 1 :].startswith("."):
        return "with names that start with a dot"
    if _METADATA.match(name):
        return "with names like __this__"
    if "." not in name[name.rfind("/") + 1 :]:
        return "without a dot in the name"
    return "with names that are not KEY.FIELD"


def join_member_name(key: str, field: str) -> str:
    """Name the member that holds a field of a sample: the inverse of split_member_name."""
    return f"{key}.{field}"
