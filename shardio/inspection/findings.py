"""Findings of a verification, and the shards and folders to verify.

A finding says what is wrong, where, and what to do. Unlike opening a dataset, looking for the
shards of a source does not stop at an error. An unreadable manifest, a missing shard or a leftover
file is a finding, and the existing shards are verified.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shardio.errors import (
    IndexFileError,
    ShardioError,
    counted,
    escaped,
    in_words,
    quoted,
)
from shardio.fields.base import FieldType
from shardio.indexing.manifest import (
    INDEX_FOLDER,
    INDEX_SUFFIX,
    MANIFEST_NAME,
    PACKING_NAME,
    Manifest,
    ShardReceipt,
    index_path,
    manifest_document,
    read_document,
    read_manifest,
)
from shardio.indexing.parts import (
    SHARD_SUFFIXES,
    ShardPaths,
    find_shards,
    find_splits,
    find_stored,
    is_packed,
    list_parts,
)
from shardio.packing.layout import WORK_FOLDER
from shardio.storage.base import Storage, restore
from shardio.storage.folder import final_name
from shardio.storage.location import Location, Options

Severity = Literal["problem", "note"]

_MOST = 1000  # findings of each severity to list for one shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Single result of a verification.

    Attributes:
        severity: "problem", or "note" for something that readers accept, such as members that
            belong to no sample, or a field that some samples lack.
        shard: path of the shard, index, manifest or folder.
        key: key of the sample, or None.
        field: field of the sample, or None.
        offset: byte offset in the shard, or None.
        what: description of the finding.
        remedy: advice to the user.
    """

    severity: Severity = "problem"
    shard: str
    key: str | None = None
    field: str | None = None
    offset: int | None = None
    what: str
    remedy: str

    def __str__(self) -> str:
        """Return the finding as one sentence."""
        place = [escaped(self.shard)]
        if self.offset is not None:
            place.append(f"byte {self.offset}")
        if self.key is not None:
            place.append(f"sample {quoted(self.key)}")
        if self.field is not None:
            place.append(f"field {quoted(self.field)}")
        mark = "note: " if self.severity == "note" else ""
        return f"{mark}{', '.join(place)}: {escaped(self.what)}; {self.remedy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassShare:
    """Share of a class in a field.

    Attributes:
        number: class number.
        values: number of values, such as pixels.
        samples: number of samples that have any.
    """

    number: int
    values: int
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldStatistics:
    """Statistics of a field.

    Attributes:
        name: name of the field.
        kind: name of its type.
        samples: number of samples with a sound value.
        unit: plural name of what is counted in values, such as "pixels".
        values: number of them in all samples.
        low: smallest value; None if there is none.
        high: largest value; None if there is none.
        counts: number of values by property, such as "zero" and "not finite".
        classes: classes by number; None if the values have no classes.
        complete: whether `classes` has all class numbers; False if there are more than 10,000, of
            which the smallest are listed.
    """

    name: str
    kind: str
    samples: int
    unit: str
    values: int
    low: float | None
    high: float | None
    counts: Mapping[str, int]
    classes: tuple[ClassShare, ...] | None
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Result of a verification.

    Attributes:
        shards: number of shards read.
        samples: number of samples in them.
        members: number of members in them, including those of no sample.
        bytes: total size of the uncompressed tars.
        findings: findings in the order of the shards.
        statistics: statistics of the fields by name, if their data were decoded.
    """

    shards: int
    samples: int
    members: int
    bytes: int
    findings: tuple[Finding, ...]
    statistics: tuple[FieldStatistics, ...] = ()

    @property
    def problems(self) -> tuple[Finding, ...]:
        """Findings that are not notes."""
        return tuple(each for each in self.findings if each.severity == "problem")

    @property
    def sound(self) -> bool:
        """Whether there are no problems."""
        return not self.problems


class Findings:
    """Collection of the findings in one shard, limited to a readable number.

    Args:
        shard: path of the shard.
    """

    def __init__(self, shard: str) -> None:
        self._shard = shard
        self._found: list[Finding] = []
        self._counts: dict[Severity, int] = {"problem": 0, "note": 0}

    def add(
        self,
        what: str,
        remedy: str,
        *,
        severity: Severity = "problem",
        shard: str | None = None,
        key: str | None = None,
        field: str | None = None,
        offset: int | None = None,
    ) -> None:
        """Add a finding; see Finding. By default it is about the shard of the collection."""
        self._counts[severity] += 1
        if self._counts[severity] <= _MOST:
            self._found.append(
                Finding(
                    severity=severity,
                    shard=self._shard if shard is None else shard,
                    key=key,
                    field=field,
                    offset=offset,
                    what=what,
                    remedy=remedy,
                )
            )

    def add_error(self, error: ShardioError) -> None:
        """Add an error as a finding."""
        self.add(
            error.what,
            error.remedy or "",
            shard=error.where if error.shard is None else error.shard,
            key=error.key,
            field=error.field,
            offset=error.offset,
        )

    def all(self) -> tuple[Finding, ...]:
        """Return the findings; the last ones say how many are not listed."""
        left = [
            Finding(
                severity=severity,
                shard=self._shard,
                what=f"{counted(count - _MOST, f'more {severity}')} of this shard "
                f"{'is' if count - _MOST == 1 else 'are'} not listed",
                remedy="fix those listed, and verify again",
            )
            for severity, count in self._counts.items()
            if count > _MOST
        ]
        return (*self._found, *left)


def finding_of(error: ShardioError, shard: str) -> Finding:
    """Convert an error to a finding."""
    found = Findings(shard)
    found.add_error(error)
    return found.all()[0]


def rewrite_manifest(purpose: str) -> str:
    """Return the advice to have a manifest follow its shards as they are."""
    way = in_words("`shardio.index` with `force=True`", "`shardio index --force`")
    return f"run {way} {purpose}"


_INDEX_SUFFIXES = tuple(suffix + INDEX_SUFFIX for suffix in SHARD_SUFFIXES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopedShard:
    """Shard to verify.

    Attributes:
        path: path of the shard.
        receipt: entry of the shard in the manifest, or None.
        packed: whether the shard is in a packed folder and must have an index.
        missing: whether the manifest lists the shard but the file does not exist.
        types: types of its fields that the manifest records; others follow from their names.
    """

    path: Location
    receipt: ShardReceipt | None
    packed: bool
    missing: bool = False
    types: Mapping[str, FieldType] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePart:
    """Shards of one dataset.

    Attributes:
        path: path of the folder, or the path or pattern given by the user.
        manifest: manifest of the folder; None if it is missing or unreadable.
        shards: shards in order.
        findings: findings about the manifest and the other files of the folder.
    """

    path: Location
    manifest: Manifest | None
    shards: tuple[ScopedShard, ...]
    findings: tuple[Finding, ...]


def find_parts(
    source: ShardPaths, storage: Storage | None = None, options: Options | None = None
) -> list[SourcePart]:
    """Find the packed folders, folders of splits and tars of a source.

    Args:
        source: see shardio.indexing.catalog.open_catalog.
        storage: see shardio.indexing.catalog.open_catalog.
        options: see shardio.indexing.catalog.open_catalog.

    Raises:
        UsageError: the source does not exist or is not supported.
        OSError: a folder cannot be read.
    """
    return [part for path in list_parts(source, storage, options) for part in _parts_of(path)]


def _parts_of(path: Location) -> list[SourcePart]:
    if not path.can_list:
        return [_folder(path) if is_packed(path) else _named(path)]
    if not path.is_folder():
        return [_named(path)]
    splits = [] if is_packed(path) or _shards_in(path) else _splits_of(path)
    if splits:
        above = SourcePart(
            path=path, manifest=None, shards=(), findings=tuple(_leftovers(path, set()))
        )
        return [above, *(_folder(split, is_split=True) for split in splits)]
    if not (is_packed(path) or _shards_in(path) or (path / PACKING_NAME).exists()):
        _find_shards(path)  # says that there are none
    return [_folder(path)]


def _splits_of(folder: Location) -> list[Location]:
    """Return the packed folders inside; if there are any, also those that seem to have been."""
    packed = find_splits(folder)
    if not packed:
        return []
    inside = [folder / name for name in folder.names() if not name.startswith(".")]
    return [path for path in inside if path in packed or (path / INDEX_FOLDER).is_folder()]


def _find_shards(path: Location) -> list[Location]:
    """List the shards that a path or pattern names; see shardio.indexing.catalog.find_shards."""
    if path.is_local:
        return [Location(path.storage, str(shard)) for shard in find_shards(Path(path))]
    return find_stored(path)


def _named(path: Location) -> SourcePart:
    """Return the shards given one by one or by a pattern."""
    findings: list[Finding] = []
    shards: list[ScopedShard] = []
    manifests: dict[Location, Manifest | None] = {}
    try:
        found = _find_shards(path)
    except IndexFileError as error:
        return SourcePart(
            path=path, manifest=None, shards=(), findings=(finding_of(error, str(path)),)
        )
    for shard in found:
        folder = shard.parent
        if folder not in manifests:
            manifests[folder], wrong = _read_manifest(folder)
            findings += wrong
        manifest = manifests[folder]
        receipt = _receipts(manifest).get(shard.name)
        shards.append(
            ScopedShard(
                path=shard, receipt=receipt, packed=receipt is not None, types=_types(manifest)
            )
        )
    return SourcePart(path=path, manifest=None, shards=tuple(shards), findings=tuple(findings))


def _folder(folder: Location, *, is_split: bool = False) -> SourcePart:
    manifest, findings = _read_manifest(folder)
    if is_split and not (folder / MANIFEST_NAME).exists():
        found = Findings(str(folder))
        found.add("the manifest is missing, though other splits have one", "fetch or pack it again")
        findings += found.all()
    there = _shards_in(folder, manifest)
    if manifest is None:
        packed = (folder / MANIFEST_NAME).exists()
        shards = [ScopedShard(path=path, receipt=None, packed=packed) for path in there]
    else:
        present, receipts = {path.name for path in there}, _receipts(manifest)
        shards = [
            ScopedShard(
                path=folder / name,
                receipt=receipt,
                packed=True,
                missing=name not in present,
                types=_types(manifest),
            )
            for name, receipt in receipts.items()
        ]
        findings += _missing(shards)
        findings += [
            Finding(
                shard=str(path),
                what="the manifest does not list this shard",
                remedy=f"remove it, or {rewrite_manifest('to include it')}",
            )
            for path in there
            if path.name not in receipts
        ]
    findings += _leftovers(folder, {shard.path.name for shard in shards})
    return SourcePart(
        path=folder, manifest=manifest, shards=tuple(shards), findings=tuple(findings)
    )


def _shards_in(folder: Location, manifest: Manifest | None = None) -> list[Location]:
    """Return the files with names of shards, sorted; if none are listed, those of a manifest."""
    if not folder.can_list:
        return [folder / name for name in _receipts(manifest) if (folder / name).is_file()]
    found = [name for name in folder.names() if name.endswith(SHARD_SUFFIXES)]
    return [folder / name for name in found if not name.startswith(".")]


def _receipts(manifest: Manifest | None) -> dict[str, ShardReceipt]:
    return {receipt.name: receipt for receipt in (manifest.shards if manifest is not None else ())}


def _types(manifest: Manifest | None) -> Mapping[str, FieldType]:
    return (manifest.types if manifest is not None else None) or {}


def _missing(shards: list[ScopedShard]) -> list[Finding]:
    return [
        Finding(
            shard=str(shard.path),
            what="the shard is missing; the manifest lists "
            f"{counted(shard.receipt.samples, 'sample')} in it",
            remedy=restore(),
        )
        for shard in shards
        if shard.missing and shard.receipt is not None
    ]


def _read_manifest(folder: Location) -> tuple[Manifest | None, list[Finding]]:
    path = folder / MANIFEST_NAME
    if not path.exists():
        return None, []
    try:
        manifest = read_manifest(folder)
    except IndexFileError as error:
        return None, [finding_of(error, str(path))]
    except OSError as error:
        found = Findings(str(path))
        found.add(f"the manifest cannot be read ({error.strerror})", "fetch or pack it again")
        return None, [*found.all()]
    return manifest, _compare_document(path, manifest)


def _compare_document(path: Location, manifest: Manifest) -> list[Finding]:
    """Find changed values that the checksum does not cover but other readers may use."""
    said, expected = read_document(path), manifest_document(manifest)
    own, own_expected = said["shardio"], expected["shardio"]
    found = Findings(str(path))
    if "crc32" not in own and own.keys() < own_expected.keys():
        found.add(
            "the manifest has no checksum, so changes to it go unnoticed",
            rewrite_manifest("on the folder to add one"),
            severity="note",
        )
        own_expected.pop("crc32")
    changed = [name for name in expected if said.get(name) != expected[name]]
    if changed:
        found.add(
            "the manifest was changed after shardio wrote it: " + ", ".join(map(quoted, changed)),
            rewrite_manifest("on the folder to rewrite it"),
        )
    return [*found.all()]


def _leftovers(folder: Location, shards: set[str]) -> list[Finding]:
    """Find the files that a pack or a removed shard left in a folder."""
    found: list[Finding] = []

    def add(path: Location, what: str, remedy: str) -> None:
        found.append(Finding(shard=str(path), what=what, remedy=remedy))

    for name in (PACKING_NAME, WORK_FOLDER):
        if (folder / name).exists() or (folder / name).is_folder():
            add(
                folder / name,
                "writing into this folder was interrupted or is still running",
                "wait for it, or run the same command again",
            )
            break
    for inside in (folder, folder / INDEX_FOLDER) if folder.can_list else ():
        for name in inside.names():
            if final_name(name) != name and (inside / name).is_file():
                what = "a temporary file is left from an interrupted pack or index"
                add(inside / name, what, "remove it")
    for path in indexes_without_shard(folder, shards):
        add(path, "the shard of this index is missing", "remove it, or fetch the shard again")
    return found


def indexes_without_shard(folder: Location, shards: Collection[str]) -> list[Location]:
    """List the indexes of a folder whose shards are not among some names."""
    if not folder.can_list:
        return []
    inside, known = folder / INDEX_FOLDER, {index_path(folder / name).name for name in shards}
    names = [name for name in inside.names() if final_name(name) == name and name not in known]
    found = [inside / name for name in names if name.endswith(_INDEX_SUFFIXES)]
    return [path for path in found if path.is_file()]
