"""Indexes for shards that others made.

Each shard is read whole, since an index that is kept has checksums, and its index is published when
it is finished, so that an interrupted run leaves the indexes of the shards before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shardio.errors import IndexFileError, argument
from shardio.fields.recorded import types_to_record
from shardio.indexing.foreign import publish_stored
from shardio.indexing.manifest import (
    Manifest,
    ShardReceipt,
    read_manifest,
    receipt_of,
    write_index,
    write_manifest,
)
from shardio.indexing.parts import ShardPaths, find_shards, is_packed, list_parts, refuse_missing
from shardio.indexing.scan import index_shard, warn_of_dots, warn_of_missing_ends
from shardio.indexing.shard_index import ShardIndex
from shardio.storage.cache import plain_tar
from shardio.storage.compression import find_compression
from shardio.storage.folder import Folder
from shardio.storage.location import Options


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSummary:
    """Totals of the indexed shards.

    Attributes:
        shards: number of shards.
        samples: number of samples.
        bytes: size of the uncompressed tars.
        fields: names of all fields, sorted.
    """

    shards: int
    samples: int
    bytes: int
    fields: tuple[str, ...]


def index(
    source: ShardPaths,
    *,
    force: bool = False,
    allow_empty: bool = False,
    storage_options: Options | None = None,
    progress: Callable[[int], Callable[[int], None]] | None = None,
) -> IndexSummary:
    """Write an index with checksums and sizes of pictures for each shard, into index/ beside it.

    Every byte of the shards is read. Those that a manifest describes must be what was packed.

    Args:
        source: folder of tars, a tar, a glob, a pattern, or a list of these.
        force: whether packed shards are accepted as they are now; the manifest follows them.
        allow_empty: whether tars without fields of samples are accepted.
        storage_options: credentials and other settings of the store of a URL, by name.
        progress: callback for the number of shards; it returns one for those just finished.

    Raises:
        UsageError: nothing is at the source.
        IndexFileError: a shard is not what its manifest says, or missing.
        OutputError: something has the place of an index or its folder, as a link.
        TarError: a shard is damaged or holds no samples; the indexes of those before it are
            written.
        OSError: a shard cannot be read or an index not written.
    """
    parts = [part.for_writing() for part in list_parts(source, options=storage_options)]
    found = {Path(part): find_shards(Path(part)) for part in parts if part.is_local}
    folders = {shard.parent: None for shards in found.values() for shard in shards}
    packed = [folder for folder in folders if is_packed(folder)]
    manifests = {at: read_manifest(at) for at in packed if at in found or not force}
    known = manifests.items() if not force else ()
    digests = {at: _packed_digests(at, said, whole=at in found) for at, said in known}
    done = progress(sum(map(len, found.values()))) if progress else None
    every, all_fields, unmarked = list[ShardReceipt](), set[str](), list[str]()
    for part, shards in found.items():
        receipts, fields, rare = list[ShardReceipt](), set[str](), set[str]()
        for shard in shards:
            if shard.parent in packed:
                refuse_compressed(shard)
            scanned = _scan(shard, manifests.get(shard.parent), allow_empty=allow_empty)
            _compare(shard, scanned, digests.get(shard.parent))
            receipts.append(_publish(shard, scanned))
            fields |= {*scanned.fields}
            rare |= scanned.rare_fields()
            if not scanned.has_end:
                unmarked.append(str(shard))
            if done is not None:
                done(1)
        warn_of_dots(part, fields, rare)
        if force and part in packed:
            _update_manifest(part, receipts, fields)
        every += receipts
        all_fields |= fields
    warn_of_missing_ends(unmarked)
    for foreign in publish_stored([part for part in parts if not part.is_local]):
        every.append(receipt_of(foreign.entry.name, foreign.entry.load_index()))
        all_fields |= {*foreign.fields}
    return _summary(every, all_fields)


def _summary(shards: Sequence[ShardReceipt], fields: Iterable[str]) -> IndexSummary:
    return IndexSummary(
        shards=len(shards),
        samples=sum(receipt.samples for receipt in shards),
        bytes=sum(receipt.size for receipt in shards),
        fields=tuple(sorted(fields)),
    )


def _scan(shard: Path, manifest: Manifest | None, *, allow_empty: bool) -> ShardIndex:
    """Index a shard, with the types of fields that its manifest records."""
    types = None if manifest is None else manifest.types
    return index_shard(
        plain_tar(shard), name=str(shard), checksums=True, allow_empty=allow_empty, types=types
    )


def _packed_digests(folder: Path, manifest: Manifest, *, whole: bool) -> dict[str, str]:
    """SHA-256 by name of the shards of a packed folder, which must be there if `whole`."""
    if whole:
        refuse_missing(folder, manifest)
    return {receipt.name: receipt.sha256 for receipt in manifest.shards}


def refuse_compressed(shard: Path) -> None:
    """Raise IndexFileError if a shard is compressed, which those of a manifest never are."""
    compression = find_compression(shard)
    if compression is not None:
        raise IndexFileError(
            f"the shard is compressed with {compression.name}, and the shards of a manifest are "
            "plain tars",
            where=shard,
            remedy=compression.way_out,
            shard=str(shard),
        )


def _compare(shard: Path, index: ShardIndex, digests: dict[str, str] | None) -> None:
    if digests is not None and digests.get(shard.name) != index.shard_sha256:
        raise IndexFileError(
            "the shard is not what was packed (its SHA-256 is not in the manifest)",
            where=shard,
            remedy=(
                "download it again, or accept all shards of the folder as they are with "
                f"{argument('force', True)}"
            ),
            shard=str(shard),
        )


def _publish(shard: Path, index: ShardIndex) -> ShardReceipt:
    with Folder.open(shard.parent) as folder:
        write_index(folder, shard.name, index)
    return receipt_of(shard.name, index)


def _update_manifest(folder: Path, receipts: list[ShardReceipt], fields: set[str]) -> None:
    manifest = read_manifest(folder)
    updated = replace(
        manifest,
        shards=tuple(receipts),
        fields=tuple(sorted(fields)),
        types=types_to_record(sorted(fields), manifest.types),
    )
    with Folder.open(folder) as held:
        write_manifest(held, updated)
