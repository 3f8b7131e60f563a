"""The manifest `shardio.json`: the shards of a packed folder, their sizes, fields and classes.

It is a wids index (`wids-shard-index-v1`, webdataset's format) with more in it: SHA-256 and size
of each shard in its entry, everything else under "shardio". There also is a CRC-32 of what the
manifest says, however its JSON is spelled; a manifest without one is taken as it is.

Version 2 records the types of the fields, see shardio.fields.recorded. It is written only where
readers of version 1 would take a field for something else, so that these refuse the folder.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from shardio.errors import IndexFileError, TarError, in_words, quoted
from shardio.fields.base import FieldType
from shardio.fields.recorded import record_type, restore_type
from shardio.indexing.shard_index import ShardIndex, encode_index
from shardio.storage.folder import Folder, is_plain_name
from shardio.storage.location import Location, locate

_Place = TypeVar("_Place", Path, Location)

MANIFEST_NAME = "shardio.json"
PACKING_NAME = ".shardio-pack"  # lies in a folder while it is packed
INDEX_FOLDER = "index"
INDEX_SUFFIX = ".idx"
_VERSION, _WITH_TYPES = 1, 2
_MOST_BYTES = 1 << 28  # of a manifest, which has some 200 bytes a shard
_UNFIT = frozenset("\\?#")  # characters of a name that servers take for something else
_SHA256 = re.compile(r"(?:[0-9a-f]{64})?")
_LIMIT = 1 << 63  # of counts and sizes, which are int64 in arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReceipt:
    """A written shard.

    Attributes:
        name: file name in the packed folder.
        samples: number of samples.
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
        shards: shards in order.
        fields: names of all fields, sorted.
        classes: class names by label; None where samples have no labels.
        types: types of all fields; None if they follow from the names of the fields.
    """

    shards: tuple[ShardReceipt, ...]
    fields: tuple[str, ...]
    classes: tuple[str, ...] | None
    types: Mapping[str, FieldType] | None = None


def pack_with_same_classes(what: str = "them again") -> str:
    """Return the advice for folders whose classes are numbered differently."""
    return f"pack {what} with the same list of names, {in_words('classes=', '--classes names.txt')}"


def class_conflict(
    classes: Sequence[str], where: object, others: Sequence[str], elsewhere: object
) -> str | None:
    """Tell a class that two folders number differently; None if they have none.

    Lists without a common name are of different datasets, and have no conflict.

    Args:
        classes: class names of a folder by number.
        where: the folder, for the message.
        others: class names of another folder.
        elsewhere: the other folder.
    """
    numbers = {name: number for number, name in enumerate(others)}
    shared = [(name, number) for number, name in enumerate(classes) if name in numbers]
    for name, number in shared:
        if numbers[name] != number:
            other = numbers[name]
            return f"class {quoted(name)} is {number} in {where} and {other} in {elsewhere}"
    for number, (name, other_name) in enumerate(zip(classes, others, strict=False)):
        if shared and name != other_name:
            names = f"{quoted(name)} in {where} and {quoted(other_name)} in {elsewhere}"
            return f"class {number} is {names}"
    return None


def index_path(shard: _Place) -> _Place:
    """Return the path of a shard's index."""
    return shard.parent / INDEX_FOLDER / f"{shard.name}{INDEX_SUFFIX}"


def receipt_of(name: str, index: ShardIndex) -> ShardReceipt:
    """Make the receipt of a shard from its index.

    Args:
        name: file name of the shard.
        index: index of the shard, made of the whole file.
    """
    return ShardReceipt(
        name=name,
        samples=len(index),
        size=index.shard_size,
        sha256=index.shard_sha256 or "",
    )


def write_index(shards: Folder, name: str, index: ShardIndex) -> None:
    """Write the index of a shard atomically.

    Args:
        shards: folder of the shard.
        name: file name of the shard.
        index: index of the shard.

    Raises:
        OutputError: something else than a file or folder has the place of the index or its folder.
        OSError: the index cannot be written.
    """
    path = index_path(shards.path / name)
    with (
        shards.inside(path.parent.name, make=True) as indexes,
        indexes.write(path.name) as stream,
    ):
        stream.writelines(encode_index(index))


def write_manifest(folder: Folder, manifest: Manifest) -> None:
    """Write the manifest of a folder atomically.

    Raises:
        OutputError: something else than a file has its place.
        OSError: it cannot be written.
    """
    with folder.write(MANIFEST_NAME) as stream:
        stream.write(encode_manifest(manifest))


def encode_manifest(manifest: Manifest) -> bytes:
    """Encode a manifest as the bytes of its file."""
    return json.dumps(manifest_document(manifest), indent=1).encode() + b"\n"


