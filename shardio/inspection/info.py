"""Describe shards: samples, fields, classes, and the contents of one sample.

Counts and sizes are read from the indexes. Data are read only for the described sample, and for
class numbers that do not follow from checksums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from os import PathLike, fspath
from pathlib import Path

import numpy as np

from shardio.checks import is_whole, require, whole_number
from shardio.errors import CodecError, SituationError, UsageError
from shardio.fields.base import LABEL_FIELD, FieldType
from shardio.fields.defaults import combined_types, given_types, type_of
from shardio.fields.limits import MAX_PIXELS
from shardio.fields.recorded import describe_type, merge_types
from shardio.indexing.catalog import Catalog, open_catalog
from shardio.indexing.entry import ShardEntry
from shardio.indexing.parts import (
    SHARD_SUFFIXES,
    ShardPaths,
    find_splits,
    is_packed,
    list_parts,
    refuse_unfinished,
)
from shardio.indexing.shard_index import ShardIndex
from shardio.inspection.counts import ClassCounter, Tally, class_name
from shardio.inspection.findings import indexes_without_shard
from shardio.packing.layout import LEDGERS
from shardio.storage.base import StoredBytes
from shardio.storage.local import refuse_url
from shardio.storage.location import Location, Options

TypeOf = Callable[[str], FieldType]


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldValue:
    """Field of one sample.

    Attributes:
        name: name of the field.
        kind: name of the type of the field, and its parameters in parentheses.
        bytes: size of its data.
        offset: offset of its data in the shard.
        value: summary of the data: format and height × width of an image, number and name of a
            class, first 60 characters of text, dtype and shape of an array, first 16 bytes of
            others; or the reason why they cannot be decoded.
    """

    name: str
    kind: str
    bytes: int
    offset: int
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleInfo:
    """Description of one sample.

    Attributes:
        key: key of the sample.
        number: number of the sample in packed order.
        shard: path of its shard.
        fields: fields in the order of their data.
    """

    key: str
    number: int
    shard: str
    fields: tuple[FieldValue, ...]


class KeyFinder:
    """Search for a key, shard by shard.

    Args:
        key: key of the sample.

    Attributes:
        number: number of the first sample with the key, or None.
    """

    def __init__(self, key: str) -> None:
        self._key = key.encode("utf-8", "surrogateescape")
        self._passed = 0
        self.number: int | None = None

    def add(self, index: ShardIndex) -> None:
        """Search the keys of the next shard."""
        if self.number is None:
            starts, ends = index.key_ends[:-1], index.key_ends[1:]
            rows = np.flatnonzero(ends - starts == len(self._key))
            for place in reversed(range(len(self._key))):  # keys tend to differ at the end
                rows = rows[index.keys[starts[rows] + place] == self._key[place]]
            if len(rows):
                self.number = self._passed + int(rows[0])
        self._passed += len(index)


def look_at(
    entry: ShardEntry,
    row: int,
    *,
    number: int,
    classes: tuple[str, ...] | None,
    types: TypeOf = type_of,
) -> SampleInfo:
    """Describe a sample.

    Args:
        entry: shard of the sample.
        row: position of the sample in the shard.
        number: number of the sample in packed order.
        classes: class names by number.
        types: called with the name of a field, returns its type.

    Raises:
        IndexFileError: the index is missing or corrupt.
        TarError: the shard is missing, truncated or changed.
        OSError: the shard cannot be read.
    """
    index, file = entry.load_index(), entry.open_file()
    values = []
    for name, (offset, size, *_) in index.members(row).items():
        type_ = types(name)
        needed = size if type_.preview_bytes is None else min(size, type_.preview_bytes)
        data = file.read(offset, needed)
        try:
            value = type_.preview(data)
        except CodecError as error:
            value = f"cannot be decoded: {error}"
        else:
            if name == LABEL_FIELD and classes is not None:
                value += f" ({class_name(int(value), classes) or 'not in the list of classes'})"
        values.append(
            FieldValue(name=name, kind=describe_type(type_), bytes=size, offset=offset, value=value)
        )
    return SampleInfo(
        key=index.key(row),
        number=number,
        shard=entry.name,
        fields=tuple(sorted(values, key=lambda value: value.offset)),
    )


PREVIEW_COUNT = 48
MOST_PREVIEWED = 960
_WHOLE = ""  # name of a source without splits


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardInfo:
    """Description of one shard.

    Attributes:
        name: path of the shard.
        samples: number of samples.
        bytes: size of the uncompressed tar.
        checksums: whether the index has checksums of the members.
    """

    name: str
    samples: int
    bytes: int
    checksums: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldInfo:
    """Description of one field over all samples.

    Attributes:
        name: name of the field.
        kind: name of the type of the field, and its parameters in parentheses.
        samples: number of samples with the field.
        bytes: total size of its data.
        median: median size of its data; the smaller one of two.
        largest: maximum size of its data.
    """

    name: str
    kind: str
    samples: int
    bytes: int
    median: int
    largest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCount:
    """Size of one class.

    Attributes:
        number: class number; None where splits number their classes differently.
        name: class name; None if there are no names or the number is not among them.
        samples: number of samples.
    """

    number: int | None
    name: str | None
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassesInfo:
    """Statistics of the class numbers, which are in the field `cls`.

    Attributes:
        named: number of classes with names; None if no manifest lists names.
        counts: classes by number, including classes with a name but no samples; by name where
            splits number their classes differently.
        complete: whether `counts` has all numbers; False if more than 100,000 occur.
        outside: number of samples whose class number has no name.
        unreadable: number of samples whose `cls` is not a number.
        missing: number of samples without `cls`.
    """

    named: int | None
    counts: tuple[ClassCount, ...]
    complete: bool
    outside: int
    unreadable: int
    missing: int

    @property
    def by_name(self) -> bool:
        """Whether splits number their classes differently, so that names are counted."""
        return any(count.number is None for count in self.counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """Description of a source.

    Attributes:
        source: paths of the source.
        samples: number of samples in all shards.
        bytes: total size of the shards.
        shards: shards in order.
        fields: fields sorted by name.
        classes: statistics of the class numbers in the field cls; None if no sample has one.
        class_names: names of the classes by number, as ShardDataset has them; they may be those of
            boxes. None if no manifest lists names.
        sample: description of one sample; None if there is none, and for a split.
        ledgers: number of lines of each existing ledger (skipped.jsonl, renamed.jsonl and
            duplicates.jsonl), by file name.
        splits: splits by name; empty unless the source is a folder of splits.
        warnings: shards that are missing from folders without a manifest, by their indexes.
    """

    source: tuple[str, ...]
    samples: int
    bytes: int
    shards: tuple[ShardInfo, ...]
    fields: tuple[FieldInfo, ...]
    classes: ClassesInfo | None
    sample: SampleInfo | None
    ledgers: Mapping[str, int]
    splits: Mapping[str, Info] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    warnings: tuple[str, ...] = ()


def info(
    source: ShardPaths,
    *,
    sample: int | str = 0,
    preview: str | PathLike[str] | None = None,
    preview_count: int = PREVIEW_COUNT,
    fields: Mapping[str, str | FieldType] | None = None,
    allow_empty: bool = False,
    max_pixels: int = MAX_PIXELS,
    storage_options: Options | None = None,
    progress: Callable[[int], Callable[[int], None]] | None = None,
) -> Info:
    """Describe shards: samples, shards, fields, classes, and the fields of one sample.

    Counts and sizes are those of the indexes. Class numbers of up to seven digits follow from
    checksums. Longer ones are read from the members, and so are all if there are no checksums.

    Args:
        source: source as for shardio.indexing.catalog.open_catalog, or a folder of splits.
        sample: number in packed order, or key, of a sample to describe; keys come before numbers.
        preview: path of a PNG file to write, with a grid of images from evenly spread samples.
        preview_count: number of images in the preview, from 1 to 960.
        fields: field types, as ShardDataset takes them; other fields keep those of the folder.
        allow_empty: whether to accept tars whose members belong to no sample.
        max_pixels: maximum number of pixels of an image; see shardio.fields.limits.
        storage_options: settings of the store of a URL, as ShardDataset takes them.
        progress: callback for the number of shards; it returns one for those just finished.

    Raises:
        UsageError: the source or the sample does not exist, or there is nothing to preview.
        IndexFileError: a manifest or index is corrupt or stale, or a pack is unfinished.
        TarError: a shard is corrupt, missing or changed.
        OSError: a shard cannot be read, or the preview cannot be written.
    """
    whole_number("max_pixels", max_pixels, least=1)
    given = given_types(fields)
    _check_preview(preview, preview_count)
    parts = list_parts(source, options=storage_options)
    folders = _find_splits(parts)
    named: Mapping[str, ShardPaths] = folders or {_WHOLE: parts}
    catalogs = {name: open_catalog(part, allow_empty=allow_empty) for name, part in named.items()}
    entries = [entry for catalog in catalogs.values() for entry in catalog.shards]
    types = _choose_types(catalogs, given, max_pixels)
    finder = KeyFinder(sample) if isinstance(sample, str) else None
    found = _look_through(catalogs, finder, progress(len(entries)) if progress else None)
    whole = _Contents.of([*found.values()])
    number = _number_of(sample, finder, whole.samples)
    if preview is not None:
        _write_preview(Path(preview), entries, whole.classes, preview_count, types)
    return whole.info(
        types,
        source=(*map(str, parts),),
        sample=_look_at_number(catalogs.values(), number, types),
        ledgers=_count_ledgers(parts),
        splits={
            name: contents.info(types, source=(str(folders[name]),))
            for name, contents in (found if folders else {}).items()
        },
        warnings=(*_lost_shards(parts),),
    )


def _lost_shards(parts: Sequence[Location]) -> Iterator[str]:
    """Describe the shards that folders have indexes of, and no manifest that would list them."""
    for part in parts:
        if part.is_folder() and not is_packed(part):
            for index in indexes_without_shard(part, part.names()):
                yield f"{index}: its shard is missing; restore the shard, or remove the index"


def _choose_types(
    catalogs: Mapping[str, Catalog], given: Mapping[str, FieldType], max_pixels: int
) -> TypeOf:
    """Return a function from the name of a field to its type: a given one, or that of the parts."""
    recorded = merge_types((name, each.types, each.types) for name, each in catalogs.items())
    return partial(type_of, max_pixels=max_pixels, given=combined_types(recorded, given))


def _look_through(
    catalogs: Mapping[str, Catalog], finder: KeyFinder | None, done: Callable[[int], None] | None
) -> dict[str, _Contents]:
    """Collect the contents of all indexes, by split."""
    found = {name: _Contents(catalog.classes) for name, catalog in catalogs.items()}
    for name, catalog in catalogs.items():
        for entry in catalog.shards:
            if not _is_whole(entry):
                entry.open_file()  # raises the error
            index = entry.load_index()
            found[name].add(entry, index)
            if finder is not None:
                finder.add(index)
            if done is not None:
                done(1)
    return found


def _is_whole(entry: ShardEntry) -> bool:
    """Return whether a shard has the expected size, without opening it, which may be slow."""
    try:
        return Path(entry.path).stat().st_size == entry.size
    except OSError:
        return False


class _Contents:
    """Contents of the indexes of some shards.

    Args:
        classes: class names by number.
    """

    def __init__(self, classes: tuple[str, ...] | None) -> None:
        self.classes = classes
        self.shards: list[ShardInfo] = []
        self.samples = 0
        self._sizes: dict[str, Tally] = {}
        self._numbers = ClassCounter(len(classes or ()))
        self._parts: Sequence[_Contents] = ()

    def add(self, entry: ShardEntry, index: ShardIndex) -> None:
        self.samples += len(index)
        self.shards.append(
            ShardInfo(
                name=entry.name,
                samples=len(index),
                bytes=index.shard_size,
                checksums=index.checksums is not None,
            )
        )
        for name, cells in index.by_field():
            self._sizes.setdefault(name, Tally()).add(index.sizes.take(cells))
        self._numbers.add(entry, index)

    def merge(self, other: _Contents) -> None:
        self.samples += other.samples
        self.shards += other.shards
        for name, sizes in other._sizes.items():
            self._sizes.setdefault(name, Tally()).merge(sizes)
        self._numbers.merge(other._numbers)

    @classmethod
    def of(cls, parts: Sequence[_Contents]) -> _Contents:
        """Merge contents; class names are kept if all parts number them alike."""
        if len(parts) == 1:
            return parts[0]
        lists = {part.classes for part in parts if part.classes or LABEL_FIELD in part._sizes}
        longest = max(lists, key=lambda each: len(each or ()), default=None)
        alike = all(each == (longest and longest[: len(each or ())]) for each in lists)
        whole = cls(longest if alike else None)
        for part in parts:
            whole.merge(part)
        whole._parts = () if alike else parts
        return whole

    def info(
        self,
        types: TypeOf,
        *,
        source: tuple[str, ...],
        sample: SampleInfo | None = None,
        ledgers: Mapping[str, int] | None = None,
        splits: Mapping[str, Info] | None = None,
        warnings: tuple[str, ...] = (),
    ) -> Info:
        return Info(
            source=source,
            samples=self.samples,
            bytes=sum(shard.bytes for shard in self.shards),
            shards=tuple(self.shards),
            fields=tuple(
                _field_info(name, types(name), sizes) for name, sizes in sorted(self._sizes.items())
            ),
            classes=self._classes_info() if LABEL_FIELD in self._sizes else None,
            sample=sample,
            ledgers=ledgers or {},
            splits=splits or {},
            class_names=self.classes,
            warnings=warnings,
        )

    def _classes_info(self) -> ClassesInfo:
        if self._parts:
            return self._classes_by_name()
        counts, named = self._numbers.numbers, len(self.classes or ())
        numbers = sorted({*counts, *range(named)})
        return ClassesInfo(
            named=None if self.classes is None else named,
            counts=tuple(
                ClassCount(
                    number=number, name=class_name(number, self.classes), samples=counts[number]
                )
                for number in numbers
            ),
            complete=self._numbers.complete,
            outside=0
            if self.classes is None
            else sum(count for number, count in counts.items() if not 0 <= number < named),
            unreadable=self._numbers.unreadable,
            missing=self._numbers.missing,
        )

    def _classes_by_name(self) -> ClassesInfo:
        """Add up the classes of parts whose numbers do not mean the same."""
        counts, unnamed = Counter[str](), 0
        for part in self._parts:
            for each in part._classes_info().counts:
                if each.name is None:
                    unnamed += each.samples
                else:
                    counts[each.name] += each.samples
        return ClassesInfo(
            named=len(counts),
            counts=tuple(
                ClassCount(number=None, name=name, samples=samples)
                for name, samples in sorted(counts.items())
            ),
            complete=all(part._numbers.complete for part in self._parts),
            outside=unnamed,
            unreadable=self._numbers.unreadable,
            missing=self._numbers.missing,
        )


def _field_info(name: str, type_: FieldType, sizes: Tally) -> FieldInfo:
    numbers, counts = sizes.counts()
    return FieldInfo(
        name=name,
        kind=describe_type(type_),
        samples=int(counts.sum()),
        bytes=int((numbers * counts).sum()),
        median=sizes.median(),
        largest=int(numbers[-1]) if len(numbers) else 0,
    )


def _find_splits(parts: Sequence[Location]) -> dict[str, Location]:
    """Return the packed folders in a folder without shards of its own, by name."""
    folder = parts[0]
    if len(parts) > 1 or not folder.is_folder() or is_packed(folder):
        return {}
    refuse_unfinished(folder)
    if any(name.endswith(SHARD_SUFFIXES) for name in folder.names()):
        return {}
    return {path.name: path for path in find_splits(folder)}


def _number_of(sample: int | str, finder: KeyFinder | None, samples: int) -> int | None:
    """Return the number of the requested sample; None for the default if there are no samples."""
    if finder is not None and finder.number is not None:
        return finder.number
    if isinstance(sample, str) and not (sample.isascii() and sample.isdecimal()):
        raise SituationError(
            f"no sample has the key {sample!r}", remedy="give an existing key, or a number"
        )
    number = int(sample)
    if not samples and not number:
        return None
    if not 0 <= number < samples:
        raise SituationError(
            f"there is no sample {sample}: it is not a key, and numbers are from 0 to "
            f"{samples - 1:,}"
        )
    return number


def _look_at_number(
    catalogs: Iterable[Catalog], number: int | None, types: TypeOf
) -> SampleInfo | None:
    row = number or 0
    for catalog in catalogs:
        for entry in catalog.shards:
            if number is not None and row < entry.samples:
                return look_at(entry, row, number=number, classes=catalog.classes, types=types)
            row -= entry.samples
    return None


def _count_ledgers(parts: Sequence[Location]) -> dict[str, int]:
    """Count the lines of each existing ledger in the folders."""
    found = {name: [part / name for part in parts if (part / name).is_file()] for name in LEDGERS}
    return {name: sum(map(_count_lines, files)) for name, files in found.items() if files}


def _count_lines(file: Location) -> int:
    data = StoredBytes(file.open())
    return sum(piece.count(b"\n") for piece in data.pieces(0, len(data)))


def _write_preview(
    path: Path,
    entries: Sequence[ShardEntry],
    classes: tuple[str, ...] | None,
    count: int,
    types: TypeOf,
) -> None:
    from shardio.inspection.preview import write_sheet  # noqa: PLC0415  loads OpenCV

    write_sheet(path, entries, classes, count, types)


def _check_preview(path: str | PathLike[str] | None, count: int) -> None:
    if path is None:
        return
    refuse_url(path)
    if not fspath(path).lower().endswith(".png"):
        raise UsageError(
            "the preview must be a PNG file",
            where=path,
            remedy="give it a name such as sheet.png",
        )
    good = is_whole(count, least=1, most=MOST_PREVIEWED)
    require(good, "preview_count", count, f"1 to {MOST_PREVIEWED} images")
