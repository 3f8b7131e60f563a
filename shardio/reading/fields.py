"""Which fields of a shard become which entries of a sample.

A mapping names an entry and its alternatives as WebDataset writes them: "jpg;jpeg;png". By
default the images of a sample become `image`, `cls` becomes `label`, the rest keep their names;
when samples hold several images, each keeps its own name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shardio.codecs.registry import IMAGE_FIELDS, PIXELS_FIELD, kind_of
from shardio.errors import UsageError, quoted, shown

Fields = dict[str, tuple[str, ...]]
_PICTURES = IMAGE_FIELDS | {PIXELS_FIELD}
_RESERVED = ("__key__", "valid", "__epoch__", "__step__", "__source__")


def default_fields(names: Sequence[str], together: Sequence[Sequence[str]]) -> Fields:
    """The mapping when the user gives none.

    Args:
        names: all fields of the dataset.
        together: sets of fields that occur in one sample.

    Raises:
        UsageError: two fields would fill one entry, or one has a name that shardio takes.
    """
    images = tuple(name for name in names if name in _PICTURES)
    if any(sum(name in _PICTURES for name in sample) > 1 for sample in together):
        images = ()
    fields = {"image": images} if images else {}
    if "cls" in names:
        fields["label"] = ("cls",)
    rest = {name: (name,) for name in names if name not in images and name != "cls"}
    for name in rest:
        if name in fields or name in _RESERVED:
            raise UsageError(
                f"the shards have a field {quoted(name)}, a name that "
                f"{';'.join(fields.get(name, ['shardio itself']))} takes; give it another with "
                f"fields={{'other': {quoted(name)}, …}}"
            )
    return fields | rest


def parse_fields(fields: Mapping[str, str], names: Sequence[str], *, decode: bool) -> Fields:
    """The mapping that a user wrote, checked against the fields of the dataset.

    Raises:
        UsageError: a name is reserved, or its alternatives do not exist or decode differently.
    """
    if not fields:
        raise UsageError("fields={}: it names no entry; leave it out, or name one")
    parsed: Fields = {}
    for name, alternatives in fields.items():
        if name in _RESERVED:
            raise UsageError(f"fields: {name!r} is taken by shardio; choose another name")
        parsed[name] = tuple(part.strip().lower() for part in alternatives.split(";"))
        if not set(parsed[name]) & set(names):
            raise UsageError(
                f"fields: no sample has {alternatives!r} for {name!r}; "
                f"the dataset has the fields {', '.join(map(shown, names)) or 'none'}"
            )
        kinds = {kind_of(alternative).replace("pixels", "image") for alternative in parsed[name]}
        if decode and len(kinds) > 1:
            raise UsageError(
                f"fields: {alternatives!r} for {name!r} decode to {' and '.join(sorted(kinds))}; "
                "give alternatives of one kind, or read with decode=False"
            )
    return parsed
