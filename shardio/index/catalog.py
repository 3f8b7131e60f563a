"""Opening a source: from what the user names to a list of shards with their sample counts.

A packed folder answers from its manifest alone. Shards that others made answer from their index
beside them, or from one that is built by a header scan on first use and kept in the cache
folder, so that later processes map it instead of scanning again.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import braceexpand

from shardio.errors import IndexFileError, UsageError
from shardio.index.build import index_shard
from shardio.index.manifest import (
    INDEX_SUFFIX,
    MANIFEST_NAME,
    PACKING_NAME,
    index_path,
    read_manifest,
)
from shardio.index.shard_index import ShardIndex, read_index, write_index
from shardio.storage.cache import GZIP_SUFFIXES, cache_entry, plain_tar

SHARD_SUFFIXES = (".tar", *GZIP_SUFFIXES)
Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One shard of a dataset.

    Attributes:
        name: path as the user knows it; errors use it.
        path: of the uncompressed tar.
        index: path of its index file.
        samples: how many it holds.
        size: bytes of the uncompressed tar.
        sha256: hexadecimal digest of it, where it is known.
    """

    name: str
    path: str
    index: str
    samples: int
    size: int
    sha256: str | None

    def load_index(self) -> ShardIndex:
        """Map the shard's index.

        Raises:
            IndexFileError: it is missing, damaged, or of another shard.
        """
        index = read_index(Path(self.index))
        if index.shard_size != self.size or len(index) != self.samples:
            raise IndexFileError(
                f"{self.name}: the index is stale: it describes {len(index)} samples in "
                f"{index.shard_size} bytes, expected {self.samples} in {self.size}; "
                "run `shardio index` on the folder of the shard"
            )
        if self.sha256 and index.shard_sha256 and self.sha256 != index.shard_sha256:
            raise IndexFileError(
                f"{self.name}: the index is of other contents (SHA-256 differs): the shard was "
                "changed after the dataset was opened; open it again, or run `shardio index`"
            )
        return index


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """The shards of a dataset.

    Attributes:
        shards: in order.
        fields: names of all fields, sorted.
        classes: class names by label, where they are known.
    """

    shards: tuple[ShardEntry, ...]
    fields: tuple[str, ...]
    classes: tuple[str, ...] | None

    def digest(self) -> str:
        """16 hexadecimal digits that tell these shards from others, wherever they lie."""
        known = hashlib.sha256()
        for shard in self.shards:
            contents = shard.sha256 or os.path.basename(shard.name)  # noqa: PTH119  a string
            known.update(f"{shard.samples} {shard.size} {contents}\n".encode(errors="replace"))
        return known.hexdigest()[:16]


def open_catalog(source: Source) -> Catalog:
    """Find the shards of a source.

    Args:
        source: a packed folder, a folder of tars, a shard, a glob, a brace pattern such as
            `out/shard-{000000..000007}.tar`, or a list of these.

    Raises:
        UsageError: nothing is there.
        IndexFileError: a manifest or index is damaged or stale.
        TarError: a shard without index is damaged.
    """
    if is_packed(source):
        return _packed(Path(source))
    if not isinstance(source, str | os.PathLike) and source and all(map(is_packed, source)):
        return _joined([_packed(Path(os.fspath(part))) for part in source])
    entries: list[ShardEntry] = []
    fields: set[str] = set()
    for shard in find_shards(source):
        plain = plain_tar(shard)
        path, index = _index_of(shard, plain)
        fields.update(index.fields)
        entries.append(
            ShardEntry(
                name=str(shard),
                path=str(plain),
                index=str(path),
                samples=len(index),
                size=index.shard_size,
                sha256=index.shard_sha256,
            )
        )
    return Catalog(shards=tuple(entries), fields=tuple(sorted(fields)), classes=None)


def is_packed(source: Source) -> TypeGuard[str | os.PathLike[str]]:
    """Whether a source is a folder with a manifest."""
    return isinstance(source, str | os.PathLike) and Path(source, MANIFEST_NAME).is_file()


def find_shards(source: Source) -> list[Path]:
    """The shard files of a source, in order; see open_catalog.

    Raises:
        UsageError: nothing is there.
        IndexFileError: a folder whose pack was interrupted or still runs.
    """
    if not isinstance(source, str | os.PathLike):
        if not source:
            raise UsageError("the list of shards is empty")
        return [shard for part in source for shard in find_shards(part)]
    path = Path(source)
    if path.is_dir():
        refuse_unfinished(path)
        shards = sorted(p for p in path.iterdir() if p.name.endswith(SHARD_SUFFIXES))
        shards = [p for p in shards if not p.name.startswith(".")]
        if not shards:
            raise UsageError(
                f"{path}: no shards (*.tar, *.tar.gz, *.tgz) in this folder; "
                "make some with `shardio pack`"
            )
        return shards
    if path.exists():
        return [path]
    pattern = os.fspath(source)
    expanded = [Path(name) for name in braceexpand.braceexpand(pattern)] if "{" in pattern else []
    missing = [str(name) for name in expanded if not name.exists()]
    if missing:
        raise UsageError(
            f"{pattern}: {len(missing)} of {len(expanded)} shards do not exist, "
            f"the first is {missing[0]}"
        )
    shards = expanded or [Path(name) for name in sorted(glob.glob(pattern))]  # noqa: PTH207  absolute patterns too
    if not shards:
        raise UsageError(f"{pattern}: no such folder or shard, and no file matches it")
    return shards


def refuse_unfinished(folder: Path) -> None:
    """Raise IndexFileError if a pack into the folder has begun and not ended."""
    if (folder / PACKING_NAME).exists():
        raise IndexFileError(
            f"{folder}: a pack into this folder was interrupted or still runs, so shards may be "
            "missing; wait for it, or run the same `shardio pack` again"
        )


def _joined(parts: list[Catalog]) -> Catalog:
    classes = {part.classes for part in parts}
    if len(classes) > 1:
        raise UsageError(
            "the folders were packed with different classes, so that equal labels mean "
            "different things; pack them with the same class folders"
        )
    return Catalog(
        shards=tuple(shard for part in parts for shard in part.shards),
        fields=tuple(sorted({field for part in parts for field in part.fields})),
        classes=classes.pop(),
    )


def _packed(folder: Path) -> Catalog:
    refuse_unfinished(folder)
    manifest = read_manifest(folder)
    present = {path.name for path in folder.iterdir()}
    missing = [shard.name for shard in manifest.shards if shard.name not in present]
    if missing:
        raise IndexFileError(
            f"{folder}: {len(missing)} of {len(manifest.shards)} shards are missing, the first "
            f"is {missing[0]}; get or pack them again"
        )
    entries = tuple(
        ShardEntry(
            name=str(folder / shard.name),
            path=str(folder / shard.name),
            index=str(index_path(folder / shard.name)),
            samples=shard.samples,
            size=shard.size,
            sha256=shard.sha256,
        )
        for shard in manifest.shards
    )
    return Catalog(shards=entries, fields=manifest.fields, classes=manifest.classes)


def _index_of(shard: Path, plain: Path) -> tuple[Path, ShardIndex]:
    beside = index_path(shard)
    if beside.is_file():
        index = read_index(beside)
        size = plain.stat().st_size
        if index.shard_size != size:
            raise IndexFileError(
                f"{shard}: the index is stale: it describes {index.shard_size} bytes, the shard "
                f"has {size}; run `shardio index` on the shard"
            )
        return beside, index
    cached = cache_entry(plain, INDEX_SUFFIX)
    if not cached.exists():
        write_index(cached, index_shard(plain, name=str(shard), checksums=False))
    return cached, read_index(cached)
