"""Write the indexes that other tools read.

All three index uncompressed tars:

- wids: one JSON document of kind `wids-shard-index-v1`, which lists the shards and their sample
  counts; see wids_specs.py of webdataset. The `shardio.json` of a packed folder is an extended
  form of it.
- DALI: a text file for each shard. The first line is "v1.2" and the number of samples. Each other
  line lists the members of a sample as `<ext> <offset of the data> <size> <name>`; see
  tools/wds2idx.py and webdataset_loader.cc of NVIDIA DALI. Values are separated by spaces, so
  names must not contain any.
- Energon: a file of little-endian uint64 for each shard. It lists the start of each sample's first
  header, and the end of the last member; see itar.py and prepare.py of NVIDIA Megatron-Energon.
  They read the numbers in native byte order, which is little-endian on all supported machines.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shardio.errors import IndexFileError, counted, quoted
from shardio.indexing.entry import ShardEntry
from shardio.indexing.scan import group_members
from shardio.storage.local import LOCAL
from shardio.tar.header import padded
from shardio.tar.reader import scan_members

_DALI_VERSION = "v1.2"


class Member(NamedTuple):
    """Member that is a field of a sample.

    Attributes:
        name: name of the member in the tar.
        key: key of its sample.
        start: offset of its first header, extension headers included.
        offset: offset of its data.
        size: size of its data in bytes.
    """

    name: str
    key: str
    start: int
    offset: int
    size: int


class Layout(NamedTuple):
    """Layout of the samples in a tar.

    Attributes:
        samples: members of each sample.
        end: offset after the last member of the tar, which may belong to no sample.
    """

    samples: list[list[Member]]
    end: int


def read_layout(entry: ShardEntry) -> Layout:
    """Find the members of a shard's samples from its headers.

    Raises:
        TarError: the tar is corrupt.
        IndexFileError: the number of samples differs from that of the index.
        OSError: the tar cannot be read.
    """
    with entry.data() as data:
        members = scan_members(data, shard=entry.name)
    places = [*zip(members.offsets.tolist(), members.sizes.tolist(), strict=True)]
    ends = [0, *(offset + padded(size) for offset, size in places)]
    samples = [
        [
            Member(
                members.names[at].decode("utf-8", "surrogateescape"),
                group.key,
                ends[at],
                *places[at],
            )
            for at in sorted((*group.members.values(), *(again for _, again in group.repeated)))
        ]
        for group in group_members(members)[0]
    ]
    if len(samples) != entry.samples:
        raise IndexFileError(
            f"the index is stale: it lists {counted(entry.samples, 'sample')}, but the shard has "
            f"{len(samples):,}",
            where=entry.name,
            remedy="run `shardio index` on it",
            shard=entry.name,
        )
    return Layout(samples, ends[-1])


def dali_index(entry: ShardEntry) -> bytes:
    """Create the index of a shard for DALI's fn.readers.webdataset.

    Raises:
        IndexFileError: a name contains white space, or the shard has no samples; see also
            read_layout.
        TarError: see read_layout.
        OSError: see read_layout.
    """
    lines = []
    for sample in read_layout(entry).samples:
        for member in sample:
            if member.name.split() != [member.name]:
                raise IndexFileError(
                    f"the name of the member {quoted(member.name)} contains white space, which "
                    "DALI's index does not support",
                    where=entry.name,
                    remedy="pack it under another name",
                )
        lines.append(" ".join(map(_dali_entry, sample)))
    if not lines:
        raise IndexFileError(
            "DALI does not support a shard without samples",
            where=entry.name,
            remedy="leave it out",
        )
    text = "\n".join([f"{_DALI_VERSION} {len(lines)}", *lines, ""])
    return text.encode("utf-8", "surrogateescape")


def energon_index(entry: ShardEntry) -> bytes:
    """Create the index of a shard for Megatron-Energon.

    Raises:
        IndexFileError: see read_layout.
        TarError: see read_layout.
        OSError: see read_layout.
    """
    layout = read_layout(entry)
    starts = [sample[0].start for sample in layout.samples]
    return np.array([*starts, layout.end], "<u8").tobytes()


def wids_index(entries: Sequence[ShardEntry], folder: Path) -> bytes:
    """Create the index of shards for wids.

    Args:
        entries: shards to list.
        folder: folder of the index; paths in the index are relative to it, and URLs are whole.
    """
    shards = [
        {
            "url": (os.path.relpath(entry.path, folder) if entry.storage == LOCAL else entry.path),
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
