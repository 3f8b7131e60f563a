"""Which fields of a shard become which entries of a sample.

A mapping names an entry and its alternatives as WebDataset writes them: "jpg;jpeg;png". By
default the images of a sample become `image`, `cls` becomes `label`, the rest keep their names;
when samples hold several images, each keeps its own name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shardio.codecs.registry import IMAGE_FIELDS
from shardio.errors import UsageError

Fields = dict[str, tuple[str, ...]]
_RESERVED = ("__key__", "valid")


def default_fields(names: Sequence[str], together: Sequence[Sequence[str]]) -> Fields:
    """The mapping when the user gives none.

    Args:
        names: all fields of the dataset.
        together: sets of fields that occur in one sample.
    """
    images = tuple(name for name in names if name in IMAGE_FIELDS)
    if any(sum(name in IMAGE_FIELDS for name in sample) > 1 for sample in together):
        images = ()
    fields = {"image": images} if images else {}
    if "cls" in names:
        fields["label"] = ("cls",)
    rest = {name: (name,) for name in names if name not in images and name != "cls"}
    return fields | rest


def parse_fields(fields: Mapping[str, str], names: Sequence[str]) -> Fields:
    """The mapping that a user wrote, checked against the fields of the dataset.

    Raises:
        UsageError: a name is reserved, or none of its alternatives exists.
    """
    parsed: Fields = {}
    for name, alternatives in fields.items():
        if name in _RESERVED:
            raise UsageError(f"fields: {name!r} is taken by shardio; choose another name")
        parsed[name] = tuple(part.strip().lower() for part in alternatives.split(";"))
        if not set(parsed[name]) & set(names):
            raise UsageError(
                f"fields: no sample has {alternatives!r} for {name!r}; "
                f"the dataset has the fields {', '.join(names) or 'none'}"
            )
    return parsed
