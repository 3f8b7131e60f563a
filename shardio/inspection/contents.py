"""Check what fields hold, and add up statistics of it.

A deep check decodes each value and then looks at the values of a sample together: masks, depth,
boxes and points are held against the sample's picture. What readers refuse is a problem. What they
deliver though it is odd, such as a box outside its picture, is counted as a note. Field types
summarize their values; this module knows none of them.

Statistics are added up by a pure function, over the samples of a shard and then over the shards in
their order, so they do not depend on the number of processes. Of class numbers the smallest ones
are counted, 24 bytes for each. Those beyond the limit are left out, and said to be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardio.checks import whole_number
from shardio.errors import CodecError, counted
from shardio.fields.base import FieldType, picture_info
from shardio.fields.defaults import combined_types, type_of
from shardio.fields.geometry import View
from shardio.fields.probe import ImageInfo
from shardio.fields.summary import MOST_CLASSES, FieldSummary
from shardio.inspection.findings import ClassShare, FieldStatistics, Finding, ScopedShard
from shardio.packing.task import decoding

_AT_ONCE = 256  # summaries to add up, unless their classes are many
_OTHER_SIZE = (
    "differ in size from the first picture of their sample",
    "a transform refuses them; read them with Image(…, crop='own') if they are other views",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldCheck:
    """Check of the data of fields.

    Attributes:
        deep: whether to decode all data; otherwise only the header and the end of images are
            checked.
        max_pixels: maximum number of pixels of an image; see shardio.fields.limits.
        types: field types given by the user, by field name; other fields have their defaults.

    Raises:
        UsageError: invalid max_pixels.
    """

    deep: bool
    max_pixels: int
    types: Mapping[str, FieldType] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole_number("max_pixels", self.max_pixels, least=1)

    def of(self, shard: ScopedShard) -> FieldCheck:
        """Return the check of a shard, whose manifest may record types."""
        return replace(self, types=combined_types(shard.types, self.types))

    def type_of(self, name: str) -> FieldType:
        """Return the type of a field."""
        return type_of(name, self.max_pixels, self.types)

    def sample(self, names: Iterable[str]) -> SampleCheck:
        """Begin to check a sample.

        Args:
            names: names of its fields.
        """
        return SampleCheck(self, names)

    def is_delivered(self, name: str, data: memoryview) -> bool:
        """Tell whether readers deliver data that have their checksum and are not sound."""
        try:
            self.type_of(name).decode_verified(data)
        except (CodecError, MemoryError):
            return False
        return True

    def context(self) -> AbstractContextManager[None]:
        """Return the context to run checks in."""
        return decoding() if self.deep else nullcontext()


class SampleCheck:
    """Check of the fields of one sample.

    Args:
        check: check of the data of fields.
        names: names of the fields.
    """

    def __init__(self, check: FieldCheck, names: Iterable[str]) -> None:
        self._check = check
        self._types = {name: check.type_of(name) for name in names}
        leads = [name for name, each in self._types.items() if each.geometry == "leads"]
        self._pictures = sorted(leads, key=self._rank)
        follows = any(each.geometry == "follows" for each in self._types.values())
        self._needs_sizes = check.deep and (follows or len(leads) > 1)
        self._sizes: dict[str, ImageInfo] = {}
        self._values: dict[str, Any] = {}

    def fault(self, name: str, data: memoryview) -> CodecError | None:
        """Return the error in the data of a field, or None; keep what `finish` needs."""
        type_, deep = self._types[name], self._check.deep
        told = type(type_).summarize is not FieldType.summarize
        try:
            if self._needs_sizes and type_.geometry == "leads":
                self._sizes[name] = picture_info(type_, data)
            type_.check(data, deep=deep and not told)
            if deep and (told or type_.geometry == "follows"):
                self._values[name] = type_.decode(data)
        except CodecError as error:
            return error
        except MemoryError:
            return _too_large()
        return None

    def finish(self) -> Iterator[tuple[str, CodecError | FieldSummary]]:
        """Look at the values of the sample together, after all of its fields.

        Yields:
            Names of fields, each with the error for which readers refuse it, or its summary.
        """
        first = next(iter(self._pictures), None)
        info = None if first is None else self._sizes.get(first)
        view = None
        if first is not None and info is not None:
            view = View.of(info, first)
        for name, value in self._values.items():
            type_ = self._types[name]
            try:
                if type_.geometry == "follows" and (view is not None or first is None):
                    value = type_.follow(value, view)  # noqa: PLW2901  as readers deliver it
                summary = type_.summarize(value, view)
            except CodecError as error:
                yield name, error
            except MemoryError:
                yield name, _too_large()
            else:
                if summary is not None:
                    yield name, summary
        if view is not None:
            yield from self._other_pictures(view)

    def _other_pictures(self, view: View) -> Iterator[tuple[str, FieldSummary]]:
        for name in self._pictures[1:]:
            info = self._sizes.get(name)
            if info is None or self._types[name].crop == "own":
                continue
            try:
                view.reduction(info.height, info.width)
            except CodecError:
                yield name, FieldSummary(unit="pictures", notes={_OTHER_SIZE: 1})
            else:
                yield name, FieldSummary(unit="pictures")

    def _rank(self, name: str) -> tuple[int, bool, str]:
        """Order pictures as readers do: those that a user named first, then plain names."""
        given = [*self._check.types]
        rank = given.index(name) if name in given else len(given)
        return rank, name not in self._types[name].names, name


class TooLargeError(CodecError):
    """Data that may be sound, and that this machine has too little memory to decode."""


def _too_large() -> TooLargeError:
    return TooLargeError(
        "this machine has too little memory to decode it",
        remedy="verify it on a machine with more memory",
    )


class Place(NamedTuple):
    """Place of a value.

    Attributes:
        shard: path of its shard.
        key: key of its sample.
        offset: offset of its data.
    """

    shard: str
    key: str
    offset: int


class Noted(NamedTuple):
    """Values with a note.

    Attributes:
        values: number of values.
        samples: number of samples that have them.
        first: place of the first one.
    """

    values: int
    samples: int
    first: Place


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FieldTotals:
    """Sum of the summaries of a field.

    Attributes:
        name: name of the field.
        kind: name of its type.
        unit: plural name of what is counted.
        samples: number of samples.
        values: number of values.
        low: smallest value, or None.
        high: largest value, or None.
        counts: number of values by property.
        classes: class numbers, ascending, and their numbers of values and samples, int64 [3, n];
            None if the values have no classes.
        notes: values with notes, by note.
    """

    name: str
    kind: str
    unit: str
    samples: int
    values: int
    low: float | None
    high: float | None
    counts: Mapping[str, int]
    classes: NDArray[np.int64] | None
    notes: Mapping[tuple[str, str], Noted]


def totals_of(name: str, kind: str, summary: FieldSummary, place: Place) -> FieldTotals:
    """Return the totals of one value."""
    classes = None
    if summary.classes is not None:
        numbers = np.array(sorted(summary.classes), np.int64)
        values = np.array([summary.classes[number] for number in numbers.tolist()], np.int64)
        classes = np.stack([numbers, values, np.ones_like(numbers)])[:, :MOST_CLASSES]
    return FieldTotals(
        name=name,
        kind=kind,
        unit=summary.unit,
        samples=1,
        values=int(summary.values),
        low=_plain(summary.low),
        high=_plain(summary.high),
        counts={name: int(values) for name, values in summary.counts.items()},
        classes=classes,
        notes={note: Noted(int(values), 1, place) for note, values in summary.notes.items()},
    )


def _plain(number: float | None) -> float | None:
    """Return a number of Python for one that may be of NumPy."""
    return None if number is None else np.asarray(number).item()


def add_totals(parts: Sequence[FieldTotals]) -> FieldTotals:
    """Add up totals of one field, at least one, in the order of their samples."""
    counts: dict[str, int] = {}
    notes: dict[tuple[str, str], Noted] = {}
    for part in parts:
        for name, values in part.counts.items():
            counts[name] = counts.get(name, 0) + values
        for note, noted in part.notes.items():
            before = notes.get(note, Noted(0, 0, noted.first))
            notes[note] = Noted(
                before.values + noted.values, before.samples + noted.samples, before.first
            )
    return FieldTotals(
        name=parts[0].name,
        kind=parts[0].kind,
        unit=parts[0].unit,
        samples=sum(part.samples for part in parts),
        values=sum(part.values for part in parts),
        low=min((part.low for part in parts if part.low is not None), default=None),
        high=max((part.high for part in parts if part.high is not None), default=None),
        counts=counts,
        classes=_add_classes([part.classes for part in parts if part.classes is not None]),
        notes=notes,
    )


def _add_classes(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64] | None:
    """Add up counts of classes; the smallest numbers are exact though others were left out."""
    if not parts:
        return None
    together = np.concatenate(parts, axis=1)
    together = together[:, np.argsort(together[0], kind="stable")]
    numbers = together[0]
    starts = np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1])[: len(numbers)])
    sums = np.add.reduceat(together[1:], starts, axis=1) if len(starts) else together[1:]
    return np.concatenate([numbers[None, starts], sums])[:, :MOST_CLASSES]


class Statistics:
    """Totals of the fields of a shard while it is read."""

    def __init__(self) -> None:
        self._parts: list[FieldTotals] = []
        self._waiting = 0

    def add(self, name: str, kind: str, summary: FieldSummary, place: Place) -> None:
        """Add the summary of a value; see totals_of."""
        self._parts.append(totals_of(name, kind, summary, place))
        self._waiting += 1 + len(summary.classes or ()) * _AT_ONCE // MOST_CLASSES
        if self._waiting > _AT_ONCE:
            self._parts, self._waiting = [*self.totals()], 0

    def totals(self) -> tuple[FieldTotals, ...]:
        """Return the totals by name of the field."""
        return add_up(self._parts)


def add_up(parts: Iterable[FieldTotals]) -> tuple[FieldTotals, ...]:
    """Add up totals of the same field, type and unit, in the order of their samples."""
    alike: dict[tuple[str, str, str], list[FieldTotals]] = {}
    for part in parts:
        alike.setdefault((part.name, part.kind, part.unit), []).append(part)
    return tuple(add_totals(each) for _, each in sorted(alike.items()))


def notes_of(totals: Iterable[FieldTotals]) -> Iterator[Finding]:
    """Yield a finding for each note of each field."""
    for each in totals:
        for (what, remedy), noted in each.notes.items():
            yield Finding(
                severity="note",
                shard=noted.first.shard,
                key=noted.first.key,
                field=each.name,
                offset=noted.first.offset,
                what=f"{noted.values:,} of {each.values:,} {each.unit}, in "
                f"{counted(noted.samples, 'sample')}, {what}, this one first",
                remedy=remedy,
            )


def statistics_of(totals: Iterable[FieldTotals]) -> tuple[FieldStatistics, ...]:
    """Return the statistics of the fields that have any."""
    return tuple(
        FieldStatistics(
            name=each.name,
            kind=each.kind,
            samples=each.samples,
            unit=each.unit,
            values=each.values,
            low=each.low,
            high=each.high,
            counts=each.counts,
            classes=_shares(each.classes),
            complete=each.classes is None or int(each.classes[1].sum()) == each.values,
        )
        for each in totals
        if each.classes is not None or each.low is not None or each.counts
    )


def _shares(classes: NDArray[np.int64] | None) -> tuple[ClassShare, ...] | None:
    if classes is None:
        return None
    return tuple(
        ClassShare(number=number, values=values, samples=samples)
        for number, values, samples in classes.T.tolist()
    )
