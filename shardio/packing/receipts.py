"""Receipts of finished shards, by which an interrupted pack goes on where it was.

A receipt lies in the work folder beside the list of samples. It says of which lines of that list
the shard was made, and what size and time of change each source file had. A later run of the
same pack makes only the shards whose receipts say something else, or that are not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from shardio.errors import IndexFileError
from shardio.index.manifest import ShardReceipt, index_path
from shardio.index.shard_index import read_index
from shardio.storage.atomic import atomic_file

WORK_FOLDER = ".shardio-work"
LIST_NAME = "samples.jsonl"
_RECEIPTS = "receipts"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedShard:
    """What a task did.

    Attributes:
        part: name of the split that the shard belongs to.
        receipt: of the shard.
        fields: that its samples have.
        sizes: heights and widths of its images, if their pixels are stored.
    """

    part: str
    receipt: ShardReceipt
    fields: tuple[str, ...]
    sizes: frozenset[tuple[int, int]]


def write_receipt(work: Path, packed: PackedShard, *, task: str, sources: str) -> None:
    """Keep what a task did.

    Args:
        work: the work folder.
        packed: what it did.
        task: digest of what it was to do.
        sources: digest of the files that it read.

    Raises:
        OSError: it cannot be written.
    """
    path = _path_of(work, packed.part, packed.receipt.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {**asdict(packed), "sizes": sorted(packed.sizes), "task": task, "sources": sources}
    with atomic_file(path) as stream:
        stream.write(json.dumps(row).encode("ascii"))


def find_receipt(
    work: Path, shard: Path, part: str, *, task: str
) -> tuple[PackedShard, str] | None:
    """What an earlier run did of the same task, and the digest of the files that it read.

    Args:
        work: the work folder.
        shard: where the shard lies.
        part: its split.
        task: digest of what is to be done.
    """
    try:
        row = json.loads(_path_of(work, part, shard.name).read_bytes())
        receipt = ShardReceipt(**row["receipt"])
        index = read_index(index_path(shard))
        size = shard.stat().st_size
    except (OSError, ValueError, KeyError, TypeError, IndexFileError):
        return None  # whatever there is, it is not whole
    if (row["task"], size, index.shard_sha256) != (task, receipt.size, receipt.sha256):
        return None
    packed = PackedShard(
        part=part,
        receipt=receipt,
        fields=tuple(row["fields"]),
        sizes=frozenset(map(tuple, row["sizes"])),
    )
    return packed, row["sources"]


def finished_shards(work: Path) -> list[str]:
    """Paths, relative to the output folder, of shards that have a receipt."""
    folder = work / _RECEIPTS
    found = folder.rglob("*.json") if folder.is_dir() else ()
    return sorted(str(path.relative_to(folder))[: -len(".json")] for path in found)


def remove_receipts(work: Path, shards: Iterable[str]) -> None:
    """Forget shards, by their paths relative to the output folder."""
    for shard in shards:
        path = Path(shard)
        _path_of(work, str(path.parent), path.name).unlink()


def _path_of(work: Path, part: str, name: str) -> Path:
    return work / _RECEIPTS / part / f"{name}.json"
