"""The types that fields have by default, by the end of their names, as WebDataset decides.

Types that no name announces, such as Boxes and Audio, are not in the table; `fields=` takes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from shardio.errors import CodecError, UsageError, quoted
from shardio.fields.arrays import Array, Label
from shardio.fields.base import BYTES, FieldType
from shardio.fields.limits import MAX_PIXELS, NO_LIMIT
from shardio.fields.pictures import Depth, Image, Mask, PixelMask, Pixels
from shardio.fields.text import Json, Text

if TYPE_CHECKING:
    from shardio.fields.probe import Buffer, ImageInfo, PictureSize

IMAGE = Image()
DEFAULTS: tuple[FieldType, ...] = (
    IMAGE,
    Mask(),
    Depth(),
    Pixels(),
    PixelMask(),
    Label(),
    Text(),
    Json(),
    Array(),
)

_BY_NAME = {name: each for each in DEFAULTS for name in each.names}
_MOST_RECORDED = (1 << 32) - 1  # rows or columns, which are uint32 in an index
_MOST_PARTS = 1 + max(name.count(".") for name in _BY_NAME)


def type_of(
    field: str, max_pixels: int = MAX_PIXELS, given: Mapping[str, FieldType] | None = None
) -> FieldType:
    """Return the type of a field: of the longest end of its name that the table has.

    Args:
        field: name of the field, in lower case.
        max_pixels: greatest number of pixels of an image.
        given: types of a user by field name, which take precedence.
    """
    if given and field in given:
        return given[field].limited(max_pixels)
    return _default_type(field, max_pixels)


@lru_cache(maxsize=1024)
def _default_type(field: str, max_pixels: int) -> FieldType:
    parts = field.rsplit(".", _MOST_PARTS)
    ends = (".".join(parts[start:]) for start in range(len(parts)))
    return next((_BY_NAME[end] for end in ends if end in _BY_NAME), BYTES).limited(max_pixels)


def is_sized(field: str, given: Mapping[str, FieldType] | None = None) -> bool:
    """Tell whether an index records the sizes of the pictures of a field; see type_of."""
    return type_of(field, given=given).sized


def size_of(
    field: str, data: Buffer, given: Mapping[str, FieldType] | None = None
) -> PictureSize | None:
    """Return what an index records of a picture, whatever its number of pixels.

    Args:
        field: name of the field, in lower case.
        data: data of the field.
        given: see type_of.

    Returns:
        The size, or None for what is not a picture or has a header that is not sound.
    """
    found = type_of(field, NO_LIMIT, given)
    if not found.sized:
        return None
    try:
        info = found.probe(data)
    except CodecError:
        return None
    return None if info is None else recorded_size(info)


def recorded_size(info: ImageInfo) -> PictureSize | None:
    """Return what an index records of a picture with a sound header; None if it is too large."""
    return None if max(info.size) > _MOST_RECORDED else info.size


def decode_field(
    field: str, data: Buffer, *, max_pixels: int = MAX_PIXELS, verified: bool = False
) -> object:
    """Decode one field of one sample by the default type of its name.

    Args:
        field: name of the field.
        data: data of the field.
        max_pixels: greatest number of pixels of an image, see shardio.fields.limits.
        verified: whether the data have the checksum that an index recorded.

    Raises:
        CodecError: the bytes do not decode as what the name of the field announces.
    """
    found = type_of(field, max_pixels)
    return found.decode_verified(data) if verified else found.decode(data)


def combined_types(
    recorded: Mapping[str, FieldType] | None, given: Mapping[str, FieldType]
) -> dict[str, FieldType]:
    """Return the types that a manifest records, with those of a user in place of some.

    Raises:
        UsageError: a given type would read the data as something else than they are.
    """
    for field, each in given.items():
        known = (recorded or {}).get(field)
        reason = None if known is None else each.contradiction(known)
        if reason is not None:
            raise UsageError(f"the field {quoted(field)}: {reason}")
    return {**(recorded or {}), **given}


def given_types(fields: Mapping[str, str | FieldType] | None) -> dict[str, FieldType]:
    """Return the types of a user by the names of the fields that have them.

    Args:
        fields: a mapping as ShardDataset takes it; text stands for default types.

    Raises:
        UsageError: it is no such mapping, or two types have one field.
    """
    if fields is None:
        return {}
    if not isinstance(fields, Mapping):
        raise UsageError(
            f"fields={quoted(fields)}: it must be a mapping such as {{'audio': Pcm('wav')}}"
        )
    found: dict[str, FieldType] = {}
    for entry, each in fields.items():
        if isinstance(each, str):
            continue
        for name in check_type(entry, each).alternatives:
            if found.setdefault(name, each) != each:
                raise UsageError(f"fields: {quoted(name)} has two types, {found[name]} and {each}")
    return found


def named_types(types: Mapping[str, FieldType] | None) -> dict[str, FieldType]:
    """Return the types of a user by the names of their fields.

    Args:
        types: types by field name; a type may leave out the names of its fields.

    Raises:
        UsageError: it is no such mapping, or a type is for other fields.
    """
    if types is None:
        return {}
    if not isinstance(types, Mapping):
        raise UsageError(
            f"types={quoted(types)}: it must be a mapping such as {{'wav': Audio(rate=16000)}}"
        )
    found: dict[str, FieldType] = {}
    for given, each in types.items():
        if not isinstance(each, FieldType):
            raise UsageError(
                f"types: {quoted(each)} for {quoted(given)} is not a field type",
                remedy="pass one as shardio.Audio(rate=16000)",
            )
        if not isinstance(given, str):
            raise UsageError(f"types: {quoted(given)} is not the name of a field")
        name = given.lower()
        if each.fields and name not in each.alternatives:
            raise UsageError(f"types: the type for {quoted(given)} names {quoted(each.fields)}")
        if found.setdefault(name, each) != each:
            raise UsageError(f"types: {quoted(name)} has two types, {found[name]} and {each}")
    return found


def check_type(entry: str, given: object) -> FieldType:
    """Return a value of a mapping of fields, which must be a type that names fields.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(given, FieldType):
        raise UsageError(
            f"fields: {quoted(given)} for {quoted(entry)} is neither text nor a field type",
            remedy="pass the names of fields, as 'jpg;png', or a shardio.FieldType",
        )
    if not given.alternatives:
        kind = type(given).__name__
        raise UsageError(
            f"fields: {kind}() for {quoted(entry)} names no field",
            remedy=f"write {kind}('NAME') with the name of a field, which `shardio info` lists",
        )
    return given
