"""Writing indexes for shards that others made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from shardio.index.build import index_shard
from shardio.index.catalog import Source, find_shards, is_packed
from shardio.index.manifest import ShardReceipt, index_path, read_manifest, write_manifest
from shardio.index.shard_index import write_index
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
    source: Source, *, progress: Callable[[int], Callable[[], None]] | None = None
) -> IndexSummary:
    """Read the shards of a source whole and write an index with checksums beside each.

    The manifest of a packed folder is brought up to date.

    Args:
        source: see shardio.index.catalog.open_catalog.
        progress: called with the number of shards; what it returns is called after each.

    Raises:
        UsageError: nothing is at the source.
        TarError: a shard is damaged; the indexes of those before it are written.
        OSError: a shard cannot be read or an index not written.
    """
    shards = find_shards(source)
    done = progress(len(shards)) if progress else None
    receipts, fields = [], set[str]()
    for shard in shards:
        index = index_shard(plain_tar(shard), name=str(shard), checksums=True)
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
    if is_packed(source):
        manifest = read_manifest(Path(source))
        updated = replace(manifest, shards=tuple(receipts), fields=tuple(sorted(fields)))
        write_manifest(Path(source), updated)
    return IndexSummary(
        shards=len(shards),
        samples=sum(receipt.samples for receipt in receipts),
        bytes=sum(receipt.size for receipt in receipts),
        fields=tuple(sorted(fields)),
    )
