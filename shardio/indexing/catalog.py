"""Opening a source: from what the user names to a list of shards with their sample counts.

A packed folder answers from its manifest alone; shards that others made answer from their indexes,
see shardio.indexing.foreign.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shardio.errors import IndexFileError, SituationError
from shardio.fields.base import FieldType
from shardio.fields.recorded import merge_types
from shardio.indexing.entry import ShardEntry
from shardio.indexing.foreign import ForeignShard, open_local, open_stored
from shardio.indexing.manifest import find_manifest, index_path, pack_with_same_classes
from shardio.indexing.parts import (
    ShardPaths,
    is_packed,
    list_parts,
    refuse_missing,
    refuse_unfinished,
)
from shardio.indexing.scan import index_shard, warn_of_dots, warn_of_missing_ends
from shardio.processes import in_threads
from shardio.storage.base import Storage
from shardio.storage.location import Location, Options
from shardio.storage.remote import RemoteStorage

_Recorded = dict[Location, Mapping[str, FieldType] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """The shards of a dataset.

    Attributes:
        shards: shards in order.
        fields: names of all fields, sorted.
        classes: class names by label, where they are known.
        types: types of all fields, as packed folders record them, otherwise by their names.
    """

    shards: tuple[ShardEntry, ...]
    fields: tuple[str, ...]
    classes: tuple[str, ...] | None
    types: Mapping[str, FieldType]

    @property
    def is_remote(self) -> bool:
        """Whether shards are of a store."""
        return any(isinstance(shard.storage, RemoteStorage) for shard in self.shards)

    def check_cache(self) -> None:
        """Raise UsageError if shards are of a store, and the cache folder cannot be used."""
        remote = next(filter(None, (shard.remote for shard in self.shards)), None)
        if remote is not None:
            remote.cache  # noqa: B018  refuses it

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size for shard in self.shards)

    def digest(self) -> str:
        """Return 16 hexadecimal digits that identify these shards, wherever they lie."""
        known = hashlib.sha256()
        for shard in self.shards:
            known.update(f"{shard.samples} {shard.size} {shard.contents}\n".encode())
        return known.hexdigest()[:16]


def open_catalog(
    source: ShardPaths,
    *,
    storage: Storage | None = None,
    options: Options | None = None,
    allow_empty: bool = False,
) -> Catalog:
    """Find the shards of a source.

    Args:
        source: a packed folder or its manifest, a folder of tars, a shard, a glob, a brace
            pattern such as `out/shard-{000000..000007}.tar`, or a list of these; `~` is the
            home folder.
        storage: storage of the source; None chooses it by the scheme of a URL.
        options: options of a storage that the scheme chooses, by name.
        allow_empty: take tars that have members, none of which is a field of a sample.

    Raises:
        UsageError: nothing is there, or it is not a source.
        IndexFileError: a manifest or index is damaged or stale, or a pack is unfinished.
        TarError: a shard without index is damaged, or one without samples is not an empty archive.
    """
    parts = list_parts(source, storage, options)
    places = [*dict.fromkeys(parts)]
    packed = dict(zip(places, in_threads(_open_packed, places), strict=True))
    others = [part for part in places if packed[part] is None and not part.is_local]
    stored = dict(zip(others, open_stored(others), strict=True))
    unmarked: list[str] = []
    beside: _Recorded = {}
    catalogs = [
        packed[part] or _open_foreign(part, stored.get(part), unmarked, beside) for part in parts
    ]
    warn_of_missing_ends(unmarked)
    shards = tuple(shard for catalog in catalogs for shard in catalog.shards)
    for shard in shards:
        if not shard.samples:  # whoever made the index, the tar must say that there are none
            _refuse_stale(shard, allow_empty=allow_empty)
    classes = _common_classes(filter(None, packed.values()))
    types = merge_types(
        (str(part), catalog.types, catalog.types)
        for part, catalog in zip(parts, catalogs, strict=True)
    )
    return Catalog(
        shards=shards,
        fields=tuple(sorted({field for catalog in catalogs for field in catalog.fields})),
        classes=classes if all(packed.values()) else None,
        types=types,
    )


def _refuse_stale(shard: ShardEntry, *, allow_empty: bool) -> None:
    """Raise IndexFileError if a shard has samples and its index has none."""
    found = index_shard(
        Location(shard.storage, shard.path),
        name=shard.name,
        checksums=False,
        allow_empty=allow_empty,
    )
    if len(found):
        raise IndexFileError(
            f"the index is stale: it has no samples, the shard has {len(found)}",
            where=shard.name,
            remedy="run `shardio index` on the folder of the shard",
            shard=shard.name,
        )


def _common_classes(packed: Iterable[Catalog]) -> tuple[str, ...] | None:
    classes = {catalog.classes for catalog in packed}
    if len(classes) > 1:
        raise SituationError(
            "the folders were packed with different classes, so that equal labels mean "
            "different things",
            remedy=pack_with_same_classes(),
        )
    return classes.pop() if classes else None


def _open_foreign(
    part: Location, stored: list[ForeignShard] | None, unmarked: list[str], beside: _Recorded
) -> Catalog:
    """Open single shards, or those that others made.

    Args:
        part: part of a source.
        stored: its shards, if they are in a store.
        unmarked: list to which the names of shards without an end mark are added.
        beside: types that the manifests beside shards record, which is added to.
    """
    found = open_local(Path(part)) if stored is None else stored
    names: dict[Location, set[str]] = {}
    rare: set[str] = set()
    for shard in found:
        names.setdefault(shard.folder, set()).update(shard.fields)
        rare |= shard.rare_fields
        if not shard.has_end:
            unmarked.append(shard.entry.name)
    types = merge_types(
        (str(folder), some, _types_beside(folder, beside)) for folder, some in names.items()
    )
    fields = {field for some in names.values() for field in some}
    warn_of_dots(part, fields, rare)
    shards = tuple(shard.entry for shard in found)
    return Catalog(shards=shards, fields=tuple(sorted(fields)), classes=None, types=types)


def _types_beside(folder: Location, beside: _Recorded) -> Mapping[str, FieldType] | None:
    """Return the types that the manifest in the folder of single shards records."""
    if folder not in beside:
        manifest = find_manifest(folder)
        beside[folder] = None if manifest is None else manifest.types
    return beside[folder]


def _open_packed(folder: Location) -> Catalog | None:
    """Open a packed folder; None if it is none."""
    if folder.is_local and is_packed(folder):  # elsewhere the manifest says that a pack has ended
        refuse_unfinished(folder)
    manifest = find_manifest(folder)
    if manifest is None:
        return None
    refuse_missing(folder, manifest)
    entries = tuple(
        ShardEntry(
            name=str(folder / shard.name),
            path=str((folder / shard.name).absolute()),
            index=str(index_path(folder / shard.name).absolute()),
            storage=folder.storage,
            samples=shard.samples,
            size=shard.size,
            contents=shard.sha256,
            sha256=shard.sha256,
        )
        for shard in manifest.shards
    )
    return Catalog(
        shards=entries,
        fields=manifest.fields,
        classes=manifest.classes,
        types=merge_types([(str(folder), manifest.fields, manifest.types)]),
    )
