"""Writing indexes for shards that others made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from shardio.errors import IndexFileError
from shardio.index.build import index_shard
from shardio.index.catalog import Source, find_shards, is_packed, open_catalog
from shardio.index.manifest import ShardReceipt, index_path, read_manifest, write_manifest
from shardio.index.shard_index import ShardIndex, write_index
from shardio.storage.cache import plain_tar


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSummary:
    """What was indexed.

    Attributes:
        shards: indexed.
        samples: in all of them.
        bytes: of their uncompressed tars.
        fields: that occur, sorted.
    """

    shards: int
    samples: int
    bytes: int
    fields: tuple[str, ...]


def index_source(
    source: Source,
    *,
    force: bool = False,
    progress: Callable[[int], Callable[[], None]] | None = None,
) -> IndexSummary:
    """Read the shards of a source whole and write an index with checksums beside each.

    Shards that a manifest describes must be what was packed.

    Args:
        source: see shardio.index.catalog.open_catalog.
        force: accept packed shards as they are now, and bring the manifest up to date.
        progress: called with the number of shards; what it returns is called after each.

    Raises:
        UsageError: nothing is at the source.
        IndexFileError: a shard is not what its manifest says, or missing.
        TarError: a shard is damaged; the indexes of those before it are written.
        OSError: a shard cannot be read or an index not written.
    """
    shards = find_shards(source)
    done = progress(len(shards)) if progress else None
    if is_packed(source) and not force:
        open_catalog(source)
    receipts, fields = [], set[str]()
    for shard in shards:
        index = index_shard(plain_tar(shard), name=str(shard), checksums=True)
        if not force:
            _compare(shard, index)
        index_path(shard).parent.mkdir(exist_ok=True)
        write_index(index_path(shard), index)
        receipts.append(
            ShardReceipt(
                name=shard.name,
                samples=len(index),
                size=index.shard_size,
                sha256=index.shard_sha256 or "",
            )
        )
        fields.update(index.fields)
        if done is not None:
            done()
    if is_packed(source) and force:
        manifest = read_manifest(Path(source))
        updated = replace(manifest, shards=tuple(receipts), fields=tuple(sorted(fields)))
        write_manifest(Path(source), updated)
    return IndexSummary(
        shards=len(shards),
        samples=sum(receipt.samples for receipt in receipts),
        bytes=sum(receipt.size for receipt in receipts),
        fields=tuple(sorted(fields)),
    )


def _compare(shard: Path, index: ShardIndex) -> None:
    if not is_packed(shard.parent):
        return
    packed = {receipt.name: receipt for receipt in read_manifest(shard.parent).shards}
    receipt = packed.get(shard.name)
    if receipt is None or receipt.sha256 != index.shard_sha256:
        raise IndexFileError(
            f"{shard}: the shard is not what was packed (its SHA-256 is not in the manifest); get "
            "it again, or pass --force to accept all shards of the folder as they are",
            shard=str(shard),
        )
