"""Which fields fill the entries of a sample.

A mapping names an entry and its alternatives as WebDataset writes them, "jpg;jpeg;png", or a field
type with its alternatives. By default the images of a sample become `image`, `cls` becomes `label`,
the rest keep their names; when samples hold several images, each keeps its own name. Text stands
for the types that the dataset records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shardio.errors import SituationError, UsageError, quoted, shown
from shardio.fields.arrays import Label
from shardio.fields.base import LABEL_FIELD, FieldType, split_names
from shardio.fields.defaults import check_type, combined_types, type_of
from shardio.fields.recorded import require_available
from shardio.indexing.entry import ShardEntry

Fields = dict[str, tuple[str, ...]]
_MANY_FIELDS, _MANY_IN_SAMPLE = 1000, 64  # entries of a dataset, and for each that a sample has
_SAMPLES_LOOKED_AT = 1000
RESERVED = ("__key__", "valid", "__epoch__", "__step__", "__source__", "__crop__")
"""Names of the entries that shardio adds to samples and batches."""


def _fields_together(shards: Sequence[ShardEntry]) -> list[tuple[str, ...]]:
    """List sets of fields that occur in one of the first samples."""
    first = next((shard for shard in shards if shard.samples), None)
    if first is None:
        return []
    index = first.load_index()
    return [*{(*index.cells(at),) for at in range(min(len(index), _SAMPLES_LOOKED_AT))}]


def default_fields(types: Mapping[str, FieldType], shards: Sequence[ShardEntry]) -> Fields:
    """Return the mapping for a user who gives none.

    Args:
        types: types of all fields of the dataset.
        shards: shards of the dataset, whose first samples are looked at where the types do not tell
            enough.

    Raises:
        UsageError: two fields would fill one entry, or one has a name that shardio takes, or there
            are very many fields, of which each sample has few.
    """
    images = tuple(name for name, each in types.items() if _is_picture(name, each))
    unclear = len(images) > 1 or len(types) > _MANY_FIELDS
    together = _fields_together(shards) if unclear else []
    most = max(map(len, together), default=0)
    if len(types) > max(_MANY_FIELDS, _MANY_IN_SAMPLE * most):
        some = min(types, key=lambda name: (len(name), name))
        raise SituationError(
            f"the shards have {len(types):,} different fields, of which samples have at most "
            f"{most}",
            remedy=f"name those to read with fields={{'image': {quoted(some)}, …}}",
        )
    if any(len({*sample} & {*images}) > 1 for sample in together):
        images = ()
    fields = {"image": images} if images else {}
    if LABEL_FIELD in types:
        fields["label"] = (LABEL_FIELD,)
    rest = {name: (name,) for name in types if name not in images and name != LABEL_FIELD}
    for name in rest:
        if name in fields or name in RESERVED:
            raise SituationError(
                f"the shards have a field {quoted(name)}, a name that "
                f"{';'.join(fields.get(name, ['shardio itself']))} takes",
                remedy=f"give it another with fields={{'other': {quoted(name)}, …}}",
            )
    return fields | rest


def _is_picture(name: str, found: FieldType) -> bool:
    """Tell whether a field is a picture, and has no name beside that."""
    return name in found.names and found.geometry == "leads"


def parse_fields(
    fields: Mapping[str, str | FieldType], recorded: Mapping[str, FieldType], *, decode: bool
) -> Fields:
    """Check a mapping that a user wrote against the fields of the dataset.

    Args:
        fields: the mapping.
        recorded: types of all fields of the dataset.
        decode: whether fields are decoded.

    Raises:
        UsageError: a name is reserved, or its alternatives do not exist or decode differently.
    """
    if not fields:
        raise UsageError("fields={}: it names no entry", remedy="leave it out, or name one")
    parsed: Fields = {}
    added = {f"has_{name}": name for name in optional_entries(fields)} | {
        f"{name}_lengths": name
        for name, given in fields.items()
        if isinstance(given, FieldType) and given.batching == "padded"
    }
    for name, given in fields.items():
        if name in RESERVED or name in added:
            taken = added.get(name, "shardio")
            raise UsageError(
                f"fields: {quoted(name)} is taken by {taken}", remedy="choose another name"
            )
        written = given if isinstance(given, str) else check_type(name, given).fields
        parsed[name], optional = split_names(written)
        if not parsed[name] or not (set(parsed[name]) & set(recorded) or optional):
            raise UsageError(
                f"fields: no sample has {quoted(written)} for {quoted(name)}",
                remedy=f"the dataset has the fields {', '.join(map(shown, recorded)) or 'none'}",
            )
        types = entry_types(name, parsed[name], fields, recorded)
        for field, each in types.items() if decode else ():
            require_available(field, each)
        kinds = {"image" if each.geometry == "leads" else each.name for each in types.values()}
        if decode and len(kinds) > 1:
            raise UsageError(
                f"fields: {quoted(written)} for {quoted(name)} decode to "
                f"{' and '.join(sorted(kinds))}",
                remedy="give alternatives of one kind, or read with decode=False",
            )
    return parsed


def optional_entries(fields: Mapping[str, str | FieldType] | None) -> frozenset[str]:
    """Return the entries that a sample may lack: those written with a question mark."""
    return frozenset(
        name
        for name, given in (fields or {}).items()
        if split_names(given if isinstance(given, str) else given.fields)[1]
    )


def entry_types(
    entry: str,
    alternatives: Sequence[str],
    given: Mapping[str, str | FieldType] | None,
    recorded: Mapping[str, FieldType],
) -> dict[str, FieldType]:
    """Return the types of an entry's alternatives, by field name.

    Args:
        entry: name of the entry.
        alternatives: fields that fill it.
        given: mapping of a user, if there is one.
        recorded: types of all fields of the dataset.
    """
    own = given[entry] if given is not None else None
    chosen = dict.fromkeys(alternatives, own) if isinstance(own, FieldType) else {}
    known = combined_types(recorded, chosen)
    return {each: chosen.get(each) or type_of(each, given=known) for each in alternatives}


def deciding_pictures(types: Mapping[str, Mapping[str, FieldType]]) -> dict[str, FieldType]:
    """Return the fields of which the first that a sample has decides its crop, with their types.

    Args:
        types: types of the alternatives of each entry, by field name.
    """
    firsts = [(some, next(iter(some.values()))) for some in types.values()]
    leads = [(some, first) for some, first in firsts if first.geometry == "leads"]
    shared = [some for some, first in leads if first.crop != "own"]
    chosen = shared or [some for some, _ in leads[:1]]
    return {name: each for some in chosen for name, each in some.items()}


def label_field(types: Mapping[str, Mapping[str, FieldType]]) -> str:
    """Return the field that holds the class numbers of samples."""
    names = (
        name for some in types.values() for name, each in some.items() if isinstance(each, Label)
    )
    return next(names, LABEL_FIELD)
