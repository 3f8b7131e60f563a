"""Opening a source: from what the user names to a list of shards with their sample counts.

A packed folder answers from its manifest alone. Shards that others made answer from their index
beside them, or from one that is built by a header scan on first use and kept in the cache
folder, so that later processes map it instead of scanning again. An index in the cache that does
not read is built again; one beside its shard is the user's, and an error.

What has no checksums of its data must not change between the scan and the reading: its size and
time of change are compared when it is opened and when a window begins, its headers at each
reading. Inode and ctime are not: chmod, or a copy that keeps the time of change, leaves the same
shard.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import braceexpand

from shardio.errors import IndexFileError, SituationError, TarError, UsageError, quoted
from shardio.fields.base import FieldType
from shardio.fields.recorded import merge_types
from shardio.indexing.manifest import (
    INDEX_SUFFIX,
    MANIFEST_NAME,
    PACKING_NAME,
    Manifest,
    index_path,
    read_manifest,
)
from shardio.indexing.scan import index_shard, warn_of_dots, warn_of_missing_ends
from shardio.indexing.shard_index import ShardIndex, encode_index, read_index
from shardio.storage.base import Storage, StoredFile
from shardio.storage.cache import cache_entry, new_entry, plain_tar
from shardio.storage.compression import COMPRESSED_SUFFIXES
from shardio.storage.downloads import RemoteShard
from shardio.storage.folder import atomic_file
from shardio.storage.local import LOCAL
from shardio.storage.location import Location, Options, locate
from shardio.storage.remote import RemoteStorage

_MOST_NAMES = 1_000_000  # that braces may stand for
_NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?")  # ranges, as braceexpand has them
_LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])(?:\.\.-?(\d+))?")
_ALPHABET = string.ascii_uppercase + string.ascii_lowercase
SHARD_SUFFIXES = (".tar", *COMPRESSED_SUFFIXES)
_Recorded = dict[Path, Mapping[str, FieldType] | None]
ShardPaths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One shard of a dataset.

    Attributes:
        name: path as the user knows it; errors use it.
        path: path of the uncompressed tar, absolute if it is local.
        index: path of its index file, likewise.
        storage: storage of both.
        samples: number of samples.
        size: bytes of the uncompressed tar.
        contents: hexadecimal digest of it, or of its index where nobody has read it whole.
        sha256: hexadecimal digest of the tar, where a manifest records it.
        version: version of the tar when it was indexed, see shardio.storage.base.FileStat; None
            where checksums of the data tell.
    """

    name: str
    path: str
    index: str
    samples: int
    size: int
    contents: str
    version: str | None = None
    storage: Storage = LOCAL
    sha256: str | None = None

    @property
    def remote(self) -> RemoteShard | None:
        """The shard as one of a store, whose shards are fetched; None for any other."""
        if not isinstance(self.storage, RemoteStorage):
            return None
        return RemoteShard(
            storage=self.storage,
            path=self.path,
            name=self.name,
            size=self.size,
            sha256=self.sha256,
            version=self.version,
        )

    def load_index(self) -> ShardIndex:
        """Map the shard's index, which is fetched if the shard is one of a store.

        Raises:
            IndexFileError: it is missing, damaged, or of another shard.
        """
        remote = self.remote
        if remote is None:
            return self._check(read_index(Location(self.storage, self.index)))
        path = remote.cache.index_path(remote)
        with suppress(IndexFileError, OSError):
            return self._check(read_index(path))
        file = Location(self.storage, self.index).open()
        with atomic_file(path) as stream:
            stream.write(file.read(0, file.size))
        return self._check(read_index(path))

    def _check(self, index: ShardIndex) -> ShardIndex:
        """Return an index that is of this shard.

        Raises:
            IndexFileError: it is of another.
        """
        samples = len(index.offsets)
        if index.shard_size != self.size or samples != self.samples:
            raise IndexFileError(
                f"the index is stale: it describes {samples} samples in "
                f"{index.shard_size} bytes, expected {self.samples} in {self.size}",
                where=self.name,
                remedy="run `shardio index` on the folder of the shard",
            )
        if self.version is None and index.checksums is None:
            raise IndexFileError(
                "the index has no checksums, which that of a packed shard has",
                where=self.name,
                remedy="run `shardio index` on the folder of the shard",
            )
        if self.contents != index.contents():
            raise IndexFileError(
                "the index is of other contents: the shard was changed after the dataset "
                "was opened",
                where=self.name,
                remedy="open it again, or run `shardio index`",
            )
        return index

    def open_file(self) -> StoredFile:
        """Open the shard's file.

        Raises:
            TarError: it is missing, or not the file that was indexed.
            OSError: it cannot be opened.
        """
        try:
            file = self.storage.open(self.path, self.name)
        except FileNotFoundError as error:
            raise self._missing() from error
        self._compare(file.size, file.version)
        return file

    def verify_unchanged(self) -> None:
        """Compare the file that lies at the path now, where checksums do not tell.

        Raises:
            TarError: it is missing, or not the file that was indexed.
            OSError: it cannot be looked at.
        """
        if self.version is None:
            return
        try:
            found = self.storage.stat(self.path)
        except FileNotFoundError as error:
            raise self._missing() from error
        self._compare(found.size, found.version)

    def _missing(self) -> TarError:
        return TarError(
            "the shard is missing",
            where=self.name,
            remedy="download or pack it again",
            shard=self.name,
        )

    def _compare(self, size: int, version: str) -> None:
        if size != self.size:
            raise TarError(
                f"the shard has {size} bytes, its index expects {self.size}, so it was changed or "
                "truncated",
                where=self.name,
                remedy="download it again, or run `shardio index` on its folder if it is whole",
                shard=self.name,
            )
        if self.version not in (None, version):
            raise TarError(
                "the shard was changed after the dataset was opened",
                where=self.name,
                remedy="open it again",
                shard=self.name,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """The shards of a dataset.

    Attributes:
        shards: shards in order.
        fields: names of all fields, sorted.
        classes: class names by label, where they are known.
        types: types of all fields, as packed folders record them, otherwise by their names.
    """

    shards: tuple[ShardEntry, ...]
    fields: tuple[str, ...]
    classes: tuple[str, ...] | None
    types: Mapping[str, FieldType]

    def digest(self) -> str:
        """Return 16 hexadecimal digits that identify these shards, wherever they lie."""
        known = hashlib.sha256()
        for shard in self.shards:
            known.update(f"{shard.samples} {shard.size} {shard.contents}\n".encode())
        return known.hexdigest()[:16]


def open_catalog(
    source: ShardPaths,
    *,
    storage: Storage | None = None,
    options: Options | None = None,
    allow_empty: bool = False,
) -> Catalog:
    """Find the shards of a source.

    Args:
        source: a packed folder or its manifest, a folder of tars, a shard, a glob, a brace
            pattern such as `out/shard-{000000..000007}.tar`, or a list of these; `~` is the
            home folder.
        storage: storage of the source; None chooses it by the scheme of a URL.
        options: options of a storage that the scheme chooses, by name.
        allow_empty: take tars that have members, none of which is a field of a sample.

    Raises:
        UsageError: nothing is there, or it is not a source.
        IndexFileError: a manifest or index is damaged or stale, or a pack is unfinished.
        TarError: a shard without index is damaged, or one without samples is not an empty archive.
    """
    parts = list_parts(source, storage, options)
    packed = {part: _open_packed(part) for part in parts if is_packed(part)}
    unmarked: list[str] = []
    beside: _Recorded = {}
    catalogs = [packed.get(part) or _open_foreign(part, unmarked, beside) for part in parts]
    warn_of_missing_ends(unmarked)
    shards = tuple(shard for catalog in catalogs for shard in catalog.shards)
    for shard in shards:
        if not shard.samples:  # whoever made the index, the tar must say that there are none
            _refuse_stale(shard, allow_empty=allow_empty)
    classes = _common_classes(packed.values())
    types = merge_types(
        (str(part), catalog.types, catalog.types)
        for part, catalog in zip(parts, catalogs, strict=True)
    )
    return Catalog(
        shards=shards,
        fields=tuple(sorted({field for catalog in catalogs for field in catalog.fields})),
        classes=classes if packed.keys() >= set(parts) else None,
        types=types,
    )


def _refuse_stale(shard: ShardEntry, *, allow_empty: bool) -> None:
    """Raise IndexFileError if a shard has samples and its index has none."""
    found = index_shard(
        Location(shard.storage, shard.path),
        name=shard.name,
        checksums=False,
        allow_empty=allow_empty,
    )
    if len(found):
        raise IndexFileError(
            f"the index is stale: it has no samples, the shard has {len(found)}",
            where=shard.name,
            remedy="run `shardio index` on the folder of the shard",
            shard=shard.name,
        )


def list_parts(
    source: ShardPaths, storage: Storage | None = None, options: Options | None = None
) -> list[Location]:
    """List what a source names: folders, files and patterns; a manifest is its folder.

    Args:
        source: see open_catalog.
        storage: see open_catalog.
        options: see open_catalog.

    Raises:
        UsageError: it is neither a path nor a list of paths, or a URL, or the list is empty.
    """
    named = source
    if isinstance(source, os.PathLike) and not isinstance(source, Location):
        named = os.fspath(source)
    if isinstance(named, str | Location):
        part = locate(named, storage, options)
        if part.is_local:
            part = Location(part.storage, os.path.expanduser(part.path))  # noqa: PTH111  an unknown ~user stays
        return [part.parent if part.name == MANIFEST_NAME and part.is_file() else part]
    if not isinstance(named, Sequence) or isinstance(named, bytes | bytearray):
        raise UsageError(
            f"{quoted(source)} is not a source of shards",
            remedy="give a path or pattern as text, or a list of them",
        )
    if not named:
        raise UsageError("the list of shards is empty", remedy="name a packed folder or shards")
    return [part for element in named for part in list_parts(element, storage, options)]


def is_packed(part: Path | Location) -> bool:
    """Tell whether a part of a source is a folder with a manifest."""
    return (locate(part) / MANIFEST_NAME).is_file()


def find_splits(folder: Path | Location) -> list[Location]:
    """List the packed folders inside a folder, by name."""
    inside = locate(folder)
    paths = [inside / name for name in sorted(inside.names()) if not name.startswith(".")]
    return [path for path in paths if is_packed(path)]


def find_shards(part: Path) -> list[Path]:
    """Find the shard files of one part of a source, in order.

    Raises:
        UsageError: nothing is there, or something else than files.
        IndexFileError: a pack into the folder of a shard was interrupted or still runs.
    """
    if part.is_dir():
        refuse_unfinished(part)
        shards = sorted(path for path in part.iterdir() if path.name.endswith(SHARD_SUFFIXES))
        shards = [path for path in shards if not path.name.startswith(".")]
        _refuse_twins(shards)
        if not shards:
            splits = [path.name for path in find_splits(part)]
            way = (
                f"it has {', '.join(splits)}: name one"
                if splits
                else "make some with `shardio pack`"
            )
            raise SituationError(
                "no shards (*.tar, plain or compressed) in this folder", where=part, remedy=way
            )
    else:
        shards = [part] if part.exists() else expand_pattern(str(part))
    for folder in sorted({shard.parent for shard in shards}):
        refuse_unfinished(folder)
    for shard in shards:
        if not shard.is_file():
            raise SituationError(
                f"{part} names it as a shard, and it is not a file",
                where=shard,
                remedy=(
                    "use a pattern that matches only shards, such as *.tar, or a list of folders"
                ),
            )
    return shards


def _refuse_twins(shards: Sequence[Path]) -> None:
    """Raise UsageError if a folder has a shard and a compressed copy of it, by their names."""
    known: dict[str, Path] = {}
    for shard in shards:
        stem = shard.name.removesuffix(next(filter(shard.name.endswith, SHARD_SUFFIXES)))
        if stem in known:
            raise SituationError(
                f"{known[stem].name} and {shard.name} look like one shard twice",
                where=shard.parent,
                remedy="move one away, or name the shards in a list",
            )
        known[stem] = shard


def refuse_missing(folder: Path | Location, manifest: Manifest) -> None:
    """Raise IndexFileError if a shard of a manifest is not in its folder."""
    if not locate(folder).can_list:  # then a missing shard is noticed when it is opened
        return
    present = {*locate(folder).names()}
    missing = [shard.name for shard in manifest.shards if shard.name not in present]
    if missing:
        raise IndexFileError(
            f"{len(missing)} of {len(manifest.shards)} shards are missing, the first is "
            f"{missing[0]}",
            where=folder,
            remedy="download or pack them again",
        )


def refuse_unfinished(folder: Path | Location) -> None:
    """Raise IndexFileError if a pack into the folder has begun and not ended."""
    if (locate(folder) / PACKING_NAME).exists():
        raise IndexFileError(
            "a pack into this folder was interrupted or still runs, so shards may be missing",
            where=folder,
            remedy="wait for it, or run the same `shardio pack` again",
        )


def expand_pattern(pattern: str) -> list[Path]:
    """Find the files of a glob or a brace pattern, in order.

    Raises:
        UsageError: it is not a pattern, its braces stand for more than a million files, one of
            these does not exist, or none matches it.
    """
    if "::" in pattern:
        raise UsageError(
            "no such file, and sources joined by '::' are not read",
            where=pattern,
            remedy="give them one by one, as a list",
        )
    names: list[str] = []
    try:
        named = count_names(pattern)
        if named <= _MOST_NAMES and "{" in pattern:
            names = [*braceexpand.braceexpand(pattern)]
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"no such file, and its braces are not a pattern ({error})",
            where=pattern,
            remedy="write them like shard-{000000..000007}.tar",
        ) from error
    if named > _MOST_NAMES:
        raise UsageError(
            f"its braces stand for more than {_MOST_NAMES:,} files",
            where=pattern,
            remedy="name their folder, or use * in place of the numbers",
        )
    expanded = [Path(name) for name in names]
    missing = [str(path) for path in expanded if not path.exists()]
    if missing:
        raise SituationError(
            f"{len(missing)} of {len(expanded)} shards do not exist, the first is {missing[0]}",
            where=pattern,
        )
    shards = expanded or [Path(name) for name in sorted(glob.glob(pattern))]  # noqa: PTH207  absolute patterns too
    if not shards:
        raise SituationError("no such folder or shard, and no file matches it", where=pattern)
    return shards


