"""Indexes that other tools read, from the members of a shard.

All three are of uncompressed tars:

- wids: a JSON document that lists shards and their sample counts, `wids-shard-index-v1`; see
  wids_specs.py of webdataset. `shardio.json` of packed folders is one with more in it.
- DALI: a text file a shard; the first line is "v1.2" and the number of samples, each other line
  the members of a sample as `<ext> <offset of the data> <size> <name>`; see tools/wds2idx.py and
  webdataset_loader.cc of NVIDIA DALI. Spaces separate all of these, so no name may have any.
- Energon: a file a shard, little-endian uint64: where the header of each sample's first member
  starts, and where the last member ends; see itar.py and prepare.py of NVIDIA Megatron-Energon,
  which read the numbers in the machine's order, little-endian on all that it supports.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shardio.errors import IndexFileError, quoted
from shardio.indexing.catalog import ShardEntry
from shardio.naming import split_member_name
from shardio.storage.local import FileBytes
from shardio.tar.header import padded
from shardio.tar.reader import scan_members

_FILE = ord("0")
_DALI_VERSION = "v1.2"


class Member(NamedTuple):
    """A member that is a field of a sample.

    Attributes:
        name: as the tar has it.
        key: of its sample.
        start: of its header, or of the first header that extends it.
        offset: of its data.
        size: of its data.
    """

    name: str
    key: str
    start: int
    offset: int
    size: int


class Layout(NamedTuple):
    """Where the samples of a tar lie.

    Attributes:
        samples: the members of each.
        end: where the last member of the tar ends, whatever it is.
    """

    samples: list[list[Member]]
    end: int


def read_layout(entry: ShardEntry) -> Layout:
    """Find the members of the samples of a shard, by its headers.

    Raises:
        TarError: the tar is damaged.
        IndexFileError: it has another number of samples than its index.
        OSError: it cannot be read.
    """
    with Path(entry.path).open("rb") as stream:
        members = scan_members(FileBytes(stream, entry.name), shard=entry.name)
    end, found = 0, []
    places = zip(members.offsets.tolist(), members.sizes.tolist(), strict=True)
    for raw, kind, (offset, size) in zip(members.names, members.kinds, places, strict=True):
        name = raw.decode("utf-8", "surrogateescape")
        split = split_member_name(name)
        if kind == _FILE and split is not None:
            found.append(Member(name, split.key, end, offset, size))
        end = offset + padded(size)
    samples = [[*group] for _, group in groupby(found, lambda member: member.key)]
    if len(samples) != entry.samples:
        raise IndexFileError(
            f"the index is stale: it has {entry.samples} samples, the shard {len(samples)}",
            where=entry.name,
            remedy="run `shardio index` on it",
            shard=entry.name,
        )
    return Layout(samples, end)


def dali_index(entry: ShardEntry) -> bytes:
    """The index of a shard for DALI's fn.readers.webdataset.

    Raises:
        IndexFileError: a name has white space, or the shard has no samples; see also read_layout.
        TarError: see read_layout.
        OSError: see read_layout.
    """
    lines = []
    for sample in read_layout(entry).samples:
        for member in sample:
            if member.name.split() != [member.name]:
                raise IndexFileError(
                    f"the member {quoted(member.name)} has white space in its name, which "
                    "DALI's index cannot hold",
                    where=entry.name,
                    remedy="pack it under another name",
                )
        lines.append(" ".join(map(_dali_entry, sample)))
    if not lines:
        raise IndexFileError(
            "DALI takes no shard without samples", where=entry.name, remedy="leave it out"
        )
    text = "\n".join([f"{_DALI_VERSION} {len(lines)}", *lines, ""])
    return text.encode("utf-8", "surrogateescape")


def energon_index(entry: ShardEntry) -> bytes:
    """The index of a shard for Megatron-Energon.

    Raises:
        IndexFileError: see read_layout.
        TarError: see read_layout.
        OSError: see read_layout.
    """
    layout = read_layout(entry)
    starts = [sample[0].start for sample in layout.samples]
    return np.array([*starts, layout.end], "<u8").tobytes()


def wids_index(entries: Sequence[ShardEntry], folder: Path) -> bytes:
    """The index of shards for wids.

    Args:
        entries: the shards.
        folder: where it will lie; paths in it start from there.
    """
    shards = [
        {
            "url": os.path.relpath(entry.path, folder),
            "nsamples": entry.samples,
            "filesize": entry.size,
        }
        for entry in entries
    ]
    document = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": shards}
    return json.dumps(document, indent=1).encode() + b"\n"


def _dali_entry(member: Member) -> str:
    extension = member.name[len(member.key) + 1 :]
    return f"{extension} {member.offset} {member.size} {member.name}"
