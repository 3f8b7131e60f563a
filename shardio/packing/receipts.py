"""Receipts of finished shards, by which an interrupted pack goes on where it was.

A receipt lies in the work folder beside the list of samples. It says of which lines of that list
the shard was made, and of which versions of its source files (see shardio.packing.states). A later
run of the same pack makes only the shards whose receipts say something else, or that are not there
as they were written. What is known of a shard beyond that comes from its index.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from shardio.errors import IndexFileError
from shardio.index.manifest import ShardReceipt, index_path, receipt_of
from shardio.index.shard_index import ShardIndex, read_index
from shardio.packing.names import WHOLE, is_shard_name, path_in
from shardio.packing.states import hash_file, keeps_ctime, state_of
from shardio.storage.atomic import final_name
from shardio.storage.folder import Folder

_RECEIPTS = "receipts"
_SUFFIX = ".json"
_DAMAGED = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    OverflowError,
    RecursionError,
    IndexFileError,
)
_LIMIT = 1 << 28  # bytes of a receipt; every size of the images of a shard is in it


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The files that a shard was made of.

    Attributes:
        since: time (ns) when the first was read.
        digest: digest of their versions.
    """

    since: int
    digest: str


def packed_shard(
    part: str, name: str, index: ShardIndex, sizes: frozenset[tuple[int, int]]
) -> PackedShard:
    """What a task did, as the index of its shard says it.

    Args:
        part: name of the split.
        name: file name of the shard.
        index: index of the shard.
        sizes: heights and widths of its images, if their pixels are stored.
    """
    return PackedShard(
        part=part,
        receipt=receipt_of(name, index),
        fields=index.fields,
        sizes=sizes,
    )


def write_receipt(
    work: Folder, shards: Folder, packed: PackedShard, *, task: str, sources: Sources
) -> None:
    """Keep what a task did.

    Args:
        work: work folder.
        shards: folder of the shard.
        packed: what the task did.
        task: digest of what it was to do.
        sources: the files that it read.

    Raises:
        OSError: the receipt cannot be written.
    """
    name = packed.receipt.name
    status = shards.find_file(name)
    row = {
        "task": task,
        "since": sources.since,
        "sources": sources.digest,
        "sha256": packed.receipt.sha256,
        "state": None if status is None else state_of(status),
        "sizes": sorted(packed.sizes),
    }
    with (
        work.inside(_RECEIPTS, make=True) as every,
        every.inside(packed.part, make=True) as receipts,
        receipts.write(name + _SUFFIX) as stream,
    ):
        stream.write(json.dumps(row).encode("ascii"))


def find_receipt(
    work: Folder, shards: Folder, part: str, name: str, *, task: str
) -> tuple[PackedShard, Sources] | None:
    """What an earlier run did of the same task, and the files that it read.

    A receipt that is damaged, or of a shard that is not as it was written, counts for nothing, and
    the shard is made again.

    Args:
        work: work folder.
        shards: folder of the shard.
        part: name of its split.
        name: file name of the shard.
        task: digest of what is to be done.

    Raises:
        OutputError: something else than a file has the place of the shard or its receipt.
    """
    status, path = shards.find_file(name), shards.path / name
    try:
        with work.inside(_RECEIPTS) as every, every.inside(part) as receipts:
            row = json.loads(receipts.read(name + _SUFFIX, _LIMIT))
        sizes = frozenset((int(height), int(width)) for height, width in row["sizes"])
        sources = Sources(since=int(row["since"]), digest=str(row["sources"]))
        index = read_index(index_path(path))
        if status is None or (row["task"], row["sha256"]) != (task, index.shard_sha256):
            return None
        is_as_written = row["state"] == state_of(status) and keeps_ctime(path)
        if not is_as_written and hash_file(path) != index.shard_sha256:
            return None
    except _DAMAGED:
        return None
    return packed_shard(part, name, index, sizes), sources


def finished_shards(work: Folder) -> list[str]:
    """Paths, relative to the output folder, of shards that have a receipt.

    Raises:
        OutputError: something else than a file has the place of a receipt.
    """
    return sorted(path_in(part, name) for part, name, _ in _receipts(work))


def lost_shards(work: Folder, tasks: Mapping[str, str]) -> list[str]:
    """Finished shards that a pack does not take up.

    Args:
        work: work folder.
        tasks: digests of what the pack is to do, by the paths of its shards.

    Returns:
        Paths relative to the output folder.

    Raises:
        OutputError: something else than a file has the place of a receipt.
    """
    lost = []
    for part, name, receipts in _receipts(work):
        shard = path_in(part, name)
        with suppress(*_DAMAGED):  # a damaged receipt tells of nothing
            if json.loads(receipts.read(name + _SUFFIX, _LIMIT))["task"] != tasks.get(shard):
                lost.append(shard)
    return lost


def remove_receipts(work: Folder, shards: Iterable[str]) -> None:
    """Forget shards, by their paths relative to the output folder."""
    unwanted = {*shards}
    for part, name, receipts in _receipts(work):
        if path_in(part, name) in unwanted:
            receipts.remove(name + _SUFFIX)


def remove_all_receipts(work: Folder) -> None:
    """Remove the receipts, and their folders if nothing else is in them."""
    for _, receipts in _folders(work):
        for name in receipts.names():
            if _is_receipt(name):
                receipts.remove(name)
    with suppress(OSError):
        with work.inside(_RECEIPTS) as every:
            for name in every.names():
                with suppress(OSError):
                    every.remove_folder(name)
        work.remove_folder(_RECEIPTS)


def check_work(work: Folder) -> None:
    """Look at the work folder of an interrupted pack.

    Raises:
        OutputError: something else than files lies in it.
    """
    for name in work.names():
        if name != _RECEIPTS:
            work.find_file(name)
    finished_shards(work)


def _receipts(work: Folder) -> Iterator[tuple[str, str, Folder]]:
    """Split and name of each shard with a receipt, and the folder that this lies in."""
    for part, receipts in _folders(work):
        for name in receipts.names():
            if _is_receipt(name) and receipts.find_file(name) and name == final_name(name):
                yield part, name.removesuffix(_SUFFIX), receipts


def _folders(work: Folder) -> Iterator[tuple[str, Folder]]:
    """Folders of receipts by the names of splits.

    Raises:
        OutputError: one is no real folder.
    """
    with suppress(FileNotFoundError), work.inside(_RECEIPTS) as every:
        yield WHOLE, every
        for name in every.names():
            if not _is_receipt(name):
                with every.inside(name) as receipts:
                    yield name, receipts


def _is_receipt(name: str) -> bool:
    """Whether a name is that of a receipt, or of one that is being written."""
    final = final_name(name)
    return final.endswith(_SUFFIX) and is_shard_name(final.removesuffix(_SUFFIX))