def count_names(pattern: str) -> int:
    """Count the names that the braces of a pattern stand for, without making them.

    Braces multiply, commas add, as braceexpand has it; what it does not take it refuses later.

    Raises:
        ValueError: a number in braces has thousands of digits.
    """
    outer: list[tuple[int, int, int]] = []  # of each open brace: product and sum before, place
    product, total, position, closed = 1, 0, 0, 0
    while position < len(pattern):
        character = pattern[position]
        if character == "\\":
            position += 1
        elif character == "{" and closed:
            closed -= 1
        elif character == "{":
            outer.append((product, total, position + 1))
            product, total = 1, 0
        elif character == "," and outer:
            product, total = 1, total + product
        elif character == "}" and outer:
            inside = total + product
            product, total, start = outer.pop()
            product *= _count_range(pattern[start:position]) or inside
        elif character == "}":
            closed += 1
        position += 1
    return product


def _count_range(inside: str) -> int:
    """Count the values of a range such as 000..007, which braces may hold; 0 if it is none."""
    if found := _NUMBERS.fullmatch(inside):
        first, last = int(found[1]), int(found[2])
    elif found := _LETTERS.fullmatch(inside):
        first, last = (_ALPHABET.index(found[side]) for side in (1, 2))
    else:
        return 0
    return abs(last - first) // (int(found[3] or 1) or 1) + 1


