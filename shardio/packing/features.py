"""Which feature of an Example is which field of a sample: what users say, and what goes without.

Users pair them as FIELD=NAME. A pair with one empty side leaves the other side out. The field
`__key__` stands for the key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from shardio.codecs.registry import LABEL_FIELD, kind_of
from shardio.errors import SituationError, UsageError, quoted, shown
from shardio.packing.fields import is_field_name
from shardio.tfrecord.example import Feature

KEY = "__key__"
LABEL_FEATURE = "label"
IMAGE = ""
"""Stands for the field of an image whose format is not known before it is read."""

_IMAGES = ("image/encoded", "image")
_LABELS = ("image/class/label", LABEL_FEATURE)


class Pair(NamedTuple):
    """A field and the feature that it is; one of them may be empty."""

    field: str
    name: str


def parse_pairs(texts: Sequence[str]) -> tuple[Pair, ...]:
    """What users say, each as "FIELD=NAME".

    Raises:
        UsageError: one is no such pair, or a field or a feature is in two of them.
    """
    if isinstance(texts, str):
        raise UsageError(f"features={texts!r}: it must be a list, as ['jpg=image/encoded']")
    pairs = []
    for text in texts:
        field, equals, name = text.partition("=")
        pair = Pair(field.lower(), name)
        if not equals or not (field or name) or not (field in ("", KEY) or is_field_name(field)):
            raise UsageError(
                f"{text!r} is no pair of a field and a feature; write it as jpg=image/encoded"
            )
        pairs.append(pair)
    for side in zip(*pairs, strict=True):
        named = [*filter(None, side)]
        if again := next((each for each in named if named.count(each) > 1), None):
            raise UsageError(f"features: {again!r} comes twice")
    return tuple(pairs)


def choose_fields(example: Mapping[str, Feature], pairs: Iterable[Pair]) -> dict[str, str | None]:
    """The field of each feature, or None if it belongs into the field json.

    What no pair names is chosen by name: image/encoded or image is an image, image/class/label or
    label the class number, `__key__` the key; bytes that are called like a field that has a
    decoder, as jpg or mask.png, are that field. Features that pairs leave out are left out.
    """
    given = {pair.name: pair.field for pair in pairs if pair.name}
    free = [name for name in example if name not in given]
    chosen: dict[str, str | None] = {name: given[name] for name in example if given.get(name)}
    for name in free:
        known = kind_of(name.lower()) != "bytes" and is_field_name(name)
        chosen[name] = name.lower() if known and _is_single_bytes(example[name]) else None
    taken = {*given.values()} - {IMAGE}
    defaults = {
        IMAGE: next((n for n in _IMAGES if n in free and _is_single_bytes(example[n])), None),
        LABEL_FIELD: next(
            (n for n in _LABELS if n in free and _is_single_integer(example[n])), None
        ),
        KEY: KEY if KEY in free and _is_single_bytes(example[KEY]) else None,
    }
    return chosen | {name: field for field, name in defaults.items() if name and field not in taken}


def name_features(fields: Iterable[str], pairs: Iterable[Pair]) -> dict[str, str]:
    """The name of the feature that each field becomes, of those that become one.

    Fields keep their names, but cls becomes `label`.

    Args:
        fields: of samples.
        pairs: what users say.

    Raises:
        UsageError: a pair names a field that there is not, or two fields become one feature.
    """
    names = {KEY: KEY} | {field: field for field in fields}
    if LABEL_FIELD in names:
        names[LABEL_FIELD] = LABEL_FEATURE
    for pair in pairs:
        if pair.field not in names:
            raise SituationError(
                f"features: there is no field {quoted(pair.field)}; the fields are "
                f"{', '.join(map(shown, sorted({*names} - {KEY})))}"
            )
        names[pair.field] = pair.name
    chosen = {field: name for field, name in names.items() if name}
    if again := next((n for n in chosen.values() if [*chosen.values()].count(n) > 1), None):
        raise SituationError(
            f"two fields would become the feature {quoted(again)}; name one otherwise"
        )
    return chosen


def _is_single_bytes(feature: Feature) -> bool:
    return isinstance(feature, list) and len(feature) == 1


def _is_single_integer(feature: Feature) -> bool:
    return not isinstance(feature, list) and feature.dtype == np.int64 and len(feature) == 1