def manifest_document(manifest: Manifest) -> dict[str, Any]:
    """Return the document of a manifest, as JSON values."""
    return {
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
            "version": _VERSION if manifest.types is None else _WITH_TYPES,
            "crc32": _checksum(manifest),
            "fields": [*manifest.fields],
            **({} if manifest.types is None else {"types": _record(manifest.types)}),
            "classes": None if manifest.classes is None else [*manifest.classes],
        },
    }


def _record(types: Mapping[str, FieldType]) -> dict[str, Any]:
    return {field: record_type(field, type_) for field, type_ in sorted(types.items())}


def read_manifest(folder: Path | Location) -> Manifest:
    """Read the manifest of a folder.

    Raises:
        FileNotFoundError: the folder has none.
        IndexFileError: it is damaged or of a newer version, or records a type of one.
        OSError: the storage fails.
    """
    path = locate(folder) / MANIFEST_NAME
    try:
        return _parse(read_document(path))
    except IndexFileError as error:
        raise error.at(path, IndexFileError) from error
    except (ValueError, KeyError, TypeError, RecursionError, TarError) as error:
        raise IndexFileError(
            f"the manifest is damaged or of another version ({error!r})",
            where=path,
            remedy=(
                "download or pack the folder again, or delete it and run `shardio index` on "
                "the folder, without class names"
            ),
        ) from error


def find_manifest(folder: Location) -> Manifest | None:
    """Read the manifest of a folder, by one request if it is in a store; None if it has none.

    Raises:
        IndexFileError, OSError: see read_manifest.
    """
    if folder.is_local and not (folder / MANIFEST_NAME).is_file():
        return None
    try:
        return read_manifest(folder)
    except FileNotFoundError:
        return None


def read_document(path: Location) -> Any:
    """Read the JSON of a manifest.

    Raises:
        ValueError: it is no JSON, or too large for a manifest.
        OSError: the storage fails.
    """
    file = path.open()
    if file.size > _MOST_BYTES:
        raise ValueError(f"it is larger than {_MOST_BYTES >> 20:,} MiB")
    return json.loads(file.read(0, file.size))


def _parse(document: dict[str, Any]) -> Manifest:
    own = document["shardio"]
    if own["version"] not in (_VERSION, _WITH_TYPES):
        raise ValueError(f"version {own['version']}, expected {_VERSION} or {_WITH_TYPES}")
    manifest = Manifest(
        shards=tuple(_parse_shard(entry) for entry in document["shardlist"]),
        fields=_parse_names(own["fields"]),
        classes=None if own["classes"] is None else _parse_names(own["classes"]),
        types=_parse_types(own) if own["version"] == _WITH_TYPES else None,
    )
    for name, times in Counter(shard.name for shard in manifest.shards).items():
        if times > 1:
            raise ValueError(f"it names the shard {name} {times} times")
    if own.get("crc32") not in {None, _checksum(manifest)}:
        raise ValueError("its checksum differs; if the change is meant, remove its crc32")
    return manifest


def _parse_shard(entry: dict[str, Any]) -> ShardReceipt:
    name, samples, size = entry["url"], entry["nsamples"], entry["filesize"]
    digest = entry["sha256"]  # names the shard in the cache, so it must be one
    if (
        not _is_shard_name(name)
        or any(type(count) is not int or not 0 <= count < _LIMIT for count in (samples, size))
        or not (isinstance(digest, str) and _SHA256.fullmatch(digest))
    ):
        raise ValueError(f"no shard can be {quoted(entry)}")
    return ShardReceipt(name=name, samples=samples, size=size, sha256=digest)


def _is_shard_name(name: object) -> TypeGuard[str]:
    """Return whether a value names a file in the folder, in whatever storage the folder is."""
    return is_plain_name(name) and name.isprintable() and not _UNFIT & {*name}


def _parse_names(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{names!r} is not a list of names")
    return tuple(names)


def _parse_types(own: dict[str, Any]) -> dict[str, FieldType]:
    records = own["types"]
    if not isinstance(records, dict) or records.keys() != {*own["fields"]}:
        raise ValueError("its types are not those of its fields")
    return {field: restore_type(field, record) for field, record in records.items()}


def _checksum(manifest: Manifest) -> str:
    shards = [[shard.name, shard.samples, shard.size, shard.sha256] for shard in manifest.shards]
    types = [] if manifest.types is None else [_record(manifest.types)]
    facts = json.dumps([shards, manifest.fields, manifest.classes, *types])
    return f"{zlib.crc32(facts.encode()):08x}"
