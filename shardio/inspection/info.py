"""One sample: where it is, and a short look at what its fields hold.

What shards hold: all of it from their indexes, a sample and class numbers from a few members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from os import PathLike, fspath
from pathlib import Path

import numpy as np

from shardio.checks import is_whole, require, whole_number
from shardio.errors import CodecError, SituationError, UsageError
from shardio.fields.base import LABEL_FIELD, FieldType
from shardio.fields.defaults import given_types, type_of
from shardio.fields.limits import MAX_PIXELS
from shardio.indexing.catalog import (
    SHARD_SUFFIXES,
    Catalog,
    ShardEntry,
    ShardPaths,
    is_packed,
    list_parts,
    open_catalog,
    refuse_unfinished,
)
from shardio.indexing.shard_index import ShardIndex
from shardio.inspection.counts import ClassCounter, Tally, class_name
from shardio.packing.layout import LEDGERS
from shardio.storage.local import refuse_url

TypeOf = Callable[[str], FieldType]


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldValue:
    """One field of a sample.

    Attributes:
        name: of the field.
        kind: name of its type.
        bytes: of its data.
        offset: of its data in the shard.
        value: preview of its type: format and height × width of an image, number and name of a
            class, the first 60 characters of text, dtype and shape of an array, the first 16 bytes
            of others; or why it does not decode.
    """

    name: str
    kind: str
    bytes: int
    offset: int
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleInfo:
    """One sample.

    Attributes:
        key: of the sample.
        number: its position in the dataset as packed.
        shard: path of its shard.
        fields: in the order of their data.
    """

    key: str
    number: int
    shard: str
    fields: tuple[FieldValue, ...]


class KeyFinder:
    """Looks for a key, shard by shard.

    Args:
        key: of the sample.

    Attributes:
        number: of the first sample that has it, in the order of shards; None if none has.
    """

    def __init__(self, key: str) -> None:
        self._key = key.encode("utf-8", "surrogateescape")
        self._passed = 0
        self.number: int | None = None

    def add(self, index: ShardIndex) -> None:
        """Look at the keys of the next shard."""
        if self.number is None:
            starts, ends = index.key_ends[:-1], index.key_ends[1:]
            rows = np.flatnonzero(ends - starts == len(self._key))
            for place in reversed(range(len(self._key))):  # keys differ most at their ends
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
    """Look at a sample.

    Args:
        entry: of its shard.
        row: its position there.
        number: its position in the dataset.
        classes: names by number.
        types: called with the name of a field, returns its type.

    Raises:
        IndexFileError: the index is missing or damaged.
        TarError: the shard is missing, cut off or changed.
        OSError: it cannot be read.
    """
    index, file = entry.load_index(), entry.open_file()
    values = []
    for name, offset, size in zip(
        index.fields, index.offsets[row].tolist(), index.sizes[row].tolist(), strict=True
    ):
        if offset < 0:
            continue
        type_ = types(name)
        needed = size if type_.preview_bytes is None else min(size, type_.preview_bytes)
        data = file.read(offset, needed)
        try:
            value = type_.preview(data)
        except CodecError as error:
            value = f"does not decode: {error}"
        else:
            if name == LABEL_FIELD and classes is not None:
                value += f" ({class_name(int(value), classes) or 'not in the list of classes'})"
        values.append(
            FieldValue(name=name, kind=type_.name, bytes=size, offset=offset, value=value)
        )
    return SampleInfo(
        key=index.key(row),
        number=number,
        shard=entry.name,
        fields=tuple(sorted(values, key=lambda value: value.offset)),
    )


PREVIEW_COUNT = 48
MOST_PREVIEWED = 960
_PIECE = 1 << 20
_WHOLE = ""  # name of what is no split


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardInfo:
    """One shard.

    Attributes:
        name: its path.
        samples: how many it holds.
        bytes: of its uncompressed tar.
        checksums: its index has those of members.
    """

    name: str
    samples: int
    bytes: int
    checksums: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldInfo:
    """One field of all samples.

    Attributes:
        name: of the field.
        kind: name of its type.
        samples: that have it.
        bytes: of its data in all of them.
        median: bytes of the data in the middle, of two the smaller.
        largest: bytes of the largest data.
    """

    name: str
    kind: str
    samples: int
    bytes: int
    median: int
    largest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCount:
    """One class.

    Attributes:
        number: of the class.
        name: None without names, and for a number outside the list of them.
        samples: of the class.
    """

    number: int
    name: str | None
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassesInfo:
    """The class numbers, which are in the field `cls`.

    Attributes:
        named: how many classes have names; None where no manifest has a list.
        counts: by number; a class with a name is among them without samples, too.
        complete: False where more than 100,000 different numbers came, and not all are in
            `counts`.
        outside: samples whose number is not in the list of names.
        unreadable: samples whose `cls` is no number.
        missing: samples without `cls`.
    """

    named: int | None
    counts: tuple[ClassCount, ...]
    complete: bool
    outside: int
    unreadable: int
    missing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """What a source holds.

    Attributes:
        source: its paths.
        samples: in all shards.
        bytes: of all shards.
        shards: in order.
        fields: sorted by name.
        classes: None where no sample has a class number.
        sample: one of them; None if there is none, and for a split.
        ledgers: lines of skipped.jsonl, renamed.jsonl and duplicates.jsonl, by file name, of
            those that are there.
        splits: by name; empty for a source that is no folder of splits.
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


