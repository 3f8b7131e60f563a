"""The manifest `shardio.json`: the shards of a packed folder, their sizes, fields and classes.

It is a wids index (`wids-shard-index-v1`, webdataset's format) with more in it: SHA-256 and size
of each shard in its entry, everything else under "shardio".
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardio.errors import IndexFileError
from shardio.storage.atomic import atomic_file

MANIFEST_NAME = "shardio.json"
PACKING_NAME = ".shardio-pack"  # lies in a folder while it is packed
INDEX_FOLDER = "index"
INDEX_SUFFIX = ".idx"
_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReceipt:
    """What is known of a written shard.

    Attributes:
        name: file name in the packed folder.
        samples: how many it holds.
        size: bytes of the file.
        sha256: hexadecimal digest of the file.
    """

    name: str
    samples: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The shards of a packed folder.

    Attributes:
        shards: in order.
        fields: the names of all fields, sorted.
        classes: class names by label; None where samples have no labels.
    """

    shards: tuple[ShardReceipt, ...]
    fields: tuple[str, ...]
    classes: tuple[str, ...] | None


def index_path(shard: Path) -> Path:
    """Where the index of a shard lies."""
    return shard.parent / INDEX_FOLDER / f"{shard.name}{INDEX_SUFFIX}"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder atomically.

    Raises:
        OSError: it cannot be written.
    """
    document = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "shardlist": [
            {
                "url": shard.name,
                "nsamples": shard.samples,
                "filesize": shard.size,
                "sha256": shard.sha256,
            }
            for shard in manifest.shards
        ],
        "shardio": {
            "version": _VERSION,
            "fields": manifest.fields,
            "classes": manifest.classes,
        },
    }
    with atomic_file(folder / MANIFEST_NAME) as stream:
        stream.write(json.dumps(document, indent=1).encode() + b"\n")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder.

    Raises:
        FileNotFoundError: the folder has none.
        IndexFileError: it is damaged or of a newer version.
    """
    path = folder / MANIFEST_NAME
    text = path.read_bytes()
    try:
        return _parse(json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise IndexFileError(
            f"{path}: the manifest is damaged or of another version ({error!r}); "
            "delete it and run `shardio index` on the folder"
        ) from error


def _parse(document: dict[str, Any]) -> Manifest:
    own = document["shardio"]
    if own["version"] != _VERSION:
        raise ValueError(f"version {own['version']}, expected {_VERSION}")
    for entry in document["shardlist"]:
        if (
            entry["nsamples"] < 0
            or entry["filesize"] < 0
            or Path(entry["url"]).name != entry["url"]
        ):
            raise ValueError(f"no shard can be {entry}")
    return Manifest(
        shards=tuple(
            ShardReceipt(
                name=str(entry["url"]),
                samples=int(entry["nsamples"]),
                size=int(entry["filesize"]),
                sha256=str(entry["sha256"]),
            )
            for entry in document["shardlist"]
        ),
        fields=tuple(own["fields"]),
        classes=None if own["classes"] is None else tuple(own["classes"]),
    )