def _common_classes(packed: Iterable[Catalog]) -> tuple[str, ...] | None:
    classes = {catalog.classes for catalog in packed}
    if len(classes) > 1:
        raise SituationError(
            "the folders were packed with different classes, so that equal labels mean "
            "different things",
            remedy="pack them with the same class folders",
        )
    return classes.pop() if classes else None


def _open_foreign(part: Location, unmarked: list[str], beside: _Recorded) -> Catalog:
    """Open single shards, or those that others made.

    Args:
        part: part of a source.
        unmarked: list to which the names of shards without an end mark are added.
        beside: types that the manifests beside shards record, which is added to.
    """
    if not part.is_local:
        refuse_unfinished(part)
        raise SituationError(
            f"no packed folder is there (it has no {MANIFEST_NAME})",
            where=part,
            remedy="download the shards; without a manifest they are read from local files only",
        )
    entries: list[ShardEntry] = []
    names: dict[Path, set[str]] = {}
    for shard in find_shards(Path(part)):
        plain = plain_tar(shard)
        version = LOCAL.stat(str(plain)).version  # before the scan: a change meanwhile is noticed
        path, index = _index_of(shard, plain)
        names.setdefault(shard.parent, set()).update(index.fields)
        if not (index.has_end or index.shard_sha256):
            unmarked.append(str(shard))
        entries.append(
            ShardEntry(
                name=str(shard),
                path=str(plain.absolute()),
                index=str(path.absolute()),
                samples=len(index),
                size=index.shard_size,
                contents=index.contents(),
                version=None if index.checksums is not None else version,
            )
        )
    types = merge_types(
        (str(folder), some, _types_beside(folder, beside)) for folder, some in names.items()
    )
    fields = {field for some in names.values() for field in some}
    warn_of_dots(part, fields)
    return Catalog(shards=tuple(entries), fields=tuple(sorted(fields)), classes=None, types=types)