def info(
    source: ShardPaths,
    *,
    sample: int | str = 0,
    preview: str | PathLike[str] | None = None,
    preview_count: int = PREVIEW_COUNT,
    fields: Mapping[str, str | FieldType] | None = None,
    allow_empty: bool = False,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int], Callable[[int], None]] | None = None,
) -> Info:
    """Say what shards hold: samples, shards, fields, classes, and the fields of one sample.

    Counts and sizes are those of the indexes. Class numbers of up to seven digits follow from
    checksums; where an index has none, and of longer ones, the members are read.

    Args:
        source: see shardio.indexing.catalog.open_catalog; or a folder of packed folders, which
            are its splits.
        sample: the one to look at, by its position as packed or by its key; digits that are no
            key are a position.
        preview: a PNG file for a contact sheet, of images evenly spread over the samples.
        preview_count: images on it, 1 to 960.
        fields: field types, as ShardDataset takes them; other fields have their default types.
        allow_empty: take tars that have members, none of which is a field of a sample.
        max_pixels: greatest number of pixels of an image, see shardio.fields.limits.
        progress: called with the number of shards; what it returns is called with how many more
            are done.

    Raises:
        UsageError: nothing is at the source, there is no such sample, or nothing to preview.
        IndexFileError: a manifest or index is damaged or stale, or a pack is unfinished.
        TarError: a shard is damaged, missing or was changed.
        OSError: a shard cannot be read or the preview not written.
    """
    whole_number("max_pixels", max_pixels, least=1)
    types = partial(type_of, max_pixels=max_pixels, given=given_types(fields))
    if preview is not None:
        _check_preview(fspath(preview), preview_count)
    parts = [*map(Path, list_parts(source))]
    folders = _find_splits(parts)
    named: Mapping[str, ShardPaths] = folders or {_WHOLE: source}
    catalogs = {name: open_catalog(part, allow_empty=allow_empty) for name, part in named.items()}
    entries = [entry for catalog in catalogs.values() for entry in catalog.shards]
    finder = KeyFinder(sample) if isinstance(sample, str) else None
    found = _look_through(catalogs, finder, progress(len(entries)) if progress else None)
    whole = _merge([*found.values()])
    number = _number_of(sample, finder, whole.samples)
    if preview is not None:
        _write_preview(Path(preview), entries, whole.classes, preview_count, types)
    return whole.info(
        types,
        source=(*map(str, parts),),
        sample=_look_at_number(entries, number, whole.classes, types),
        ledgers=_count_ledgers(parts),
        splits={
            name: contents.info(types, source=(str(folders[name]),))
            for name, contents in (found if folders else {}).items()
        },
    )


def _look_through(
    catalogs: Mapping[str, Catalog], finder: KeyFinder | None, done: Callable[[int], None] | None
) -> dict[str, _Contents]:
    """What the indexes of all shards say, by split."""
    found = {name: _Contents(catalog.classes) for name, catalog in catalogs.items()}
    for name, catalog in catalogs.items():
        for entry in catalog.shards:
            if not _is_whole(entry):
                entry.open_file()  # raises what is wrong
            index = entry.load_index()
            found[name].add(entry, index)
            if finder is not None:
                finder.add(index)
            if done is not None:
                done(1)
    return found


def _is_whole(entry: ShardEntry) -> bool:
    """Whether the shard has the size that its index expects; on slow storage opening takes long."""
    try:
        return Path(entry.path).stat().st_size == entry.size
    except OSError:
        return False