def _types_beside(folder: Path, beside: _Recorded) -> Mapping[str, FieldType] | None:
    """Return the types that the manifest in the folder of single shards records."""
    if folder not in beside:
        beside[folder] = read_manifest(folder).types if is_packed(folder) else None
    return beside[folder]


def _open_packed(folder: Location) -> Catalog:
    if folder.is_local:  # elsewhere the manifest alone says that a pack has ended
        refuse_unfinished(folder)
    manifest = read_manifest(folder)
    refuse_missing(folder, manifest)
    entries = tuple(
        ShardEntry(
            name=str(folder / shard.name),
            path=str((folder / shard.name).absolute()),
            index=str(index_path(folder / shard.name).absolute()),
            storage=folder.storage,
            samples=shard.samples,
            size=shard.size,
            contents=shard.sha256,
            sha256=shard.sha256,
        )
        for shard in manifest.shards
    )
    return Catalog(
        shards=entries,
        fields=manifest.fields,
        classes=manifest.classes,
        types=merge_types([(str(folder), manifest.fields, manifest.types)]),
    )


def _index_of(shard: Path, plain: Path) -> tuple[Path, ShardIndex]:
    beside = index_path(shard)
    if beside.exists():
        index = read_index(beside)
        size = plain.stat().st_size
        if index.shard_size != size:
            raise IndexFileError(
                f"the index is stale: it describes {index.shard_size} bytes, the shard has {size}",
                where=shard,
                remedy="run `shardio index` on the shard",
            )
        if index.verifies:
            return beside, index
    cached = cache_entry(plain, INDEX_SUFFIX)
    with suppress(IndexFileError):
        index = read_index(cached)
        if index.verifies:
            return cached, index
    index = index_shard(plain, name=str(shard), checksums=False, allow_empty=True)
    with new_entry(cached) as stream:
        stream.writelines(encode_index(index))
    return cached, read_index(cached)