class _Contents:
    """What the indexes of some shards say.

    Args:
        classes: names by number.
    """

    def __init__(self, classes: tuple[str, ...] | None) -> None:
        self.classes = classes
        self.shards: list[ShardInfo] = []
        self.samples = 0
        self._sizes: dict[str, Tally] = {}
        self._numbers = ClassCounter(len(classes or ()))

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
        for column, name in enumerate(index.fields):
            there = index.offsets[:, column] >= 0
            self._sizes.setdefault(name, Tally()).add(index.sizes[there, column])
        self._numbers.add(entry, index)

    def merge(self, other: _Contents) -> None:
        self.samples += other.samples
        self.shards += other.shards
        for name, sizes in other._sizes.items():
            self._sizes.setdefault(name, Tally()).merge(sizes)
        self._numbers.merge(other._numbers)

    def info(
        self,
        types: TypeOf,
        *,
        source: tuple[str, ...],
        sample: SampleInfo | None = None,
        ledgers: Mapping[str, int] | None = None,
        splits: Mapping[str, Info] | None = None,
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
        )

    def _classes_info(self) -> ClassesInfo:
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


def _merge(parts: Sequence[_Contents]) -> _Contents:
    """All of them together; with names of classes if they have the same."""
    if len(parts) == 1:
        return parts[0]
    names = {part.classes for part in parts}
    whole = _Contents(names.pop() if len(names) == 1 else None)
    for part in parts:
        whole.merge(part)
    return whole


def _field_info(name: str, type_: FieldType, sizes: Tally) -> FieldInfo:
    numbers, counts = sizes.counts()
    return FieldInfo(
        name=name,
        kind=type_.name,
        samples=int(counts.sum()),
        bytes=int((numbers * counts).sum()),
        median=sizes.median(),
        largest=int(numbers[-1]) if len(numbers) else 0,
    )


def _find_splits(parts: Sequence[Path]) -> dict[str, Path]:
    """The packed folders in a folder that has no shards itself, by name."""
    folder = parts[0]
    if len(parts) > 1 or not folder.is_dir() or is_packed(folder):
        return {}
    refuse_unfinished(folder)
    if any(path.name.endswith(SHARD_SUFFIXES) for path in folder.iterdir()):
        return {}
    return {path.name: path for path in sorted(folder.iterdir()) if is_packed(path)}


def _number_of(sample: int | str, finder: KeyFinder | None, samples: int) -> int | None:
    """The position of the wanted sample; None if there is none at all and none is named."""
    if finder is not None and finder.number is not None:
        return finder.number
    if isinstance(sample, str) and not (sample.isascii() and sample.isdecimal()):
        raise SituationError(
            f"no sample has the key {sample!r}", remedy="give a key as it is, or a position"
        )
    number = int(sample)
    if not samples and not number:
        return None
    if not 0 <= number < samples:
        raise SituationError(
            f"there is no sample {sample}: no key is so, and positions go from 0 to {samples - 1:,}"
        )
    return number


def _look_at_number(
    entries: Sequence[ShardEntry],
    number: int | None,
    classes: tuple[str, ...] | None,
    types: TypeOf,
) -> SampleInfo | None:
    if number is None:
        return None
    row = number
    for entry in entries:
        if row < entry.samples:
            break
        row -= entry.samples
    return look_at(entry, row, number=number, classes=classes, types=types)


def _count_ledgers(parts: Sequence[Path]) -> dict[str, int]:
    """Lines of each ledger that lies in the folders."""
    found = {name: [part / name for part in parts if (part / name).is_file()] for name in LEDGERS}
    return {name: sum(map(_count_lines, paths)) for name, paths in found.items() if paths}


def _count_lines(path: Path) -> int:
    with path.open("rb") as stream:
        return sum(piece.count(b"\n") for piece in iter(lambda: stream.read(_PIECE), b""))


def _write_preview(
    path: Path,
    entries: Sequence[ShardEntry],
    classes: tuple[str, ...] | None,
    count: int,
    types: TypeOf,
) -> None:
    from shardio.inspection.preview import write_sheet  # noqa: PLC0415  loads OpenCV

    write_sheet(path, entries, classes, count, types)


def _check_preview(path: str, count: int) -> None:
    refuse_url(path)
    if not path.lower().endswith(".png"):
        raise UsageError("the preview is a PNG file", where=path, remedy="name it so, as sheet.png")
    good = is_whole(count, least=1, most=MOST_PREVIEWED)
    require(good, "preview_count", count, f"1 to {MOST_PREVIEWED} images")
